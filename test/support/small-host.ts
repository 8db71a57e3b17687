/**
 * A storage on a host of which one can say how many pages are left. Room is taken by what is written, and by `reserve`
 * and `zero`; holes take none. What fits of a write is written.
 */

import type { MemoryStorage } from '../../lib/storage/memory.js'
import type { Storage, StorageHandle } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'

const PAGE = 4096

export class SmallHost implements Storage {
  readonly path: string
  readonly readOnly = false
  /** Pages that the host has left. */
  free = Number.POSITIVE_INFINITY
  readonly #inner: MemoryStorage
  readonly #taken = new Set<number>()

  constructor(inner: MemoryStorage) {
    this.path = inner.path
    this.#inner = inner
    const size = inner.size()
    for (let at = inner.nextData(0); at < size; at = inner.nextData(at)) {
      const end = inner.nextHole(at)
      for (let page = Math.floor(at / PAGE); page * PAGE < end; page++) this.#taken.add(page)
      at = end
    }
  }

  read(buffer: Uint8Array, at: number, length: number, offset: number): number {
    return this.#inner.read(buffer, at, length, offset)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    const end = offset + length
    for (let from = offset; from < end; ) {
      const page = Math.floor(from / PAGE)
      const to = Math.min(end, (page + 1) * PAGE)
      this.#take(page)
      this.#inner.write(buffer, at + from - offset, to - from, from)
      from = to
    }
  }

  size(): number {
    return this.#inner.size()
  }

  allocated(): number {
    return this.#taken.size * PAGE
  }

  truncate(size: number): void {
    for (const page of this.#taken) if (page * PAGE >= size) this.#give(page)
    this.#inner.truncate(size)
  }

  sync(): void {}

  punch(offset: number, length: number): void {
    const size = this.size()
    const end = Math.min(offset + length, size)
    const whole = end === size ? Math.ceil(end / PAGE) : Math.floor(end / PAGE)
    for (let page = Math.ceil(offset / PAGE); page < whole; page++) this.#give(page)
    this.#inner.punch(offset, length)
  }

  zero(offset: number, length: number): void {
    this.reserve(offset, Math.max(0, Math.min(length, this.size() - offset)))
    this.#inner.zero(offset, length)
  }

  reserve(offset: number, length: number): void {
    for (let page = Math.floor(offset / PAGE); page * PAGE < offset + length; page++) this.#take(page)
  }

  nextData(offset: number): number {
    return this.#inner.nextData(offset)
  }

  nextHole(offset: number): number {
    return this.#inner.nextHole(offset)
  }

  handle(): StorageHandle {
    return this.#inner.handle()
  }

  close(): void {}

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
