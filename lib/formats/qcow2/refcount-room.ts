/**
 * Room for refcounts themselves, at the end of the file, or inside of it where no block counts anything yet: new refcount
 * blocks, and a larger refcount table. Only one thread is ever in here.
 */

import { Region } from '../../metadata/region.js'
import { VdiskError } from '../../util/errors.js'
import { makeTrace } from '../../util/trace.js'
import type { LayerContext } from '../driver.js'
import type { Clusters } from './clusters.js'
import { FIELD, MAX_REFCOUNT_TABLE_BYTES, REFCOUNT_TABLE_FIELDS } from './header.js'
import { ENTRY_BYTES, type Qcow2Layout, State } from './layout.js'
import type { Refcounts } from './refcounts.js'
import { Order } from './tables.js'

const trace = makeTrace('qcow2')

export class RefcountRoom {
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #refcounts: Refcounts
  readonly #clusters: Clusters

  constructor(layout: Qcow2Layout, context: LayerContext, refcounts: Refcounts, clusters: Clusters) {
    this.#layout = layout
    this.#context = context
    this.#refcounts = refcounts
    this.#clusters = clusters
  }

  get #storage() {
    return this.#context.files[0]!.storage
  }

  /** What was put behind the file's end is a part of it. Exclusive lock. */
  #moveEnd(end: number): void {
    const { state } = this.#context
    if (end <= state[State.LIMIT]!) return
    state[State.NEXT] = end
    state[State.LIMIT] = end
  }

  /** Puts a refcount block where the first cluster is that has none: it counts itself. */
  addBlock(cluster: number): void {
    const { metadata } = this.#context
    const { clusterSize, blockEntries } = this.#layout
    const offset = cluster * clusterSize
    if (offset >= this.#context.state[State.LIMIT]!) this.#storage.truncate(offset + clusterSize)
    this.#writeCounts(offset, cluster - (cluster % blockEntries), cluster, cluster + 1)
    metadata.exclusive(() => {
      this.#refcounts.touchBlock(this.#refcounts.blockIndex(cluster))
      this.#refcounts.setBlock(this.#refcounts.blockIndex(cluster), offset)
      this.#moveEnd(offset + clusterSize)
    })
  }

  /** Writes a new refcount block, at `offset`, that begins to count at cluster `base`: 1 from `first` to below `end`. */
  #writeCounts(offset: number, base: number, first: number, end: number): void {
    const { clusterSize, refcountOrder, blockEntries } = this.#layout
    const bits = 2 ** refcountOrder
    const block = new Uint8Array(clusterSize)
    for (let i = Math.max(0, first - base); i < Math.min(blockEntries, end - base); i++)
      if (bits < 8) block[Math.floor((i * bits) / 8)]! |= 1 << ((i * bits) % 8)
      else block[((i + 1) * bits) / 8 - 1] = 1
    this.#storage.write(block, 0, clusterSize, offset)
    this.#context.metadata.wrote(this.#context.files[0]!.index)
  }

  /**
   * A larger refcount table at a cluster behind all that the present one counts, with the blocks that count it. Straight
   * to the file: table and blocks → barrier → header → barrier.
   * @param check of so many clusters from there on: throws where they cannot be had
   */
  growTable(first: number, check: (count: number) => void = () => {}): void {
    const { state, metadata, files } = this.#context
    const { clusterSize, blockEntries } = this.#layout
    const plan = this.#planTable(first)
    check(plan.tableClusters + plan.blocks)
    const start = first * clusterSize
    const table = new Uint8Array(plan.tableClusters * clusterSize)
    const view = new DataView(table.buffer)
    this.#copyEntries(view)
    const firstBlock = Math.floor(first / blockEntries)
    for (let i = 0; i < plan.blocks; i++) {
      const offset = start + (plan.tableClusters + i) * clusterSize
      view.setBigUint64((firstBlock + i) * ENTRY_BYTES, BigInt(offset))
      this.#writeCounts(offset, (firstBlock + i) * blockEntries, first, first + plan.tableClusters + plan.blocks)
    }
    this.#storage.write(table, 0, table.length, start)
    metadata.wrote(files[0]!.index)
    metadata.barrier()
    const fields = { refcountTableOffset: start, refcountTableClusters: plan.tableClusters }
    const encoded = REFCOUNT_TABLE_FIELDS.encode(fields)
    this.#storage.write(encoded, 0, encoded.length, FIELD.refcountTableOffset)
    metadata.wrote(files[0]!.index)
    metadata.barrier()
    const end = start + (plan.tableClusters + plan.blocks) * clusterSize
    metadata.exclusive(() => {
      const old = state[State.TABLE_OFFSET]!
      const length = state[State.TABLE_CLUSTERS]! * clusterSize
      new Region(metadata, files[0]!, old, old + length, Order.REFCOUNT_TABLE).drop()
      this.#clusters.free(old, length)
      state[State.TABLE_OFFSET] = start
      state[State.TABLE_CLUSTERS] = plan.tableClusters
      this.#moveEnd(end)
    })
    if (trace.enabled) trace('the refcount table has %d clusters now', plan.tableClusters)
  }

  /** How large the new table is, and how many blocks count it and themselves. @throws NO_SPACE */
  #planTable(first: number): { tableClusters: number; blocks: number } {
    const { clusterSize, blockEntries } = this.#layout
    const perCluster = clusterSize / ENTRY_BYTES
    const firstBlock = Math.floor(first / blockEntries)
    const most = MAX_REFCOUNT_TABLE_BYTES / clusterSize
    let tableClusters = Math.min(most, 2 * this.#context.state[State.TABLE_CLUSTERS]!)
    for (let blocks = 1; tableClusters <= most; ) {
      const lastBlock = Math.floor((first + tableClusters + blocks - 1) / blockEntries)
      const neededBlocks = lastBlock - firstBlock + 1
      const neededClusters = Math.ceil((lastBlock + 1) / perCluster)
      if (neededBlocks <= blocks && neededClusters <= tableClusters) return { tableClusters, blocks: neededBlocks }
      blocks = Math.max(blocks, neededBlocks)
      tableClusters = Math.max(tableClusters, neededClusters)
    }
    throw new VdiskError('NO_SPACE', 'its refcount table cannot grow beyond 8 MiB, and the file needs that', {
      path: this.#storage.path,
    })
  }

  /** The entries of the table as it is in the cache. */
  #copyEntries(view: DataView): void {
    const { metadata } = this.#context
    const refcounts = this.#refcounts
    const perLook = 512
    for (let from = 0; from < refcounts.tableEntries; from += perLook)
      metadata.shared(() => {
        for (let i = from; i < Math.min(from + perLook, refcounts.tableEntries); i++)
          view.setBigUint64(i * ENTRY_BYTES, BigInt(refcounts.blockAt(i)))
      })
  }
}
