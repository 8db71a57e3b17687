/** Internal snapshots of an image that nobody has open: listed, made, applied, deleted. The order of writes is `Edit`'s. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { SnapshotFacts } from '../driver.js'
import { aroundChange, checkBitmaps } from './bitmap-tools.js'
import { checkImage } from './check.js'
import { Edit } from './edit.js'
import { COPIED } from './entries.js'
import { type Header, MAX_SNAPSHOTS, readHeader } from './header.js'
import { writeDiskFields, writeSnapshotFields } from './header-fields.js'
import { encodeSnapshots, findSnapshot, makeSnapshot, readSnapshots, type Snapshot } from './snapshot-table.js'
import { type Structure, shapeOf } from './structure.js'
import { l2Span } from './walk.js'

/** Bytes, as QEMU limits them. */
const MAX_NAME = 255
const ENTRY_BYTES = 8

export function listSnapshots(storage: Storage): SnapshotFacts[] {
  return readSnapshots(storage, readHeader(storage)).snapshots.map((snapshot) => ({
    id: snapshot.id,
    name: snapshot.name,
    vmStateSize: snapshot.vmStateSize,
    dateSeconds: snapshot.dateSeconds,
    dateNanoseconds: snapshot.dateNanoseconds,
    clockSeconds: snapshot.clockSeconds,
    clockNanoseconds: snapshot.clockNanoseconds,
    diskSize: snapshot.diskSize,
    icount: snapshot.icount,
  }))
}

/** The L1 table, whose entries are nobody's own: without COPIED; with empty entries behind its own where there is room. */
function sharedTable(storage: Storage, offset: number, entries: number, room = entries): Buffer {
  const table = Buffer.alloc(room * ENTRY_BYTES)
  storage.read(table, 0, entries * ENTRY_BYTES, offset)
  for (let at = 0; at < table.length; at += ENTRY_BYTES) {
    const high = table.readUInt32BE(at)
    if ((high & COPIED) !== 0) table.writeUInt32BE((high & ~COPIED) >>> 0, at)
  }
  return table
}

function withSnapshots(edit: Edit, snapshots: readonly Snapshot[]): Structure {
  const bytes = encodeSnapshots(snapshots)
  const { structure } = edit
  const header: Header = {
    ...structure.header,
    nbSnapshots: snapshots.length,
    snapshotsOffset: edit.place(bytes),
  }
  return { ...structure, header, snapshots: { snapshots, length: bytes.length } }
}

/**
 * @param now milliseconds since 1970
 * @returns the new snapshot's id
 * @throws USAGE, EXISTS, UNSUPPORTED, CORRUPT, NO_SPACE
 */
export function createSnapshot(storage: Storage, name: string, now = Date.now()): string {
  const { path } = storage
  const length = Buffer.byteLength(name)
  if (length === 0 || length > MAX_NAME)
    throw new VdiskError('USAGE', `a snapshot's name of ${length} bytes: expected 1 to ${MAX_NAME}`, { path })
  const edit = new Edit(storage)
  const { header, shape, snapshots: table } = edit.structure
  const { snapshots } = table
  if (shape.dataFile)
    throw new VdiskError('UNSUPPORTED', 'images whose data is in another file can have no snapshots', { path })
  if (snapshots.length >= MAX_SNAPSHOTS)
    throw new VdiskError('NO_SPACE', `it has ${MAX_SNAPSHOTS} snapshots, and can have no more`, { path })
  if (snapshots.some((other) => other.name === name))
    throw new VdiskError('EXISTS', `it has a snapshot '${name}' already`, { path })
  const id = String(1 + snapshots.reduce((most, other) => Math.max(most, Number.parseInt(other.id, 10) || 0), 0))
  // What is behind the end of the disk belongs to nobody now; it is not kept again with every snapshot.
  const l1Size = Math.min(header.l1Size, l1EntriesOf(header, header.size))
  const l1TableOffset = edit.place(sharedTable(storage, header.l1TableOffset, l1Size))
  const made = makeSnapshot({
    id,
    name,
    l1TableOffset,
    l1Size,
    dateSeconds: Math.floor(now / 1000) % 2 ** 32,
    dateNanoseconds: (now % 1000) * 1e6,
    vmStateSize: 0,
    diskSize: header.size,
    icount: undefined,
  })
  const next = withSnapshots(edit, [...snapshots, made])
  edit.commit(next, () => writeSnapshotFields(storage, next.header))
  return id
}

/** Entries of the L1 table of a disk of so many bytes. */
export function l1EntriesOf(header: Header, size: number): number {
  return Math.ceil(size / l2Span(shapeOf(header)))
}

/**
 * Makes the disk what it was when a snapshot was made, with the size that it had. The snapshot stays, with its VM state.
 * @param wanted its id, or its name
 * @throws NOT_FOUND, USAGE, CORRUPT, NO_SPACE; the last also where a bitmap would be too large
 */
export function applySnapshot(storage: Storage, wanted: string): void {
  const header = readHeader(storage)
  const found = findSnapshot(readSnapshots(storage, header).snapshots, wanted, storage.path)
  checkBitmaps(storage, found.diskSize ?? header.size)
  // Whoever asks for changes since a backup has to be told of these.
  aroundChange(storage, true, () => apply(storage, found))
}

function apply(storage: Storage, found: Snapshot): void {
  const edit = new Edit(storage)
  const { structure } = edit
  const size = found.diskSize ?? structure.header.size
  const l1Size = l1EntriesOf(structure.header, size)
  if (found.l1Size < l1Size)
    throw new VdiskError(
      'CORRUPT',
      `the L1 table of snapshot '${found.name}' has ${found.l1Size} entries: expected ${l1Size}`,
      {
        path: storage.path,
      },
    )
  // Not even a disk of no bytes goes without a table.
  const room = Math.max(1, l1Size)
  const l1TableOffset = edit.place(sharedTable(storage, found.l1TableOffset, l1Size, room))
  const header: Header = { ...structure.header, size, l1Size: room, l1TableOffset }
  edit.commit({ ...structure, header, shape: shapeOf(header) }, () => writeDiskFields(storage, header))
}

/**
 * One that is damaged, in an image that is sound otherwise, is deleted too.
 * @param wanted its id, or its name
 * @throws NOT_FOUND, USAGE, CORRUPT
 */
export function deleteSnapshot(storage: Storage, wanted: string): void {
  const { snapshots } = readSnapshots(storage, readHeader(storage))
  const found = snapshots.indexOf(findSnapshot(snapshots, wanted, storage.path))
  try {
    remove(storage, found, new Edit(storage))
  } catch (error) {
    if (!(error instanceof VdiskError) || error.code !== 'CORRUPT') throw error
    remove(storage, found, new Edit(storage, found))
    checkImage(storage, { repair: 'leaks', found: () => {} })
  }
}

function remove(storage: Storage, found: number, edit: Edit): void {
  const { snapshots } = edit.structure.snapshots
  const next = withSnapshots(edit, snapshots.toSpliced(found, 1))
  edit.commit(next, () => writeSnapshotFields(storage, next.header))
}
