/** Walks through a whole block allocation table in bounded memory: counting blocks, and finding space between them. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { placeOf, reservedOf, stateOf } from './bat.js'
import { BITMAP_BYTES, checkPlace, ENTRY_BYTES, Payload, UNIT, usedOf, type VhdxLayout } from './layout.js'

const CHUNK_BYTES = 262144
const PAGE = 4096

/** An entry that is not all zeros. */
export interface Entry {
  /** Number of the payload block; of the chunk for a sector bitmap block. */
  readonly block: number
  readonly isBitmap: boolean
  readonly state: number
  /** Byte offset in the file. */
  readonly place: number
  /** Bits that have to be zeros. */
  readonly reserved: number
}

/**
 * Calls back for every entry on disk that is not all zeros (not present, nowhere), in the order of the table. Holes of
 * the file are not read, so that the table of a huge, empty disk takes no time.
 */
export function eachEntry(layout: VhdxLayout, storage: Storage, visit: (entry: Entry) => void): void {
  const { tableOffset, entries, path } = layout
  const end = tableOffset + entries * ENTRY_BYTES
  const chunk = new Uint8Array(Math.min(CHUNK_BYTES, end - tableOffset))
  const words = new DataView(chunk.buffer)
  for (let at = nextDataPage(storage, tableOffset); at < end; at = nextDataPage(storage, at)) {
    const count = Math.min(chunk.length, end - at)
    if (storage.read(chunk, 0, count, at) < count)
      throw new VdiskError('CORRUPT', 'the file ends inside the block allocation table', { path })
    for (let i = 0; i < count; i += ENTRY_BYTES) {
      const low = words.getUint32(i, true)
      const high = words.getUint32(i + 4, true)
      if (low !== 0 || high !== 0) visit(entryAt(layout, (at - tableOffset + i) / ENTRY_BYTES, low, high))
    }
    at += count
  }
}

function nextDataPage(storage: Storage, at: number): number {
  return Math.max(at, Math.floor(storage.nextData(at) / PAGE) * PAGE)
}

function entryAt({ chunkRatio }: VhdxLayout, index: number, low: number, high: number): Entry {
  const chunk = Math.floor(index / (chunkRatio + 1))
  const inChunk = index % (chunkRatio + 1)
  const isBitmap = inChunk === chunkRatio
  const block = isBitmap ? chunk : index - chunk
  return { block, isBitmap, state: stateOf(low), place: placeOf(low, high), reserved: reservedOf(low) }
}

/** How an entry's space is told to be in use. */
const HOLDS_DATA: readonly number[] = [Payload.FULLY_PRESENT, Payload.PARTIALLY_PRESENT]
/** Blocks that may keep their space although they have no content. */
const MAY_HOLD: readonly number[] = [Payload.UNDEFINED, Payload.UNMAPPED, Payload.UNMAPPED_DRAFT]

/**
 * Bytes of the file that an entry keeps; 0 where it keeps none. In states without content byte 0 is no place at all, and
 * anything else may be what a writer left there; with content it is a place like any other, where no block can be.
 */
export function keptBytes(layout: VhdxLayout, entry: Entry): number {
  const { isBitmap, state, place } = entry
  if (place === 0 && !isExclusive(entry)) return 0
  if (isBitmap) return state === Payload.FULLY_PRESENT ? BITMAP_BYTES : 0
  return HOLDS_DATA.includes(state) || MAY_HOLD.includes(state) ? layout.blockSize : 0
}

/** True where nothing but this entry may use its space. */
export function isExclusive({ isBitmap, state }: Entry): boolean {
  return isBitmap || HOLDS_DATA.includes(state)
}

export function nameOf({ block, isBitmap }: Entry): string {
  return isBitmap ? `sector bitmap block ${block}` : `block ${block}`
}

/**
 * As `eachEntry`, but entries without content that keep space come last: what they name as their place may be that of a
 * block with content, which is no fault of that block.
 */
export function contentFirst(layout: VhdxLayout, storage: Storage, visit: (entry: Entry) => void): void {
  const onlyKeeps = (entry: Entry) => !isExclusive(entry) && keptBytes(layout, entry) > 0
  let left = false
  eachEntry(layout, storage, (entry) => {
    if (onlyKeeps(entry)) left = true
    else visit(entry)
  })
  if (!left) return
  eachEntry(layout, storage, (entry) => {
    if (onlyKeeps(entry)) visit(entry)
  })
}

/** A range of the file in bytes. */
export interface Range {
  readonly start: number
  readonly end: number
}

/** Units of 1 MiB of the file in which gaps are looked for: 128 TiB, in 16 MiB of memory. */
export const MAX_UNITS = 2 ** 27
/** More gaps than the list of free space can hold are of no use. */
const MAX_GAPS = 16384

export interface TableScan {
  /** End of the last block or other area; it may lie behind the end of the file. */
  readonly end: number
  /** Between them what nothing refers to, in order. */
  readonly gaps: readonly Range[]
}

/**
 * Finds what no block and no other area lies on.
 * @param limit bytes of the file
 * @throws CORRUPT where a block lies outside of the file, or over something else; IO
 */
export function scanTable(layout: VhdxLayout, storage: Storage, limit: number): TableScan {
  const used = new Units(Math.min(MAX_UNITS, Math.ceil(limit / UNIT)))
  let end = 0
  for (const area of layout.areas) {
    used.mark(area.start, area.end)
    end = Math.max(end, area.end)
  }
  contentFirst(layout, storage, (entry) => {
    const kept = keptBytes(layout, entry)
    if (kept === 0) return
    const { place, isBitmap, block } = entry
    const exclusive = isExclusive(entry)
    const needed = isBitmap ? BITMAP_BYTES : usedOf(layout, block)
    if (exclusive) checkPlace(layout, nameOf(entry), place, needed, limit)
    if (used.mark(place, place + kept) && exclusive) throw overlap(layout, entry)
    // Where the file ends inside of its last block, that block's space goes on behind the end.
    if (place < limit) end = Math.max(end, place + kept)
  })
  return { end, gaps: used.gaps(Math.min(end, MAX_UNITS * UNIT)) }
}

function overlap({ path }: VhdxLayout, entry: Entry): VdiskError {
  const text = `${nameOf(entry)} is at byte ${entry.place}, where another block lies`
  return new VdiskError('CORRUPT', text, { path, offset: entry.place })
}

/** Which units of 1 MiB of a file are in use: a bit for each. */
export class Units {
  readonly #count: number
  readonly #bits: Uint8Array

  constructor(count: number) {
    this.#count = count
    this.#bits = new Uint8Array(Math.ceil(count / 8))
  }

  /** Marks a range of bytes. @returns true where a part of it was marked before */
  mark(start: number, end: number): boolean {
    const last = Math.min(this.#count, Math.ceil(end / UNIT))
    let twice = false
    for (let unit = Math.floor(start / UNIT); unit < last; unit++) {
      const bit = 1 << (unit & 7)
      if ((this.#bits[unit >> 3]! & bit) !== 0) twice = true
      this.#bits[unit >> 3]! |= bit
    }
    return twice
  }

  isMarked(unit: number): boolean {
    return (this.#bits[unit >> 3]! & (1 << (unit & 7))) !== 0
  }

  /** What is not marked, up to a byte offset. */
  gaps(end: number): Range[] {
    const gaps: Range[] = []
    const count = Math.min(this.#count, Math.floor(end / UNIT))
    for (let unit = 0; unit < count && gaps.length < MAX_GAPS; ) {
      if (this.isMarked(unit)) {
        unit++
        continue
      }
      const first = unit
      while (unit < count && !this.isMarked(unit)) unit++
      gaps.push({ start: first * UNIT, end: unit * UNIT })
    }
    return gaps
  }
}
