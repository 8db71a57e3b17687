/**
 * Looks for clusters that nothing refers to, between those that were there when the image was opened, so that they are
 * used before the file grows. Once, when room is wanted for the first time, while others go on reading and writing.
 */

import { Region } from '../../metadata/region.js'
import { placesEnd } from '../../storage/shorten.js'
import { makeTrace } from '../../util/trace.js'
import type { LayerContext } from '../driver.js'
import type { Bat } from './bat.js'
import { eachEntry } from './entries.js'
import { type ImageLayout, INFLIGHT_SLOTS, Search, State } from './layout.js'
import { l1Offset } from './tracker.js'

const trace = makeTrace('parallels')

/** Clusters that are looked for at a time: so many bits of memory. A larger file is searched in several rounds. */
export const WINDOW = 2 ** 25
/** BAT entries that are looked at, in all rounds: gaps that are not found are only not used. Somebody waits. */
const MOST_LOOKED_AT = 2 ** 26

/**
 * Finds the gaps and makes them takeable. Only one thread at a time; no lock held.
 * @returns true where there were some
 * @throws CORRUPT, however often it is called, where an entry refers to what is behind the file's end: the file must not
 * grow then, or two clusters of the disk would have one place
 */
export function findGaps(layout: ImageLayout, context: LayerContext, bat: Bat): boolean {
  const { metadata, state } = context
  const { dataStart, clusterSize } = layout.geometry
  const floor = state[State.FLOOR]!
  const unknown = layout.extension?.opaque || metadata.threads > INFLIGHT_SLOTS
  // What a device has behind its last whole cluster is no gap.
  const end = Math.min(floor, placesEnd(context.files[0]!.storage))
  const clusters = unknown ? 0 : Math.max(0, Math.floor((end - dataStart) / clusterSize))
  // From here on nobody takes freed space: what is taken already is in the slots or in the BAT.
  const inFlight = metadata.exclusive(() => {
    state[State.SEARCH] = Search.RUNNING
    return state.slice(State.INFLIGHT, State.COUNT)
  })
  let found = false
  let outcome: number = Search.TO_DO
  try {
    refuseOutside(layout, context, bat)
    const rounds = Math.floor(MOST_LOOKED_AT / Math.max(1, layout.geometry.entries))
    for (let from = 0; from < Math.min(clusters, rounds * WINDOW); from += WINDOW) {
      const used = new UsedClusters(dataStart + from * clusterSize, clusterSize, Math.min(WINDOW, clusters - from))
      markBat(layout, context, bat, used)
      markExtension(layout, context, used)
      for (let i = 0; i < inFlight.length; i += 2) used.mark(inFlight[i]!, inFlight[i + 1]!)
      context.space!.each((offset, length) => used.mark(offset, length))
      for (const gap of used.gaps()) {
        context.space!.add(gap.offset, gap.length)
        found = true
      }
    }
    outcome = Search.DONE
  } finally {
    metadata.exclusive(() => {
      state[State.SEARCH] = outcome
    })
  }
  if (trace.enabled) trace(`${context.files[0]!.storage.path}: looked for gaps, found ${found ? 'some' : 'none'}`)
  return found
}

/** Also where gaps are not looked for. The file is read, where holes cost nothing; the cache has the last word. */
function refuseOutside({ geometry }: ImageLayout, { files, metadata, state }: LayerContext, bat: Bat): void {
  const { entries, unit, batEnd } = geometry
  const floor = state[State.FLOOR]!
  eachEntry(files[0]!.storage, entries, (entry, index) => {
    const offset = entry * unit
    if (offset < batEnd || offset >= floor) metadata.shared(() => bat.at(index))
  })
}

function markBat(layout: ImageLayout, { metadata }: LayerContext, bat: Bat, used: UsedClusters): void {
  const { entries, clusterSize } = layout.geometry
  for (let first = 0; first < entries; ) {
    const stop = bat.pageEnd(first)
    metadata.shared(() => {
      for (let index = first; index < stop; index++) used.mark(bat.at(index), clusterSize)
    })
    first = stop
  }
}

/** The clusters of the extension and of the bitmaps as they are while the image is written. */
function markExtension({ extension, geometry }: ImageLayout, context: LayerContext, used: UsedClusters): void {
  if (!extension) return
  const { metadata, state, files } = context
  const { clusterSize } = geometry
  used.mark(extension.offset, clusterSize)
  used.mark(state[State.STAND_IN]!, clusterSize)
  const region = new Region(metadata, files[0]!, extension.offset, extension.offset + clusterSize, 0)
  for (const { l1, l1Size } of extension.bitmaps)
    for (let i = 0; i < l1Size; i++)
      used.mark(
        metadata.shared(() => l1Offset(region, l1, i)),
        clusterSize,
      )
}

/** Which of a number of clusters are in use: a bit for each. */
export class UsedClusters {
  readonly #start: number
  readonly #clusterSize: number
  readonly #count: number
  readonly #bits: Uint8Array

  /** @param start byte offset of the first; @param count how many there are */
  constructor(start: number, clusterSize: number, count: number) {
    this.#start = start
    this.#clusterSize = clusterSize
    this.#count = count
    this.#bits = new Uint8Array(Math.ceil(count / 8))
  }

  /** Marks every cluster that a range of the file touches. @returns true where one of them was marked before. */
  mark(offset: number, length: number): boolean {
    const first = Math.max(0, Math.floor((offset - this.#start) / this.#clusterSize))
    const end = Math.min(this.#count, Math.ceil((offset + length - this.#start) / this.#clusterSize))
    let twice = false
    for (let i = first; i < end; i++) {
      const bit = 1 << (i & 7)
      if ((this.#bits[i >> 3]! & bit) !== 0) twice = true
      this.#bits[i >> 3]! |= bit
    }
    return twice
  }

  /** The ranges of the file that were not marked. */
  *gaps(): Generator<{ offset: number; length: number }> {
    for (let i = 0; i < this.#count; ) {
      const first = this.#next(i, false)
      i = this.#next(first, true)
      if (i > first) yield { offset: this.#start + first * this.#clusterSize, length: (i - first) * this.#clusterSize }
    }
  }

  /** The first cluster from `i` on that is in use, or that is not; eight at a time where they are alike. */
  #next(i: number, used: boolean): number {
    const other = used ? 0 : 0xff
    let at = i
    while (at < this.#count) {
      const byte = this.#bits[at >> 3]!
      if ((at & 7) === 0 && byte === other) at += 8
      else if (((byte & (1 << (at & 7))) === 0) === used) at++
      else return at
    }
    return this.#count
  }
}
