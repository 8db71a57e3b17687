/**
 * Records writes in the bitmaps that are enabled. From before the first write until the clean end these are marked as in
 * use, so that nobody believes them: their bits may be late on disk.
 */

import { Region } from '../../metadata/region.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { BitmapEntry, BitmapRecorder, type BitmapTable } from '../bitmap-recorder.js'
import type { LayerContext } from '../driver.js'
import { BitmapFlag, bitmapsConsistent, isUsable, readDirectory, TableEntry, writeFlags } from './bitmap-directory.js'
import { highOf, hostOffset, lowOf } from './entries.js'
import type { Header } from './header.js'
import { ENTRY_BYTES, type Qcow2Layout, State, type TrackedBitmap } from './layout.js'
import { Order } from './tables.js'

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

/** @param take gives a cluster that reads as zeros and is counted, or -1 */
export function makeRecorder(
  layout: Qcow2Layout,
  context: LayerContext,
  take: () => number,
): BitmapRecorder<TrackedBitmap> {
  const { tracked: bitmaps, clusterSize } = layout
  const bits = new Region(context.metadata, context.files[0]!, 0, 0, Order.L2)
  const putBack = (cluster: number) => context.space!.putBack(cluster, clusterSize)
  return new BitmapRecorder({ bitmaps, table: new BitmapTables(layout, context), bits, clusterSize, take, putBack })
}

class BitmapTables implements BitmapTable<TrackedBitmap> {
  readonly #clusterSize: number
  readonly #context: LayerContext
  readonly #table: Region

  constructor({ clusterSize }: Qcow2Layout, context: LayerContext) {
    this.#clusterSize = clusterSize
    this.#context = context
    this.#table = new Region(context.metadata, context.files[0]!, 0, 0, Order.L2)
  }

  entry(bitmap: TrackedBitmap, index: number): number {
    const at = this.#at(bitmap, index)
    const low = this.#table.u32be(at + 4)
    const offset = hostOffset(this.#table.u32be(at), low)
    if (offset === 0) return (low & TableEntry.ONES) === 0 ? BitmapEntry.CLEAR : BitmapEntry.SET
    if (offset % this.#clusterSize !== 0 || offset >= this.#context.state[State.LIMIT]!)
      throw new VdiskError('CORRUPT', `the cluster of a bitmap is said to be at byte ${offset}`, {
        path: this.#context.files[0]!.storage.path,
        offset: at,
      })
    return offset
  }

  touch(bitmap: TrackedBitmap, index: number): void {
    this.#table.touch(this.#at(bitmap, index), ENTRY_BYTES)
  }

  set(bitmap: TrackedBitmap, index: number, cluster: number): void {
    const at = this.#at(bitmap, index)
    this.#table.setU32be(at, highOf(cluster))
    this.#table.setU32be(at + 4, lowOf(cluster))
  }

  #at({ tableOffset, tableSize }: TrackedBitmap, index: number): number {
    this.#table.move(tableOffset, tableOffset + tableSize * ENTRY_BYTES)
    return tableOffset + index * ENTRY_BYTES
  }
}
