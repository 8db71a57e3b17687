/**
 * The L1 table and the L2 tables of a layer, through the metadata cache: which L2 table is responsible, and what its
 * entries say.
 */

import { Region } from '../../metadata/region.js'
import { PAGE } from '../../metadata/shared.js'
import type { LayerContext } from '../driver.js'
import { COPIED, highOf, hostOffset, isCopied, lowOf } from './entries.js'
import type { Guard } from './guard.js'
import { ENTRY_BYTES, type Qcow2Layout, State } from './layout.js'

/** In which order a commit writes the tables, with a barrier between: see `driver.ts`. */
export const Order = { REFCOUNTS: 0, REFCOUNT_TABLE: 1, L2: 2, L1: 3 } as const

export class Tables {
  /** Of the entry that was looked at last: byte offset of the L2 table (0: none), and whether it is ours alone. */
  table = 0
  copied = false
  /** Halves of the L2 entry that was looked at last, and of its subcluster bitmap. */
  hi = 0
  lo = 0
  /** A bit for each subcluster that reads as zeros, and for each that is allocated. */
  zeros = 0
  allocated = 0
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #guard: Guard
  readonly #l1: Region
  readonly #l2: Region
  readonly #entriesPerPage: number

  constructor(layout: Qcow2Layout, context: LayerContext, guard: Guard) {
    const { l1Offset, l1Size, clusterSize, entryBytes } = layout
    const file = context.files[0]!
    this.#layout = layout
    this.#context = context
    this.#guard = guard
    this.#l1 = new Region(context.metadata, file, l1Offset, l1Offset + l1Size * ENTRY_BYTES, Order.L1)
    this.#l2 = new Region(context.metadata, file, 0, clusterSize, Order.L2)
    this.#entriesPerPage = Math.min(clusterSize, PAGE) / entryBytes
  }

  /** Looks at the L1 entry for a cluster of the disk: sets `table` and `copied`. @throws CORRUPT */
  select(cluster: number): void {
    const { l1Offset, l2Entries, clusterSize } = this.#layout
    const at = l1Offset + Math.floor(cluster / l2Entries) * ENTRY_BYTES
    const hi = this.#l1.u32be(at)
    const table = hostOffset(hi, this.#l1.u32be(at + 4))
    const limit = this.#context.state[State.LIMIT]!
    if (table !== 0 && (table % clusterSize !== 0 || table >= limit))
      throw this.#guard.corrupt(
        `the L1 entry at byte ${at} says byte ${table}: expected a multiple of ${clusterSize} below ${limit}`,
        at,
      )
    if (table !== 0 && this.#context.writable && this.#guard.covers(table))
      throw this.#guard.corrupt(`the L1 entry at byte ${at} says byte ${table}, where another table is`, at)
    this.table = table
    this.copied = isCopied(hi)
    this.#l2.move(table, table + clusterSize)
  }

  /** The number of the cluster behind those that have no L2 table either: at most `end`. Looks at one page. */
  emptyUntil(cluster: number, end: number): number {
    const { l1Offset, l2Entries } = this.#layout
    let index = Math.floor(cluster / l2Entries) + 1
    const page = (Math.floor((l1Offset + index * ENTRY_BYTES) / PAGE) + 1) * PAGE
    const stop = Math.min(Math.ceil(end / l2Entries), (page - l1Offset) / ENTRY_BYTES)
    for (; index < stop; index++) {
      const at = l1Offset + index * ENTRY_BYTES
      if (hostOffset(this.#l1.u32be(at), this.#l1.u32be(at + 4)) !== 0) break
    }
    return Math.min(end, index * l2Entries)
  }

  /** Where the L1 entry for a cluster of the disk is, in bytes. */
  l1EntryOf(cluster: number): number {
    return this.#layout.l1Offset + Math.floor(cluster / this.#layout.l2Entries) * ENTRY_BYTES
  }

  /** Makes sure that `setTable` cannot miss a page. */
  touchL1(cluster: number): void {
    this.#l1.touch(this.l1EntryOf(cluster), ENTRY_BYTES)
  }

  /** Gives the part of the disk around a cluster another L2 table, which is ours alone, and selects it. */
  setTable(cluster: number, offset: number): void {
    const at = this.l1EntryOf(cluster)
    this.#l1.setU32be(at, (COPIED | highOf(offset)) >>> 0)
    this.#l1.setU32be(at + 4, lowOf(offset))
    this.table = offset
    this.copied = true
    // What a late reader of a table that was here before may have put into the cache.
    this.#l2.move(offset, offset + this.#layout.clusterSize).drop()
  }

  /** Number of the cluster behind the last whose entry is in the same page of the same L2 table. */
  pageEnd(cluster: number): number {
    return cluster - (cluster % this.#entriesPerPage) + this.#entriesPerPage
  }

  #entryOf(cluster: number): number {
    return this.table + (cluster % this.#layout.l2Entries) * this.#layout.entryBytes
  }

  /** Looks at the entry of a cluster in the selected L2 table. */
  look(cluster: number): void {
    const at = this.#entryOf(cluster)
    this.hi = this.#l2.u32be(at)
    this.lo = this.#l2.u32be(at + 4)
    if (!this.#layout.extendedL2) return
    this.zeros = this.#l2.u32be(at + 8)
    this.allocated = this.#l2.u32be(at + 12)
  }

  /** As `look` at an entry of a new table, which is not read. */
  nothing(): void {
    this.hi = 0
    this.lo = 0
    this.zeros = 0
    this.allocated = 0
  }

  /** Makes sure that `set` cannot miss a page. */
  touch(cluster: number, count: number): void {
    this.#l2.touch(this.#entryOf(cluster), count * this.#layout.entryBytes)
  }

  /** Changes the entry of a cluster in the selected L2 table; the bitmap only where there are subclusters. */
  set(cluster: number, hi: number, lo: number, zeros: number, allocated: number): void {
    const at = this.#entryOf(cluster)
    this.#l2.setU32be(at, hi)
    this.#l2.setU32be(at + 4, lo)
    if (!this.#layout.extendedL2) return
    this.#l2.setU32be(at + 8, zeros)
    this.#l2.setU32be(at + 12, allocated)
  }
}
