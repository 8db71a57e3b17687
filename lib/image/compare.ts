/** Compares what two images show, whatever their formats. Ranges that both call zeros are not read. */

import { MiB } from '../util/sizes.js'
import { isZero } from './convert/zeros.js'
import type { Image } from './image.js'
import { openImage, type Secret } from './open.js'

/** Compared at a time. */
const PIECE = MiB / 4

export interface CompareOptions {
  /** The formats of the two; default: found by looking at the content. */
  readonly formats?: readonly [string | undefined, string | undefined]
  /** Sizes, and what is allocated, must be the same too. */
  readonly strict?: boolean
  /** False: they are read without a lock, although somebody may be writing them. */
  readonly lock?: boolean
  readonly backingDirs?: readonly string[]
  /** The passphrase of both, or of the first one where `secondSecret` is given. */
  readonly secret?: Secret | undefined
  readonly secondSecret?: Secret | undefined
  readonly onProgress?: ((position: number, size: number) => void) | undefined
  readonly warn?: (message: string) => void
}

/** What differs first. `content`: bytes; `size`, `allocation`: with `strict` only. */
export type Difference =
  | { readonly what: 'content' | 'allocation'; readonly offset: number }
  | { readonly what: 'size' }

export interface Comparison {
  /** Bytes of the two disks. Where they are not the same, the rest of the larger one must be zeros. */
  readonly sizes: readonly [number, number]
  /** Undefined: they are the same. */
  readonly difference: Difference | undefined
}

/** @throws VdiskError where one cannot be opened or read */
export function compareImages(first: string, second: string, options: CompareOptions = {}): Comparison {
  const { backingDirs = [], warn, lock, formats = [undefined, undefined] } = options
  const open = (path: string, format: string | undefined, secret: Secret | undefined) =>
    openImage(path, { readOnly: true, lock, format, backingDirs, secret, ...(warn && { warn }) })
  const a = open(first, formats[0], options.secret)
  try {
    const b = open(second, formats[1], options.secondSecret ?? options.secret)
    try {
      return { sizes: [a.size, b.size], difference: new Comparer(a, b, options).run() }
    } finally {
      b.close()
    }
  } finally {
    a.close()
  }
}

class Comparer {
  readonly #images: readonly [Image, Image]
  readonly #options: CompareOptions
  readonly #buffers = [Buffer.allocUnsafeSlow(PIECE), Buffer.allocUnsafeSlow(PIECE)] as const

  constructor(a: Image, b: Image, options: CompareOptions) {
    this.#images = [a, b]
    this.#options = options
  }

  run(): Difference | undefined {
    const [a, b] = this.#images
    if (this.#options.strict && a.size !== b.size) return { what: 'size' }
    const common = Math.min(a.size, b.size)
    for (let at = 0; at < common; ) {
      const length = common - at
      const runs = [a.map(at, length), b.map(at, length)] as const
      const n = Math.min(runs[0].length, runs[1].length)
      const same = runs[0].zero === runs[1].zero && runs[0].data === runs[1].data
      if (this.#options.strict && !same) return { what: 'allocation', offset: at }
      const offset = this.#compare(at, n, runs[0].zero, runs[1].zero)
      if (offset !== undefined) return { what: 'content', offset }
      at += n
    }
    return this.#rest(a.size > b.size ? a : b, common)
  }

  /** @returns the first byte that differs */
  #compare(start: number, length: number, zeroA: boolean, zeroB: boolean): number | undefined {
    if (zeroA && zeroB) return undefined
    if (zeroA || zeroB) return this.#nonZero(this.#images[zeroA ? 1 : 0], start, length)
    const [a, b] = this.#buffers
    for (let at = start; at < start + length; at += PIECE) {
      const n = Math.min(PIECE, start + length - at)
      this.#images[0].read(a, 0, n, at)
      this.#images[1].read(b, 0, n, at)
      this.#tell(at + n)
      if (a.compare(b, 0, n, 0, n) === 0) continue
      for (let i = 0; i < n; i++) if (a[i] !== b[i]) return at + i
    }
    return undefined
  }

  #nonZero(image: Image, start: number, length: number): number | undefined {
    const [buffer] = this.#buffers
    for (let at = start; at < start + length; at += PIECE) {
      const n = Math.min(PIECE, start + length - at)
      image.read(buffer, 0, n, at)
      this.#tell(at + n)
      if (!isZero(buffer, 0, n)) return at + buffer.subarray(0, n).findIndex((byte) => byte !== 0)
    }
    return undefined
  }

  /** What is behind the end of the smaller disk counts as zeros. */
  #rest(larger: Image, from: number): Difference | undefined {
    for (let at = from; at < larger.size; ) {
      const run = larger.map(at, larger.size - at)
      const offset = run.zero ? undefined : this.#nonZero(larger, at, run.length)
      if (offset !== undefined) return { what: 'content', offset }
      at += run.length
    }
    return undefined
  }

  #tell(position: number): void {
    this.#options.onProgress?.(position, Math.max(...this.#images.map(({ size }) => size)))
  }
}
