/** A window on one metadata structure of a file, through the shared cache: how formats read and change their tables. */

import type { FileRef } from '../formats/driver.js'
import { VdiskError } from '../util/errors.js'
import { NONE, type PageCache, sectorMask } from './cache.js'
import type { Metadata } from './metadata.js'
import { PAGE, SECTOR } from './shared.js'

/**
 * A structure (a table, a bitmap) at [start, end) of a file. Only sectors that lie in it, rounded out to 512 bytes, are
 * ever taken for metadata. Offsets are file offsets; a field never straddles two sectors.
 *
 * Every method but `move` may end with a PageMiss, before it has changed anything. Reading needs the shared or the
 * exclusive lock, changing the exclusive one. One object a thread.
 */
export class Region {
  readonly #metadata: Metadata
  readonly #cache: PageCache
  readonly #data: Uint8Array
  readonly #hits: Float64Array
  readonly #file: FileRef
  readonly #order: number
  #start: number
  #end: number
  #page = -1
  #slot = NONE

  /** @param order 0..3: a commit writes sectors of a lower order first, with a barrier before those of the next. */
  constructor(metadata: Metadata, file: FileRef, start: number, end: number, order: number) {
    this.#metadata = metadata
    this.#cache = metadata.cache
    this.#data = metadata.cache.data
    this.#hits = metadata.hits
    this.#file = file
    this.#start = start
    this.#end = end
    this.#order = order
  }

  /** Points the window at another structure of the same kind; returns itself. */
  move(start: number, end: number): this {
    this.#start = start
    this.#end = end
    return this
  }

  /** Index in the cache's memory of the byte at a file offset, whose sector is valid. */
  #at(offset: number, secure = false): number {
    const page = Math.floor(offset / PAGE)
    let slot = this.#slot
    if (page !== this.#page || !this.#cache.holds(slot, this.#file.index, page)) {
      slot = this.#cache.find(this.#file.index, page)
      if (slot === NONE) this.#miss(page, offset, secure)
      this.#page = page
      this.#slot = slot
    }
    const inPage = offset - page * PAGE
    if (((this.#cache.valid[slot]! >> (inPage >> 9)) & 1) === 0) this.#miss(page, offset, secure)
    this.#hits[0]!++
    return slot * PAGE + inPage
  }

  #miss(page: number, offset: number, secure: boolean): never {
    const sector = offset - (offset % SECTOR)
    // Loading would never make it valid.
    if (sector >= this.#end || sector + SECTOR <= this.#start)
      throw new VdiskError('INTERNAL', `byte ${offset} is not in the structure from ${this.#start} to ${this.#end}`)
    const miss = this.#metadata.miss
    miss.file = this.#file
    miss.page = page
    miss.start = this.#start
    miss.end = this.#end
    miss.secure = secure
    throw miss
  }

  /** As `#at`, of what is going to be changed: the host has room for it then. */
  #securedAt(offset: number): number {
    const at = this.#at(offset, true)
    if (this.#cache.secured[Math.floor(at / PAGE)] === 0) this.#miss(Math.floor(offset / PAGE), offset, true)
    return at
  }

  #change(offset: number): number {
    const at = this.#metadata.unchanged ? this.#securedAt(offset) : this.#at(offset)
    this.#metadata.changed()
    this.#cache.markDirty(Math.floor(at / PAGE), 1 << ((at % PAGE) >> 9), this.#order)
    return at
  }

  u8(offset: number): number {
    return this.#data[this.#at(offset)]!
  }

  u32be(offset: number): number {
    const at = this.#at(offset)
    const d = this.#data
    return ((d[at]! << 24) | (d[at + 1]! << 16) | (d[at + 2]! << 8) | d[at + 3]!) >>> 0
  }

  u32le(offset: number): number {
    const at = this.#at(offset)
    const d = this.#data
    return ((d[at + 3]! << 24) | (d[at + 2]! << 16) | (d[at + 1]! << 8) | d[at]!) >>> 0
  }

  setU8(offset: number, value: number): void {
    this.#data[this.#change(offset)] = value
  }

  setU32be(offset: number, value: number): void {
    const at = this.#change(offset)
    const d = this.#data
    d[at] = value >>> 24
    d[at + 1] = value >>> 16
    d[at + 2] = value >>> 8
    d[at + 3] = value
  }

  setU32le(offset: number, value: number): void {
    const at = this.#change(offset)
    const d = this.#data
    d[at] = value
    d[at + 1] = value >>> 8
    d[at + 2] = value >>> 16
    d[at + 3] = value >>> 24
  }

  /**
   * Makes sure that a range that is going to be changed is cached, and that the host has room for it, so that what
   * follows cannot miss. Few pages at a time. Exclusive lock.
   */
  touch(offset: number, length: number): void {
    for (let at = offset; at < offset + length; at += SECTOR - (at % SECTOR)) this.#securedAt(at)
  }

  /** Copies bytes of the structure out. */
  copyOut(offset: number, length: number, target: Uint8Array, at: number): void {
    for (let at = offset; at < offset + length; at += SECTOR - (at % SECTOR)) this.#at(at)
    for (let done = 0; done < length; ) {
      const from = this.#at(offset + done)
      const n = Math.min(length - done, SECTOR - (from % SECTOR))
      target.set(this.#data.subarray(from, from + n), at + done)
      done += n
    }
  }

  /**
   * Makes whole sectors valid and dirty, every byte `byte`, without reading them: a new structure. Cannot miss.
   * @param offset and length: multiples of 512
   */
  fresh(offset: number, length: number, byte: number): void {
    for (let at = offset; at < offset + length; ) {
      const page = Math.floor(at / PAGE)
      const end = Math.min(offset + length, (page + 1) * PAGE)
      const mask = sectorMask(page, at, end)
      const slot = this.#cache.claim(this.#file.index, page)
      if (this.#cache.isWriting(slot, mask))
        throw new VdiskError('INTERNAL', 'a new structure lies where one is being written')
      this.#metadata.changed()
      const base = slot * PAGE - page * PAGE
      this.#data.fill(byte, base + at, base + end)
      this.#cache.valid[slot] = this.#cache.valid[slot]! | mask
      this.#cache.markDirty(slot, mask, this.#order)
      at = end
    }
  }

  /** Forgets the structure's sectors, dirty or not: it was freed. Cannot miss. */
  drop(): void {
    this.#metadata.changed()
    for (let page = Math.floor(this.#start / PAGE); page * PAGE < this.#end; page++) {
      const slot = this.#cache.find(this.#file.index, page)
      if (slot !== NONE) this.#cache.forget(slot, sectorMask(page, this.#start, this.#end))
    }
  }
}
