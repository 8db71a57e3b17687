/**
 * A storage on a host of which one can say how many pages are left. Room is taken by what is written, and by `reserve`
 * and `zero`; holes take none. What fits of a write is written.
 */

import type { MemoryStorage } from '../../lib/storage/memory.js'
import { PassingStorage } from '../../lib/storage/passing.js'
import { VdiskError } from '../../lib/util/errors.js'

const PAGE = 4096

export class SmallHost extends PassingStorage<MemoryStorage> {
  /** Pages that the host has left. */
  free = Number.POSITIVE_INFINITY
  readonly #taken = new Set<number>()

  constructor(inner: MemoryStorage) {
    super(inner)
    const size = inner.size()
    for (let at = inner.nextData(0); at < size; at = inner.nextData(at)) {
      const end = inner.nextHole(at)
      for (let page = Math.floor(at / PAGE); page * PAGE < end; page++) this.#taken.add(page)
      at = end
    }
  }

  override write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    const end = offset + length
    for (let from = offset; from < end; ) {
      const page = Math.floor(from / PAGE)
      const to = Math.min(end, (page + 1) * PAGE)
      this.#take(page)
      this.inner.write(buffer, at + from - offset, to - from, from)
      from = to
    }
  }

  override allocated(): number {
    return this.#taken.size * PAGE
  }

  override truncate(size: number): void {
    for (const page of this.#taken) if (page * PAGE >= size) this.#give(page)
    this.inner.truncate(size)
  }

  override sync(): void {}

  override punch(offset: number, length: number): void {
    const size = this.size()
    const end = Math.min(offset + length, size)
    const whole = end === size ? Math.ceil(end / PAGE) : Math.floor(end / PAGE)
    for (let page = Math.ceil(offset / PAGE); page < whole; page++) this.#give(page)
    this.inner.punch(offset, length)
  }

  override zero(offset: number, length: number): void {
    this.reserve(offset, Math.max(0, Math.min(length, this.size() - offset)))
    this.inner.zero(offset, length)
  }

  override reserve(offset: number, length: number): void {
    for (let page = Math.floor(offset / PAGE); page * PAGE < offset + length; page++) this.#take(page)
  }

  override close(): void {}

  #take(page: number): void {
    if (this.#taken.has(page)) return
    if (this.free < 1)
      throw new VdiskError('NO_SPACE', `cannot write ${this.path}: no space left on the device`, {
        path: this.path,
        errno: 'ENOSPC',
      })
    this.free--
    this.#taken.add(page)
  }

  #give(page: number): void {
    if (this.#taken.delete(page)) this.free++
  }
}
