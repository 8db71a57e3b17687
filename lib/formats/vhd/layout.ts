/** What opening a VHD finds out, and all that follows from it for the place of blocks in the file. */

import { VdiskError } from '../../util/errors.js'
import type { DynamicHeader } from './dynamic-header.js'
import { FOOTER_BYTES, type Footer } from './footer.js'
import { SECTOR } from './geometry.js'
import type { ParentName } from './locators.js'

/** An entry of the block allocation table that stands for no block. */
export const NO_BLOCK = 0xffff_ffff
export const ENTRY_BYTES = 4
/** Behind the last sector at which a block can begin. */
export const MAX_BLOCK_START = NO_BLOCK * SECTOR

/** Bytes of the file that hold something other than blocks. */
export interface Reserved {
  readonly name: string
  readonly start: number
  readonly end: number
}

/** How blocks lie in the file. */
export interface Blocks {
  /** Guest bytes in a block, a power of two. */
  readonly blockSize: number
  /** Bytes of the sector bitmap in front of a block's data, a multiple of 512. */
  readonly bitmapBytes: number
  /** Bitmap and data. */
  readonly blockBytes: number
  readonly tableOffset: number
  /** "Max Table Entries"; may be more than the disk needs. */
  readonly maxTableEntries: number
  /** New blocks begin where `offset + bitmapBytes` is a multiple of this. */
  readonly alignment: number
  /** Bytes from one new block to the next. */
  readonly stride: number
  /** Headers, table, locators; sorted. */
  readonly reserved: readonly Reserved[]
  /** End of the last of them. */
  readonly reservedEnd: number
}

/** Plain data; see `Opened.layout`. */
export interface VhdLayout {
  readonly path: string
  readonly type: 'fixed' | 'dynamic' | 'differencing'
  /** Bytes of the disk. */
  readonly size: number
  readonly footer: Footer
  /** The footer's 512 bytes, as they are moved when the file grows. */
  readonly footerBytes: Uint8Array
  /** Where the footer begins; the file's end where there is none. */
  readonly footerOffset: number
  /** 512; 511 of an old image; 0 where there is no sound footer at the end and the copy is used. */
  readonly footerLength: number
  /** Not in fixed disks. */
  readonly header: DynamicHeader | undefined
  readonly blocks: Blocks | undefined
  readonly parentNames: readonly ParentName[]
  /** Another program keeps a map of full blocks (XenServer's "batmap"): whole blocks are not freed behind its back. */
  readonly batmap: boolean
}

/** Pages of hosts: data that begins at their bounds is read, written and punched at less cost. Windows does the same. */
const PAGE = 4096
/** Blocks smaller than this are laid end to end: the bytes between them would be too many. */
const MIN_ALIGNED_BLOCK = 65536

export function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}

/** Bytes of the sector bitmap: a bit a sector, padded to whole sectors. */
export function bitmapBytesOf(blockSize: number): number {
  return roundUp(Math.ceil(blockSize / SECTOR / 8), SECTOR)
}

export function blocksOf(header: DynamicHeader, reserved: readonly Reserved[]): Blocks {
  const { blockSize, tableOffset, maxTableEntries } = header
  const bitmapBytes = bitmapBytesOf(blockSize)
  const blockBytes = bitmapBytes + blockSize
  const sorted = [...reserved].sort((a, b) => a.start - b.start)
  const reservedEnd = Math.max(...sorted.map(({ end }) => roundUp(end, SECTOR)))
  const aligned = roundUp(blockBytes, PAGE)
  const fits = reservedEnd + maxTableEntries * aligned + PAGE < MAX_BLOCK_START
  const alignment = blockSize >= MIN_ALIGNED_BLOCK && fits ? PAGE : SECTOR
  return {
    blockSize,
    bitmapBytes,
    blockBytes,
    tableOffset,
    maxTableEntries,
    alignment,
    stride: roundUp(blockBytes, alignment),
    reserved: sorted,
    reservedEnd,
  }
}

/** The first place at or behind `offset` where a new block may begin. */
export function alignBlock({ alignment, bitmapBytes }: Blocks, offset: number): number {
  return roundUp(offset + bitmapBytes, alignment) - bitmapBytes
}

/** What is reserved in a range of the file, the first of it. A table that has moved has blocks in front of it. */
export function reservedAt({ reserved, reservedEnd }: Blocks, start: number, end: number): Reserved | undefined {
  if (start >= reservedEnd) return undefined
  return reserved.find((area) => start < area.end && end > area.start)
}

/**
 * Checks a block that the table refers to.
 * @param end byte offset behind which no block may lie (where the footer is)
 * @returns the byte offset of the block's bitmap
 * @throws CORRUPT
 */
export function checkBlock(layout: VhdLayout, block: number, entry: number, end: number): number {
  const { blockSize, bitmapBytes, reservedEnd } = layout.blocks!
  const start = entry * SECTOR
  const used = Math.min(blockSize, Math.max(0, layout.size - block * blockSize))
  if (start >= reservedEnd && start + bitmapBytes + used <= end) return start
  const fail = (text: string) => {
    const { path } = layout
    return new VdiskError('CORRUPT', `block ${block} is at byte ${start}: ${text}`, { path, offset: start })
  }
  if (start + bitmapBytes + used > end) {
    const needs = bitmapBytes + used
    throw fail(`its ${needs} bytes would end at ${start + needs}, and blocks end at ${end} at the latest`)
  }
  const area = reservedAt(layout.blocks!, start, start + bitmapBytes + used)
  if (area) throw fail(`it would lie over the ${area.name} at bytes ${area.start} to ${area.end}`)
  return start
}

/** Numbers of a layer that change while it is open: `LayerContext.state`. */
export const State = {
  /** Byte offset of the footer: blocks end there. */
  LIMIT: 0,
  /** End of the last block that was ever allocated. Known, as all of these, once writing has begun. */
  NEXT: 1,
  /** Bytes by which the file grows next. */
  STEP: 2,
  /** Blocks in the table. */
  ALLOCATED: 3,
  /** 1 when blocks were allocated or freed. */
  CHANGED: 4,
  /** Behind the last block, what is in front of this reads as zeros. */
  CLEARED: 5,
  /** Counted up when a sector bitmap changes, one number for all blocks with the same remainder. */
  GENERATIONS: 6,
} as const

export const GENERATIONS = 64

/** The file grows by this at first, then by twice as much every time, up to MAX_STEP. */
export const FIRST_STEP = 64 * 2 ** 20
export const MAX_STEP = 2 ** 30

/** On a device, what is behind the last block is made zeros in pieces of so many bytes. */
export const CLEAR_STEP = 16 * 2 ** 20

export function firstState({ footerOffset }: VhdLayout): number[] {
  const state = new Array<number>(State.GENERATIONS + GENERATIONS).fill(0)
  state[State.LIMIT] = footerOffset
  state[State.STEP] = FIRST_STEP
  return state
}

/** What is in front of the table in a new image, and in most old ones. */
export const COPY_AREA: Reserved = { name: 'copy of the footer', start: 0, end: FOOTER_BYTES }
