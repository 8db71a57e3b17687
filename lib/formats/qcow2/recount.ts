/**
 * The refcount table and its blocks, worked on in the file itself: compared with what refers to clusters, corrected where
 * they lie, or written anew at the end of the file.
 *
 * A new table: blocks and table are written behind everything, on a device to clusters that nothing uses, the old table
 * and its blocks not among them → barrier → the header refers to them, in one sector → barrier.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { type Counts, Use } from './counts.js'
import { FIELD, MAX_REFCOUNT_TABLE_BYTES, REFCOUNT_TABLE_FIELDS } from './header.js'
import { FreeClusters, noneForSure } from './inside.js'
import { eachEntry, hexOf } from './pieces.js'
import type { OnFault } from './walk.js'

const TWO_32 = 2 ** 32
const PIECE = 1 << 16

export interface RefcountPlace {
  readonly clusterSize: number
  readonly order: number
  /** Byte offset of the refcount table. */
  readonly tableOffset: number
  readonly tableClusters: number
}

/** Something that has a number for every cluster. */
export interface Values {
  of(cluster: number): number
  noneIn(first: number, end: number): boolean
}

/** Of a cluster with this refcount in the file: what it is to be. */
export type Visit = (cluster: number, refcount: number) => number

export interface RebuildOptions {
  /** The first byte from which on nothing is said to be. */
  readonly free?: number
  /** What has no references may be in use. */
  readonly lost?: boolean
}

/** Clusters for so many blocks, and behind them those of the table, which lie together. */
type FindPlaces = (blocks: number, tableClusters: number) => readonly number[]

interface Plan {
  /** Of the blocks that there will be. */
  readonly indexes: readonly number[]
  /** Of each, its cluster. */
  readonly blocks: readonly number[]
  /** First cluster of the table. */
  readonly table: number
  readonly tableClusters: number
}

type Read = (bytes: Buffer, index: number) => number
type Write = (bytes: Buffer, index: number, value: number) => void

/** Entries of less than a byte: the first is in the lowest bits. */
function packed(order: number): readonly [Read, Write] {
  const bits = 1 << order
  const perByte = 8 / bits
  const mask = (1 << bits) - 1
  return [
    (bytes, i) => (bytes[Math.floor(i / perByte)]! >> ((i % perByte) * bits)) & mask,
    (bytes, i, value) => {
      const at = Math.floor(i / perByte)
      const shift = (i % perByte) * bits
      bytes[at] = (bytes[at]! & ~(mask << shift)) | (value << shift)
    },
  ]
}

/** By refcount order. */
const ENTRY: readonly (readonly [Read, Write])[] = [
  packed(0),
  packed(1),
  packed(2),
  [(bytes, i) => bytes[i]!, (bytes, i, value) => bytes.writeUInt8(value, i)],
  [(bytes, i) => bytes.readUInt16BE(i * 2), (bytes, i, value) => bytes.writeUInt16BE(value, i * 2)],
  [(bytes, i) => bytes.readUInt32BE(i * 4), (bytes, i, value) => bytes.writeUInt32BE(value, i * 4)],
  [
    (bytes, i) => bytes.readUInt32BE(i * 8) * TWO_32 + bytes.readUInt32BE(i * 8 + 4),
    (bytes, i, value) => {
      bytes.writeUInt32BE(Math.floor(value / TWO_32), i * 8)
      bytes.writeUInt32BE(value % TWO_32, i * 8 + 4)
    },
  ],
]

export class Recount {
  readonly #storage: Storage
  readonly #clusterSize: number
  readonly #order: number
  readonly #read: Read
  readonly #write: Write
  #offset: number
  #clusters: number
  /** Offsets of the blocks that can be used. */
  #blocks: Float64Array
  /** The structures are not what they should be: only writing them anew mends that. */
  broken = false

  /** Reads the table. @throws IO */
  constructor(storage: Storage, place: RefcountPlace, fault: OnFault = () => {}) {
    this.#storage = storage
    this.#clusterSize = place.clusterSize
    this.#order = place.order
    ;[this.#read, this.#write] = ENTRY[place.order]!
    this.#offset = place.tableOffset
    this.#clusters = place.tableClusters
    this.#blocks = this.#load(fault)
  }

  /** The largest refcount that there can be. */
  get most(): number {
    return Math.min(Number.MAX_SAFE_INTEGER, 2 ** (1 << this.#order) - 1)
  }

  /** Clusters that one block has refcounts of. */
  get perBlock(): number {
    return (this.#clusterSize * 8) >> this.#order
  }

  #load(fault: OnFault): Float64Array {
    const end = Math.ceil(this.#storage.size() / this.#clusterSize) * this.#clusterSize
    const length = this.#clusters * this.#clusterSize
    const report = (message: string, offset: number) => {
      this.broken = true
      fault({ severity: 'corruption', what: 'refcount-table', message, offset })
    }
    const wrong = this.#offset === 0 || this.#offset % this.#clusterSize !== 0 || this.#offset + length > end
    if (wrong || length === 0 || length > MAX_REFCOUNT_TABLE_BYTES) {
      const found = `${this.#clusters} clusters at byte ${this.#offset}`
      report(
        `the refcount table is said to be ${found}: expected clusters of the file, ${MAX_REFCOUNT_TABLE_BYTES} bytes at most`,
        0,
      )
      this.#clusters = 0
      return new Float64Array(0)
    }
    const blocks = new Float64Array(length / 8)
    eachEntry(this.#storage, this.#offset, blocks.length, (index, high, low) => {
      const block = high * TWO_32 + low
      const at = this.#offset + index * 8
      if (block % this.#clusterSize !== 0)
        report(`refcount block ${index} is said to be at byte ${hexOf(high, low)}, which is not at a cluster`, at)
      else if (block >= end) report(`refcount block ${index} at byte ${block} is not in the file`, at)
      else blocks[index] = block
    })
    return blocks
  }

  /** Counts the clusters of the structures. Every block is counted once: a second one is a fault. */
  mark(counts: Counts, fault: OnFault = () => {}): void {
    const overlap = (message: string, offset: number) => {
      this.broken = true
      fault({ severity: 'corruption', what: 'overlap', message, offset })
    }
    const first = this.#offset / this.#clusterSize
    let shared = 0
    for (let i = 0; i < this.#clusters; i++) if (!counts.add(first + i, Use.METADATA)) shared++
    if (shared > 0) overlap(`the refcount table shares ${shared} clusters with something else`, this.#offset)
    this.#blocks.forEach((block, index) => {
      if (block === 0 || counts.add(block / this.#clusterSize, Use.METADATA)) return
      overlap(`refcount block ${index} at byte ${block} shares its cluster with something else`, block)
    })
  }

  /** The clusters of the structures. */
  *#own(): Generator<number> {
    for (let i = 0; i < this.#clusters; i++) yield this.#offset / this.#clusterSize + i
    for (const block of this.#blocks) if (block !== 0) yield block / this.#clusterSize
  }

  /**
   * Visits every cluster before `end` that has a refcount, or is wanted to have one, and writes what is to be otherwise.
   * @returns false where there is no block for one that is to have a refcount
   */
  update(end: number, wanted: Values, visit: Visit): boolean {
    let complete = true
    for (let index = 0; index * this.perBlock < end; index++) {
      const first = index * this.perBlock
      const count = Math.min(this.perBlock, end - first)
      const block = this.#blocks[index] ?? 0
      if (block !== 0) this.#updateBlock(block, first, count, wanted, visit)
      else if (!wanted.noneIn(first, first + count)) {
        for (let i = 0; i < count; i++) {
          if (i % PIECE === 0 && wanted.noneIn(first + i, Math.min(first + count, first + i + PIECE))) i += PIECE - 1
          else if (wanted.of(first + i) > 0 && visit(first + i, 0) !== 0) complete = false
        }
      }
    }
    return complete
  }

  #updateBlock(block: number, first: number, count: number, wanted: Values, visit: Visit): void {
    const bytes = Buffer.alloc(Math.min(PIECE, this.#clusterSize))
    const perPiece = (bytes.length * 8) >> this.#order
    for (let done = 0; done < count; done += perPiece) {
      const at = block + (done * 2 ** this.#order) / 8
      const here = Math.min(perPiece, count - done)
      const none = wanted.noneIn(first + done, first + done + here)
      if (none && this.#storage.nextData(at) >= at + bytes.length) continue
      bytes.fill(0, this.#storage.read(bytes, 0, bytes.length, at))
      let changed = false
      for (let i = 0; i < here; i++) {
        const refcount = this.#read(bytes, i)
        if (none && refcount === 0) continue
        const next = visit(first + done + i, refcount)
        if (next === refcount) continue
        this.#write(bytes, i, next)
        changed = true
      }
      if (changed) this.#storage.write(bytes, 0, bytes.length, at)
    }
  }

  /**
   * Writes all refcounts anew, and makes the header refer to them. `counts` has the references to everything, with the old
   * structures where `mark` counted them; it gets those of the new ones instead.
   * @param end behind the last cluster that has a refcount
   * @returns where the table is now
   * @throws NO_SPACE where the table would be too large, or a device has no room
   */
  rebuild(counts: Counts, end: number, { free = 0, lost = false }: RebuildOptions = {}): RefcountPlace {
    const find = this.#storage.fixedSize ? this.#placesInside(counts, lost) : this.#placesBehind(end, free)
    for (const cluster of this.#own()) counts.remove(cluster)
    const { indexes, blocks, table: first, tableClusters } = this.#plan(counts, end, find)
    for (const cluster of blocks) counts.add(cluster, Use.METADATA)
    for (let i = 0; i < tableClusters; i++) counts.add(first + i, Use.METADATA)
    const table = new Float64Array((tableClusters * this.#clusterSize) / 8)
    indexes.forEach((index, i) => {
      table[index] = blocks[i]! * this.#clusterSize
    })
    for (const index of indexes) this.#writeBlock(table[index]!, index, counts)
    const tableOffset = first * this.#clusterSize
    this.#writeTable(table, tableOffset)
    this.#storage.sync()
    this.#refer(tableOffset, tableClusters)
    this.#blocks = table
    this.broken = false
    return { clusterSize: this.#clusterSize, order: this.#order, tableOffset, tableClusters }
  }

  #placesBehind(end: number, free: number): FindPlaces {
    const start = Math.max(end, Math.ceil(Math.max(free, this.#storage.size()) / this.#clusterSize))
    return (blocks, tableClusters) => Array.from({ length: blocks + tableClusters }, (_, i) => start + i)
  }

  /** The old structures hold until the header refers to the new ones. @throws NO_SPACE */
  #placesInside(counts: Counts, lost: boolean): FindPlaces {
    if (lost) throw noneForSure(this.#storage)
    const old = new Set(this.#own())
    const isFree = (cluster: number) => counts.of(cluster) === 0 && !old.has(cluster)
    const clusters = new FreeClusters(this.#storage, this.#clusterSize, isFree)
    return (blocks, tableClusters) => {
      const table = clusters.run(tableClusters)
      const others = clusters.singles(blocks, table, table + tableClusters)
      return [...others, ...Array.from({ length: tableClusters }, (_, i) => table + i)]
    }
  }

  /** Which blocks there will be, with those that count themselves and the table, and where. */
  #plan(counts: Counts, end: number, find: FindPlaces): Plan {
    const { perBlock } = this
    const used: number[] = []
    for (let index = 0; index * perBlock < end; index++)
      if (!counts.noneIn(index * perBlock, Math.min(end, (index + 1) * perBlock))) used.push(index)
    let blocks = used.length
    let tableClusters = 1
    for (;;) {
      const places = find(blocks, tableClusters)
      const needed = new Set([...used, ...places.map((cluster) => Math.floor(cluster / perBlock))])
      const indexes = [...needed].sort((a, b) => a - b)
      const length = Math.ceil(((indexes.at(-1)! + 1) * 8) / this.#clusterSize)
      if (length * this.#clusterSize > MAX_REFCOUNT_TABLE_BYTES)
        throw new VdiskError('NO_SPACE', `its refcount table would be larger than ${MAX_REFCOUNT_TABLE_BYTES} bytes`, {
          path: this.#storage.path,
        })
      if (indexes.length <= blocks && length <= tableClusters)
        return { indexes, blocks: places.slice(0, indexes.length), table: places[blocks]!, tableClusters }
      blocks = Math.max(blocks, indexes.length)
      tableClusters = Math.max(tableClusters, length)
    }
  }

  #writeBlock(block: number, index: number, counts: Counts): void {
    const bytes = Buffer.alloc(this.#clusterSize)
    const first = index * this.perBlock
    for (let done = 0; done < this.perBlock; done += PIECE) {
      const count = Math.min(PIECE, this.perBlock - done)
      if (counts.noneIn(first + done, first + done + count)) continue
      for (let i = done; i < done + count; i++) this.#write(bytes, i, Math.min(this.most, counts.of(first + i)))
    }
    this.#storage.write(bytes, 0, bytes.length, block)
  }

  #writeTable(table: Float64Array, offset: number): void {
    const bytes = Buffer.alloc(table.length * 8)
    table.forEach((block, i) => {
      bytes.writeBigUInt64BE(BigInt(block), i * 8)
    })
    this.#storage.write(bytes, 0, bytes.length, offset)
  }

  #refer(offset: number, clusters: number): void {
    const fields = REFCOUNT_TABLE_FIELDS.encode({ refcountTableOffset: offset, refcountTableClusters: clusters })
    this.#storage.write(fields, 0, fields.length, FIELD.refcountTableOffset)
    this.#storage.sync()
    this.#offset = offset
    this.#clusters = clusters
  }
}
