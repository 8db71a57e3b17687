/**
 * Records writes in the bitmaps that are enabled, through the metadata cache. From before the first write until the clean
 * end these are marked as in use, so that nobody believes them: their bits may be late on disk.
 */

import { Region } from '../../metadata/region.js'
import { SECTOR } from '../../metadata/shared.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { LayerContext } from '../driver.js'
import { BitmapFlag, bitmapsConsistent, isUsable, readDirectory, TableEntry, writeFlags } from './bitmap-directory.js'
import { highOf, hostOffset, lowOf } from './entries.js'
import type { Header } from './header.js'
import { ENTRY_BYTES, type Qcow2Layout, State, type TrackedBitmap } from './layout.js'
import { Order } from './tables.js'

const BITS_PER_SECTOR = SECTOR * 8
/** Looked at in one go; the rest of a long range is asked for again. */
const MAX_LOOKS = 65536
/** With more of them a write would take longer than anyone expects; the others count as not kept up to date. */
const MAX_TRACKED = 64

/** What a writer has to do about the bitmaps of an image. */
export function trackedBitmaps(
  storage: Storage,
  header: Header,
  warn: (message: string) => void,
): Pick<Qcow2Layout, 'bitmapsKept' | 'tracked' | 'dropped'> {
  if (!bitmapsConsistent(header)) return { bitmapsKept: false, tracked: [], dropped: [] }
  try {
    const { bitmaps } = readDirectory(storage, header)
    const enabled = bitmaps.filter(({ flags }) => (flags & (BitmapFlag.AUTO | BitmapFlag.IN_USE)) === BitmapFlag.AUTO)
    const usable = enabled.filter((bitmap) => isUsable(bitmap, header.size, header.clusterBits)).slice(0, MAX_TRACKED)
    const plain = ({ entryOffset, flags, tableOffset, tableSize, granularityBits }: (typeof bitmaps)[number]) => ({
      entryOffset,
      flags,
      tableOffset,
      tableSize,
      granularity: 2 ** granularityBits,
    })
    const dropped = enabled.filter((bitmap) => !usable.includes(bitmap))
    for (const { name } of dropped)
      warn(`bitmap '${name}' cannot be kept up to date: from now on all counts as changed`)
    return { bitmapsKept: true, tracked: usable.map(plain), dropped: dropped.map(plain) }
  } catch (error) {
    if (!(error instanceof VdiskError) || error.code !== 'CORRUPT') throw error
    warn(`its bitmaps cannot be kept: ${error.message}`)
    return { bitmapsKept: false, tracked: [], dropped: [] }
  }
}

/** Before the first write: the bits are not to be believed from now on. Durable when it returns. */
export function beginTracking({ tracked, dropped }: Qcow2Layout, { files, metadata }: LayerContext): void {
  const marked = [...tracked, ...dropped]
  if (marked.length === 0) return
  const { storage, index } = files[0]!
  for (const bitmap of marked) writeFlags(storage, bitmap, bitmap.flags | BitmapFlag.IN_USE)
  metadata.wrote(index)
  metadata.barrier()
}

/** After the last commit. */
export function endTracking({ tracked }: Qcow2Layout, { files, metadata }: LayerContext): void {
  if (tracked.length === 0) return
  const { storage, index } = files[0]!
  for (const bitmap of tracked) writeFlags(storage, bitmap, bitmap.flags)
  metadata.wrote(index)
  metadata.barrier()
}

export class Tracker {
  /** The most sectors that one `record` makes dirty. */
  readonly changeSectors: number
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #table: Region
  readonly #bits: Region
  readonly #bitsPerCluster: number
  readonly #take: () => number

  /** @param take gives a cluster that reads as zeros and is counted, or -1 */
  constructor(layout: Qcow2Layout, context: LayerContext, take: () => number) {
    this.#layout = layout
    this.#context = context
    this.#take = take
    this.#bitsPerCluster = layout.clusterSize * 8
    this.changeSectors = 2 * layout.tracked.length
    this.#table = new Region(context.metadata, context.files[0]!, 0, 0, Order.L2)
    this.#bits = new Region(context.metadata, context.files[0]!, 0, 0, Order.L2)
  }

  /** As `Driver.recorded`. */
  recorded(offset: number, length: number): number {
    let end = offset + length
    for (const bitmap of this.#layout.tracked) end = Math.min(end, this.#setUntil(bitmap, offset, end))
    return end - offset
  }

  /** The guest offset up to which all bits from `offset` on are set. */
  #setUntil(bitmap: TrackedBitmap, offset: number, end: number): number {
    const { granularity } = bitmap
    let bit = Math.floor(offset / granularity)
    for (let looks = 0; looks < MAX_LOOKS && bit * granularity < end; looks++) {
      const cluster = this.#clusterOf(bitmap, bit)
      if (cluster === TableEntry.ONES) bit = (Math.floor(bit / this.#bitsPerCluster) + 1) * this.#bitsPerCluster
      else if (cluster !== TableEntry.ZEROS && this.#isSet(cluster, bit)) bit++
      else break
    }
    return Math.max(offset, bit * granularity)
  }

  #entryOf({ tableOffset, tableSize }: TrackedBitmap, bit: number): number {
    this.#table.move(tableOffset, tableOffset + tableSize * ENTRY_BYTES)
    return tableOffset + Math.floor(bit / this.#bitsPerCluster) * ENTRY_BYTES
  }

  /** ZEROS, ONES, or the offset of the cluster with this bit. */
  #clusterOf(bitmap: TrackedBitmap, bit: number): number {
    const at = this.#entryOf(bitmap, bit)
    const low = this.#table.u32be(at + 4)
    const offset = hostOffset(this.#table.u32be(at), low)
    if (offset === 0) return low & TableEntry.ONES
    const { clusterSize } = this.#layout
    if (offset % clusterSize !== 0 || offset >= this.#context.state[State.LIMIT]!)
      throw new VdiskError('CORRUPT', `the cluster of a bitmap is said to be at byte ${offset}`, {
        path: this.#context.files[0]!.storage.path,
        offset: at,
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

  /** As `Driver.record`: in every bitmap, for as much of the range as has its bits in one sector of each. */
  record(offset: number, length: number): number {
    const { tracked } = this.#layout
    let end = offset + length
    for (const { granularity } of tracked) {
      const sector = Math.floor(offset / granularity / BITS_PER_SECTOR)
      end = Math.min(end, (sector + 1) * BITS_PER_SECTOR * granularity)
    }
    // All that is needed is cached before anything is changed: a change must not miss half way.
    for (const bitmap of tracked) {
      const bit = Math.floor(offset / bitmap.granularity)
      const cluster = this.#clusterOf(bitmap, bit)
      if (cluster > TableEntry.ONES) this.#bits.touch(this.#byteOf(cluster, bit), 1)
      else this.#table.touch(this.#entryOf(bitmap, bit), ENTRY_BYTES)
    }
    const fresh = tracked.filter((bitmap) => this.#clusterAt(bitmap, offset) === TableEntry.ZEROS)
    const clusters = this.#takeFor(fresh, offset)
    if (!clusters) return 0
    fresh.forEach((bitmap, i) => {
      this.#setEntry(bitmap, offset, clusters[i]!)
    })
    for (const bitmap of tracked) this.#setBits(bitmap, offset, end)
    return end - offset
  }

  /**
   * New clusters for bitmaps that lack one there; they read as zeros, and what is going to be changed in them is cached.
   * @returns undefined where room must be made
   */
  #takeFor(bitmaps: readonly TrackedBitmap[], offset: number): number[] | undefined {
    const { clusterSize } = this.#layout
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

  #clusterAt(bitmap: TrackedBitmap, offset: number): number {
    return this.#clusterOf(bitmap, Math.floor(offset / bitmap.granularity))
  }

  #setBits(bitmap: TrackedBitmap, offset: number, end: number): void {
    const { granularity } = bitmap
    const cluster = this.#clusterAt(bitmap, offset)
    if (cluster <= TableEntry.ONES) return
    for (let bit = Math.floor(offset / granularity); bit * granularity < end; bit++) {
      const at = this.#byteOf(cluster, bit)
      const byte = this.#bits.u8(at)
      const mask = 1 << (bit & 7)
      if ((byte & mask) === 0) this.#bits.setU8(at, byte | mask)
    }
  }

  #setEntry(bitmap: TrackedBitmap, offset: number, cluster: number): void {
    const at = this.#entryOf(bitmap, Math.floor(offset / bitmap.granularity))
    this.#table.setU32be(at, highOf(cluster))
    this.#table.setU32be(at + 4, lowOf(cluster))
  }
}
