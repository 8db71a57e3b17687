/**
 * A file as it would be if the log inside of it had been replayed: some pages are elsewhere in the file, some ranges are
 * zeros. For looking at an image that must not be changed. Nothing is copied but the index.
 */

import { VdiskError } from '../util/errors.js'
import type { Storage, StorageHandle } from './storage.js'

export const REPLAYED_PAGE = 4096
/** Bytes at the beginning and the end of a page that are not where the rest of it is. */
const LEADING = 8
const TRAILING = 4
const EDGES = LEADING + TRAILING

/** What is elsewhere. Shared memory, so that every thread has a view of the same. */
export interface ReplayIndex {
  /** Bytes of the file. */
  readonly size: number
  /** File offsets of pages that are elsewhere, rising. */
  readonly pages: Float64Array
  /** File offset of the bytes of each, but for its edges. */
  readonly sources: Float64Array
  /** The first eight and the last four bytes of each. */
  readonly edges: Uint8Array
  /** Beginning and end of each range that reads as zeros where no page is elsewhere: rising, apart. */
  readonly zeros: Float64Array
}

export class ReplayedStorage implements Storage {
  readonly path: string
  readonly readOnly = true
  readonly #inner: Storage
  readonly #index: ReplayIndex

  constructor(inner: Storage, index: ReplayIndex) {
    this.path = inner.path
    this.#inner = inner
    this.#index = index
  }

  read(buffer: Uint8Array, at: number, length: number, offset: number): number {
    const count = Math.max(0, Math.min(length, this.size() - offset))
    for (let done = 0; done < count; ) done += this.#readRun(buffer, at + done, count - done, offset + done)
    return count
  }

  /** Reads from `offset` to the end of what it lies in, at most `length` bytes. @returns how many */
  #readRun(buffer: Uint8Array, at: number, length: number, offset: number): number {
    const { pages, zeros } = this.#index
    const page = firstAtOrBehind(pages, 1, offset - REPLAYED_PAGE + 1)
    const pageStart = pages[page] ?? Number.POSITIVE_INFINITY
    if (pageStart <= offset) return this.#readPage(page, buffer, at, length, offset - pageStart)
    const max = Math.min(length, pageStart - offset)
    // The first range that ends behind `offset`.
    const range = firstAtOrBehind(zeros.subarray(1), 2, offset + 1)
    const zeroStart = zeros[2 * range] ?? Number.POSITIVE_INFINITY
    if (zeroStart <= offset) {
      const count = Math.min(max, zeros[2 * range + 1]! - offset)
      buffer.fill(0, at, at + count)
      return count
    }
    const count = Math.min(max, zeroStart - offset)
    const got = this.#inner.read(buffer, at, count, offset)
    buffer.fill(0, at + got, at + count)
    return count
  }

  #readPage(page: number, buffer: Uint8Array, at: number, length: number, from: number): number {
    const { sources, edges } = this.#index
    const to = Math.min(REPLAYED_PAGE, from + length)
    this.#inner.read(buffer, at, to - from, sources[page]! + from)
    for (let i = from; i < Math.min(to, LEADING); i++) buffer[at + i - from] = edges[page * EDGES + i]!
    const tail = REPLAYED_PAGE - TRAILING
    for (let i = Math.max(from, tail); i < to; i++) buffer[at + i - from] = edges[page * EDGES + LEADING + (i - tail)]!
    return to - from
  }

  size(): number {
    return Math.max(this.#index.size, this.#inner.size())
  }

  allocated(): number {
    return this.#inner.allocated()
  }

  nextData(offset: number): number {
    const { pages } = this.#index
    const page = pages[firstAtOrBehind(pages, 1, offset - REPLAYED_PAGE + 1)] ?? Number.POSITIVE_INFINITY
    if (offset >= this.#inner.size()) return Math.min(Math.max(page, offset), this.size())
    const data = this.#inner.nextData(offset)
    return Math.min(data < this.#inner.size() ? data : this.size(), Math.max(page, offset))
  }

  nextHole(offset: number): number {
    const { pages } = this.#index
    for (let at = offset; at < this.#inner.size(); ) {
      const hole = this.#inner.nextHole(at)
      const page = pages[firstAtOrBehind(pages, 1, hole - REPLAYED_PAGE + 1)] ?? Number.POSITIVE_INFINITY
      if (page > hole) return hole
      at = page + REPLAYED_PAGE
    }
    return this.size()
  }

  handle(): StorageHandle {
    return { kind: 'replayed', inner: this.#inner.handle(), index: this.#index }
  }

  close(): void {
    this.#inner.close()
  }

  write(): never {
    throw this.#refuse('write')
  }

  truncate(): never {
    throw this.#refuse('resize')
  }

  sync(): void {}

  punch(): never {
    throw this.#refuse('punch a hole into')
  }

  zero(): never {
    throw this.#refuse('write zeros to')
  }

  reserve(): never {
    throw this.#refuse('reserve space in')
  }

  #refuse(doing: string): VdiskError {
    return new VdiskError('READ_ONLY', `cannot ${doing} ${this.path}: it was opened read-only`, { path: this.path })
  }
}

/** The first of every `step`-th of these rising numbers that is at least `least`: its place among them. */
function firstAtOrBehind(numbers: Float64Array, step: number, least: number): number {
  let low = 0
  let high = Math.ceil(numbers.length / step)
  while (low < high) {
    const middle = (low + high) >> 1
    if (numbers[middle * step]! < least) low = middle + 1
    else high = middle
  }
  return low
}
