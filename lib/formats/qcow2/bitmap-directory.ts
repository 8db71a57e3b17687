/** The directory of persistent dirty bitmaps, and the tables that it refers to. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { MiB } from '../../util/sizes.js'
import { Struct, u8, u16, u32, u64 } from '../../util/struct.js'
import { bitmapsExtension } from './extensions.js'
import { Autoclear, type Header } from './header.js'

export const BitmapFlag = { IN_USE: 1, AUTO: 2, EXTRA_DATA_COMPATIBLE: 4 } as const
const KNOWN_FLAGS = 7
/** The type of all bitmaps that there are. */
export const DIRTY_TRACKING = 1
export const GRANULARITY_BITS = { min: 9, max: 31, usual: 16 } as const
export const MAX_BITMAPS = 65535
export const MAX_BITMAP_NAME = 1023
/** QEMU's limits, in bytes: of the directory, and of what one bitmap may take. */
const MAX_DIRECTORY = 65535 * (24 + 1023 + 16)
export const MAX_BITMAP_BYTES = 512 * MiB

/** Entries of a bitmap table that are no offsets. */
export const TableEntry = { ZEROS: 0, ONES: 1 } as const
/** Bits 1-8 and 56-63. */
export const TABLE_RESERVED = { high: 0xff000000, low: 0x1fe } as const

const ENTRY = new Struct('QCOW2 bitmap directory entry', 24, 'big', {
  tableOffset: u64,
  tableSize: u32,
  flags: u32,
  type: u8,
  granularityBits: u8,
  nameSize: u16,
  extraSize: u32,
})

export interface Bitmap {
  readonly name: string
  readonly tableOffset: number
  /** Entries. */
  readonly tableSize: number
  readonly flags: number
  readonly type: number
  readonly granularityBits: number
  /** Kept as it is. */
  readonly extra: Uint8Array
  /** Byte offset of its entry in the file; 0: it is not there yet. */
  readonly entryOffset: number
}

export interface Directory {
  readonly offset: number
  /** Bytes. */
  readonly length: number
  readonly bitmaps: readonly Bitmap[]
}

const padded = (length: number) => Math.ceil(length / 8) * 8

/** True where the image says that its bitmaps are as they were when all writes were recorded, or kept apart. */
export function bitmapsConsistent({ autoclear }: Header): boolean {
  return autoclear.includes(Autoclear.BITMAPS)
}

/**
 * The bitmaps of an image; none where the directory is not to be believed, because who wrote last knew nothing of it.
 * @throws CORRUPT
 */
export function readDirectory(storage: Storage, header: Header): Directory {
  const { path } = storage
  const extension = bitmapsConsistent(header) ? bitmapsExtension(header.extensions, path) : undefined
  if (!extension) return { offset: 0, length: 0, bitmaps: [] }
  const { nbBitmaps, bitmapDirectoryOffset: offset, bitmapDirectorySize: length } = extension
  const fail = (text: string) => new VdiskError('CORRUPT', text, { path, offset })
  const misplaced = offset === 0 || offset % 2 ** header.clusterBits !== 0 || offset + length > storage.size()
  if (misplaced || length > MAX_DIRECTORY || nbBitmaps > MAX_BITMAPS || nbBitmaps * ENTRY.size > length)
    throw fail(`the directory of ${nbBitmaps} bitmaps is said to have ${length} bytes at byte ${offset}`)
  const bytes = new Uint8Array(length)
  storage.read(bytes, 0, length, offset)
  const bitmaps: Bitmap[] = []
  let at = 0
  for (let i = 0; i < nbBitmaps; i++) {
    const fixed = ENTRY.read(bytes, at, { path, offset: offset + at })
    const size = ENTRY.size + fixed.extraSize + fixed.nameSize
    if (at + padded(size) > length) throw fail(`entry ${i} of the bitmap directory goes on behind its end`)
    const extraEnd = at + ENTRY.size + fixed.extraSize
    const name = Buffer.from(bytes.subarray(extraEnd, extraEnd + fixed.nameSize)).toString('utf8')
    const { tableOffset, tableSize, flags, type, granularityBits } = fixed
    const extra = bytes.slice(at + ENTRY.size, extraEnd)
    bitmaps.push({ name, tableOffset, tableSize, flags, type, granularityBits, extra, entryOffset: offset + at })
    at += padded(size)
  }
  if (at !== length) throw fail(`the bitmap directory has ${length} bytes, and its entries ${at}`)
  return { offset, length, bitmaps }
}

export function encodeDirectory(bitmaps: readonly Bitmap[]): Uint8Array {
  const entries = bitmaps.map((bitmap) => {
    const name = Buffer.from(bitmap.name)
    const bytes = new Uint8Array(padded(ENTRY.size + bitmap.extra.length + name.length))
    ENTRY.write({ ...bitmap, nameSize: name.length, extraSize: bitmap.extra.length }, bytes)
    bytes.set(bitmap.extra, ENTRY.size)
    bytes.set(name, ENTRY.size + bitmap.extra.length)
    return bytes
  })
  return new Uint8Array(Buffer.concat(entries))
}

/** Entries of the table of a bitmap. */
export function tableSizeFor(size: number, granularityBits: number, clusterBits: number): number {
  const bits = Math.ceil(size / 2 ** granularityBits)
  return Math.ceil(bits / 8 / 2 ** clusterBits)
}

/** What keeps a bitmap from being used, in words; undefined: nothing. */
export function bitmapProblem(bitmap: Bitmap, size: number, clusterBits: number): string | undefined {
  const { flags, type, granularityBits, extra, tableSize } = bitmap
  if (type !== DIRTY_TRACKING) return `it is of type ${type}: expected ${DIRTY_TRACKING}`
  if ((flags & ~KNOWN_FLAGS) !== 0) return `its flags are 0x${flags.toString(16)}: expected 0x0 to 0x7`
  const { min, max } = GRANULARITY_BITS
  if (granularityBits < min || granularityBits > max)
    return `its granularity_bits is ${granularityBits}: expected ${min} to ${max}`
  if (tableSize * 2 ** clusterBits > MAX_BITMAP_BYTES) return `its table has ${tableSize} entries, and is too large`
  const needed = tableSizeFor(size, granularityBits, clusterBits)
  if ((flags & BitmapFlag.IN_USE) === 0 && tableSize < needed)
    return `its table has ${tableSize} entries: expected ${needed}`
  if (extra.length > 0 && (flags & BitmapFlag.EXTRA_DATA_COMPATIBLE) === 0) return 'it has extra data that are unknown'
  return undefined
}

/** Whether its bits are to be believed, and it may be changed. */
export function isUsable(bitmap: Bitmap, size: number, clusterBits: number): boolean {
  return (bitmap.flags & BitmapFlag.IN_USE) === 0 && bitmapProblem(bitmap, size, clusterBits) === undefined
}

/** Changes the flags of a bitmap where they are. Not durable before a sync. */
export function writeFlags(storage: Storage, { entryOffset }: Pick<Bitmap, 'entryOffset'>, flags: number): void {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(flags >>> 0)
  storage.write(bytes, 0, bytes.length, entryOffset + ENTRY.offsetOf('flags'))
}
