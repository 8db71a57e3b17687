/** What opening a VHDX finds out, and all that follows from it for the place of blocks and of their entries. */

import { VdiskError } from '../../util/errors.js'
import { MiB, TiB } from '../../util/sizes.js'
import type { Header } from './header.js'
import type { NewItem } from './items.js'
import type { LocatorEntry } from './locator.js'

/** Everything that the header, the region table and the block allocation table refer to lies at multiples of this. */
export const UNIT = MiB
export const ENTRY_BYTES = 8
/** Bytes of a sector bitmap block. [MS-VHDX] 2.4 */
export const BITMAP_BYTES = MiB
const BITS_PER_BITMAP_BLOCK = BITMAP_BYTES * 8
/** Headers and region tables lie in front of this. */
export const HEADER_SECTION_END = MiB
export const MAX_DISK_SIZE = 64 * TiB
export const MIN_BLOCK_SIZE = MiB
export const MAX_BLOCK_SIZE = 256 * MiB
export const SECTOR_SIZES: readonly number[] = [512, 4096]

/** States of payload blocks. [MS-VHDX] 2.5.1.1 */
export const Payload = {
  NOT_PRESENT: 0,
  UNDEFINED: 1,
  ZERO: 2,
  UNMAPPED: 3,
  /** UNMAPPED in drafts of the specification (0.95). */
  UNMAPPED_DRAFT: 5,
  FULLY_PRESENT: 6,
  PARTIALLY_PRESENT: 7,
} as const

/** States of sector bitmap blocks. [MS-VHDX] 2.5.1.2 */
export const Bitmap = { NOT_PRESENT: 0, PRESENT: 6 } as const

/** Bytes of the file that hold something other than blocks. */
export interface Area {
  readonly name: string
  readonly start: number
  readonly end: number
}

/** What the sizes of disk, block and sector decide. */
export interface Geometry {
  /** Bytes of the disk. */
  readonly size: number
  readonly blockSize: number
  /** 512 or 4096. */
  readonly sectorSize: number
  readonly differencing: boolean
  /** Payload blocks to a sector bitmap block. */
  readonly chunkRatio: number
  readonly payloadBlocks: number
  /** Entries of the block allocation table that are needed. */
  readonly entries: number
}

/** Where the log is, by the header. */
export function logArea({ logOffset, logLength }: Header): Area {
  return { name: 'log', start: logOffset, end: logOffset + logLength }
}

/** What became of the log when the image was opened. */
export type LogState = 'empty' | 'replayed' | 'replayed in memory'

/** Plain data; see `Opened.layout`. */
export interface VhdxLayout extends Geometry {
  readonly path: string
  readonly creator: string
  /** As it was found. */
  readonly header: Header
  /**
   * The DataWriteGuid from the first change of the disk on, so that a child can know it before. It is the one that it has
   * where no byte of the disk changes. [MS-VHDX] 2.2.2
   */
  readonly nextDataWriteGuid: string
  readonly log: LogState
  /** Entries that were replayed. */
  readonly logEntries: number
  readonly physicalSectorSize: number
  readonly diskId: string
  /** The blocks of the disk stay allocated: a "fixed" disk. */
  readonly leaveAllocated: boolean
  readonly tableOffset: number
  /** Header section, log, regions; sorted. */
  readonly areas: readonly Area[]
  readonly locator: readonly LocatorEntry[]
  /** See `Items`. */
  readonly ofDisk: readonly NewItem[] | undefined
}

export function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}

/** [MS-VHDX] 2.4, 2.5 */
export function geometryOf(size: number, blockSize: number, sectorSize: number, differencing: boolean): Geometry {
  const chunkRatio = (BITS_PER_BITMAP_BLOCK * sectorSize) / blockSize
  const payloadBlocks = Math.ceil(size / blockSize)
  const chunks = Math.ceil(payloadBlocks / chunkRatio)
  const entries = differencing
    ? chunks * (chunkRatio + 1)
    : payloadBlocks + Math.floor((payloadBlocks - 1) / chunkRatio)
  return { size, blockSize, sectorSize, differencing, chunkRatio, payloadBlocks, entries }
}

/** The place of a payload block's entry in the table. */
export function payloadIndex({ chunkRatio }: Geometry, block: number): number {
  return block + Math.floor(block / chunkRatio)
}

/** The place of the entry of a chunk's sector bitmap block: behind those of its payload blocks. */
export function bitmapIndex({ chunkRatio }: Geometry, chunk: number): number {
  return chunk * (chunkRatio + 1) + chunkRatio
}

/** Guest bytes in a block: the last may be cut short. */
export function usedOf({ size, blockSize }: Geometry, block: number): number {
  return Math.min(blockSize, size - block * blockSize)
}

/**
 * Checks the place of a block.
 * @param what as messages call it: `block 7`
 * @param used bytes of it that have to be in the file
 * @param limit bytes of the file
 * @throws CORRUPT
 */
export function checkPlace(layout: VhdxLayout, what: string, start: number, used: number, limit: number): void {
  const { areas, path } = layout
  const fail = (text: string) =>
    new VdiskError('CORRUPT', `${what} is at byte ${start}: ${text}`, { path, offset: start })
  const end = start + used
  if (end > limit) throw fail(`its ${used} bytes would end at ${end}, and the file ends at ${limit}`)
  for (const area of areas)
    if (start < area.end && end > area.start)
      throw fail(`it would lie over the ${area.name} at bytes ${area.start} to ${area.end}`)
}

/** For a state that a block of this disk cannot have. */
export function unknownState({ path, differencing }: VhdxLayout, block: number, state: number): VdiskError {
  const text =
    state !== Payload.PARTIALLY_PRESENT
      ? `its state is ${state}: expected 0 to 3, 6 or 7`
      : differencing
        ? 'it is partially present, and its chunk has no sector bitmap block'
        : 'it is partially present, and the disk has no parent'
  return new VdiskError('CORRUPT', `block ${block}: ${text}`, { path })
}

/** Numbers of a layer that change while it is open: `LayerContext.state`. */
export const State = {
  /** Bytes of the file, durably. */
  LIMIT: 0,
  /** Where the next new block goes if no freed space is taken. Known once writing has begun. */
  NEXT: 1,
  /** Bytes by which the file grows next. */
  STEP: 2,
  /** 1 when blocks were allocated or freed. */
  CHANGED: 3,
  /** Offset in the log, and length, of its newest entry: the active sequence. */
  LOG_AT: 4,
  LOG_USED: 5,
  /** Sequence number of the next entry. */
  LOG_SEQUENCE: 6,
  /** 1 when the headers carry the log's GUID. */
  LOG_OPEN: 7,
  /** The log's GUID, 4 bytes a number; all zero while there is no log. */
  LOG_GUID: 8,
  /** Behind the last block, what is in front of this reads as zeros. */
  CLEARED: 12,
  /** 1 while pages of the active sequence may be in place in part. */
  HALF_IN_PLACE: 13,
  /** Counted up when a sector bitmap changes, one number for all units with the same remainder. */
  GENERATIONS: 14,
} as const

export const GENERATIONS = 64

/** The file grows by this at first, then by twice as much every time, up to MAX_STEP. */
const FIRST_STEP = 64 * MiB
export const MAX_STEP = 1024 * MiB

/** On a device, what is behind the last block is made zeros in pieces of so many bytes. */
export const CLEAR_STEP = 16 * MiB

export function firstState(fileSize: number): number[] {
  const state = new Array<number>(State.GENERATIONS + GENERATIONS).fill(0)
  state[State.LIMIT] = fileSize
  state[State.STEP] = FIRST_STEP
  state[State.LOG_SEQUENCE] = 1
  return state
}
