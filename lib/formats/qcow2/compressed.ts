/**
 * Reading compressed clusters: parts of them, through a small cache of decompressed ones, so that a cluster that is read
 * in pieces is decompressed once. Every thread has its own.
 */

import { LRUCache } from 'lru-cache'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { type CompressionType, decompressCluster, prepareCodec } from './codec.js'

/** Bytes of decompressed clusters that a thread keeps; at least two clusters. */
const CACHE_SIZE = 2 << 20

export class CompressedClusters {
  readonly #storage: Storage
  readonly #clusterSize: number
  readonly #type: CompressionType
  readonly #generation: () => number
  readonly #cache: LRUCache<number, Uint8Array>
  #seen: number
  #stored = new Uint8Array(0)

  /**
   * @param generation a number that changes, in all threads, before host space that held a compressed cluster is given
   * out again (when no reader is on it any more): what was decompressed before that is forgotten then
   */
  constructor(storage: Storage, clusterSize: number, type: CompressionType, generation: () => number) {
    this.#storage = storage
    this.#clusterSize = clusterSize
    this.#type = type
    this.#generation = generation
    this.#seen = generation()
    this.#cache = new LRUCache({ max: Math.max(2, Math.floor(CACHE_SIZE / clusterSize)) })
  }

  /**
   * Reads `length` bytes from byte `within` of a cluster on into `buffer` from index `at` on.
   * @param offset of its compressed bytes in the file
   * @param storedLength of them: as the L2 entry says, to the end of a sector. May reach beyond the file's end.
   * @throws CORRUPT where they are not one cluster; IO
   */
  read(offset: number, storedLength: number, within: number, buffer: Uint8Array, at: number, length: number): void {
    const cached = this.#cached(offset)
    if (cached) buffer.set(cached.subarray(within, within + length), at)
    // A whole cluster will not be asked for again soon.
    else if (length === this.#clusterSize) this.#decompress(offset, storedLength, buffer.subarray(at, at + length))
    else {
      const cluster = new Uint8Array(this.#clusterSize)
      this.#decompress(offset, storedLength, cluster)
      this.#cache.set(offset, cluster)
      buffer.set(cluster.subarray(within, within + length), at)
    }
  }

  #cached(offset: number): Uint8Array | undefined {
    const generation = this.#generation()
    if (generation !== this.#seen) {
      this.#cache.clear()
      this.#seen = generation
    }
    return this.#cache.get(offset)
  }

  #decompress(offset: number, storedLength: number, into: Uint8Array): void {
    if (this.#stored.length < storedLength) this.#stored = new Uint8Array(storedLength)
    const got = this.#storage.read(this.#stored, 0, storedLength, offset)
    prepareCodec(this.#type)
    try {
      decompressCluster(this.#stored.subarray(0, got), into, this.#type)
    } catch (error) {
      if (error instanceof VdiskError) throw error
      const reason = (error as Error).message
      const text = `compressed cluster at byte ${offset}, ${got} bytes of ${this.#type}: cannot be decompressed: ${reason}`
      throw new VdiskError('CORRUPT', text, { path: this.#storage.path, offset, cause: error })
    }
  }
}
