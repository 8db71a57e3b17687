/**
 * Looks through a block allocation table that nothing can be believed of: entries that point to no place for a block,
 * blocks that lie over each other, and the space between blocks. Memory is bounded: the file is looked at in windows.
 */

import type { Storage } from '../../storage/storage.js'
import { SECTOR } from './geometry.js'
import type { Reserved, VhdLayout } from './layout.js'
import { eachBlock, type Range, subtract } from './table.js'

/**
 * What is wrong with an entry:
 * - `outside`: the block would begin where the file has no room for even its bitmap. There is no data of it.
 * - `metadata`: it would lie over a header or over the table itself. There cannot be data of it.
 * - `area`: it lies over something else that is reserved: a parent locator, another program's map.
 * - `shared`: it lies over a block of another entry.
 * - `cut`: it begins in the file and ends behind its end, or behind the beginning of the footer.
 */
export type FaultKind = 'outside' | 'metadata' | 'area' | 'shared' | 'cut'

export interface TableFault {
  readonly kind: FaultKind
  /** The first of `count` blocks in a row whose entries are the same. */
  readonly block: number
  count: number
  /** Byte offset in the file that the entry says. */
  readonly start: number
  /** What it lies over. */
  readonly over?: Reserved
}

/** Faults that are kept; those behind them are counted, and are found when the first are mended. */
const MAX_FAULTS = 65536

/** Cells of a window, each the size of a block: 16 MiB of memory at most. */
const WINDOW = 4 * 2 ** 20

/** Areas without which nothing of the table can be believed: `reservedAreas` puts them first. */
const METADATA = ['copy of the footer', 'dynamic disk header', 'block allocation table']

export class TableCheck {
  readonly faults: TableFault[] = []
  /** Entries that are wrong and are not in `faults`. */
  overflow = 0
  /** Blocks of the disk that the table refers to. */
  allocated = 0
  /** Blocks that do not follow the one before. */
  fragmented = 0
  /** Blocks behind the disk's end that the table refers to. */
  behind = 0
  /** End of the last block or reserved area that is wanted. */
  lastEnd: number
  /** As `lastEnd`, and blocks that are not there whole count as if they were: nothing new lies in front of it. */
  wholeEnd: number
  readonly #layout: VhdLayout
  readonly #storage: Storage
  readonly #blockBytes: number
  readonly #blockSectors: number
  readonly #windows: readonly number[]
  /** Of a file that is no larger than one window. */
  #cells: Uint32Array | undefined
  #previous = -1

  /** @param layout its `footerOffset` is where blocks must end */
  constructor(layout: VhdLayout, storage: Storage) {
    const { blockBytes, reservedEnd } = layout.blocks!
    this.#layout = layout
    this.#storage = storage
    this.#blockBytes = blockBytes
    this.#blockSectors = blockBytes / SECTOR
    this.lastEnd = reservedEnd
    this.wholeEnd = reservedEnd
    this.#windows = this.#findWindows()
    for (const from of this.#windows) this.#cells = this.#look(from, true)
  }

  get sound(): boolean {
    return this.faults.length === 0
  }

  /** The first cells of the windows in which blocks are, or end: the file may be one large hole. There is always one. */
  #findWindows(): number[] {
    const found = new Set([0])
    const sectors = this.#layout.footerOffset / SECTOR
    eachBlock(this.#layout, this.#storage, (_, entry) => {
      if (entry >= sectors) return
      const cell = Math.floor(entry / this.#blockSectors)
      for (const reached of [cell, cell + 1]) found.add(Math.floor(reached / WINDOW))
    })
    return [...found].sort((a, b) => a - b).map((window) => window * WINDOW)
  }

  /**
   * Puts the blocks of a window into its cells. As in `scanTable`, a cell needs to hold only where in it a block
   * begins. The cells to both sides of the window are looked at too, for blocks that reach over its bounds.
   * @param noting faults are noted, and blocks are counted
   */
  #look(from: number, noting: boolean): Uint32Array {
    const count = Math.max(0, Math.min(WINDOW, Math.ceil(this.#layout.footerOffset / this.#blockBytes) - from))
    const cells = new Uint32Array(count + 2)
    eachBlock(this.#layout, this.#storage, (block, entry) => {
      const start = entry * SECTOR
      const fault = this.#misplaced(block, start)
      if (noting && from === 0) {
        this.#count(block, start, fault?.kind)
        if (fault) this.#note(fault)
      }
      if (fault && fault.kind !== 'cut') return
      const cell = Math.floor(entry / this.#blockSectors) - from + 1
      if (cell < 0 || cell >= cells.length) return
      const place = 1 + (entry % this.#blockSectors)
      const free =
        cells[cell] === 0 && !(cells[cell - 1]! > place) && !(cells[cell + 1]! > 0 && cells[cell + 1]! < place)
      if (free) cells[cell] = place
      else if (noting && cell >= 1 && cell <= count) this.#note({ kind: 'shared', block, count: 1, start })
    })
    return cells
  }

  /** Bytes of a block that the disk has. */
  #used(block: number): number {
    const { size, blocks } = this.#layout
    return Math.min(blocks!.blockSize, Math.max(0, size - block * blocks!.blockSize))
  }

  #misplaced(block: number, start: number): TableFault | undefined {
    const { blocks, footerOffset } = this.#layout
    const { bitmapBytes, reserved, reservedEnd } = blocks!
    const fault = { block, count: 1, start }
    if (start + bitmapBytes > footerOffset) return { ...fault, kind: 'outside' }
    const end = start + bitmapBytes + this.#used(block)
    if (start < reservedEnd) {
      const over = reserved.filter((area) => start < area.end && end > area.start)
      const metadata = over.find(({ name }) => METADATA.includes(name))
      if (metadata) return { ...fault, kind: 'metadata', over: metadata }
      if (over[0]) return { ...fault, kind: 'area', over: over[0] }
    }
    return end > footerOffset ? { ...fault, kind: 'cut' } : undefined
  }

  #count(block: number, start: number, kind: FaultKind | undefined): void {
    const used = this.#used(block)
    if (used > 0) this.allocated++
    else this.behind++
    const { stride, bitmapBytes } = this.#layout.blocks!
    const follows = [this.#blockBytes, stride].includes(start - this.#previous)
    if (this.#previous >= 0 && !follows) this.fragmented++
    this.#previous = start
    if (kind === 'outside' || kind === 'metadata') return
    // The last block of a disk need not be there whole.
    const { footerOffset } = this.#layout
    const whole = start + this.#blockBytes
    const needed = Math.max(start + bitmapBytes + used, footerOffset)
    this.wholeEnd = Math.max(this.wholeEnd, whole)
    this.lastEnd = Math.max(this.lastEnd, whole <= footerOffset ? whole : needed)
  }

  #note(fault: TableFault): void {
    const { kind, block, start } = fault
    const last = this.faults.at(-1)
    const same = last?.kind === kind && last.start === start && last.block + last.count === block
    if (same && (kind === 'outside' || kind === 'metadata')) last.count++
    else if (this.faults.length < MAX_FAULTS) this.faults.push(fault)
    else this.overflow++
  }

  /** Space between blocks that is large enough for a block, in order. What is behind the last one is not among it. */
  *gaps(): Generator<Range> {
    const { blocks } = this.#layout
    const windows = this.#windows
    let position = 0
    for (const from of windows) {
      const cells = windows.length === 1 ? this.#cells! : this.#look(from, false)
      for (let cell = 1; cell < cells.length - 1; cell++) {
        if (cells[cell] === 0) continue
        const start = ((from + cell - 1) * this.#blockSectors + cells[cell]! - 1) * SECTOR
        if (start - position >= this.#blockBytes) {
          for (const gap of subtract({ start: position, end: start }, blocks!.reserved))
            if (gap.end - gap.start >= this.#blockBytes) yield gap
        }
        position = start + this.#blockBytes
      }
    }
  }
}
