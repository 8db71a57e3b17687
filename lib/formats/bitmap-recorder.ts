/**
 * Records writes in dirty bitmaps, through the metadata cache. How a bitmap's bits are found differs between the formats:
 * that is its table. What one bit is, and in which order bits and tables change, is the same.
 */

import type { Region } from '../metadata/region.js'
import { SECTOR } from '../metadata/shared.js'

const BITS_PER_SECTOR = SECTOR * 8
/** Looked at in one go; the rest of a long range is asked for again. */
const MAX_LOOKS = 65536

/** Entries of a bitmap's table that are no offsets: all bits of that part are alike. */
export const BitmapEntry = { CLEAR: 0, SET: 1 } as const

export interface RecordedBitmap {
  /** Bytes of the disk that a bit stands for. */
  readonly granularity: number
}

/** Where the clusters with the bits are. Its methods may end with a PageMiss, before anything is changed. */
export interface BitmapTable<Bitmap extends RecordedBitmap> {
  /** CLEAR, SET, or the byte offset of a cluster of bits. Shared lock. @throws CORRUPT where no cluster can be there */
  entry(bitmap: Bitmap, index: number): number
  /** Has the entry cached and its page secured, so that `set` cannot miss. Exclusive lock. */
  touch(bitmap: Bitmap, index: number): void
  /** Exclusive lock; the entry was touched before. */
  set(bitmap: Bitmap, index: number, cluster: number): void
}

export interface RecorderOptions<Bitmap extends RecordedBitmap> {
  readonly bitmaps: readonly Bitmap[]
  readonly table: BitmapTable<Bitmap>
  /** A window for clusters of bits; it is moved to one before it is used. */
  readonly bits: Region
  readonly clusterSize: number
  /** Gives the offset of one cluster that reads as zeros, or -1. Exclusive lock. */
  readonly take: () => number
  /** Gives one back that was taken in this change. */
  readonly putBack: (cluster: number) => void
}

export class BitmapRecorder<Bitmap extends RecordedBitmap> {
  /** The most sectors that one `record` makes dirty. */
  readonly changeSectors: number
  readonly #bitmaps: readonly Bitmap[]
  readonly #table: BitmapTable<Bitmap>
  readonly #bits: Region
  readonly #clusterSize: number
  readonly #bitsPerCluster: number
  readonly #take: () => number
  readonly #putBack: (cluster: number) => void

  constructor({ bitmaps, table, bits, clusterSize, take, putBack }: RecorderOptions<Bitmap>) {
    this.#bitmaps = bitmaps
    this.#table = table
    this.#bits = bits
    this.#clusterSize = clusterSize
    this.#bitsPerCluster = clusterSize * 8
    this.#take = take
    this.#putBack = putBack
    this.changeSectors = 2 * bitmaps.length
  }

  /** As `Driver.recorded`. */
  recorded(offset: number, length: number): number {
    let end = offset + length
    for (const bitmap of this.#bitmaps) end = Math.min(end, this.#setUntil(bitmap, offset, end))
    return end - offset
  }

  /** The guest offset up to which all bits from `offset` on are set. */
  #setUntil(bitmap: Bitmap, offset: number, end: number): number {
    const { granularity } = bitmap
    let bit = Math.floor(offset / granularity)
    for (let looks = 0; looks < MAX_LOOKS && bit * granularity < end; looks++) {
      const cluster = this.#clusterOf(bitmap, bit)
      if (cluster === BitmapEntry.SET) bit = (Math.floor(bit / this.#bitsPerCluster) + 1) * this.#bitsPerCluster
      else if (cluster !== BitmapEntry.CLEAR && this.#isSet(cluster, bit)) bit++
      else break
    }
    return Math.max(offset, bit * granularity)
  }

  /** CLEAR, SET, or the offset of the cluster with this bit, on which the window is then. */
  #clusterOf(bitmap: Bitmap, bit: number): number {
    const cluster = this.#table.entry(bitmap, Math.floor(bit / this.#bitsPerCluster))
    if (cluster > BitmapEntry.SET) this.#bits.move(cluster, cluster + this.#clusterSize)
    return cluster
  }

  #byteOf(cluster: number, bit: number): number {
    return cluster + Math.floor((bit % this.#bitsPerCluster) / 8)
  }

  #isSet(cluster: number, bit: number): boolean {
    return ((this.#bits.u8(this.#byteOf(cluster, bit)) >> (bit & 7)) & 1) === 1
  }

  /** As `Driver.record`: in every bitmap, for as much of the range as has its bits in one sector of each. */
  record(offset: number, length: number): number {
    let end = offset + length
    for (const { granularity } of this.#bitmaps) {
      const sector = Math.floor(offset / granularity / BITS_PER_SECTOR)
      end = Math.min(end, (sector + 1) * BITS_PER_SECTOR * granularity)
    }
    // All that is needed is cached before anything is changed: a change must not miss half way.
    for (const bitmap of this.#bitmaps) {
      const bit = Math.floor(offset / bitmap.granularity)
      const cluster = this.#clusterOf(bitmap, bit)
      if (cluster > BitmapEntry.SET) this.#bits.touch(this.#byteOf(cluster, bit), 1)
      else if (cluster === BitmapEntry.CLEAR) this.#table.touch(bitmap, this.#indexOf(bitmap, offset))
    }
    const fresh = this.#bitmaps.filter((bitmap) => this.#clusterAt(bitmap, offset) === BitmapEntry.CLEAR)
    const clusters = this.#takeFor(fresh, offset)
    if (!clusters) return 0
    fresh.forEach((bitmap, i) => {
      this.#table.set(bitmap, this.#indexOf(bitmap, offset), clusters[i]!)
    })
    for (const bitmap of this.#bitmaps) this.#setBits(bitmap, offset, end)
    return end - offset
  }

  /**
   * New clusters for bitmaps that lack one there; they read as zeros, and what is going to be changed in them is cached.
   * @returns undefined where room must be made
   */
  #takeFor(bitmaps: readonly Bitmap[], offset: number): number[] | undefined {
    const taken: number[] = []
    const giveBack = () => {
      for (const cluster of taken.reverse()) this.#putBack(cluster)
    }
    try {
      for (const { granularity } of bitmaps) {
        const cluster = this.#take()
        if (cluster < 0) {
          giveBack()
          return undefined
        }
        taken.push(cluster)
        this.#bits.move(cluster, cluster + this.#clusterSize)
        this.#bits.touch(this.#byteOf(cluster, Math.floor(offset / granularity)), 1)
      }
      return taken
    } catch (miss) {
      giveBack()
      throw miss
    }
  }

  /** The entry of a bitmap's table for a guest offset. */
  #indexOf({ granularity }: Bitmap, offset: number): number {
    return Math.floor(Math.floor(offset / granularity) / this.#bitsPerCluster)
  }

  #clusterAt(bitmap: Bitmap, offset: number): number {
    return this.#clusterOf(bitmap, Math.floor(offset / bitmap.granularity))
  }

  #setBits(bitmap: Bitmap, offset: number, end: number): void {
    const { granularity } = bitmap
    const cluster = this.#clusterAt(bitmap, offset)
    if (cluster <= BitmapEntry.SET) return
    for (let bit = Math.floor(offset / granularity); bit * granularity < end; bit++) {
      const at = this.#byteOf(cluster, bit)
      const byte = this.#bits.u8(at)
      const mask = 1 << (bit & 7)
      if ((byte & mask) === 0) this.#bits.setU8(at, byte | mask)
    }
  }
}
