/** Making parts of the disk zeros by their L2 entries alone, which frees what they took. */

import { type Clusters, STEP } from './clusters.js'
import { ALL_SUBCLUSTERS, hostOffset, isCompressed, isCopied, onesFrom, subclusterMask, ZERO } from './entries.js'
import type { Growth } from './growth.js'
import type { Qcow2Layout } from './layout.js'
import type { Refcounts } from './refcounts.js'
import type { Tables } from './tables.js'

export class Zeroing {
  readonly #layout: Qcow2Layout
  readonly #tables: Tables
  readonly #refcounts: Refcounts
  readonly #clusters: Clusters
  readonly #growth: Growth

  constructor(layout: Qcow2Layout, tables: Tables, refcounts: Refcounts, clusters: Clusters, growth: Growth) {
    this.#layout = layout
    this.#tables = tables
    this.#refcounts = refcounts
    this.#clusters = clusters
    this.#growth = growth
  }

  /** As `Driver.release`. */
  release(offset: number, length: number, belowZero: boolean): number {
    const { clusterSize, dataFile, backing, zeroClusters, size, extendedL2 } = this.#layout
    const tables = this.#tables
    const first = Math.floor(offset / clusterSize)
    const end = offset + length
    const whole = end >= size ? Math.ceil(size / clusterSize) : Math.floor(end / clusterSize)
    // The data file by itself is the disk: zeros must be in it.
    if (dataFile?.raw) return 0
    if (extendedL2 && (whole <= first || offset % clusterSize !== 0))
      return this.#releaseSubclusters(offset, length, belowZero || !backing)
    if (whole <= first) return 0
    const nothingIsZero = belowZero || !backing
    tables.select(first)
    if (tables.table === 0 && nothingIsZero)
      return Math.min(tables.emptyUntil(first, whole) * clusterSize, size) - offset
    if (!nothingIsZero && !zeroClusters) return 0
    if (tables.table === 0) {
      this.#growth.want(first)
      return -1
    }
    const stop = Math.min(whole, tables.pageEnd(first))
    const zeros = this.#zerosUntil(first, stop, nothingIsZero)
    if (zeros > first) return Math.min(zeros * clusterSize, size) - offset
    if (!tables.copied) {
      this.#growth.want(first)
      return -1
    }
    const done = this.#makeZero(first, stop, nothingIsZero)
    return Math.min(done * clusterSize, size) - offset
  }

  /**
   * As `release`, for a part of one cluster. What has its own place stays there, and is zeroed there.
   * @returns the bytes that read as zeros now
   */
  #releaseSubclusters(offset: number, length: number, nothingIsZero: boolean): number {
    const { clusterSize, subclusterSize, size } = this.#layout
    const tables = this.#tables
    const cluster = Math.floor(offset / clusterSize)
    const base = cluster * clusterSize
    const from = (offset - base) / subclusterSize
    const end = Math.min(offset + length, base + clusterSize)
    const to = Math[end === size ? 'ceil' : 'floor']((end - base) / subclusterSize)
    const done = (subclusters: number) => Math.min(base + subclusters * subclusterSize, size) - offset
    tables.select(cluster)
    if (tables.table === 0 && nothingIsZero) return done(to)
    if (tables.table === 0) {
      this.#growth.want(cluster)
      return -1
    }
    tables.look(cluster)
    const { hi, lo, zeros, allocated } = tables
    if (isCompressed(hi)) return 0
    const nothing = nothingIsZero ? ~allocated : zeros
    if (((nothing >>> from) & 1) !== 0) return done(Math.min(to, from + onesFrom(nothing, from)))
    if (!tables.copied) {
      this.#growth.want(cluster)
      return -1
    }
    const own = isCopied(hi)
    const possible = own ? ~allocated : ALL_SUBCLUSTERS
    if (((possible >>> from) & 1) === 0) return 0
    const until = Math.min(to, from + onesFrom(possible, from))
    const bits = subclusterMask(from, until)
    tables.touch(cluster, 1)
    tables.set(cluster, hi, lo, (nothingIsZero ? zeros & ~bits : zeros | bits) >>> 0, (allocated & ~bits) >>> 0)
    return done(until)
  }

  /** The first cluster that takes up space, or does not read as zeros. */
  #zerosUntil(first: number, stop: number, nothingIsZero: boolean): number {
    const { extendedL2, dataFile } = this.#layout
    const tables = this.#tables
    for (let cluster = first; cluster < stop; cluster++) {
      tables.look(cluster)
      const { hi, lo, zeros, allocated } = tables
      if (isCompressed(hi) || hostOffset(hi, lo) !== 0 || (dataFile && isCopied(hi))) return cluster
      if (nothingIsZero) continue
      if (extendedL2 ? allocated !== 0 || zeros !== ALL_SUBCLUSTERS : !this.#isZero(lo)) return cluster
    }
    return stop
  }

  /** Makes clusters zeros and frees their places, as many as go into one change. @returns the first that is not done */
  #makeZero(first: number, stop: number, nothingIsZero: boolean): number {
    const { clusterSize, dataFile, extendedL2 } = this.#layout
    const tables = this.#tables
    const owned: number[] = []
    const shared: (readonly [hi: number, lo: number])[] = []
    let end = first
    const last = this.#clusters.placesEnd - clusterSize
    // Looked at first: a change that has begun must not miss.
    for (let ranges = 0; end < stop && ranges < STEP && shared.length < STEP / 2; end++) {
      tables.look(end)
      const { hi, lo } = tables
      const host = hostOffset(hi, lo)
      if (dataFile) {
        // The data stays where it is, and is zeroed there.
        if (isCopied(hi) && !this.#isZero(lo)) break
        if (extendedL2 && tables.allocated !== 0) break
      } else if (isCompressed(hi)) shared.push([hi, lo])
      else if (host !== 0) {
        const alone =
          isCopied(hi) &&
          host % clusterSize === 0 &&
          this.#refcounts.get(host / clusterSize) === 1 &&
          this.#clusters.isData(host / clusterSize)
        // What a device has of its last cluster is too little for any other: that stays where it is.
        if (alone && host > last) break
        if (alone) {
          if (owned.at(-1) !== host - clusterSize) ranges++
          owned.push(host)
        } else shared.push([hi, lo])
      }
    }
    if (end === first) return first
    const decrements = this.#clusters.planDecrements()
    const clearing = this.#clusters.planClearing()
    tables.touch(first, end - first)
    const zeros = !nothingIsZero && extendedL2 ? ALL_SUBCLUSTERS : 0
    const lo = !nothingIsZero && !extendedL2 ? ZERO : 0
    for (let cluster = first; cluster < end; cluster++) tables.set(cluster, 0, lo, zeros, 0)
    for (const [hi, low] of shared) this.#clusters.unref(hi, low)
    this.#freeAll(owned)
    this.#clusters.doDecrements(decrements)
    this.#clusters.clear(clearing)
    return end
  }

  /** Neighbours together, because the list of freed space is bounded. */
  #freeAll(places: readonly number[]): void {
    const { clusterSize } = this.#layout
    for (let i = 0; i < places.length; ) {
      const offset = places[i]!
      let count = 1
      while (places[i + count] === offset + count * clusterSize) count++
      this.#clusters.free(offset, count * clusterSize)
      i += count
    }
  }

  #isZero(lo: number): boolean {
    return (lo & ZERO) !== 0 && this.#layout.zeroClusters
  }
}
