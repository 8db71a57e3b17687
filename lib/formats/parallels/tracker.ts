/**
 * Records writes in the dirty bitmaps, through the metadata cache. While the image is written, the extension in the file's
 * header is one that counts everything as changed (see `session.ts`); this works on the true one, which nothing refers to
 * until the clean end. So bits may be late on disk: whoever looks meanwhile sees everything as changed.
 */

import { Region } from '../../metadata/region.js'
import { SECTOR } from '../../metadata/shared.js'
import { VdiskError } from '../../util/errors.js'
import type { LayerContext } from '../driver.js'
import { bitsPerCluster, L1_CLEAR, L1_SET } from './extension.js'
import type { ImageLayout, TrackedBitmap } from './layout.js'
import { State } from './layout.js'

const ORDER = 0
const BITS_PER_SECTOR = SECTOR * 8
const L1_ENTRY = 8
/** Looked at in one go; the rest of a long range is asked for again. */
const MAX_LOOKS = 65536

/** An entry of an L1 table: L1_CLEAR, L1_SET, or a byte offset. */
export function l1Offset(region: Region, table: number, index: number): number {
  const at = table + index * L1_ENTRY
  const entry = region.u32le(at + 4) * 2 ** 32 + region.u32le(at)
  return entry <= L1_SET ? entry : entry * SECTOR
}

export class Tracker {
  readonly changeSectors: number
  readonly #layout: ImageLayout
  readonly #context: LayerContext
  readonly #bitmaps: readonly TrackedBitmap[]
  readonly #l1: Region
  readonly #bits: Region
  readonly #take: () => number
  readonly #bitsPerCluster: number

  /** @param take gives the offset of one free cluster that reads as zeros, or -1. Exclusive lock. */
  constructor(layout: ImageLayout, context: LayerContext, take: () => number) {
    const { metadata, files } = context
    const { offset, bitmaps } = layout.extension!
    const { clusterSize } = layout.geometry
    this.#layout = layout
    this.#context = context
    this.#bitmaps = bitmaps
    this.#l1 = new Region(metadata, files[0]!, offset, offset + clusterSize, ORDER)
    this.#bits = new Region(metadata, files[0]!, 0, 0, ORDER)
    this.#take = take
    this.#bitsPerCluster = bitsPerCluster(clusterSize)
    this.changeSectors = 2 * bitmaps.length
  }

  recorded(offset: number, length: number): number {
    let end = offset + length
    for (const bitmap of this.#bitmaps) end = Math.min(end, this.#setUntil(bitmap, offset, end))
    return end - offset
  }

  /** The guest offset up to which all bits from `offset` on are set. */
  #setUntil(bitmap: TrackedBitmap, offset: number, end: number): number {
    const { granularity } = bitmap
    let bit = Math.floor(offset / granularity)
    for (let looks = 0; looks < MAX_LOOKS && bit * granularity < end; looks++) {
      const cluster = this.#clusterOf(bitmap, bit)
      if (cluster === L1_SET) bit = (Math.floor(bit / this.#bitsPerCluster) + 1) * this.#bitsPerCluster
      else if (cluster !== L1_CLEAR && this.#isSet(cluster, bit)) bit++
      else break
    }
    return Math.max(offset, bit * granularity)
  }

  /** L1_CLEAR, L1_SET, or the offset of the cluster with this bit. */
  #clusterOf({ l1 }: TrackedBitmap, bit: number): number {
    const offset = l1Offset(this.#l1, l1, Math.floor(bit / this.#bitsPerCluster))
    if (offset <= L1_SET) return offset
    const { dataStart, clusterSize } = this.#layout.geometry
    if (offset < dataStart || offset >= this.#context.state[State.END]!)
      throw new VdiskError('CORRUPT', `a bitmap's cluster is said to be at byte ${offset}`, {
        path: this.#context.files[0]!.storage.path,
      })
    this.#bits.move(offset, offset + clusterSize)
    return offset
  }

  #byteOf(cluster: number, bit: number): number {
    return cluster + Math.floor((bit % this.#bitsPerCluster) / 8)
  }

  #isSet(cluster: number, bit: number): boolean {
    return ((this.#bits.u8(this.#byteOf(cluster, bit)) >> (bit & 7)) & 1) === 1
  }

  /** In every bitmap, for as much of the range as has its bits in one sector of each. */
  record(offset: number, length: number): number {
    let end = offset + length
    for (const { granularity } of this.#bitmaps) {
      const sector = Math.floor(offset / granularity / BITS_PER_SECTOR)
      end = Math.min(end, (sector + 1) * BITS_PER_SECTOR * granularity)
    }
    // All that is needed is cached before anything is changed: a change must not miss half way.
    for (const bitmap of this.#bitmaps) {
      const cluster = this.#clusterAt(bitmap, offset)
      if (cluster > L1_SET) this.#bits.touch(this.#byteOf(cluster, Math.floor(offset / bitmap.granularity)), 1)
      else if (cluster === L1_CLEAR) this.#l1.touch(this.#entryOf(bitmap, offset), L1_ENTRY)
    }
    const fresh = this.#bitmaps.filter((bitmap) => this.#clusterAt(bitmap, offset) === L1_CLEAR)
    const clusters = this.#takeFor(fresh, offset)
    if (!clusters) return 0
    fresh.forEach((bitmap, i) => {
      this.#setEntry(bitmap, offset, clusters[i]!)
    })
    for (const bitmap of this.#bitmaps) this.#setBits(bitmap, offset, end)
    return end - offset
  }

  /**
   * New clusters for bitmaps that lack one there; they read as zeros, and what is going to be changed in them is cached.
   * @returns undefined where room must be made
   */
  #takeFor(bitmaps: readonly TrackedBitmap[], offset: number): number[] | undefined {
    const { clusterSize } = this.#layout.geometry
    const taken: number[] = []
    const giveBack = () => {
      for (const cluster of taken.reverse()) this.#context.space!.putBack(cluster, clusterSize)
    }
    try {
      for (const { granularity } of bitmaps) {
        const cluster = this.#take()
        if (cluster < 0) {
          giveBack()
          return undefined
        }
        taken.push(cluster)
        this.#bits.move(cluster, cluster + clusterSize)
        this.#bits.touch(this.#byteOf(cluster, Math.floor(offset / granularity)), 1)
      }
      return taken
    } catch (miss) {
      giveBack()
      throw miss
    }
  }

  /** Where the entry is for the cluster of a bitmap that is about a guest offset. */
  #entryOf({ l1, granularity }: TrackedBitmap, offset: number): number {
    return l1 + Math.floor(Math.floor(offset / granularity) / this.#bitsPerCluster) * L1_ENTRY
  }

  #clusterAt(bitmap: TrackedBitmap, offset: number): number {
    return this.#clusterOf(bitmap, Math.floor(offset / bitmap.granularity))
  }

  #setBits(bitmap: TrackedBitmap, offset: number, end: number): void {
    const { granularity } = bitmap
    const cluster = this.#clusterAt(bitmap, offset)
    if (cluster === L1_SET) return
    for (let bit = Math.floor(offset / granularity); bit * granularity < end; bit++) {
      const at = this.#byteOf(cluster, bit)
      const byte = this.#bits.u8(at)
      const mask = 1 << (bit & 7)
      if ((byte & mask) === 0) this.#bits.setU8(at, byte | mask)
    }
  }

  #setEntry(bitmap: TrackedBitmap, offset: number, cluster: number): void {
    const at = this.#entryOf(bitmap, offset)
    const entry = cluster / SECTOR
    this.#l1.setU32le(at, entry % 2 ** 32)
    this.#l1.setU32le(at + 4, Math.floor(entry / 2 ** 32))
  }
}
