/** Reading: what the bytes of a disk are, through all its layers, and where they come from. */

import { type Driver, Extent, type FileRef, Kind } from '../formats/driver.js'
import { PageMiss } from '../metadata/fill.js'
import type { Metadata } from '../metadata/metadata.js'
import { Pieces } from '../util/pieces.js'
import { makeTrace } from '../util/trace.js'
import type { EncryptedData } from './encrypted.js'
import { describeExtent, type MapEntry, mapOne, seekExtent } from './map.js'
import type { Stack } from './stack.js'

const trace = makeTrace('image')

/** Extents that one `seek` looks at: a disk can be nothing but small holes, and somebody waits for the answer. */
const SEEK_EXTENTS = 2 ** 18

/** What the top layer alone says of bytes. */
export interface OwnBytes {
  readonly length: number
  readonly kind: 'data' | 'zero' | 'parent'
}

/** Ranges that reach it lie on the disk. Nothing here changes anything. One object a thread. */
export class Reader {
  /** The number of the layer that the last `locate` found the bytes in. */
  depth = 0
  readonly #files: readonly FileRef[]
  readonly #drivers: readonly Driver[]
  readonly #encrypted: readonly (EncryptedData | undefined)[]
  readonly #metadata: Metadata
  readonly #locked: boolean
  readonly #extent = new Extent()
  readonly #traced = trace.enabled

  constructor({ files, drivers, encrypted, metadata, locked }: Stack) {
    this.#files = files
    this.#drivers = drivers
    this.#encrypted = encrypted
    this.#metadata = metadata
    this.#locked = locked
  }

  /** As `Image.read`. */
  read(buffer: Uint8Array, at: number, length: number, offset: number): void {
    const { epochs } = this.#metadata
    epochs.enter()
    try {
      this.readInside(buffer, at, length, offset)
    } finally {
      epochs.leave()
    }
  }

  /** As `read`, by who is inside an epoch already. */
  readInside(buffer: Uint8Array, at: number, length: number, offset: number): void {
    for (let done = 0; done < length; ) {
      const e = this.locate(offset + done, length - done)
      const n = e.length
      if (e.kind === Kind.DATA) {
        const { storage } = this.#files[e.file]!
        const encrypted = this.#encrypted[this.depth]
        if (encrypted) encrypted.read(storage, buffer, at + done, n, offset + done, e.offset)
        else {
          const got = storage.read(buffer, at + done, n, e.offset)
          // A file may end inside its last block.
          if (got < n) buffer.fill(0, at + done + got, at + done + n)
        }
      } else if (e.kind === Kind.ZERO) buffer.fill(0, at + done, at + done + n)
      else this.#drivers[this.depth]!.decode!(e, offset + done, buffer, at + done, n)
      done += n
    }
  }

  /** As `Image.lend`. */
  lend(length: number, offset: number, pieces: Pieces, use: () => boolean): boolean {
    const { epochs } = this.#metadata
    epochs.enter()
    try {
      pieces.count = 0
      for (let done = 0; done < length; ) {
        const e = this.locate(offset + done, length - done)
        const lendable = e.kind === Kind.DATA && !this.#encrypted[this.depth]
        const descriptor = lendable ? this.#files[e.file]!.storage.descriptor : undefined
        if (descriptor === undefined || pieces.count === Pieces.MOST) return false
        pieces.add(descriptor, e.offset, e.length)
        done += e.length
      }
      return use()
    } finally {
      epochs.leave()
    }
  }

  /**
   * What the guest bytes at `offset` are, through all layers: never PARENT. Sets `depth`. Who goes on to use their place
   * is inside an epoch. The extent is the same object every time.
   */
  locate(offset: number, length: number): Extent {
    if (!this.#locked) return this.#walk(offset, length)
    const { lock } = this.#metadata
    for (;;) {
      lock.acquireShared()
      try {
        return this.#walk(offset, length)
      } catch (error) {
        if (!(error instanceof PageMiss)) throw error
      } finally {
        lock.releaseShared()
      }
      this.#metadata.load()
    }
  }

  #walk(offset: number, length: number): Extent {
    const e = this.#walkFrom(0, offset, length, this.#extent)
    if (this.#traced) trace(describeExtent(e, this.depth, offset))
    return e
  }

  #walkFrom(depth: number, offset: number, length: number, e: Extent): Extent {
    let left = length
    for (let d = depth; d < this.#drivers.length; d++) {
      const driver = this.#drivers[d]!
      if (offset >= driver.size) break
      e.explicit = false
      driver.map(offset, Math.min(left, driver.size - offset), e)
      this.depth = d
      if (e.kind !== Kind.PARENT) return e
      left = e.length
    }
    // Behind the end of a shorter parent, or with no parent left.
    e.kind = Kind.ZERO
    e.explicit = false
    e.length = left
    return e
  }

  /** Whether the layers below read as zeros from `offset` on, and how far that holds in whole blocks of the top. */
  below(offset: number, length: number): { zero: boolean; length: number } {
    if (this.#drivers.length === 1) return { zero: true, length }
    const { blockSize } = this.#drivers[0]!
    const e = new Extent()
    const zeroAt = (at: number, max: number) => {
      this.#metadata.shared(() => this.#walkFrom(1, at, max, e))
      return e.kind === Kind.ZERO
    }
    let zeros = 0
    while (zeros < length && zeroAt(offset + zeros, length - zeros)) zeros += e.length
    if (zeros >= length) return { zero: true, length }
    if (zeros >= blockSize) return { zero: true, length: zeros - (zeros % blockSize) }
    return { zero: false, length: Math.min(length, blockSize) }
  }

  /** As `Image.map`. */
  map(offset: number, length: number): MapEntry {
    return mapOne(this.locate(offset, length), this.depth, offset, this.#files, this.#drivers[this.depth]!)
  }

  /** As `Image.own`. */
  own(offset: number, length: number): OwnBytes {
    const e = this.#extent
    this.#metadata.shared(() => this.#drivers[0]!.map(offset, length, e))
    const kind = e.kind === Kind.PARENT ? 'parent' : e.kind === Kind.ZERO ? 'zero' : 'data'
    return { length: e.length, kind }
  }

  /** As `Image.seek`, on a disk of `size` bytes. */
  seek(offset: number, data: boolean, size: number): number {
    let at = offset
    for (let extents = 0; at < size; extents++) {
      if (extents === SEEK_EXTENTS) return data ? at : size
      const found = this.#seekOne(at, data, size)
      if (found >= 0) return found
      at += this.#extent.length
    }
    // The end of the disk counts as a hole.
    return data || offset >= size ? -1 : size
  }

  /** As `seekExtent`, of the extent at `at`, in an epoch of its own: what is data must not become a hole meanwhile. */
  #seekOne(at: number, data: boolean, size: number): number {
    const { epochs } = this.#metadata
    epochs.enter()
    try {
      return seekExtent(this.locate(at, size - at), at, data, this.#files, this.#drivers[this.depth]!)
    } finally {
      epochs.leave()
    }
  }
}
