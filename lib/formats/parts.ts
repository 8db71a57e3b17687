/**
 * A disk of parts that lie side by side, each with a driver of its own: what is asked of the disk is asked of the part that
 * it begins in. Where a range crosses a seam the answer ends there, and the engine asks again.
 */

import type { Allocation, Driver, Extent } from './driver.js'

export interface Part {
  /** Guest bytes of the disk. */
  readonly start: number
  readonly length: number
  readonly driver: Driver
}

export class PartsDriver implements Driver {
  readonly size: number
  readonly blockSize: number
  readonly locked: boolean
  readonly changeSectors: number
  readonly record: ((offset: number, length: number) => number) | undefined
  readonly recorded: ((offset: number, length: number) => number) | undefined
  readonly #parts: readonly Part[]
  /** Of the last allocation that did not find room. */
  #full: Driver | undefined
  /** Where the extent that was asked for last is, for `decode`. */
  #asked: Part

  /** @param parts in order, without gaps; at least one */
  constructor(parts: readonly Part[]) {
    const drivers = parts.map(({ driver }) => driver)
    const last = parts.at(-1)!
    this.#parts = parts
    this.#asked = last
    this.size = last.start + last.length
    this.blockSize = Math.max(...drivers.map((driver) => driver.blockSize))
    this.locked = drivers.some((driver) => driver.locked)
    this.changeSectors = Math.max(...drivers.map((driver) => driver.changeSectors))
    if (!drivers.some((driver) => driver.record)) return
    this.record = (offset, length) => this.#record(offset, length)
    this.recorded = (offset, length) => this.#recorded(offset, length)
  }

  /** The part that a guest byte is in. */
  #partAt(offset: number): Part {
    let low = 0
    let high = this.#parts.length - 1
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (this.#parts[middle]!.start <= offset) low = middle
      else high = middle - 1
    }
    return this.#parts[low]!
  }

  /** How much of a range is in the part that it begins in. */
  #within({ start, length: size }: Part, offset: number, length: number): number {
    return Math.min(length, start + size - offset)
  }

  blocks(offset: number, length: number): readonly [start: number, end: number] {
    const first = this.#partAt(offset)
    const last = this.#partAt(offset + length - 1)
    return [blocksOf(first, offset, 1)[0], blocksOf(last, offset + length - 1, 1)[1]]
  }

  map(offset: number, length: number, out: Extent): void {
    const part = this.#partAt(offset)
    this.#asked = part
    part.driver.map(offset - part.start, this.#within(part, offset, length), out)
  }

  decode(extent: Extent, offset: number, buffer: Uint8Array, at: number, length: number): void {
    const part = this.#asked
    part.driver.decode!(extent, offset - part.start, buffer, at, length)
  }

  allocate(offset: number, length: number, out: Allocation): boolean {
    const part = this.#partAt(offset)
    if (!part.driver.allocate!(offset - part.start, this.#within(part, offset, length), out)) {
      this.#full = part.driver
      return false
    }
    // The part's last block may reach behind the part, into what nobody reads: what is there on the disk is the next part's.
    out.length = Math.min(out.length, part.length - out.guest)
    out.guest += part.start
    return true
  }

  grow(): void {
    this.#full!.grow!()
  }

  /** Calls a part's method on an allocation as the part made it. */
  #local(a: Allocation, call: (driver: Driver) => void): void {
    const { start, driver } = this.#partAt(a.guest)
    a.guest -= start
    try {
      call(driver)
    } finally {
      a.guest += start
    }
  }

  prepare(a: Allocation): void {
    this.#local(a, (driver) => driver.prepare?.(a))
  }

  publish(a: Allocation): void {
    this.#local(a, (driver) => driver.publish!(a))
  }

  abandon(a: Allocation): void {
    this.#local(a, (driver) => driver.abandon!(a))
  }

  release(offset: number, length: number, belowZero: boolean): number {
    const part = this.#partAt(offset)
    return part.driver.release?.(offset - part.start, this.#within(part, offset, length), belowZero) ?? 0
  }

  #recorded(offset: number, length: number): number {
    const part = this.#partAt(offset)
    const n = this.#within(part, offset, length)
    return part.driver.recorded?.(offset - part.start, n) ?? n
  }

  #record(offset: number, length: number): number {
    const part = this.#partAt(offset)
    const n = this.#within(part, offset, length)
    const done = part.driver.record?.(offset - part.start, n) ?? n
    if (done === 0) this.#full = part.driver
    return done
  }

  /** A part that has begun is asked again where one behind it failed: it does nothing then. */
  beginWriting(): void {
    for (const { driver } of this.#parts) driver.beginWriting?.()
  }

  get leftOpen(): boolean {
    return this.#parts.some(({ driver }) => driver.leftOpen === true)
  }

  finish(): void {
    for (const { driver } of this.#parts) driver.finish?.()
  }
}

function blocksOf({ start, length: size, driver }: Part, offset: number, length: number): [number, number] {
  const at = offset - start
  const { blockSize } = driver
  if (driver.blocks) {
    const [first, end] = driver.blocks(at, length)
    return [start + first, start + Math.min(end, size)]
  }
  const first = Math.floor(at / blockSize) * blockSize
  const end = Math.ceil((at + length) / blockSize) * blockSize
  return [start + first, start + Math.min(end, size)]
}
