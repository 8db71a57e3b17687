/** Where new guest data goes, and what becomes of what was there. */

import type { Allocation, LayerContext } from '../driver.js'
import type { Clusters } from './clusters.js'
import {
  ALL_SUBCLUSTERS,
  COPIED,
  highOf,
  hostOffset,
  isCompressed,
  isCopied,
  lowOf,
  subclusterMask,
  ZERO,
} from './entries.js'
import type { Growth } from './growth.js'
import { type Qcow2Layout, State, SUBCLUSTERS } from './layout.js'
import type { Tables } from './tables.js'

/** Clusters of which one allocation replaces others: each frees parts of two at most. */
const MAX_REPLACED = 8

/** What a cluster of the disk can be to somebody who wants to write there. */
const Way = {
  /** It has no place. */
  NEW: 0,
  /** It has one that is its own, and is not used for (all of) its data. */
  KEEP: 1,
  /** Its place belongs to others too, or holds something compressed. */
  REPLACE: 2,
  /** It can be written in place. */
  WRITABLE: 3,
} as const

export class Writing {
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #tables: Tables
  readonly #clusters: Clusters
  readonly #growth: Growth
  /** The host offset of the cluster that `#wayOf` looked at, with KEEP. */
  #host = 0

  constructor(layout: Qcow2Layout, context: LayerContext, tables: Tables, clusters: Clusters, growth: Growth) {
    this.#layout = layout
    this.#context = context
    this.#tables = tables
    this.#clusters = clusters
    this.#growth = growth
  }

  /** As `Driver.allocate`. */
  allocate(offset: number, length: number, out: Allocation): boolean {
    const { clusterSize } = this.#layout
    const tables = this.#tables
    const first = Math.floor(offset / clusterSize)
    const stop = Math.min(tables.pageEnd(first), Math.ceil((offset + length) / clusterSize))
    tables.select(first)
    if (tables.table === 0) {
      tables.touchL1(first)
      const place = this.#clusters.take(1)
      if (place < 0) return false
      // It reads as zeros: its entries need not be looked at.
      tables.setTable(first, place)
      tables.nothing()
      if (!this.#layout.dataFile) return this.#allocateNew(offset, length, first, stop, out)
      this.#host = first * clusterSize
      return this.#keep(offset, length, first, stop, out)
    }
    if (!tables.copied) {
      this.#growth.want(first)
      return false
    }
    const way = this.#wayOf(first)
    let end = first + 1
    if (way === Way.KEEP) {
      const host = this.#host
      if (!this.#layout.extendedL2)
        while (end < stop && this.#wayOf(end) === Way.KEEP && this.#host === host + (end - first) * clusterSize) end++
      this.#host = host
      return this.#keep(offset, length, first, end, out)
    }
    const most = way === Way.REPLACE ? Math.min(stop, first + MAX_REPLACED) : stop
    while (end < most && this.#wayOf(end) === way) end++
    if (way === Way.NEW) return this.#allocateNew(offset, length, first, end, out)
    return this.#allocateWhole(first, end, out)
  }

  /** What the cluster is, whose L2 table is selected. */
  #wayOf(cluster: number): number {
    const { clusterSize, dataFile, extendedL2 } = this.#layout
    const tables = this.#tables
    tables.look(cluster)
    const { hi, lo } = tables
    if (isCompressed(hi)) return Way.REPLACE
    const host = hostOffset(hi, lo)
    if (dataFile) this.#host = cluster * clusterSize
    else {
      if (host === 0) return Way.NEW
      if (!isCopied(hi) || host % clusterSize !== 0 || host >= this.#context.state[State.LIMIT]!) return Way.REPLACE
      this.#host = host
    }
    if (extendedL2) return tables.allocated === ALL_SUBCLUSTERS ? Way.WRITABLE : Way.KEEP
    const data = dataFile ? isCopied(hi) : true
    return data && !this.#isZero(lo) ? Way.WRITABLE : Way.KEEP
  }

  #isZero(lo: number): boolean {
    return (lo & ZERO) !== 0 && this.#layout.zeroClusters
  }

  /** The range in its own place: what is not used there yet holds anything. */
  #keep(offset: number, length: number, first: number, end: number, out: Allocation): boolean {
    const { clusterSize, subclusterSize, dataFile, extendedL2, size } = this.#layout
    const base = first * clusterSize
    let start = base
    let until = end * clusterSize
    if (extendedL2) {
      start = Math.floor(offset / subclusterSize) * subclusterSize
      const wanted = Math.min(base + clusterSize, Math.ceil((offset + length) / subclusterSize) * subclusterSize)
      until = start + subclusterSize
      while (until < wanted && !this.#allocatedAt(until - base)) until += subclusterSize
    }
    out.guest = start
    out.length = Math.min(until, size) - start
    out.file = this.#context.files[dataFile?.index ?? 0]!.index
    out.offset = this.#host + (start - base)
    out.zeroed = false
    out.block = first
    out.space = this.#host
    out.spaceLength = (end - first) * clusterSize
    out.fresh = false
    return true
  }

  /** Whether the subcluster that begins so many bytes in the cluster that was looked at last is allocated. */
  #allocatedAt(inCluster: number): boolean {
    return ((this.#tables.allocated >>> (inCluster / this.#layout.subclusterSize)) & 1) !== 0
  }

  /** New places for clusters that have none; of the outer ones only the subclusters that are written. */
  #allocateNew(offset: number, length: number, first: number, end: number, out: Allocation): boolean {
    const { subclusterSize, clusterSize, size } = this.#layout
    if (!this.#allocateWhole(first, end, out)) return false
    const start = Math.floor(offset / subclusterSize) * subclusterSize
    const until = Math.min(
      first * clusterSize + out.spaceLength,
      Math.ceil((offset + length) / subclusterSize) * subclusterSize,
    )
    out.offset += start - out.guest
    out.guest = start
    out.length = Math.min(until, size) - start
    return true
  }

  #allocateWhole(first: number, end: number, out: Allocation): boolean {
    const { clusterSize, size } = this.#layout
    const place = this.#clusters.take(end - first)
    if (place < 0) return false
    out.guest = first * clusterSize
    out.spaceLength = this.#clusters.taken * clusterSize
    out.length = Math.min(out.guest + out.spaceLength, size) - out.guest
    out.file = this.#context.files[0]!.index
    out.offset = place
    out.zeroed = true
    out.block = first
    out.space = place
    out.fresh = true
    return true
  }

  /** As `Driver.prepare`: time for decrements that waited for a commit. */
  prepare(): void {
    const clusters = this.#clusters
    if (clusters.waiting) this.#context.metadata.exclusive(() => clusters.doDecrements(clusters.planDecrements()))
  }

  /** As `Driver.publish`. */
  publish(a: Allocation): void {
    const { clusterSize } = this.#layout
    const tables = this.#tables
    const count = a.spaceLength / clusterSize
    tables.select(a.block)
    tables.touch(a.block, count)
    for (let i = 0; i < count; i++) this.#map(a.block + i, a.space + i * clusterSize, a)
  }

  #map(cluster: number, host: number, a: Allocation): void {
    const { extendedL2, subclusterSize, clusterSize } = this.#layout
    const tables = this.#tables
    const way = this.#wayOf(cluster)
    let zeros = 0
    let allocated = 0
    if (extendedL2) {
      const base = cluster * clusterSize
      const from = Math.max(0, Math.floor((a.guest - base) / subclusterSize))
      const to = Math.min(SUBCLUSTERS, Math.ceil((a.guest + a.length - base) / subclusterSize))
      const bits = subclusterMask(from, to)
      if (way !== Way.REPLACE) {
        zeros = (tables.zeros & ~bits) >>> 0
        allocated = tables.allocated
      }
      allocated = (allocated | bits) >>> 0
    }
    if (way === Way.REPLACE) this.#clusters.unref(tables.hi, tables.lo)
    tables.set(cluster, (COPIED | highOf(host)) >>> 0, lowOf(host), zeros, allocated)
  }

  /** As `Driver.abandon`. */
  abandon(a: Allocation): void {
    if (a.fresh) this.#clusters.free(a.space, a.spaceLength)
  }
}
