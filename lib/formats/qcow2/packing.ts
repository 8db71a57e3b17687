/**
 * Writing compressed clusters: one lies right behind the other, also across the bound of two host clusters, each of which
 * is counted once for every compressed cluster that has bytes in it.
 *
 * Refcounts rise when room is taken, before an entry refers to it, and a commit writes them before the entry: see
 * `driver.ts`. A crash, and data that could not be written, leave clusters that are counted too often, and no worse.
 */

import type { Allocation, LayerContext } from '../driver.js'
import type { Clusters } from './clusters.js'
import { COMPRESSED_SECTOR, compressedHigh, hostOffset, isCompressed, lowOf } from './entries.js'
import type { Growth } from './growth.js'
import { type Qcow2Layout, State } from './layout.js'
import type { Refcounts } from './refcounts.js'
import type { Tables } from './tables.js'

/** JavaScript's numbers are exact up to here. */
const MAX_REFCOUNT_BITS = 53

export class Packing {
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #tables: Tables
  readonly #refcounts: Refcounts
  readonly #clusters: Clusters
  readonly #growth: Growth
  readonly #maxRefcount: number

  constructor(
    layout: Qcow2Layout,
    context: LayerContext,
    tables: Tables,
    refcounts: Refcounts,
    clusters: Clusters,
    growth: Growth,
  ) {
    this.#layout = layout
    this.#context = context
    this.#tables = tables
    this.#refcounts = refcounts
    this.#clusters = clusters
    this.#growth = growth
    this.#maxRefcount = 2 ** Math.min(MAX_REFCOUNT_BITS, 2 ** layout.refcountOrder) - 1
  }

  /** As `Driver.allocateEncoded`. */
  allocate(offset: number, length: number, out: Allocation): boolean {
    const { clusterSize, size } = this.#layout
    const tables = this.#tables
    const cluster = offset / clusterSize
    tables.select(cluster)
    if (tables.table === 0 || !tables.copied) {
      this.#growth.want(cluster)
      return false
    }
    tables.look(cluster)
    // It may be zeros, and have a place all the same.
    out.encoded = 0
    if (isCompressed(tables.hi) || hostOffset(tables.hi, tables.lo) !== 0) return true
    const place = this.#take(length)
    if (place < 0) return false
    out.guest = offset
    out.length = Math.min(clusterSize, size - offset)
    out.file = this.#context.files[0]!.index
    out.offset = place
    out.encoded = length
    out.block = cluster
    out.fresh = true
    return true
  }

  /** Takes room of so many bytes, at most a cluster. @returns its byte offset; -1 where room must be made */
  #take(length: number): number {
    const { clusterSize } = this.#layout
    const { state } = this.#context
    const packed = state[State.PACKED]!
    const left = packed % clusterSize === 0 ? 0 : clusterSize - (packed % clusterSize)
    const current = Math.floor(packed / clusterSize)
    if (left > 0) this.#refcounts.touch(current)
    const count = left > 0 ? this.#refcounts.get(current) : 0
    const shareable = left > 0 && count > 0 && count < this.#maxRefcount
    if (shareable && length <= left) {
      this.#refcounts.set(current, count + 1)
      state[State.PACKED] = packed + length
      return packed
    }
    const next = this.#clusters.take(1)
    if (next < 0) return -1
    // The new one is counted already: for this.
    if (shareable && next === packed + left) {
      this.#refcounts.set(current, count + 1)
      state[State.PACKED] = packed + length
      return packed
    }
    state[State.PACKED] = next + length
    return next
  }

  /** As `Driver.publish`. */
  publish({ block, offset, encoded }: Allocation): void {
    const { clusterBits } = this.#layout.header
    const tables = this.#tables
    tables.select(block)
    tables.touch(block, 1)
    const sectors = Math.floor((offset + encoded - 1) / COMPRESSED_SECTOR) - Math.floor(offset / COMPRESSED_SECTOR)
    tables.set(block, compressedHigh(offset, sectors, clusterBits), lowOf(offset), 0, 0)
  }

  /** As `Driver.abandon`. */
  abandon({ offset, encoded }: Allocation): void {
    const { clusterSize } = this.#layout
    const last = Math.floor((offset + encoded - 1) / clusterSize)
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) this.#clusters.decrement(cluster)
  }
}
