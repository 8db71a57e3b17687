/**
 * Cached metadata pages in shared memory: which page is where, which of its sectors are known, dirty, or on their way to
 * the disk. All of it is touched under the image's lock: looking things up under the shared one, the rest under the
 * exclusive one. It does no I/O.
 *
 * A page is 4 KiB of one file, found by (file number, page number). Metadata and data can share a page, so every fact
 * is kept by 512-byte sector: only sectors that are known to be metadata are ever valid here.
 */

import { VdiskError } from '../util/errors.js'
import { Control, PAGE, SECTOR, SECTORS_PER_PAGE, type SharedShape, type SharedViews } from './shared.js'

const PAGES_PER_HIGH = 2 ** 32
/** File numbers are kept above the high bits of page numbers (offsets are below 2^53, so these need 9). */
const FILE_SHIFT = 9
const FREE = -1

export const NONE = -1

export class PageCache {
  readonly pages: number
  readonly data: Uint8Array
  readonly valid: Uint8Array
  /** 1 for each page that the host has room for, even where it lies in a hole. */
  readonly secured: Uint8Array
  readonly #v: SharedViews
  readonly #bucketMask: number

  constructor(shape: SharedShape, views: SharedViews) {
    this.pages = shape.pages
    this.data = views.data
    this.valid = views.valid
    this.secured = views.secured
    this.#v = views
    this.#bucketMask = shape.pages - 1
  }

  /** Makes an empty cache of fresh memory. Called once, by the thread that made the memory. */
  clear(): void {
    this.#v.keyHigh.fill(FREE)
  }

  #bucket(low: number, high: number): number {
    const h = Math.imul(low, 0x9e3779b1) ^ Math.imul(high, 0x85ebca6b)
    return (h ^ (h >>> 15)) & this.#bucketMask
  }

  /** The slot of a page, or NONE. Shared lock. */
  find(file: number, page: number): number {
    const v = this.#v
    const low = page | 0
    const high = page < PAGES_PER_HIGH ? file << FILE_SHIFT : (file << FILE_SHIFT) | Math.floor(page / PAGES_PER_HIGH)
    let slot = v.heads[this.#bucket(low, high)]! - 1
    while (slot >= 0 && (v.keyLow[slot] !== low || v.keyHigh[slot] !== high)) slot = v.next[slot]! - 1
    // Not written where it is so already: all threads look, and a cache line that is only read stays with all cores.
    if (slot >= 0 && v.used[slot] === 0) v.used[slot] = 1
    return slot
  }

  /** True where the slot still holds this page; for callers that remember slots. Shared lock. */
  holds(slot: number, file: number, page: number): boolean {
    const v = this.#v
    return (
      v.keyLow[slot] === (page | 0) && v.keyHigh[slot] === ((file << FILE_SHIFT) | Math.floor(page / PAGES_PER_HIGH))
    )
  }

  /** The slot of a page, made with no valid sector where there was none. Exclusive lock. */
  claim(file: number, page: number): number {
    const found = this.find(file, page)
    if (found !== NONE) return found
    const v = this.#v
    const slot = this.#evict()
    const low = page | 0
    const high = (file << FILE_SHIFT) | Math.floor(page / PAGES_PER_HIGH)
    const bucket = this.#bucket(low, high)
    v.keyLow[slot] = low
    v.keyHigh[slot] = high
    v.next[slot] = v.heads[bucket]!
    v.heads[bucket] = slot + 1
    v.valid[slot] = 0
    v.secured[slot] = 0
    v.used[slot] = 1
    return slot
  }

  /** A free slot, or that of a clean page that was not used lately (second chance). */
  #evict(): number {
    const v = this.#v
    const c = v.control
    if (c[Control.USED_PAGES]! < this.pages) {
      const slot = c[Control.USED_PAGES]!
      c[Control.USED_PAGES] = slot + 1
      return slot
    }
    for (let looks = 0; looks < 3 * this.pages; looks++) {
      const slot = c[Control.CLOCK_HAND]!
      c[Control.CLOCK_HAND] = (slot + 1) & this.#bucketMask
      if (v.dirty[slot] !== 0 || v.writing[slot] !== 0 || v.fillBusy[slot] !== 0) continue
      if (v.used[slot] !== 0) {
        v.used[slot] = 0
        continue
      }
      if (v.keyHigh[slot] !== FREE) this.#unlink(slot)
      c[Control.EVICTIONS] = c[Control.EVICTIONS]! + 1
      return slot
    }
    throw new VdiskError('INTERNAL', 'the metadata cache has no clean page left')
  }

  #unlink(slot: number): void {
    const v = this.#v
    const bucket = this.#bucket(v.keyLow[slot]!, v.keyHigh[slot]!)
    if (v.heads[bucket] === slot + 1) v.heads[bucket] = v.next[slot]!
    else {
      let at = v.heads[bucket]! - 1
      while (v.next[at] !== slot + 1) at = v.next[at]! - 1
      v.next[at] = v.next[slot]!
    }
    v.keyHigh[slot] = FREE
  }

  /** Marks sectors of a slot dirty, to be written with those of `order` (0..3). Exclusive lock. */
  markDirty(slot: number, sectors: number, order: number): void {
    const v = this.#v
    const c = v.control
    const before = v.dirty[slot]!
    const all = (before | (before >>> 8) | (before >>> 16) | (before >>> 24)) & 0xff
    const fresh = sectors & ~all
    if (fresh === 0) return
    if (before === 0 && v.writing[slot] === 0) c[Control.DIRTY_PAGES] = c[Control.DIRTY_PAGES]! + 1
    c[Control.DIRTY_SECTORS] = c[Control.DIRTY_SECTORS]! + bitCount(fresh)
    v.dirty[slot] = before | (fresh << (8 * order))
  }

  /** Forgets sectors, dirty or not: they are no metadata any more. Exclusive lock. */
  forget(slot: number, sectors: number): void {
    const v = this.#v
    const c = v.control
    const before = v.dirty[slot]!
    const four = sectors | (sectors << 8) | (sectors << 16) | (sectors << 24)
    const after = before & ~four
    v.valid[slot] = v.valid[slot]! & ~sectors
    v.fillMask[slot] = v.fillMask[slot]! & ~sectors
    // What is free is punched.
    v.secured[slot] = 0
    if (after === before) return
    v.dirty[slot] = after
    c[Control.DIRTY_SECTORS] = c[Control.DIRTY_SECTORS]! - bitCount(before & four)
    if (after === 0 && v.writing[slot] === 0) c[Control.DIRTY_PAGES] = c[Control.DIRTY_PAGES]! - 1
  }

  /** True where a commit is writing one of these sectors. Exclusive lock. */
  isWriting(slot: number, sectors: number): boolean {
    return (this.#v.writing[slot]! & sectors) !== 0
  }

  /**
   * Calls back for every dirty sector (slot, sector, order) and moves it from dirty to writing. Exclusive lock.
   */
  takeDirty(visit: (slot: number, sector: number, order: number) => void): void {
    const v = this.#v
    const used = v.control[Control.USED_PAGES]!
    for (let slot = 0; slot < used; slot++) {
      const dirty = v.dirty[slot]!
      if (dirty === 0) continue
      for (let bit = 0; bit < 32; bit++) if ((dirty >>> bit) & 1) visit(slot, bit & 7, bit >>> 3)
      v.writing[slot] = (dirty | (dirty >>> 8) | (dirty >>> 16) | (dirty >>> 24)) & 0xff
      v.dirty[slot] = 0
    }
    // In this order: at no moment does it look as if nothing were left to be written.
    Atomics.store(v.control, Control.IN_FLIGHT, v.control[Control.DIRTY_SECTORS]!)
    Atomics.store(v.control, Control.DIRTY_SECTORS, 0)
  }

  /** Ends the writing of a commit: `written` or not, then they are dirty again. Exclusive lock. */
  endWriting(slot: number, sectors: number, order: number, written: boolean): void {
    const v = this.#v
    const c = v.control
    v.writing[slot] = v.writing[slot]! & ~sectors
    if (v.writing[slot] === 0 && v.dirty[slot] === 0) c[Control.DIRTY_PAGES] = c[Control.DIRTY_PAGES]! - 1
    if (!written && (v.valid[slot]! & sectors) !== 0) this.markDirty(slot, sectors, order)
  }

  /** The file number and the page number of a slot. */
  fileOf(slot: number): number {
    return this.#v.keyHigh[slot]! >> FILE_SHIFT
  }

  offsetOf(slot: number): number {
    const high = this.#v.keyHigh[slot]! & ((1 << FILE_SHIFT) - 1)
    return (high * PAGES_PER_HIGH + (this.#v.keyLow[slot]! >>> 0)) * PAGE
  }
}

/** The bits of the sectors of page `page` that lie in [start, end), rounded out. */
export function sectorMask(page: number, start: number, end: number): number {
  const base = page * PAGE
  const first = start <= base ? 0 : Math.floor((start - base) / SECTOR)
  const last = end >= base + PAGE ? SECTORS_PER_PAGE : Math.ceil((end - base) / SECTOR)
  return ((1 << last) - 1) & ~((1 << first) - 1)
}

function bitCount(bits: number): number {
  let n = bits - ((bits >>> 1) & 0x55555555)
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333)
  return Math.imul((n + (n >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24
}
