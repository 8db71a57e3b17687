/** Walks through a whole block allocation table in bounded memory: counting blocks, and finding space between them. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { SECTOR } from './geometry.js'
import { checkBlock, ENTRY_BYTES, NO_BLOCK, type VhdLayout } from './layout.js'

const CHUNK_BYTES = 262144

/** Calls back for every block that the table on disk refers to, in the order of the table. */
export function eachBlock(layout: VhdLayout, storage: Storage, visit: (block: number, entry: number) => void): void {
  const { tableOffset, maxTableEntries } = layout.blocks!
  const chunk = new Uint8Array(Math.min(CHUNK_BYTES, maxTableEntries * ENTRY_BYTES))
  const view = new DataView(chunk.buffer)
  const perChunk = chunk.length / ENTRY_BYTES
  for (let first = 0; first < maxTableEntries; first += perChunk) {
    const count = Math.min(perChunk, maxTableEntries - first)
    const got = storage.read(chunk, 0, count * ENTRY_BYTES, tableOffset + first * ENTRY_BYTES)
    if (got < count * ENTRY_BYTES)
      throw new VdiskError('CORRUPT', 'the file ends inside the block allocation table', { path: layout.path })
    for (let i = 0; i < count; i++) {
      const entry = view.getUint32(i * ENTRY_BYTES)
      if (entry !== NO_BLOCK) visit(first + i, entry)
    }
  }
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
  const { blockBytes } = layout.blocks!
  const blockSectors = blockBytes / SECTOR
  // A block begins in one cell and ends in the next, at the same place; so no two blocks can begin in one cell, and
  // the place where one begins, plus 1, is all that a cell needs to hold.
  const cells = new Uint32Array(Math.min(MAX_CELLS, Math.ceil(end / blockBytes)))
  let allocated = 0
  let last = layout.blocks!.reservedEnd
  eachBlock(layout, storage, (block, entry) => {
    const start = checkBlock(layout, block, entry, end)
    allocated++
    last = Math.max(last, start + blockBytes)
    const cell = Math.floor(entry / blockSectors)
    if (cell >= cells.length) return
    if (cells[cell] !== 0) throw overlap(layout, start)
    cells[cell] = 1 + (entry % blockSectors)
  })
  return { allocated, end: last, gaps: findGaps(layout, cells, blockSectors) }
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
function subtract(range: Range, taken: readonly Range[]): Range[] {
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
