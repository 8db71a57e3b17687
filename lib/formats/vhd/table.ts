/** Walks through a whole block allocation table in bounded memory: counting blocks, and finding space between them. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { SECTOR } from './geometry.js'
import { checkBlock, ENTRY_BYTES, NO_BLOCK, type VhdLayout } from './layout.js'

const CHUNK_BYTES = 262144

/** Calls back for every piece of the table on disk: the number of its first block, and its entries. */
function eachChunk(layout: VhdLayout, storage: Storage, visit: (first: number, entries: Uint32Array) => void): void {
  const { tableOffset, maxTableEntries } = layout.blocks!
  const bytes = Buffer.alloc(Math.min(CHUNK_BYTES, maxTableEntries * ENTRY_BYTES))
  const perChunk = bytes.length / ENTRY_BYTES
  for (let first = 0; first < maxTableEntries; first += perChunk) {
    const length = Math.min(perChunk, maxTableEntries - first) * ENTRY_BYTES
    if (storage.read(bytes, 0, length, tableOffset + first * ENTRY_BYTES) < length)
      throw new VdiskError('CORRUPT', 'the file ends inside the block allocation table', { path: layout.path })
    if (LITTLE_ENDIAN_HOST) bytes.swap32()
    visit(first, new Uint32Array(bytes.buffer, bytes.byteOffset, length / ENTRY_BYTES))
  }
}

const LITTLE_ENDIAN_HOST = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1

/** Calls back for every block that the table on disk refers to, in the order of the table. */
export function eachBlock(layout: VhdLayout, storage: Storage, visit: (block: number, entry: number) => void): void {
  eachChunk(layout, storage, (first, entries) => {
    for (let i = 0; i < entries.length; i++) if (entries[i] !== NO_BLOCK) visit(first + i, entries[i]!)
  })
}

/** How many blocks the table on disk refers to. */
export function countBlocks(layout: VhdLayout, storage: Storage): number {
  let count = 0
  eachChunk(layout, storage, (_first, entries) => {
    for (const entry of entries) if (entry !== NO_BLOCK) count++
  })
  return count
}

/** A range of the file in bytes. */
export interface Range {
  readonly start: number
  readonly end: number
}

export interface TableScan {
  /** Blocks that the table refers to. */
  readonly allocated: number
  /** End of the last of them, or of the last reserved area behind them. */
  readonly end: number
  /** Gaps between them that are large enough for a block, in order. */
  readonly gaps: readonly Range[]
}

/**
 * Cells of the map that finds gaps, each the size of a block: 16 MiB of memory at most, for 2 TiB in blocks of 512 KiB.
 * Behind them no gaps are looked for.
 */
const MAX_CELLS = 4 * 2 ** 20
/** More gaps than the list of free space can hold are of no use. */
const MAX_GAPS = 16384

/**
 * Finds what no block and no reserved area lies on. Blocks that lie over each other are found by the way.
 * @param end byte offset of the footer
 * @throws CORRUPT, IO
 */
export function scanTable(layout: VhdLayout, storage: Storage, end: number): TableScan {
  const { blockBytes, reservedEnd } = layout.blocks!
  const blockSectors = blockBytes / SECTOR
  // A block begins in one cell and ends in the next, at the same place; so no two blocks can begin in one cell, and
  // the place where one begins, plus 1, is all that a cell needs to hold.
  const cells = new Uint32Array(Math.min(MAX_CELLS, Math.ceil(end / blockBytes)))
  // Entries that need no closer look.
  const least = Math.ceil(reservedEnd / SECTOR)
  const most = Math.floor((end - blockBytes) / SECTOR)
  const scan = { allocated: 0, end: reservedEnd }
  eachChunk(layout, storage, (first, entries) => {
    let allocated = 0
    let last = 0
    for (let i = 0; i < entries.length; i++) {
      const entry = entries[i]!
      if (entry === NO_BLOCK) continue
      if (entry < least || entry > most) checkBlock(layout, first + i, entry, end)
      allocated++
      if (entry > last) last = entry
      const cell = Math.floor(entry / blockSectors)
      if (cell >= cells.length) continue
      if (cells[cell] !== 0) throw overlap(layout, entry * SECTOR)
      cells[cell] = 1 + entry - cell * blockSectors
    }
    scan.allocated += allocated
    if (allocated > 0) scan.end = Math.max(scan.end, last * SECTOR + blockBytes)
  })
  return { ...scan, gaps: findGaps(layout, cells, blockSectors) }
}

function overlap({ path }: VhdLayout, offset: number): VdiskError {
  const text = `two blocks of the block allocation table lie over each other near byte ${offset}`
  return new VdiskError('CORRUPT', text, { path, offset })
}

function findGaps(layout: VhdLayout, cells: Uint32Array, blockSectors: number): Range[] {
  const { blockBytes, reserved } = layout.blocks!
  const gaps: Range[] = []
  let position = 0
  for (let cell = 0; cell < cells.length; cell++) {
    const begins = cells[cell]!
    if (begins === 0) continue
    const start = (cell * blockSectors + begins - 1) * SECTOR
    if (start < position) throw overlap(layout, start)
    if (start - position >= blockBytes) {
      for (const gap of subtract({ start: position, end: start }, reserved))
        if (gap.end - gap.start >= blockBytes) gaps.push(gap)
      if (gaps.length >= MAX_GAPS) return gaps
    }
    position = start + blockBytes
  }
  return gaps
}

/** What is left of a range without the ranges of a list that is sorted by `start`. */
export function subtract(range: Range, taken: readonly Range[]): Range[] {
  const left: Range[] = []
  let start = range.start
  for (const area of taken) {
    if (area.end <= start) continue
    if (area.start >= range.end) break
    if (area.start > start) left.push({ start, end: area.start })
    start = area.end
  }
  if (start < range.end) left.push({ start, end: range.end })
  return left
}
