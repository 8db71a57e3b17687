/** Sector bitmap blocks of a differencing disk: one for every chunk, its bits through the metadata cache. */

import { Region } from '../../metadata/region.js'
import type { LayerContext } from '../driver.js'
import { decodeRuns, type Runs, RunsCache, runOf, setBits, UNIT_SECTORS } from '../sector-bitmap.js'
import { BITMAP_BYTES, GENERATIONS, State, type VhdxLayout } from './layout.js'

const BIT_ORDER = 'lsb-first'
/** All metadata goes out through the log, which has no order inside. */
const ORDER = 0
const CACHE_SECTOR = 512

/** What a sector and those behind it are. */
export interface Run {
  present: boolean
  /** Bytes. */
  length: number
}

export class SectorBitmaps {
  /** Sectors of 512 bytes that the bitmap of one block lies in. */
  readonly sectorsPerBlock: number
  readonly #layout: VhdxLayout
  readonly #state: Float64Array
  readonly #region: Region
  readonly #runs = new RunsCache()
  /** Bytes of the bitmap of one block, a power of two from 32 to 65536. */
  readonly #bytesPerBlock: number
  /** Guest bytes whose bits are decoded together. */
  readonly #unitBytes: number
  readonly #run: Run = { present: false, length: 0 }
  readonly #bits: Uint8Array
  #wanted: Uint8Array | undefined

  constructor(layout: VhdxLayout, { metadata, files, state }: LayerContext) {
    const { blockSize, sectorSize } = layout
    this.#layout = layout
    this.#state = state
    this.#region = new Region(metadata, files[0]!, 0, 0, ORDER)
    this.#bytesPerBlock = blockSize / sectorSize / 8
    this.sectorsPerBlock = Math.ceil(this.#bytesPerBlock / CACHE_SECTOR)
    this.#unitBytes = Math.min(UNIT_SECTORS * sectorSize, blockSize)
    this.#bits = new Uint8Array(Math.min(CACHE_SECTOR, this.#bytesPerBlock))
  }

  /** Points the window at a sector bitmap block. @returns the file offset of the bits of a payload block */
  #at(block: number, place: number): number {
    this.#region.move(place, place + BITMAP_BYTES)
    return place + (block % this.#layout.chunkRatio) * this.#bytesPerBlock
  }

  /** What the sectors from `offset` on are, to the end of the unit at most. @param place of the bitmap block */
  runAt(offset: number, place: number): Run {
    const { blockSize, sectorSize } = this.#layout
    const unit = Math.floor(offset / this.#unitBytes)
    const runs = this.#unitRuns(unit, Math.floor(offset / blockSize), place)
    const inUnit = offset - unit * this.#unitBytes
    const run = runOf(runs, Math.floor(inUnit / sectorSize))
    this.#run.present = runs.first === (run % 2 === 0)
    this.#run.length = runs.ends[run]! * sectorSize - inUnit
    return this.#run
  }

  #unitRuns(unit: number, block: number, place: number): Runs {
    const { blockSize, sectorSize } = this.#layout
    const generation = this.#state[State.GENERATIONS + (unit % GENERATIONS)]!
    const known = this.#runs.get(unit, generation)
    if (known) return known
    const sectors = this.#unitBytes / sectorSize
    const inBlock = (unit % (blockSize / this.#unitBytes)) * (sectors / 8)
    this.#region.copyOut(this.#at(block, place) + inBlock, sectors / 8, this.#bits, 0)
    const runs = decodeRuns(this.#bits, sectors, BIT_ORDER)
    this.#runs.set(unit, generation, runs)
    return runs
  }

  /** Makes all threads decode the bitmap of a block anew. */
  forget(block: number): void {
    const { blockSize } = this.#layout
    const perBlock = blockSize / this.#unitBytes
    const first = block * perBlock
    for (let unit = first; unit < first + Math.min(GENERATIONS, perBlock); unit++)
      this.#state[State.GENERATIONS + (unit % GENERATIONS)]!++
  }

  /** Forgets what is cached of a new bitmap block: a late reader of what was there before may have put it there. */
  forgetBlock(place: number): void {
    this.#region.move(place, place + BITMAP_BYTES).drop()
  }

  /**
   * Makes a guest range of a block present, and nothing else of the block: bits that others left there are cleared.
   * @param guest and length: whole sectors
   */
  replace(block: number, place: number, guest: number, length: number): void {
    const { blockSize, sectorSize } = this.#layout
    const at = this.#at(block, place)
    const bytes = this.#bytesPerBlock
    this.#wanted ??= new Uint8Array(bytes)
    this.#wanted.fill(0)
    setBits(this.#wanted, (guest - block * blockSize) / sectorSize, length / sectorSize, BIT_ORDER)
    this.#region.touch(at, bytes)
    for (let i = 0; i < bytes; i++)
      if (this.#region.u8(at + i) !== this.#wanted[i]!) this.#region.setU8(at + i, this.#wanted[i]!)
  }

  /**
   * Makes one more guest range of a block present, inside of one unit.
   * @returns true where all of the block is present now
   */
  add(block: number, place: number, guest: number, length: number): boolean {
    const { blockSize, sectorSize } = this.#layout
    const at = this.#at(block, place)
    const first = (guest - block * blockSize) / sectorSize
    const count = length / sectorSize
    const from = Math.floor(first / 8)
    const bytes = Math.ceil((first + count) / 8) - from
    this.#region.touch(at, this.#bytesPerBlock)
    this.#region.copyOut(at + from, bytes, this.#bits, 0)
    setBits(this.#bits, first - from * 8, count, BIT_ORDER)
    for (let i = 0; i < bytes; i++) this.#region.setU8(at + from + i, this.#bits[i]!)
    this.forget(block)
    return this.#isFull(block, at)
  }

  #isFull(block: number, at: number): boolean {
    const { size, blockSize, sectorSize } = this.#layout
    const sectors = Math.min(blockSize, size - block * blockSize) / sectorSize
    const wholeBytes = sectors >> 3
    const rest = sectors & 7
    if (rest !== 0 && (this.#region.u8(at + wholeBytes) & (2 ** rest - 1)) !== 2 ** rest - 1) return false
    // From the end, so that a block that is written from its beginning on costs one look a write.
    for (let i = wholeBytes - 1; i >= 0; i--) if (this.#region.u8(at + i) !== 0xff) return false
    return true
  }
}
