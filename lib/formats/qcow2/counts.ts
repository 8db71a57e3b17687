/**
 * How often every cluster of a file is referred to, and as what. Memory is taken for the parts of the file that something
 * refers to, whatever the image claims.
 */

import { VdiskError } from '../../util/errors.js'
import { GiB } from '../../util/sizes.js'

/** What a cluster is used as. Clusters of `METADATA` have exactly one reference in a sound image. */
export const Use = { NONE: 0, DATA: 1, L2: 2, METADATA: 3 } as const
export type Use = (typeof Use)[keyof typeof Use]

/** A mark in the byte of a use: see `once`. */
const SEEN = 0x80
/** Clusters that are counted together. */
const CHUNK = 4096
const MAX_MEMORY = GiB
const MOST = 2 ** 32 - 1

interface Chunk {
  counts: Uint8Array | Uint32Array
  readonly uses: Uint8Array
  used: number
}

export class Counts {
  /** Clusters of the file; the last may be there in part. */
  readonly clusters: number
  readonly #path: string
  readonly #chunks = new Map<number, Chunk>()
  #memory = 0
  /** The chunk that was looked at last: neighbours mostly follow each other. */
  #index = -1
  #chunk: Chunk | undefined

  constructor(clusters: number, path: string) {
    this.clusters = clusters
    this.#path = path
  }

  /**
   * Counts `weight` more references to a cluster.
   * @returns false where it is in use as something else, or has a second use that can only be one: the cluster then keeps
   * the use that it had
   */
  add(cluster: number, use: Use, weight = 1): boolean {
    const chunk = this.#chunkOf(cluster)
    const i = cluster % CHUNK
    const before = chunk.counts[i]!
    const count = Math.min(MOST, before + weight)
    if (count > 255 && chunk.counts instanceof Uint8Array) {
      this.#take(4 * CHUNK)
      chunk.counts = Uint32Array.from(chunk.counts)
    }
    chunk.counts[i] = count
    if (before === 0) {
      chunk.uses[i] = use
      chunk.used++
      return true
    }
    return (chunk.uses[i]! & ~SEEN) === use && use !== Use.METADATA
  }

  /** Takes references away again. */
  remove(cluster: number, weight = 1): void {
    const chunk = this.#chunkOf(cluster)
    const i = cluster % CHUNK
    const before = chunk.counts[i]!
    chunk.counts[i] = Math.max(0, before - weight)
    if (before > 0 && before <= weight) {
      chunk.uses[i] = Use.NONE
      chunk.used--
    }
  }

  /** True when it is asked for the first time of a cluster that has references. */
  once(cluster: number): boolean {
    const chunk = this.#chunkOf(cluster)
    const i = cluster % CHUNK
    const first = (chunk.uses[i]! & SEEN) === 0
    chunk.uses[i]! |= SEEN
    return first
  }

  of(cluster: number): number {
    return this.#find(Math.floor(cluster / CHUNK))?.counts[cluster % CHUNK] ?? 0
  }

  useOf(cluster: number): Use {
    return ((this.#find(Math.floor(cluster / CHUNK))?.uses[cluster % CHUNK] ?? Use.NONE) & ~SEEN) as Use
  }

  /** True where none of the clusters from `first` to before `end` has a reference. Whole chunks are answered at once. */
  noneIn(first: number, end: number): boolean {
    for (let cluster = first; cluster < end; ) {
      const chunk = this.#find(Math.floor(cluster / CHUNK))
      const stop = Math.min(end, (Math.floor(cluster / CHUNK) + 1) * CHUNK)
      if (chunk && chunk.used > 0) for (let i = cluster; i < stop; i++) if (chunk.counts[i % CHUNK] !== 0) return false
      cluster = stop
    }
    return true
  }

  #find(index: number): Chunk | undefined {
    if (index !== this.#index) {
      this.#index = index
      this.#chunk = this.#chunks.get(index)
    }
    return this.#chunk
  }

  #chunkOf(cluster: number): Chunk {
    const index = Math.floor(cluster / CHUNK)
    let chunk = this.#find(index)
    if (!chunk) {
      this.#take(2 * CHUNK)
      chunk = { counts: new Uint8Array(CHUNK), uses: new Uint8Array(CHUNK), used: 0 }
      this.#chunks.set(index, chunk)
      this.#chunk = chunk
    }
    return chunk
  }

  #take(bytes: number): void {
    this.#memory += bytes
    if (this.#memory > MAX_MEMORY)
      throw new VdiskError('UNSUPPORTED', `counting its clusters would take more than ${MAX_MEMORY} bytes of memory`, {
        path: this.#path,
      })
  }
}
