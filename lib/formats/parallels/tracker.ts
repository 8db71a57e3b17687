/**
 * Records writes in the dirty bitmaps. While the image is written, the extension in the file's header is one that counts
 * everything as changed (see `session.ts`); this works on the true one, which nothing refers to until the clean end. So
 * bits may be late on disk: whoever looks meanwhile sees everything as changed.
 */

import { Region } from '../../metadata/region.js'
import { SECTOR } from '../../metadata/shared.js'
import { VdiskError } from '../../util/errors.js'
import { BitmapEntry, BitmapRecorder, type BitmapTable } from '../bitmap-recorder.js'
import type { LayerContext } from '../driver.js'
import { L1_SET } from './extension.js'
import type { ImageLayout, TrackedBitmap } from './layout.js'
import { State } from './layout.js'

const ORDER = 0
const L1_ENTRY = 8

/** An entry of an L1 table: L1_CLEAR, L1_SET, or a byte offset. */
export function l1Offset(region: Region, table: number, index: number): number {
  const at = table + index * L1_ENTRY
  const entry = region.u32le(at + 4) * 2 ** 32 + region.u32le(at)
  return entry <= L1_SET ? entry : entry * SECTOR
}

/** @param take gives the offset of one free cluster that reads as zeros, or -1. Exclusive lock. */
export function makeRecorder(
  layout: ImageLayout,
  context: LayerContext,
  take: () => number,
): BitmapRecorder<TrackedBitmap> {
  const { bitmaps } = layout.extension!
  const { clusterSize } = layout.geometry
  const bits = new Region(context.metadata, context.files[0]!, 0, 0, ORDER)
  const putBack = (cluster: number) => context.space!.putBack(cluster, clusterSize)
  return new BitmapRecorder({ bitmaps, table: new BitmapTables(layout, context), bits, clusterSize, take, putBack })
}

class BitmapTables implements BitmapTable<TrackedBitmap> {
  readonly #dataStart: number
  readonly #context: LayerContext
  readonly #l1: Region

  constructor({ extension, geometry }: ImageLayout, context: LayerContext) {
    const { offset } = extension!
    this.#dataStart = geometry.dataStart
    this.#context = context
    this.#l1 = new Region(context.metadata, context.files[0]!, offset, offset + geometry.clusterSize, ORDER)
  }

  entry({ l1 }: TrackedBitmap, index: number): number {
    const offset = l1Offset(this.#l1, l1, index)
    if (offset <= L1_SET) return offset === L1_SET ? BitmapEntry.SET : BitmapEntry.CLEAR
    if (offset < this.#dataStart || offset >= this.#context.state[State.END]!)
      throw new VdiskError('CORRUPT', `a bitmap's cluster is said to be at byte ${offset}`, {
        path: this.#context.files[0]!.storage.path,
      })
    return offset
  }

  touch({ l1 }: TrackedBitmap, index: number): void {
    this.#l1.touch(l1 + index * L1_ENTRY, L1_ENTRY)
  }

  set({ l1 }: TrackedBitmap, index: number, cluster: number): void {
    const at = l1 + index * L1_ENTRY
    const entry = cluster / SECTOR
    this.#l1.setU32le(at, entry % 2 ** 32)
    this.#l1.setU32le(at + 4, Math.floor(entry / 2 ** 32))
  }
}
