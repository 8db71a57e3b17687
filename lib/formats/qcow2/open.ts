/** Opening a QCOW2 image: everything that its header says is checked before it is used. */

import { VdiskError } from '../../util/errors.js'
import type { OpenContext, Opened, OpenedFile } from '../driver.js'
import { parentRequest, places } from './backing.js'
import { type Encryption, openEncryption } from './encryption.js'
import { ExtensionType, extensionText } from './extensions.js'
import { refuseUnknown } from './features.js'
import {
  Autoclear,
  CLUSTER_BITS,
  Compatible,
  Compression,
  Crypt,
  compressionType,
  type Header,
  Incompatible,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  readHeader,
} from './header.js'
import { ENTRY_BYTES, EXTENDED_ENTRY_BYTES, firstState, type Qcow2Layout, SUBCLUSTERS } from './layout.js'
import { recoverRefcounts } from './recover.js'
import { findSnapshot, readSnapshots, type Snapshot } from './snapshot-table.js'
import { trackedBitmaps } from './tracker.js'

const REPAIR = 'vdiskfs check --repair all mends it, and it can be read as it is'

/** @throws FORMAT, CORRUPT, UNSUPPORTED, NOT_FOUND (snapshot, data file), GATE, IN_USE, IO */
export function openQcow2(context: OpenContext): Opened<Qcow2Layout> {
  const { storage, readOnly, path } = context
  let header = readHeader(storage)
  refuseUnknown(header, storage.path)
  checkHeader(header, storage.path)
  if (header.incompatible.includes(Incompatible.CORRUPT)) {
    if (!readOnly)
      throw new VdiskError('CORRUPT', `not opened for writing: it is marked corrupt; ${REPAIR}`, {
        path: storage.path,
      })
    context.warn('it is marked corrupt, so that what is read from it may be wrong')
  }
  if (!readOnly) header = repairDirty(context, header)
  const wanted = context.snapshot
  const snapshot =
    wanted === undefined ? undefined : findSnapshot(readSnapshots(storage, header).snapshots, wanted, storage.path)
  const parent = parentRequest(header, path)
  const file = openDataFile(context, header)
  const encryption = openEncryption(storage, header, context)
  const backing = parent !== undefined
  const made = makeLayout(header, { snapshot, file, backing, encryption, path: storage.path })
  const layout = readOnly ? made : { ...made, ...trackedBitmaps(storage, header, context.warn) }
  return { layout, size: layout.size, parent, state: firstState(layout, storage.size(), !readOnly) }
}

/** @throws CORRUPT, UNSUPPORTED */
export function checkHeader(header: Header, path: string): void {
  const clusterSize = 2 ** header.clusterBits
  const wrong = (text: string) => new VdiskError('CORRUPT', text, { path, offset: 0 })
  const { l1Size, l1TableOffset, refcountTableOffset, refcountTableClusters, nbSnapshots, snapshotsOffset } = header
  if (header.cryptMethod > Crypt.LUKS)
    throw wrong(`the header's crypt_method is ${header.cryptMethod}: expected 0 to 2`)
  if (l1Size * ENTRY_BYTES > MAX_L1_BYTES) throw wrong(`the L1 table has ${l1Size} entries: expected at most 4194304`)
  const needed = l1EntriesFor(header.size, header)
  if (l1Size < needed) throw wrong(`the L1 table has ${l1Size} entries: a disk of ${header.size} bytes needs ${needed}`)
  if (refcountTableClusters === 0 || refcountTableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES)
    throw wrong(`the refcount table has ${refcountTableClusters} clusters: expected 1 to 8 MiB of them`)
  if (nbSnapshots > MAX_SNAPSHOTS) throw wrong(`it is said to have ${nbSnapshots} snapshots: expected at most 65536`)
  for (const [name, offset, used] of [
    ['L1 table', l1TableOffset, l1Size > 0],
    ['refcount table', refcountTableOffset, true],
    ['table of snapshots', snapshotsOffset, nbSnapshots > 0],
  ] as const)
    if (used && (offset % clusterSize !== 0 || offset === 0))
      throw wrong(`the ${name} is said to be at byte ${offset}: expected a multiple of ${clusterSize}, not 0`)
  checkFeatures(header, wrong)
}

function checkFeatures(header: Header, wrong: (text: string) => VdiskError): void {
  const { incompatible, autoclear, clusterBits } = header
  const type = compressionType(header)
  const extended = incompatible.includes(Incompatible.EXTENDED_L2)
  if (extended && clusterBits < CLUSTER_BITS.minExtended)
    throw wrong(`it has subclusters and clusters of ${2 ** clusterBits} bytes: expected at least 16384`)
  if (incompatible.includes(Incompatible.COMPRESSION) !== (type !== Compression.ZLIB))
    throw wrong(`its compression type is ${type}, and its feature bit says the opposite`)
  if (type > Compression.ZSTD) throw wrong(`its compression type is ${type}: expected 0 (zlib) or 1 (zstd)`)
  if (autoclear.includes(Autoclear.RAW_DATA_FILE) && !incompatible.includes(Incompatible.DATA_FILE))
    throw wrong('its data file is said to be raw, and it has no data file')
}

/** L1 entries that a disk of so many bytes takes. */
export function l1EntriesFor(
  size: number,
  { clusterBits, incompatible }: Pick<Header, 'clusterBits' | 'incompatible'>,
) {
  const bytes = incompatible.includes(Incompatible.EXTENDED_L2) ? EXTENDED_ENTRY_BYTES : ENTRY_BYTES
  return Math.ceil(size / (2 ** clusterBits * (2 ** clusterBits / bytes)))
}

/**
 * Refcounts that were left behind are made right before anything relies on them.
 * @returns the header as it is then
 * @throws CORRUPT where that is not all that is wrong
 */
function repairDirty({ storage, warn }: OpenContext, header: Header): Header {
  if (!header.incompatible.includes(Incompatible.DIRTY)) return header
  recoverRefcounts(storage)
  storage.sync()
  warn('it was left in use: its refcounts were made right')
  return readHeader(storage)
}

function openDataFile(context: OpenContext, header: Header): OpenedFile | undefined {
  if (!header.incompatible.includes(Incompatible.DATA_FILE)) return undefined
  const { storage, path } = context
  const name = extensionText(header.extensions, ExtensionType.DATA_FILE)
  if (!name)
    throw new VdiskError('CORRUPT', 'its data is in another file, which it does not name', { path: storage.path })
  if (!context.openFile)
    throw new VdiskError('UNSUPPORTED', `its data is in another file, '${name}'`, { path: storage.path })
  const { candidates, guesses } = places(name, 'data file', path)
  return context.openFile(name, candidates, guesses)
}

interface Circumstances {
  readonly snapshot: Snapshot | undefined
  readonly file: OpenedFile | undefined
  readonly backing: boolean
  readonly encryption: Encryption | undefined
  readonly path: string
}

/** The layout of the image whose header was checked. */
export function makeLayout(header: Header, { snapshot, file, backing, encryption, path }: Circumstances): Qcow2Layout {
  const { incompatible, autoclear, compatible, clusterBits, refcountOrder } = header
  const clusterSize = 2 ** clusterBits
  const extendedL2 = incompatible.includes(Incompatible.EXTENDED_L2)
  const entryBytes = extendedL2 ? EXTENDED_ENTRY_BYTES : ENTRY_BYTES
  const size = snapshot?.diskSize ?? header.size
  const l1Size = snapshot?.l1Size ?? header.l1Size
  const l1TableOffset = snapshot?.l1TableOffset ?? header.l1TableOffset
  if (l1Size * ENTRY_BYTES > MAX_L1_BYTES || l1TableOffset % clusterSize !== 0)
    throw new VdiskError('CORRUPT', `the snapshot's L1 table has ${l1Size} entries at byte ${l1TableOffset}`, { path })
  if (l1Size < l1EntriesFor(size, header))
    throw new VdiskError('CORRUPT', `the snapshot's L1 table has ${l1Size} entries, too few for ${size} bytes`, {
      path,
    })
  return {
    header,
    size,
    clusterSize,
    subclusterSize: extendedL2 ? clusterSize / SUBCLUSTERS : clusterSize,
    extendedL2,
    entryBytes,
    l2Entries: clusterSize / entryBytes,
    blockEntries: (clusterSize * 8) / 2 ** refcountOrder,
    refcountOrder,
    l1Offset: l1TableOffset,
    l1Size,
    compressionType: compressionType(header),
    encryption,
    dataFile: file && { index: file.index, raw: autoclear.includes(Autoclear.RAW_DATA_FILE) },
    backing,
    zeroClusters: header.version > 2,
    lazyRefcounts: compatible.includes(Compatible.LAZY_REFCOUNTS),
    bitmapsKept: false,
    tracked: [],
    dropped: [],
    snapshot: snapshot?.id,
  }
}
