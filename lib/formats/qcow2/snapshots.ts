/**
 * The table of internal snapshots, read entry by entry: it is only read where somebody asks, and its length is never
 * believed before the entries are there.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { Struct, u16, u32, u64 } from '../../util/struct.js'
import { type Header, MAX_L1_BYTES, MAX_SNAPSHOTS } from './header.js'
import { ENTRY_BYTES } from './layout.js'

const ENTRY = new Struct('QCOW2 snapshot', 40, 'big', {
  l1TableOffset: u64,
  l1Size: u32,
  idSize: u16,
  nameSize: u16,
  dateSeconds: u32,
  dateNanoseconds: u32,
  vmClockNanoseconds: u64,
  vmStateSize32: u32,
  extraSize: u32,
})

const EXTRA = new Struct('QCOW2 snapshot: extra data', 16, 'big', { vmStateSize: u64, diskSize: u64 })
const VM_STATE_BYTES = 8
/** More nobody writes (QEMU's limits). */
const MAX_EXTRA = 1024
export const MAX_SNAPSHOT_TABLE = 64 * 2 ** 20

export interface Snapshot {
  /** Byte offset of its entry in the file, and the entry's bytes with the padding. */
  readonly offset: number
  readonly length: number
  readonly l1TableOffset: number
  /** Entries. */
  readonly l1Size: number
  readonly id: string
  readonly name: string
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  readonly vmClockNanoseconds: number
  readonly vmStateSize: number
  /** Bytes of the disk; where it is not said, the size that the image has now. */
  readonly diskSize: number
  /** As it is stored, unknown fields included. */
  readonly extra: Uint8Array
}

/**
 * The snapshots in their order.
 * @throws CORRUPT at the first entry that cannot be
 */
export function* readSnapshots(
  storage: Storage,
  header: Pick<Header, 'nbSnapshots' | 'snapshotsOffset' | 'size' | 'clusterBits'>,
): Generator<Snapshot> {
  const { path } = storage
  const { nbSnapshots, snapshotsOffset } = header
  if (nbSnapshots > MAX_SNAPSHOTS)
    throw new VdiskError('CORRUPT', `it is said to have ${nbSnapshots} snapshots: expected at most ${MAX_SNAPSHOTS}`, {
      path,
    })
  const end = Math.min(storage.size(), snapshotsOffset + MAX_SNAPSHOT_TABLE)
  for (let i = 0, at = snapshotsOffset; i < nbSnapshots; i++) {
    const snapshot = readSnapshot(storage, at, end, header)
    yield snapshot
    at += snapshot.length
  }
}

function readSnapshot(
  storage: Storage,
  offset: number,
  end: number,
  { size, clusterBits }: Pick<Header, 'size' | 'clusterBits'>,
): Snapshot {
  const place = { path: storage.path, offset }
  const fixed = new Uint8Array(ENTRY.size)
  if (offset + ENTRY.size > end || storage.read(fixed, 0, ENTRY.size, offset) < ENTRY.size)
    throw new VdiskError('CORRUPT', `the table of snapshots has no entry at byte ${offset}`, place)
  const entry = ENTRY.read(fixed, 0, place)
  const { extraSize, idSize, nameSize, l1TableOffset, l1Size } = entry
  const behind = extraSize + idSize + nameSize
  if (extraSize > MAX_EXTRA || offset + ENTRY.size + behind > end)
    throw new VdiskError('CORRUPT', `the snapshot at byte ${offset} does not end where it should`, place)
  if (l1TableOffset % 2 ** clusterBits !== 0 || l1Size * ENTRY_BYTES > MAX_L1_BYTES)
    throw new VdiskError(
      'CORRUPT',
      `the snapshot at byte ${offset} says that its L1 table has ${l1Size} entries at byte ${l1TableOffset}`,
      place,
    )
  const bytes = new Uint8Array(behind)
  storage.read(bytes, 0, behind, offset + ENTRY.size)
  const extra = bytes.slice(0, extraSize)
  const text = (from: number, length: number) => Buffer.from(bytes.subarray(from, from + length)).toString('utf8')
  const filled = new Uint8Array(EXTRA.size)
  filled.set(extra.subarray(0, EXTRA.size))
  const { vmStateSize, diskSize } = EXTRA.read(filled, 0, place)
  return {
    offset,
    length: Math.ceil((ENTRY.size + behind) / 8) * 8,
    l1TableOffset,
    l1Size,
    id: text(extraSize, idSize),
    name: text(extraSize + idSize, nameSize),
    dateSeconds: entry.dateSeconds,
    dateNanoseconds: entry.dateNanoseconds,
    vmClockNanoseconds: entry.vmClockNanoseconds,
    vmStateSize: extraSize >= VM_STATE_BYTES ? vmStateSize : entry.vmStateSize32,
    diskSize: extraSize >= EXTRA.size ? diskSize : size,
    extra,
  }
}

/** The snapshot with this id or, where there is none, with this name. @throws NOT_FOUND, CORRUPT */
export function findSnapshot(storage: Storage, header: Header, wanted: string): Snapshot {
  let named: Snapshot | undefined
  for (const snapshot of readSnapshots(storage, header)) {
    if (snapshot.id === wanted) return snapshot
    if (snapshot.name === wanted) named ??= snapshot
  }
  if (named) return named
  throw new VdiskError('NOT_FOUND', `no snapshot '${wanted}': it has ${header.nbSnapshots}`, { path: storage.path })
}

/** The bytes of an entry of the table, with its padding. */
export function encodeSnapshot(snapshot: Omit<Snapshot, 'offset' | 'length'>): Uint8Array {
  const id = Buffer.from(snapshot.id)
  const name = Buffer.from(snapshot.name)
  const extra = new Uint8Array(Math.max(EXTRA.size, snapshot.extra.length))
  extra.set(snapshot.extra)
  EXTRA.write({ vmStateSize: snapshot.vmStateSize, diskSize: snapshot.diskSize }, extra)
  const out = new Uint8Array(Math.ceil((ENTRY.size + extra.length + id.length + name.length) / 8) * 8)
  ENTRY.write(
    {
      l1TableOffset: snapshot.l1TableOffset,
      l1Size: snapshot.l1Size,
      idSize: id.length,
      nameSize: name.length,
      dateSeconds: snapshot.dateSeconds,
      dateNanoseconds: snapshot.dateNanoseconds,
      vmClockNanoseconds: snapshot.vmClockNanoseconds,
      vmStateSize32: snapshot.vmStateSize < 2 ** 32 ? snapshot.vmStateSize : 0,
      extraSize: extra.length,
    },
    out,
  )
  out.set(extra, ENTRY.size)
  out.set(id, ENTRY.size + extra.length)
  out.set(name, ENTRY.size + extra.length + id.length)
  return out
}
