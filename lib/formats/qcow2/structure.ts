/** What of an image refers to clusters: all that a walk, a check and a change of the structures begin with. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { MiB } from '../../util/sizes.js'
import { type Directory, readDirectory, TABLE_RESERVED, TableEntry } from './bitmap-directory.js'
import { hostOffset } from './entries.js'
import { cryptExtension } from './extensions.js'
import { autoclearKept } from './features.js'
import { Crypt, FIELD, type Header, Incompatible, MAX_L1_BYTES, readHeader } from './header.js'
import { snapshotFields } from './header-fields.js'
import { eachEntry, entryBytes, hexOf } from './pieces.js'
import type { RefcountPlace } from './recount.js'
import { readSnapshots, readWhatIsThere, type Snapshot, type SnapshotTable } from './snapshot-table.js'
import type { BitmapClusters, Fault, L1Table, OnFault, Range, Roots, Shape } from './walk.js'

export interface Structure {
  readonly header: Header
  readonly shape: Shape
  readonly place: RefcountPlace
  readonly snapshots: SnapshotTable
  readonly directory: Directory
}

export function shapeOf(header: Header): Shape {
  return {
    version: header.version,
    clusterBits: header.clusterBits,
    clusterSize: 2 ** header.clusterBits,
    extendedL2: header.incompatible.includes(Incompatible.EXTENDED_L2),
    dataFile: header.incompatible.includes(Incompatible.DATA_FILE),
    shows: header.version < 3 && header.backingName !== undefined,
    placed: header.cryptMethod === Crypt.LUKS,
    size: header.size,
  }
}

export function placeOf(header: Header): RefcountPlace {
  return {
    clusterSize: 2 ** header.clusterBits,
    order: header.refcountOrder,
    tableOffset: header.refcountTableOffset,
    tableClusters: header.refcountTableClusters,
  }
}

/**
 * Reads the header and the directories of snapshots and bitmaps.
 * @param fault is told what is wrong with them, and they count as empty then; without it, that is thrown
 * @throws FORMAT, UNSUPPORTED, CORRUPT, IO
 */
export function readStructure(storage: Storage, fault?: OnFault): Structure {
  const header = readHeader(storage)
  return {
    header,
    shape: shapeOf(header),
    place: placeOf(header),
    snapshots: fault ? soundSnapshots(storage, header, fault) : readSnapshots(storage, header),
    directory: fault ? soundDirectory(storage, header, fault) : readDirectory(storage, header),
  }
}

/** What is said behind the file's name. */
const textOf = (error: VdiskError, { path }: Storage) => error.message.replace(`${path}: `, '')

/** The snapshots before the first that cannot be: so many there are when it is mended. */
function soundSnapshots(storage: Storage, header: Header, fault: OnFault): SnapshotTable {
  const { table, error } = readWhatIsThere(storage, header)
  if (!error) return table
  const { length } = table.snapshots
  const replace = snapshotFields({ nbSnapshots: length, snapshotsOffset: length === 0 ? 0 : header.snapshotsOffset })
  const message = `${textOf(error, storage)}; ${length} snapshots can be read`
  fault({ severity: 'corruption', what: 'snapshot-table', message, offset: FIELD.nbSnapshots, replace, loses: true })
  return table
}

/** Bitmaps that cannot be read are given up: they only save time. */
function soundDirectory(storage: Storage, header: Header, fault: OnFault): Directory {
  try {
    return readDirectory(storage, header)
  } catch (error) {
    if (!(error instanceof VdiskError) || error.code !== 'CORRUPT') throw error
    fault(givingUp(header, 'bitmap-directory', textOf(error, storage)))
    return { offset: 0, length: 0, bitmaps: [] }
  }
}

/** A fault of the bitmaps that is mended by having none. */
function givingUp(header: Header, what: string, message: string): Fault {
  const bits = autoclearKept(header, false)
  const replace = Buffer.alloc(8)
  replace.writeBigUInt64BE(bits.reduce((sum, bit) => sum | (1n << BigInt(bit)), 0n))
  return { severity: 'corruption', what, message, offset: FIELD.autoclear, replace, loses: true }
}

/** The L1 table of a snapshot as messages call it. */
export const nameOfTable = ({ name, id }: Snapshot) => `the L1 table of snapshot '${name || id}'`

/** @param fault is told what of the bitmaps is wrong */
export function rootsOf(storage: Storage, structure: Structure, fault: OnFault = () => {}): Roots {
  const { header, snapshots } = structure
  const active = tableOf('the active L1 table', header.l1TableOffset, header.l1Size, true)
  const others = snapshots.snapshots.map((snapshot) =>
    tableOf(nameOfTable(snapshot), snapshot.l1TableOffset, snapshot.l1Size, false),
  )
  const tables = [active, ...others].filter(({ name, offset, entries, active: isActive }) => {
    if (entries * 8 <= MAX_L1_BYTES) return true
    const message = `${name} has ${entries} entries: expected ${MAX_L1_BYTES / 8} at most`
    fault({ severity: 'corruption', what: 'l1-range', message, offset, loses: true, holds: isActive })
    return false
  })
  return { tables, ranges: [...rangesOf(storage, structure, fault)], bitmaps: bitmapsOf(storage, structure, fault) }
}

/**
 * Where new structures of an image may lie: behind the file, and behind what is said to go on behind it, unless that is
 * further away than the file can grow.
 * @returns a byte offset
 */
export function freeEnd(storage: Storage, { tables, ranges }: Roots): number {
  const size = storage.size()
  const ends = [...tables.map(({ offset, entries }) => offset + 8 * entries), ...ranges.map((r) => r.offset + r.length)]
  return ends.reduce((most, end) => (end <= size + MAX_GROWTH ? Math.max(most, end) : most), size)
}

/** More than mending ever adds to a file. */
const MAX_GROWTH = 128 * MiB

function tableOf(name: string, offset: number, entries: number, active: boolean): L1Table {
  return { name, offset, entries, active }
}

function* rangesOf(storage: Storage, { header, shape, snapshots }: Structure, fault: OnFault): Generator<Range> {
  yield { name: 'the header', offset: 0, length: shape.clusterSize }
  const { snapshotsOffset } = header
  if (snapshots.length > 0) yield { name: 'the snapshot table', offset: snapshotsOffset, length: snapshots.length }
  const crypt = cryptExtension(header.extensions, storage.path)
  if (!crypt) return
  const { offset, length } = crypt
  const end = roundUp(storage.size(), shape.clusterSize)
  if (offset % shape.clusterSize !== 0 || offset + length > end || length > MAX_CRYPT_HEADER) {
    const found = `the encryption header of ${length} bytes is said to be at byte ${offset}`
    const message = `${found}: expected clusters of the file, ${MAX_CRYPT_HEADER} bytes at most`
    fault({ severity: 'corruption', what: 'crypt-range', message, offset })
  }
  yield { name: 'the encryption header', offset, length: Math.min(length, MAX_CRYPT_HEADER) }
}

/** Eight keys of LUKS, each split into 4,000 of 64 bytes, are a part of it. */
const MAX_CRYPT_HEADER = 16 * MiB

const roundUp = (length: number, to: number) => Math.ceil(length / to) * to

function bitmapsOf(storage: Storage, { header, shape, directory }: Structure, fault: OnFault): BitmapClusters {
  const end = roundUp(storage.size(), shape.clusterSize)
  const ranges: Range[] = []
  const faults: Fault[] = []
  const { offset, length } = directory
  if (length > 0) ranges.push({ name: 'the bitmap directory', offset, length })
  let bytes = 0
  for (const { name, tableOffset, tableSize } of directory.bitmaps) {
    const length = tableSize * 8
    const shown = `the table of bitmap '${name}'`
    bytes += length
    const misplaced = tableOffset === 0 || tableOffset % shape.clusterSize !== 0 || tableOffset + length > end
    if (length > 0 && (misplaced || bytes > end)) {
      const message = `${shown} of ${tableSize} entries is said to be at byte ${tableOffset}`
      fault(givingUp(header, 'bitmap-table', message))
      continue
    }
    if (length > 0) ranges.push({ name: shown, offset: tableOffset, length })
    ranges.push(
      ...dataRanges(storage, shape, `bitmap '${name}'`, tableOffset, tableSize, (wrong) => faults.push(wrong)),
    )
  }
  return { ranges, faults, giveUp: (what, message) => givingUp(header, what, message) }
}

/** The clusters with the bits of one bitmap. An entry that cannot be is mended by calling all of its bits set. */
function dataRanges(
  storage: Storage,
  { clusterSize }: Shape,
  name: string,
  table: number,
  entries: number,
  fault: OnFault,
): Range[] {
  const end = Math.ceil(storage.size() / clusterSize) * clusterSize
  const found: Range[] = []
  eachEntry(storage, table, entries, (index, high, low) => {
    const offset = hostOffset(high, low)
    const reserved = (high & TABLE_RESERVED.high) !== 0 || (low & TABLE_RESERVED.low) !== 0
    const both = offset !== 0 && (low & TableEntry.ONES) !== 0
    if (!reserved && !both && offset % clusterSize === 0 && offset < end) {
      if (offset !== 0) found.push({ name: `cluster ${index} of ${name}`, offset, length: clusterSize })
      return
    }
    const message = `entry ${index} of the table of ${name} is ${hexOf(high, low)}: expected a cluster of the file`
    const replace = entryBytes(0, TableEntry.ONES)
    fault({ severity: 'corruption', what: 'bitmap-entry', message, offset: table + index * 8, replace })
  })
  return found
}
