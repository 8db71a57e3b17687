/**
 * Dynamic and differencing disks: blocks that are allocated as they are written, found through the block allocation
 * table, each behind the bitmap of its sectors.
 *
 * Order of writes, so that a crash at any moment leaves a valid image:
 *
 * 1. the footer at the new end, where the file must grow; barrier (see `Growth`)
 * 2. the bitmap of a new block, straight to the file, then its data: nothing refers to them yet
 * 3. barrier
 * 4. the block allocation table, and bitmaps of blocks that were there before, where bits were set; barrier
 *
 * Steps 3 and 4 are one commit. Within step 4 no order is needed: a bitmap that is there before its block is in the
 * table means nothing yet, and a block that is in the table before the rest of its bits is what it was before those
 * sectors were written. Blocks that were freed are punched after the commit that removed them from the table, and only
 * then used again.
 *
 * Windows and QEMU set all bits of a dynamic disk's block when they allocate it, and QEMU looks at none of them. So the
 * data of a block is shown whatever its bits are. A block of a program that does set them one by one gets the bits of
 * what is written set before it is overwritten: "All sectors within a block whose corresponding bits in the bitmap are
 * zero must contain 512 bytes of zero on disk".
 */

import { Region } from '../../metadata/region.js'
import { type Allocation, type Driver, type Extent, type FileRef, Kind, type LayerContext } from '../driver.js'
import { decodeRuns, type Runs, RunsCache, runOf, setBits, UNIT_SECTORS } from '../sector-bitmap.js'
import { BIT_ORDER, FullUnits, UNIT_BYTES } from './bitmap.js'
import { SECTOR } from './geometry.js'
import { Growth } from './growth.js'
import { type Blocks, checkBlock, ENTRY_BYTES, GENERATIONS, NO_BLOCK, State, type VhdLayout } from './layout.js'

const PAGE = 4096
const ENTRIES_PER_PAGE = PAGE / ENTRY_BYTES
/** Of all metadata: see above. */
const ORDER = 0
const FULL: Runs = { first: true, ends: Uint16Array.of(UNIT_SECTORS) }

export class BlockDriver implements Driver {
  readonly size: number
  readonly blockSize: number
  readonly locked = true
  /** A page of the table by `release`; `publish` changes a sector of it and one of a bitmap. */
  readonly changeSectors = PAGE / SECTOR
  readonly #layout: VhdLayout
  readonly #blocks: Blocks
  readonly #differencing: boolean
  readonly #file: FileRef
  readonly #writable: boolean
  readonly #state: Float64Array
  readonly #context: LayerContext
  readonly #table: Region
  readonly #bitmap: Region
  readonly #growth: Growth
  readonly #runs = new RunsCache()
  readonly #full: FullUnits
  readonly #unitBytes: number
  readonly #bits = new Uint8Array(SECTOR)
  #newBitmap: Uint8Array | undefined

  constructor(layout: VhdLayout, context: LayerContext) {
    const blocks = layout.blocks!
    const { tableOffset, maxTableEntries } = blocks
    this.size = layout.size
    this.blockSize = blocks.blockSize
    this.#layout = layout
    this.#blocks = blocks
    this.#differencing = layout.type === 'differencing'
    this.#file = context.files[0]!
    this.#writable = context.writable
    this.#state = context.state
    this.#context = context
    const { metadata } = context
    const tableEnd = tableOffset + maxTableEntries * ENTRY_BYTES
    this.#table = new Region(metadata, this.#file, tableOffset, tableEnd, ORDER)
    this.#bitmap = new Region(metadata, this.#file, 0, 0, ORDER)
    this.#growth = new Growth(layout, context)
    this.#unitBytes = Math.min(UNIT_BYTES, blocks.blockSize)
    this.#full = new FullUnits(Math.ceil(layout.size / this.#unitBytes))
  }

  #entryOffset(block: number): number {
    return this.#blocks.tableOffset + block * ENTRY_BYTES
  }

  map(offset: number, length: number, out: Extent): void {
    const { blockSize, bitmapBytes } = this.#blocks
    const block = Math.floor(offset / blockSize)
    const entry = this.#table.u32be(this.#entryOffset(block))
    const inBlock = offset - block * blockSize
    if (entry === NO_BLOCK) {
      out.kind = this.#differencing ? Kind.PARENT : Kind.ZERO
      out.length = Math.min(length, this.#unallocated(block, length + inBlock) - inBlock)
      return
    }
    const start = checkBlock(this.#layout, block, entry, this.#state[State.LIMIT]!)
    out.kind = Kind.DATA
    out.file = this.#file.index
    out.offset = start + bitmapBytes + inBlock
    out.length = Math.min(length, blockSize - inBlock)
    out.writable = false
    if (this.#differencing || this.#writable) this.#mapSectors(offset, inBlock, start, out)
  }

  /** Guest bytes from the beginning of `block` on that are in no block; looks at one page of the table at most. */
  #unallocated(block: number, length: number): number {
    const { blockSize } = this.#blocks
    const first = this.#entryOffset(block)
    const end = first - (first % PAGE) + PAGE
    let bytes = blockSize
    for (let at = first + ENTRY_BYTES; bytes < length && at < end; at += ENTRY_BYTES) {
      if (this.#table.u32be(at) !== NO_BLOCK) break
      bytes += blockSize
    }
    return bytes
  }

  /** Cuts an extent of a block where the bits of its sectors change, and says what they mean. */
  #mapSectors(offset: number, inBlock: number, start: number, out: Extent): void {
    const unit = Math.floor(offset / this.#unitBytes)
    const runs = this.#differencing ? this.#unitRuns(unit, inBlock, start) : this.#knownRuns(unit)
    if (!runs) return
    if (runs === FULL) {
      out.writable = this.#writable
      return
    }
    const inUnit = offset - unit * this.#unitBytes
    const run = runOf(runs, Math.floor(inUnit / SECTOR))
    const present = runs.first === (run % 2 === 0)
    out.length = Math.min(out.length, runs.ends[run]! * SECTOR - inUnit)
    if (present) out.writable = this.#writable
    else if (this.#differencing) out.kind = Kind.PARENT
  }

  /**
   * The runs of a dynamic disk's unit, where they are known. They are of no interest to a reader, so they are looked at
   * only when somebody wants to write (`allocate`): a read never costs an access to the bitmap.
   */
  #knownRuns(unit: number): Runs | undefined {
    return this.#full.has(unit) ? FULL : this.#runs.get(unit, this.#generation(unit))
  }

  #generation(unit: number): number {
    return this.#state[State.GENERATIONS + (unit % GENERATIONS)]!
  }

  /** The runs of a unit's bits; FULL where a dynamic disk's are all set. */
  #unitRuns(unit: number, inBlock: number, start: number): Runs {
    const generation = this.#generation(unit)
    let runs = this.#runs.get(unit, generation)
    if (!runs) {
      const at = Math.floor(inBlock / this.#unitBytes) * SECTOR
      const sectors = this.#unitBytes / SECTOR
      this.#bitmap.move(start, start + this.#blocks.bitmapBytes)
      this.#bitmap.copyOut(start + at, Math.ceil(sectors / 8), this.#bits, 0)
      runs = decodeRuns(this.#bits, sectors, BIT_ORDER)
      this.#runs.set(unit, generation, runs)
    }
    if (this.#differencing || !runs.first) return runs
    // Bits behind the end of the disk mean nothing.
    if (runs.ends[0]! * SECTOR < Math.min(this.#unitBytes, this.size - unit * this.#unitBytes)) return runs
    this.#full.add(unit)
    return FULL
  }

  allocate(offset: number, length: number, out: Allocation): boolean {
    const { blockSize, bitmapBytes } = this.#blocks
    const block = Math.floor(offset / blockSize)
    const entry = this.#table.u32be(this.#entryOffset(block))
    const inBlock = offset - block * blockSize
    out.file = this.#file.index
    out.block = block
    out.fresh = entry === NO_BLOCK
    out.zeroed = out.fresh
    if (out.fresh) {
      const room = this.#growth.take()
      if (!room) return false
      ;[out.space, out.spaceLength] = room
    } else out.space = checkBlock(this.#layout, block, entry, this.#state[State.LIMIT]!)
    // Bits are set in one sector of bitmap at a time; those of a new block are written with it.
    const step = out.fresh ? blockSize : this.#unitBytes
    const stepEnd = (Math.floor(offset / step) + 1) * step
    let end = Math.min(offset + length, stepEnd, this.size)
    let first = offset
    if (!out.fresh) {
      const { present, until } = this.#runAt(offset, inBlock, out.space)
      end = Math.min(end, until)
      // Around what is there nothing is copied: others may be writing to it.
      if (!present) {
        first -= offset % SECTOR
        end = Math.ceil(end / SECTOR) * SECTOR
      }
    } else if (this.#differencing) {
      first -= offset % SECTOR
      end = Math.ceil(end / SECTOR) * SECTOR
    }
    out.guest = first
    out.length = end - first
    out.offset = out.space + bitmapBytes + inBlock - (offset - first)
    return true
  }

  /** Whether the bit of a sector in a block is set, and up to which guest byte those behind it are the same. */
  #runAt(offset: number, inBlock: number, start: number): { present: boolean; until: number } {
    const unit = Math.floor(offset / this.#unitBytes)
    const runs = this.#unitRuns(unit, inBlock, start)
    const run = runOf(runs, Math.floor((offset - unit * this.#unitBytes) / SECTOR))
    return { present: runs.first === (run % 2 === 0), until: unit * this.#unitBytes + runs.ends[run]! * SECTOR }
  }

  beginWriting(): void {
    this.#growth.begin()
  }

  grow(): void {
    this.#growth.extend()
  }

  prepare(allocation: Allocation): void {
    if (!allocation.fresh) return
    const { blockSize, bitmapBytes } = this.#blocks
    this.#newBitmap ??= new Uint8Array(bitmapBytes)
    const bitmap = this.#newBitmap
    if (this.#differencing) {
      bitmap.fill(0)
      setBits(bitmap, (allocation.guest % blockSize) / SECTOR, allocation.length / SECTOR, BIT_ORDER)
    } else bitmap.fill(0xff)
    this.#file.storage.write(bitmap, 0, bitmapBytes, allocation.space)
    this.#context.metadata.wrote(this.#file.index)
  }

  publish(allocation: Allocation): void {
    if (allocation.fresh) this.#publishBlock(allocation)
    else this.#publishSectors(allocation)
  }

  #publishBlock({ block, space }: Allocation): void {
    const at = this.#entryOffset(block)
    this.#table.touch(at, ENTRY_BYTES)
    // What a late reader of the block that was here before may have put into the cache.
    this.#bitmap.move(space, space + this.#blocks.bitmapBytes).drop()
    this.#table.setU32be(at, space / SECTOR)
    this.#state[State.ALLOCATED]!++
    this.#state[State.CHANGED] = 1
    if (!this.#differencing) this.#addFull(block)
  }

  /** All bits of a new block of a dynamic disk are set. */
  #addFull(block: number): void {
    const first = Math.floor((block * this.blockSize) / this.#unitBytes)
    for (let unit = first; unit < first + this.blockSize / this.#unitBytes; unit++) this.#full.add(unit)
  }

  /**
   * Sets the bits of sectors in a block that was there before. They are in one sector of bitmap; where the range has parts
   * of sectors, these are set already.
   */
  #publishSectors({ guest, length, block, space }: Allocation): void {
    const { blockSize, bitmapBytes } = this.#blocks
    const inBlock = guest - block * blockSize
    const first = Math.floor(inBlock / SECTOR)
    const count = Math.ceil((inBlock + length) / SECTOR) - first
    const from = Math.floor(first / 8)
    const bytes = Math.ceil((first + count) / 8) - from
    this.#bitmap.move(space, space + bitmapBytes)
    this.#bitmap.copyOut(space + from, bytes, this.#bits, 0)
    setBits(this.#bits, first - from * 8, count, BIT_ORDER)
    let set = false
    for (let i = 0; i < bytes; i++) {
      if (this.#bitmap.u8(space + from + i) === this.#bits[i]!) continue
      this.#bitmap.setU8(space + from + i, this.#bits[i]!)
      set = true
    }
    if (set) this.#forget(guest, length)
  }

  /** Makes all threads decode the bitmaps of a guest range anew. */
  #forget(guest: number, length: number): void {
    const first = Math.floor(guest / this.#unitBytes)
    const units = Math.min(GENERATIONS, Math.ceil((guest + length) / this.#unitBytes) - first)
    for (let unit = first; unit < first + units; unit++) this.#state[State.GENERATIONS + (unit % GENERATIONS)]!++
  }

  abandon({ fresh, space, spaceLength }: Allocation): void {
    if (fresh) this.#context.space!.free(space, spaceLength)
  }

  release(offset: number, length: number, belowZero: boolean): number {
    const { blockSize } = this.#blocks
    if (offset % blockSize !== 0 || (this.#differencing && (!belowZero || this.#layout.batmap))) return 0
    const first = offset / blockSize
    const whole = offset + length >= this.size ? Math.ceil(length / blockSize) : Math.floor(length / blockSize)
    const pageEnd = first + ENTRIES_PER_PAGE - (this.#entryOffset(first) % PAGE) / ENTRY_BYTES
    const end = Math.min(first + whole, pageEnd)
    const limit = this.#state[State.LIMIT]!
    for (let block = first; block < end; block++) {
      const entry = this.#table.u32be(this.#entryOffset(block))
      if (entry !== NO_BLOCK) checkBlock(this.#layout, block, entry, limit)
    }
    this.#releaseBlocks(first, end)
    return Math.min(end * blockSize, offset + length) - offset
  }

  /** Takes blocks out of the table; neighbours in the file are freed as one range. */
  #releaseBlocks(first: number, end: number): void {
    const { blockSize, blockBytes, bitmapBytes, stride, reservedEnd } = this.#blocks
    const space = this.#context.space!
    // The footer may lie where a last block that is not there whole would end.
    const free = (from: number, to: number) => space.free(from, Math.min(to, this.#state[State.LIMIT]!) - from)
    let from = -1
    let last = -1
    for (let block = first; block < end; block++) {
      const at = this.#entryOffset(block)
      const entry = this.#table.u32be(at)
      if (entry === NO_BLOCK) continue
      const start = entry * SECTOR
      this.#bitmap.move(start, start + bitmapBytes).drop()
      this.#table.setU32be(at, NO_BLOCK)
      this.#forget(block * blockSize, blockSize)
      this.#state[State.ALLOCATED]!--
      const neighbour = start === last + blockBytes || (start === last + stride && last >= reservedEnd)
      if (!neighbour || from < 0) {
        if (from >= 0) free(from, last + blockBytes)
        from = start
      }
      last = start
    }
    if (from < 0) return
    free(from, last + blockBytes)
    this.#state[State.CHANGED] = 1
  }

  finish(): void {
    this.#growth.finish()
  }
}
