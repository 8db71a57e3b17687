/**
 * Host clusters of a layer that is written. What is taken has the refcount 1 from the moment on when it was secured, in
 * runs, before anything uses it; what is freed keeps it until the end, or until too much is free; so allocating and
 * freeing change refcounts rarely. A crash leaves clusters that nothing uses, and no worse.
 *
 * A cluster that others use as well (snapshots; compressed clusters that share it) is counted down: the decrement waits
 * until a commit has taken the reference from the disk.
 */

import { Region } from '../../metadata/region.js'
import { placesEnd } from '../../storage/shorten.js'
import type { LayerContext } from '../driver.js'
import { compressedLength, compressedOffset, hostOffset, isCompressed } from './entries.js'
import type { Guard } from './guard.js'
import { type Qcow2Layout, QUEUE_ENTRIES, QUEUE_STRIDE, State } from './layout.js'
import type { Refcounts } from './refcounts.js'
import { Order } from './tables.js'

/** Decrements that one change does, and freed ranges whose refcounts it clears: each at most one sector. */
export const STEP = 32

export class Clusters {
  /** How many clusters `take` has taken. */
  taken = 0
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #refcounts: Refcounts
  readonly #guard: Guard
  readonly #freed: Region

  constructor(layout: Qcow2Layout, context: LayerContext, refcounts: Refcounts, guard: Guard) {
    this.#layout = layout
    this.#context = context
    this.#refcounts = refcounts
    this.#guard = guard
    this.#freed = new Region(context.metadata, context.files[0]!, 0, 0, Order.REFCOUNTS)
  }

  /**
   * Takes up to `wanted` clusters that lie together and read as zeros: freed ones first. Exclusive lock.
   * @returns their byte offset; -1 where room must be made
   */
  take(wanted: number): number {
    const { clusterSize } = this.#layout
    const { state } = this.#context
    const space = this.#context.space!
    for (const count of wanted > 1 ? [wanted, 1] : [1]) {
      const freed = space.take(count * clusterSize)
      this.taken = count
      if (freed >= 0) return freed
    }
    const offset = state[State.NEXT]!
    this.taken = Math.min(wanted, (state[State.LIMIT]! - offset) / clusterSize)
    if (this.taken < 1) return -1
    state[State.NEXT] = offset + this.taken * clusterSize
    return offset
  }

  /** See the function of that name, of the image's own file. */
  get placesEnd(): number {
    return placesEnd(this.#context.files[0]!.storage)
  }

  /** Frees clusters that nothing else uses. Exclusive lock. */
  free(offset: number, length: number): void {
    this.#context.space!.free(offset, length)
  }

  /** False where the image's own structures are that entries must not refer to: those are never freed. */
  isData(cluster: number): boolean {
    const offset = cluster * this.#layout.clusterSize
    const refcounts = this.#refcounts
    return !this.#guard.covers(offset) && refcounts.blockAt(refcounts.blockIndex(cluster)) !== offset
  }

  /** Says that one reference to a cluster is gone from the tables. Exclusive lock; a change of nothing cached. */
  decrement(cluster: number): void {
    const { state, metadata } = this.#context
    const count = state[State.QUEUE_COUNT]!
    // It stays leaked; the commit that is wanted long before keeps it from coming to this.
    if (count === QUEUE_ENTRIES) return
    const at = this.#slot(count)
    state[at] = cluster
    state[at + 1] = metadata.nextCommit
    state[State.QUEUE_COUNT] = count + 1
    if (count > QUEUE_ENTRIES / 2) metadata.wantCommit()
  }

  /** An entry that referred to a cluster which others use too, or to compressed data, is going away. */
  unref(hi: number, lo: number): void {
    const { clusterSize, header } = this.#layout
    const { state } = this.#context
    if (!isCompressed(hi)) {
      const host = hostOffset(hi, lo)
      if (host !== 0) this.decrement(Math.floor(host / clusterSize))
      return
    }
    const offset = compressedOffset(hi, lo, header.clusterBits)
    const last = offset + compressedLength(hi, lo, header.clusterBits) - 1
    for (let c = Math.floor(offset / clusterSize); c <= Math.floor(last / clusterSize); c++) this.decrement(c)
    state[State.GENERATION] = state[State.GENERATION]! + 1
  }

  #slot(n: number): number {
    return State.QUEUE + ((this.#context.state[State.QUEUE_FIRST]! + n) % QUEUE_ENTRIES) * QUEUE_STRIDE
  }

  /** True where decrements wait; a hint where no lock is held. */
  get waiting(): boolean {
    return this.#context.state[State.QUEUE_COUNT]! > 0
  }

  /** How many decrements can be done now, at most a step; what that needs is cached then. Exclusive lock. */
  planDecrements(): number {
    const { state, metadata } = this.#context
    const most = Math.min(STEP, state[State.QUEUE_COUNT]!)
    let n = 0
    for (; n < most && state[this.#slot(n) + 1]! <= metadata.lastCommit; n++)
      this.#refcounts.touch(state[this.#slot(n)]!)
    return n
  }

  /** Does that many. Exclusive lock. */
  doDecrements(count: number): void {
    const { state } = this.#context
    for (let i = 0; i < count; i++) this.#decrementNow(state[this.#slot(i)]!)
    state[State.QUEUE_FIRST] = (state[State.QUEUE_FIRST]! + count) % QUEUE_ENTRIES
    state[State.QUEUE_COUNT] = state[State.QUEUE_COUNT]! - count
  }

  #decrementNow(cluster: number): void {
    const refcount = this.#refcounts.get(cluster)
    if (refcount > 1) this.#refcounts.set(cluster, refcount - 1)
    if (refcount !== 1 || !this.isData(cluster)) return
    const { clusterSize } = this.#layout
    const offset = cluster * clusterSize
    const { state } = this.#context
    // Nothing compressed may follow into what is somebody else's from now on.
    if (Math.floor(state[State.PACKED]! / clusterSize) === cluster) state[State.PACKED] = 0
    // It may have been a table.
    this.#freed.move(offset, offset + clusterSize).drop()
    // What a device has of its last cluster is too little for another one.
    if (offset + clusterSize > this.placesEnd) this.#refcounts.set(cluster, 0)
    else this.free(offset, clusterSize)
  }

  /** Freed ranges whose refcounts are to be cleared now, because the list is filling. What that needs is cached then. */
  planClearing(): { readonly offset: number; readonly length: number }[] {
    const space = this.#context.space!
    const { ready, capacity } = space.crowd
    if (ready < capacity / 2) return []
    return space.newest(STEP).map(({ offset, length }) => {
      const { clusterSize } = this.#layout
      const first = offset / clusterSize
      const end = Math.min(first + length / clusterSize, this.#refcounts.sectorEnd(first))
      this.#refcounts.touch(first)
      this.#refcounts.touch(end - 1)
      return { offset, length: (end - first) * clusterSize }
    })
  }

  /** Gives ranges back to the file: they are found again by looking for refcounts of 0. Exclusive lock. */
  clear(ranges: readonly { readonly offset: number; readonly length: number }[]): void {
    const { state, space } = this.#context
    const { clusterSize } = this.#layout
    for (const { offset, length } of ranges) {
      space!.takeAt(offset, length)
      const first = offset / clusterSize
      for (let cluster = first; cluster < first + length / clusterSize; cluster++) this.#refcounts.set(cluster, 0)
      state[State.CURSOR] = Math.min(state[State.CURSOR]!, first)
    }
  }
}
