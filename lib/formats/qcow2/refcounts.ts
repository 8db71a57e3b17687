/** How often each cluster of the file is used: refcount table and refcount blocks, through the metadata cache. */

import { Region } from '../../metadata/region.js'
import { PAGE, SECTOR } from '../../metadata/shared.js'
import { VdiskError } from '../../util/errors.js'
import type { LayerContext } from '../driver.js'
import { blockOffset, highOf, lowOf } from './entries.js'
import { ENTRY_BYTES, type Qcow2Layout, State } from './layout.js'
import { Order } from './tables.js'

const WORD = 2 ** 32

export class Refcounts {
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #table: Region
  readonly #block: Region
  readonly #bits: number

  constructor(layout: Qcow2Layout, context: LayerContext) {
    const file = context.files[0]!
    this.#layout = layout
    this.#context = context
    this.#bits = 2 ** layout.refcountOrder
    this.#table = new Region(context.metadata, file, 0, 0, Order.REFCOUNT_TABLE)
    this.#block = new Region(context.metadata, file, 0, 0, Order.REFCOUNTS)
  }

  /** Entries that the refcount table has room for. */
  get tableEntries(): number {
    return (this.#context.state[State.TABLE_CLUSTERS]! * this.#layout.clusterSize) / ENTRY_BYTES
  }

  /** The number of the refcount block that counts a cluster. */
  blockIndex(cluster: number): number {
    return Math.floor(cluster / this.#layout.blockEntries)
  }

  #entry(index: number): number {
    const { state } = this.#context
    const start = state[State.TABLE_OFFSET]!
    this.#table.move(start, start + state[State.TABLE_CLUSTERS]! * this.#layout.clusterSize)
    return start + index * ENTRY_BYTES
  }

  /** Byte offset of a refcount block; 0: there is none, and what it would count is free. @throws CORRUPT */
  blockAt(index: number): number {
    if (index >= this.tableEntries) return 0
    const at = this.#entry(index)
    const offset = blockOffset(this.#table.u32be(at), this.#table.u32be(at + 4))
    const limit = this.#context.state[State.LIMIT]!
    if (offset % this.#layout.clusterSize !== 0 || offset >= limit)
      throw new VdiskError(
        'CORRUPT',
        `the refcount table says byte ${offset} for block ${index}: expected a multiple of ${this.#layout.clusterSize} below ${limit}`,
        { path: this.#context.files[0]!.storage.path, offset: at },
      )
    this.#refuseTables(index, offset, at)
    return offset
  }

  /** A block that is one of the tables would change them as it counts. */
  #refuseTables(index: number, offset: number, at: number): void {
    const { state, files } = this.#context
    const { header, clusterSize } = this.#layout
    const table = state[State.TABLE_OFFSET]!
    const inTable = offset >= table && offset < table + state[State.TABLE_CLUSTERS]! * clusterSize
    const inL1 = offset >= header.l1TableOffset && offset < header.l1TableOffset + header.l1Size * ENTRY_BYTES
    if (offset === 0 || !(inTable || inL1)) return
    const text = `refcount block ${index} at byte ${offset} lies over the ${inTable ? 'refcount' : 'L1'} table`
    throw new VdiskError('CORRUPT', text, { path: files[0]!.storage.path, offset: at })
  }

  /** Makes sure that `setBlock` cannot miss a page. */
  touchBlock(index: number): void {
    this.#table.touch(this.#entry(index), ENTRY_BYTES)
  }

  setBlock(index: number, offset: number): void {
    const at = this.#entry(index)
    this.#table.setU32be(at, highOf(offset))
    this.#table.setU32be(at + 4, lowOf(offset))
  }

  /** Selects the block of a cluster. @returns false where there is none */
  #select(cluster: number): boolean {
    const offset = this.blockAt(this.blockIndex(cluster))
    if (offset === 0) return false
    this.#block.move(offset, offset + this.#layout.clusterSize)
    this.#base = offset
    return true
  }

  #base = 0

  /** Byte of the selected block that the refcount of a cluster begins in. */
  #byte(cluster: number): number {
    return this.#base + Math.floor(((cluster % this.#layout.blockEntries) * this.#bits) / 8)
  }

  get(cluster: number): number {
    return this.#select(cluster) ? this.#read(cluster) : 0
  }

  #read(cluster: number): number {
    const bits = this.#bits
    const at = this.#byte(cluster)
    if (bits === 64) return this.#block.u32be(at) * WORD + this.#block.u32be(at + 4)
    if (bits === 32) return this.#block.u32be(at)
    if (bits === 16) return this.#block.u8(at) * 256 + this.#block.u8(at + 1)
    if (bits === 8) return this.#block.u8(at)
    return (this.#block.u8(at) >> ((cluster * bits) % 8)) & ((1 << bits) - 1)
  }

  /** Makes sure that `set` cannot miss a page. */
  touch(cluster: number): void {
    if (this.#select(cluster)) this.#block.touch(this.#byte(cluster), Math.max(1, this.#bits / 8))
  }

  /** Of a cluster that has a refcount block. `value` fits. */
  set(cluster: number, value: number): void {
    this.#select(cluster)
    const bits = this.#bits
    const at = this.#byte(cluster)
    const block = this.#block
    if (bits >= 32) {
      block.setU32be(at + bits / 8 - 4, value % WORD)
      if (bits === 64) block.setU32be(at, Math.floor(value / WORD))
    } else if (bits >= 8) {
      block.setU8(at + bits / 8 - 1, value & 0xff)
      if (bits === 16) block.setU8(at, value >> 8)
    } else {
      const shift = (cluster * bits) % 8
      const mask = ((1 << bits) - 1) << shift
      block.setU8(at, (block.u8(at) & ~mask) | (value << shift))
    }
  }

  /** The number of the cluster behind the last whose refcount is in the same page (or sector) of the same block. */
  pageEnd(cluster: number): number {
    return this.#end(cluster, PAGE)
  }

  sectorEnd(cluster: number): number {
    return this.#end(cluster, SECTOR)
  }

  #end(cluster: number, unit: number): number {
    const perUnit = (Math.min(unit, this.#layout.clusterSize) * 8) / this.#bits
    return cluster - (cluster % perUnit) + perUnit
  }

  /** The first cluster from `from` on, below `end`, whose refcount is 0 (or is not); `end` where there is none. */
  find(from: number, end: number, free: boolean): number {
    if (!this.#select(from)) return free ? from : end
    for (let cluster = from; cluster < end; cluster++) if ((this.#read(cluster) === 0) === free) return cluster
    return end
  }
}
