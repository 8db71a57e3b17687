/** Persistent dirty bitmaps of an image that nobody has open: listed, shown, made, cleared, removed, made another size. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { KiB } from '../../util/sizes.js'
import type { BitmapFacts, ByteRange } from '../driver.js'
import {
  type Bitmap,
  BitmapFlag,
  bitmapProblem,
  DIRTY_TRACKING,
  encodeDirectory,
  GRANULARITY_BITS,
  isUsable,
  MAX_BITMAP_BYTES,
  MAX_BITMAP_NAME,
  MAX_BITMAPS,
  readDirectory,
  TableEntry,
  tableSizeFor,
  writeFlags,
} from './bitmap-directory.js'
import { DirectoryChange } from './bitmap-header.js'
import { Edit } from './edit.js'
import { highOf, hostOffset, lowOf } from './entries.js'
import { type Header, readHeader } from './header.js'
import { entryBytes, pieces } from './pieces.js'

const ENTRY_BYTES = 8
const PIECE = 64 * KiB

export function listBitmaps(storage: Storage): BitmapFacts[] {
  const header = readHeader(storage)
  return readDirectory(storage, header).bitmaps.map((bitmap) => {
    const { name, flags, granularityBits } = bitmap
    const trusted = isUsable(bitmap, header.size, header.clusterBits)
    const shown = [...(trusted ? [] : ['in-use']), ...((flags & BitmapFlag.AUTO) !== 0 ? ['auto'] : [])]
    return { name, granularity: 2 ** granularityBits, flags: shown }
  })
}

function find(bitmaps: readonly Bitmap[], wanted: string, path: string): Bitmap {
  const found = bitmaps.find(({ name }) => name === wanted)
  if (found) return found
  const names = bitmaps.map(({ name }) => name).join(', ')
  throw new VdiskError('NOT_FOUND', `no bitmap '${wanted}'; it has: ${names || 'none'}`, { path })
}

/** Every bit that is set, merged into ranges. All of the disk where the bitmap was not kept up to date. */
export function* bitmapExtents(storage: Storage, name: string): Generator<ByteRange> {
  const header = readHeader(storage)
  const { size } = header
  const bitmap = find(readDirectory(storage, header).bitmaps, name, storage.path)
  const granularity = 2 ** bitmap.granularityBits
  const trusted = isUsable(bitmap, size, header.clusterBits)
  let start = -1
  for (const { bit, set } of trusted ? setRuns(storage, header, bitmap) : [{ bit: 0, set: true }]) {
    if (set) start = bit * granularity
    else {
      yield { start, length: Math.min(size, bit * granularity) - start }
      start = -1
    }
  }
  if (start >= 0 && start < size) yield { start, length: size - start }
}

/** The bits at which runs of set and of clear bits begin, in turns. */
function* setRuns(storage: Storage, header: Header, bitmap: Bitmap): Generator<{ bit: number; set: boolean }> {
  const clusterSize = 2 ** header.clusterBits
  const bits = Math.ceil(header.size / 2 ** bitmap.granularityBits)
  const needed = tableSizeFor(header.size, bitmap.granularityBits, header.clusterBits)
  const end = Math.ceil(storage.size() / clusterSize) * clusterSize
  const run = new BitRuns(bits)
  let next = 0
  for (const { at, bytes } of pieces(storage, bitmap.tableOffset, needed * ENTRY_BYTES)) {
    for (let i = 0; i < bytes.length; i += ENTRY_BYTES) {
      const index = (at - bitmap.tableOffset + i) / ENTRY_BYTES
      const low = bytes.readUInt32BE(i + 4)
      const offset = hostOffset(bytes.readUInt32BE(i), low)
      const first = index * clusterSize * 8
      // What lies between was a hole of the table.
      if (index > next) yield* run.all(next * clusterSize * 8, false)
      next = index + 1
      if (offset === 0) yield* run.all(first, (low & TableEntry.ONES) !== 0)
      else if (offset % clusterSize !== 0 || offset >= end)
        throw new VdiskError('CORRUPT', `cluster ${index} of bitmap '${bitmap.name}' is said to be at byte ${offset}`, {
          path: storage.path,
          offset: at + i,
        })
      else yield* clusterRuns(storage, offset, clusterSize, first, bits, run)
    }
  }
  if (next < needed) yield* run.all(next * clusterSize * 8, false)
}

function* clusterRuns(
  storage: Storage,
  offset: number,
  clusterSize: number,
  first: number,
  bits: number,
  run: BitRuns,
): Generator<{ bit: number; set: boolean }> {
  const buffer = new Uint8Array(Math.min(PIECE, clusterSize))
  const length = Math.min(clusterSize, Math.ceil((bits - first) / 8))
  for (let done = 0; done < length; done += buffer.length) {
    const count = Math.min(buffer.length, length - done)
    buffer.fill(0, storage.read(buffer, 0, count, offset + done))
    for (let b = 0; b < count; b++) yield* run.byte(first + (done + b) * 8, buffer[b]!)
  }
}

/** Notices where bits change. */
class BitRuns {
  readonly #bits: number
  #set = false

  constructor(bits: number) {
    this.#bits = bits
  }

  *all(bit: number, set: boolean): Generator<{ bit: number; set: boolean }> {
    if (this.#set === set || bit >= this.#bits) return
    this.#set = set
    yield { bit, set }
  }

  *byte(first: number, byte: number): Generator<{ bit: number; set: boolean }> {
    if (byte === (this.#set ? 0xff : 0)) return
    for (let k = 0; k < 8; k++) if ((((byte >> k) & 1) === 1) !== this.#set) yield* this.all(first + k, !this.#set)
  }
}

/** Writes a directory with other bitmaps. `change` may place new tables. */
function replace(storage: Storage, change: (edit: Edit) => readonly Bitmap[]): void {
  const edit = new Edit(storage)
  const bitmaps = change(edit)
  const bytes = encodeDirectory(bitmaps)
  const directory = { offset: edit.place(bytes), length: bytes.length, bitmaps }
  const refer = new DirectoryChange(storage, edit.structure.header, directory)
  refer.prepare()
  edit.commit({ ...edit.structure, header: refer.header, directory }, () => refer.write())
  refer.finish()
}

/** @returns the name. @throws USAGE, EXISTS, NO_SPACE, UNSUPPORTED */
export function addBitmap(storage: Storage, wanted: string | undefined, granularity: number | undefined): string {
  const { path } = storage
  let added = ''
  replace(storage, (edit) => {
    const { header, shape, directory } = edit.structure
    const { bitmaps } = directory
    if (header.version < 3) throw new VdiskError('UNSUPPORTED', 'images of version 2 can have no bitmaps', { path })
    // QEMU would not open it any more.
    if (header.size === 0) throw new VdiskError('USAGE', 'a disk of 0 bytes can have no bitmap', { path })
    const name = wanted ?? freeName(bitmaps)
    const length = Buffer.byteLength(name)
    if (length === 0 || length > MAX_BITMAP_NAME)
      throw new VdiskError('USAGE', `a bitmap's name of ${length} bytes: expected 1 to ${MAX_BITMAP_NAME}`, { path })
    if (bitmaps.some((other) => other.name === name))
      throw new VdiskError('EXISTS', `it has a bitmap '${name}' already`, { path })
    if (bitmaps.length >= MAX_BITMAPS)
      throw new VdiskError('NO_SPACE', `it has ${MAX_BITMAPS} bitmaps, and can have no more`, { path })
    const granularityBits = bitsOf(granularity ?? usualGranularity(shape.clusterSize), path)
    const made: Bitmap = {
      name,
      ...newTable(edit, header.size, granularityBits, () => TableEntry.ZEROS),
      flags: BitmapFlag.AUTO,
      type: DIRTY_TRACKING,
      granularityBits,
      extra: new Uint8Array(),
      entryOffset: 0,
    }
    added = name
    return [...bitmaps, made]
  })
  return added
}

function freeName(bitmaps: readonly Bitmap[]): string {
  for (let n = 0; ; n++) if (!bitmaps.some(({ name }) => name === `bitmap${n}`)) return `bitmap${n}`
}

/** As QEMU chooses it. */
function usualGranularity(clusterSize: number): number {
  return Math.max(4 * KiB, Math.min(64 * KiB, clusterSize))
}

function bitsOf(granularity: number, path: string): number {
  const bits = Math.log2(granularity)
  const { min, max } = GRANULARITY_BITS
  if (Number.isInteger(bits) && bits >= min && bits <= max) return bits
  throw new VdiskError('USAGE', `granularity ${granularity}: expected a power of two from 512 to 2G`, { path })
}

/** Places a table. @throws NO_SPACE where the bitmap would be too large */
function newTable(
  edit: Edit,
  size: number,
  granularityBits: number,
  entry: (index: number) => number,
): { tableOffset: number; tableSize: number } {
  const { clusterBits } = edit.structure.shape
  const { path } = edit
  const tableSize = tableSizeFor(size, granularityBits, clusterBits)
  if (tableSize * 2 ** clusterBits > MAX_BITMAP_BYTES)
    throw new VdiskError('NO_SPACE', `a bitmap of ${tableSize} clusters is too large: a coarser one may do`, { path })
  const table = Buffer.alloc(tableSize * ENTRY_BYTES)
  for (let i = 0; i < tableSize; i++) {
    const value = entry(i)
    entryBytes(highOf(value), lowOf(value)).copy(table, i * ENTRY_BYTES)
  }
  return { tableOffset: edit.place(table), tableSize }
}

/** Says that nothing was changed; a bitmap that was not kept up to date is right again. */
export function clearBitmap(storage: Storage, name: string): void {
  replace(storage, (edit) => {
    const { header, shape, directory } = edit.structure
    const found = find(directory.bitmaps, name, storage.path)
    const cleared = {
      ...found,
      flags: found.flags & ~BitmapFlag.IN_USE,
      tableSize: tableSizeFor(header.size, found.granularityBits, shape.clusterBits),
    }
    const problem = bitmapProblem(cleared, header.size, shape.clusterBits)
    if (problem !== undefined)
      throw new VdiskError('UNSUPPORTED', `bitmap '${name}' cannot be cleared: ${problem}`, { path: storage.path })
    const table = newTable(edit, header.size, found.granularityBits, () => TableEntry.ZEROS)
    return directory.bitmaps.map((bitmap) => (bitmap === found ? { ...cleared, ...table } : bitmap))
  })
}

export function removeBitmap(storage: Storage, name: string): void {
  replace(storage, (edit) => {
    const { bitmaps } = edit.structure.directory
    const found = find(bitmaps, name, storage.path)
    return bitmaps.filter((bitmap) => bitmap !== found)
  })
}

/**
 * Before anything is changed: whether the bitmaps can go with another size of the disk.
 * @throws NO_SPACE where one would be too large, USAGE where no disk of that size can have any
 */
export function checkBitmaps(storage: Storage, size: number): void {
  const { path } = storage
  const header = readHeader(storage)
  const { clusterBits } = header
  const { bitmaps } = readDirectory(storage, header)
  // QEMU would not open it any more.
  if (size === 0 && bitmaps.length > 0)
    throw new VdiskError('USAGE', `a disk of 0 bytes can have no bitmap: remove '${bitmaps[0]!.name}' before`, { path })
  for (const bitmap of bitmaps) {
    const bytes = tableSizeFor(size, bitmap.granularityBits, clusterBits) * 2 ** clusterBits
    if (bytes <= MAX_BITMAP_BYTES || !isUsable(bitmap, header.size, clusterBits)) continue
    const found = `bitmap '${bitmap.name}' would have ${bytes} bytes with a disk of ${size}`
    throw new VdiskError('NO_SPACE', `${found}: expected ${MAX_BITMAP_BYTES} at most; remove it before`, { path })
  }
}

/**
 * Around a change of the disk: before it, the bitmaps are called out of date, and after it they have the disk's size. So
 * nobody is misled where it is interrupted.
 * @param all says that all of the disk was changed
 */
export function aroundChange(storage: Storage, all: boolean, change: () => void): void {
  const header = readHeader(storage)
  const { clusterBits } = header
  const usable = readDirectory(storage, header).bitmaps.filter((bitmap) => isUsable(bitmap, header.size, clusterBits))
  for (const bitmap of usable) writeFlags(storage, bitmap, bitmap.flags | BitmapFlag.IN_USE)
  storage.sync()
  try {
    change()
  } catch (error) {
    // Where the disk is as it was, so are its bitmaps.
    const { size, l1TableOffset } = readHeader(storage)
    if (size === header.size && l1TableOffset === header.l1TableOffset) {
      for (const bitmap of usable) writeFlags(storage, bitmap, bitmap.flags)
      storage.sync()
    }
    throw error
  }
  if (usable.length === 0) return
  const names = new Set(usable.map(({ name }) => name))
  replace(storage, (edit) =>
    edit.structure.directory.bitmaps.map((bitmap) => {
      if (!names.has(bitmap.name)) return bitmap
      const dirty = all && (bitmap.flags & BitmapFlag.AUTO) !== 0
      const flags = bitmap.flags & ~BitmapFlag.IN_USE
      return { ...bitmap, flags, ...resizedTable(storage, edit, bitmap, dirty) }
    }),
  )
}

/** A table for the size that the disk has now. */
function resizedTable(storage: Storage, edit: Edit, bitmap: Bitmap, dirty: boolean) {
  const { header, shape } = edit.structure
  const { clusterSize, clusterBits } = shape
  const needed = tableSizeFor(header.size, bitmap.granularityBits, clusterBits)
  const kept = Buffer.alloc(Math.min(needed, bitmap.tableSize) * ENTRY_BYTES)
  storage.read(kept, 0, kept.length, bitmap.tableOffset)
  const bits = Math.ceil(header.size / 2 ** bitmap.granularityBits)
  return newTable(edit, header.size, bitmap.granularityBits, (index) => {
    if (dirty) return TableEntry.ONES
    const at = index * ENTRY_BYTES
    if (at >= kept.length) return TableEntry.ZEROS
    const low = kept.readUInt32BE(at + 4)
    const offset = hostOffset(kept.readUInt32BE(at), low)
    const inside = bits - index * clusterSize * 8
    if (offset === 0 || inside >= clusterSize * 8) return offset === 0 ? low & TableEntry.ONES : offset
    return edit.place(cutCluster(storage, offset, clusterSize, inside))
  })
}

/** The bits of a cluster, of which those behind the end of the disk are 0. */
function cutCluster(storage: Storage, offset: number, clusterSize: number, bits: number): Uint8Array {
  const bytes = new Uint8Array(clusterSize)
  storage.read(bytes, 0, clusterSize, offset)
  const whole = Math.floor(bits / 8)
  bytes[whole]! &= (1 << (bits % 8)) - 1
  bytes.fill(0, whole + 1)
  return bytes
}
