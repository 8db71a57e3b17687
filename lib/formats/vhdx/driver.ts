/**
 * VHDX disks: blocks that are found through the block allocation table, and in differencing disks the bitmaps of their
 * sectors.
 *
 * Order of writes, so that a crash at any moment leaves a valid image:
 *
 * 1. the file is made longer, where it must grow; barrier (see `Growth`)
 * 2. data of new blocks: nothing refers to them yet
 * 3. barrier
 * 4. entries of the table and sector bitmaps, in one log entry; barrier; then in place (see `Journal`)
 *
 * Steps 3 and 4 are one commit. Blocks that were given back are punched at once, since zeros are what they hold then, and
 * used again after the commit that removed them from the table.
 *
 * Blocks that are given back become ZERO, with no place: UNMAPPED could show the old data in other programs. A sector
 * bitmap block stays once it is there, so that no old log entry can ever write over a block's data.
 */

import type { DirtyBatch } from '../../metadata/commit.js'
import { type Allocation, type Driver, type Extent, type FileRef, Kind, type LayerContext } from '../driver.js'
import { Bat } from './bat.js'
import { SectorBitmaps } from './bitmaps.js'
import { Growth } from './growth.js'
import { Journal, pagesOfLog } from './journal.js'
import {
  BITMAP_BYTES,
  Bitmap,
  bitmapIndex,
  checkPlace,
  Payload,
  payloadIndex,
  State,
  unknownState,
  usedOf,
  type VhdxLayout,
} from './layout.js'

/** Sectors of one page of the table: what `release` changes at most. */
const TABLE_PAGE_SECTORS = 8

/** What guest bytes of a block without space are. Differencing disks see their parent through NOT_PRESENT. */
const READS_ZEROS: readonly boolean[] = [true, true, true, true, false, true, false, false]

const hasData = (state: number) => state === Payload.FULLY_PRESENT || state === Payload.PARTIALLY_PRESENT

export class BlockDriver implements Driver {
  readonly size: number
  readonly blockSize: number
  readonly locked = true
  readonly changeSectors: number
  readonly dirtyLimit: number
  readonly #layout: VhdxLayout
  readonly #file: FileRef
  readonly #context: LayerContext
  readonly #state: Float64Array
  readonly #bat: Bat
  readonly #bitmaps: SectorBitmaps
  readonly #journal: Journal
  readonly #growth: Growth

  constructor(layout: VhdxLayout, context: LayerContext) {
    this.size = layout.size
    this.blockSize = layout.blockSize
    this.#layout = layout
    this.#context = context
    this.#file = context.files[0]!
    this.#state = context.state
    this.#bat = new Bat(layout, context)
    this.#bitmaps = new SectorBitmaps(layout, context)
    this.#journal = new Journal(layout, context)
    this.#growth = new Growth(layout, context, this.#journal)
    // The entries of a block and of its bitmap block, and the bitmap.
    this.changeSectors = Math.max(TABLE_PAGE_SECTORS, layout.differencing ? 2 + this.#bitmaps.sectorsPerBlock : 0)
    this.dirtyLimit = pagesOfLog(layout.header.logLength)
  }

  map(offset: number, length: number, out: Extent): void {
    const { blockSize, differencing } = this.#layout
    const block = Math.floor(offset / blockSize)
    const inBlock = offset - block * blockSize
    const index = payloadIndex(this.#layout, block)
    const state = this.#bat.state(index)
    if (!hasData(state)) {
      if (!READS_ZEROS[state]) throw unknownState(this.#layout, block, state)
      out.kind = differencing && state === Payload.NOT_PRESENT ? Kind.PARENT : Kind.ZERO
      out.length = Math.min(length, this.#alike(block, out.kind, inBlock + length) - inBlock)
      return
    }
    out.kind = Kind.DATA
    out.file = this.#file.index
    out.offset = this.#placeOf(block, index) + inBlock
    out.length = Math.min(length, blockSize - inBlock)
    out.writable = this.#context.writable
    if (state === Payload.FULLY_PRESENT) return
    const run = this.#bitmaps.runAt(offset, this.#bitmapPlace(block))
    out.length = Math.min(out.length, run.length)
    if (!run.present) out.kind = Kind.PARENT
  }

  /** Guest bytes from the beginning of `block` on that are without space alike; looks at one page of the table only. */
  #alike(block: number, kind: number, length: number): number {
    const { blockSize, chunkRatio, differencing } = this.#layout
    const end = this.#bat.pageEnd(payloadIndex(this.#layout, block))
    let bytes = blockSize
    for (let next = block + 1; bytes < length; next++) {
      const index = next + Math.floor(next / chunkRatio)
      if (index >= end) break
      const state = this.#bat.state(index)
      const same = differencing && state === Payload.NOT_PRESENT ? Kind.PARENT : READS_ZEROS[state] ? Kind.ZERO : -1
      if (same !== kind) break
      bytes += blockSize
    }
    return bytes
  }

  /** Where a block's data are. @throws CORRUPT */
  #placeOf(block: number, index: number): number {
    const place = this.#bat.place(index)
    checkPlace(this.#layout, `block ${block}`, place, usedOf(this.#layout, block), this.#state[State.LIMIT]!)
    return place
  }

  /** Where the sector bitmap block of a block's chunk is. @throws CORRUPT */
  #bitmapPlace(block: number): number {
    const chunk = Math.floor(block / this.#layout.chunkRatio)
    const index = bitmapIndex(this.#layout, chunk)
    if (!this.#layout.differencing || this.#bat.state(index) !== Bitmap.PRESENT)
      throw unknownState(this.#layout, block, Payload.PARTIALLY_PRESENT)
    const place = this.#bat.place(index)
    checkPlace(this.#layout, `sector bitmap block ${chunk}`, place, BITMAP_BYTES, this.#state[State.LIMIT]!)
    return place
  }

  allocate(offset: number, length: number, out: Allocation): boolean {
    const { blockSize, sectorSize } = this.#layout
    const block = Math.floor(offset / blockSize)
    const index = payloadIndex(this.#layout, block)
    const state = this.#bat.state(index)
    const partial = this.#isPartial(block, state, offset, length)
    out.file = this.#file.index
    out.block = block
    out.fresh = state !== Payload.PARTIALLY_PRESENT
    out.zeroed = out.fresh
    this.#bat.touch(index)
    if (!out.fresh) out.space = this.#placeOf(block, index)
    else {
      if (partial && !this.#ensureBitmapBlock(block)) return false
      out.space = this.#growth.take(blockSize)
      if (out.space < 0) return false
      out.spaceLength = blockSize
    }
    // Of a block that has its sectors from two images, whole sectors are taken over.
    let start = offset
    let end = Math.min(offset + length, (block + 1) * blockSize)
    if (partial) {
      start -= start % sectorSize
      end = Math.ceil(end / sectorSize) * sectorSize
      // Nothing is copied of sectors that are there: others may be writing to them.
      if (!out.fresh) end = Math.min(end, offset + this.#bitmaps.runAt(offset, this.#bitmapPlace(block)).length)
    }
    out.guest = start
    out.length = end - start
    out.offset = out.space + start - block * blockSize
    return true
  }

  /** True where a block gets this range and keeps sectors of the parent. */
  #isPartial(block: number, state: number, guest: number, length: number): boolean {
    const { blockSize, differencing } = this.#layout
    if (!differencing || (state !== Payload.NOT_PRESENT && state !== Payload.PARTIALLY_PRESENT)) return false
    return guest > block * blockSize || length < usedOf(this.#layout, block)
  }

  /**
   * Gives the chunk of a block its sector bitmap block. That alone changes nothing of what the disk reads as.
   * @returns false where the file must grow first
   */
  #ensureBitmapBlock(block: number): boolean {
    const chunk = Math.floor(block / this.#layout.chunkRatio)
    const index = bitmapIndex(this.#layout, chunk)
    if (this.#bat.state(index) === Bitmap.PRESENT) return true
    this.#bat.touch(index)
    const place = this.#growth.take(BITMAP_BYTES)
    if (place < 0) return false
    this.#bitmaps.forgetBlock(place)
    this.#bat.set(index, Bitmap.PRESENT, place)
    this.#state[State.CHANGED] = 1
    return true
  }

  beginWriting(): void {
    this.#growth.begin()
  }

  grow(): void {
    this.#growth.extend()
  }

  publish(allocation: Allocation): void {
    const { block, space, fresh, guest, length } = allocation
    const index = payloadIndex(this.#layout, block)
    this.#bat.touch(index)
    if (!this.#isPartial(block, this.#bat.state(index), guest, length))
      this.#setPresent(block, index, Payload.FULLY_PRESENT, space)
    else {
      const place = this.#bitmapPlace(block)
      if (fresh) {
        this.#bitmaps.replace(block, place, guest, length)
        this.#setPresent(block, index, Payload.PARTIALLY_PRESENT, space)
      } else if (this.#bitmaps.add(block, place, guest, length))
        this.#setPresent(block, index, Payload.FULLY_PRESENT, space)
    }
    this.#state[State.CHANGED] = 1
  }

  #setPresent(block: number, index: number, state: number, space: number): void {
    this.#bat.set(index, state, space)
    if (this.#layout.differencing) this.#bitmaps.forget(block)
  }

  abandon({ fresh, space, spaceLength }: Allocation): void {
    if (fresh) this.#context.space!.free(space, spaceLength)
  }

  release(offset: number, length: number): number {
    const { blockSize, leaveAllocated, payloadBlocks } = this.#layout
    if (leaveAllocated || offset % blockSize !== 0) return 0
    const first = offset / blockSize
    const whole = offset + length >= this.size ? payloadBlocks - first : Math.floor(length / blockSize)
    const pageEnd = this.#bat.pageEnd(payloadIndex(this.#layout, first))
    let end = first + 1
    while (end < first + whole && payloadIndex(this.#layout, end) < pageEnd) end++
    for (let block = first; block < end; block++) {
      const index = payloadIndex(this.#layout, block)
      const state = this.#bat.state(index)
      if (hasData(state)) {
        // What a device has of its last block is too little for any other, and for itself when it is taken again.
        if (this.#placeOf(block, index) + blockSize > this.#state[State.LIMIT]!) end = block
      } else if (!READS_ZEROS[state]) throw unknownState(this.#layout, block, state)
    }
    if (end === first) return 0
    this.#releaseBlocks(first, end)
    return Math.min(end * blockSize, offset + length) - offset
  }

  /** Makes blocks ZERO; neighbours in the file are freed as one range. */
  #releaseBlocks(first: number, end: number): void {
    const { blockSize, differencing } = this.#layout
    const space = this.#context.space!
    let from = 0
    let length = 0
    for (let block = first; block < end; block++) {
      const index = payloadIndex(this.#layout, block)
      const state = this.#bat.state(index)
      if (state === Payload.ZERO || (state === Payload.NOT_PRESENT && !differencing)) continue
      const place = this.#bat.place(index)
      this.#bat.set(index, Payload.ZERO, 0)
      if (differencing) this.#bitmaps.forget(block)
      // A place that UNMAPPED or UNDEFINED keeps was never checked: it is found to be free at the next opening.
      if (!hasData(state)) continue
      if (place !== from + length) {
        if (length > 0) space.discard(from, length)
        from = place
        length = 0
      }
      length += blockSize
    }
    if (length > 0) space.discard(from, length)
    this.#state[State.CHANGED] = 1
  }

  writeOut(batch: DirtyBatch): void {
    this.#journal.commit(batch)
  }

  finish(): void {
    this.#journal.empty()
    this.#growth.finish()
  }
}
