/**
 * An expanding image in one thread.
 *
 * Order of writes:
 * 1. before the first change: the in-use mark, and the extension that counts everything as changed (`session.ts`) → barrier
 * 2. new clusters' data → barrier
 * 3. BAT entries, and the bits of bitmaps → barrier
 * 4. at a clean end: the extension with the true bitmaps → barrier → the mark is taken away → barrier → the file's free tail
 *    is cut off
 *
 * A crash between 2 and 3 leaves clusters that nothing refers to. A crash before 4 leaves the mark, and bitmaps that
 * count everything as changed, so a bit never has to be on disk in front of its data.
 */

import { placesEnd } from '../../storage/shorten.js'
import { VdiskError } from '../../util/errors.js'
import { MiB } from '../../util/sizes.js'
import { type Allocation, type Driver, type Extent, type FileRef, Kind, type LayerContext } from '../driver.js'
import { Bat } from './bat.js'
import { findGaps } from './gaps.js'
import { InUse, MAX_ENTRY } from './header.js'
import { type ImageLayout, INFLIGHT_SLOTS, Search, State } from './layout.js'
import { beginSession, endSession } from './session.js'
import { makeRecorder } from './tracker.js'

/** Clusters that one allocation takes at most: their entries lie in two sectors. */
const MAX_RUN = 128
/** How much the file grows at a time, at least. */
const GROWTH = 16 * MiB
/** Sectors of the BAT in one page. */
const PAGE_SECTORS = 8

export class ImageDriver implements Driver {
  readonly size: number
  readonly blockSize: number
  readonly locked = true
  readonly leftOpen: boolean
  readonly changeSectors: number
  readonly record: ((offset: number, length: number) => number) | undefined
  readonly recorded: ((offset: number, length: number) => number) | undefined
  readonly #layout: ImageLayout
  readonly #context: LayerContext
  readonly #file: FileRef
  readonly #state: Float64Array
  readonly #bat: Bat
  readonly #slot: number

  constructor(layout: ImageLayout, context: LayerContext) {
    this.size = layout.geometry.size
    this.blockSize = layout.geometry.clusterSize
    this.#layout = layout
    this.#context = context
    this.#file = context.files[0]!
    this.#state = context.state
    this.#bat = new Bat(layout, context)
    this.#slot = State.INFLIGHT + 2 * (context.metadata.thread % INFLIGHT_SLOTS)
    const { extension } = layout
    let changeSectors = PAGE_SECTORS
    if (context.writable && extension && extension.bitmaps.length > 0) {
      const recorder = makeRecorder(layout, context, () => this.#take(1)?.offset ?? -1)
      this.record = (offset, length) => recorder.record(offset, length)
      this.recorded = (offset, length) => recorder.recorded(offset, length)
      changeSectors = Math.max(changeSectors, recorder.changeSectors)
    }
    this.changeSectors = changeSectors
    this.leftOpen = layout.header.inUse === InUse.OPEN
  }

  map(offset: number, length: number, out: Extent): void {
    const c = this.blockSize
    const bat = this.#bat
    const first = Math.floor(offset / c)
    const host = bat.at(first)
    const end = offset + length
    const stop = Math.max(bat.pageEnd(first), first + 1)
    let next = first + 1
    while (next < stop && next * c < end && bat.at(next) === (host === 0 ? 0 : host + (next - first) * c)) next++
    out.length = bat.emptyFrom(first) ? length : Math.min(next * c, end) - offset
    if (host === 0) {
      out.kind = this.#layout.parent ? Kind.PARENT : Kind.ZERO
      return
    }
    out.kind = Kind.DATA
    out.file = this.#file.index
    out.offset = host + (offset - first * c)
    out.writable = this.#context.writable
  }

  allocate(offset: number, length: number, out: Allocation): boolean {
    const c = this.blockSize
    const first = Math.floor(offset / c)
    const { entries } = this.#layout.geometry
    if (first >= entries)
      throw new VdiskError('NO_SPACE', `the BAT has ${entries} entries, and none for byte ${offset} of the disk`, {
        path: this.#file.storage.path,
      })
    const stop = Math.min(this.#bat.pageEnd(first), first + MAX_RUN, Math.ceil((offset + length) / c))
    let wanted = 1
    while (first + wanted < stop && this.#bat.at(first + wanted) === 0) wanted++
    const taken = this.#take(wanted)
    if (!taken) return false
    out.guest = first * c
    out.length = Math.min((first + taken.count) * c, this.size) - out.guest
    out.file = this.#file.index
    out.offset = taken.offset
    out.zeroed = true
    out.block = first
    out.space = taken.offset
    out.spaceLength = taken.count * c
    this.#state[this.#slot] = out.space
    this.#state[this.#slot + 1] = out.spaceLength
    return true
  }

  /** Takes up to `wanted` clusters that lie together and read as zeros: freed ones first. Exclusive lock. */
  #take(wanted: number): { offset: number; count: number } | undefined {
    const c = this.blockSize
    const state = this.#state
    const space = this.#context.space!
    if (state[State.SEARCH] !== Search.RUNNING)
      for (let count = wanted; count > 0; count = Math.floor(count / 2)) {
        const offset = space.take(count * c)
        if (offset >= 0) return { offset, count }
      }
    const offset = state[State.END]!
    const count = Math.min(wanted, Math.floor((state[State.LIMIT]! - offset) / c))
    if (count < 1) return undefined
    state[State.END] = offset + count * c
    return { offset, count }
  }

  grow(): void {
    const { metadata } = this.#context
    const state = this.#state
    if (state[State.SEARCH] === Search.TO_DO && findGaps(this.#layout, this.#context, this.#bat)) return
    const c = this.blockSize
    const { unit } = this.#layout.geometry
    const from = state[State.LIMIT]!
    // The last cluster that an entry can say.
    const last = Math.floor((MAX_ENTRY * unit - from) / c) * c + from
    const to = Math.min(from + Math.ceil(GROWTH / c) * c, last + c)
    if (to <= from || !Number.isSafeInteger(to))
      throw new VdiskError('NO_SPACE', `the file has ${from} bytes, and its BAT cannot refer to more`, {
        path: this.#file.storage.path,
      })
    this.#file.storage.truncate(to)
    this.#reserve(from, to - from)
    metadata.wrote(this.#file.index)
    metadata.exclusive(() => {
      state[State.LIMIT] = to
    })
  }

  /** With room that the host has set aside, an fsync after allocations costs less. A full host may still take the data. */
  #reserve(offset: number, length: number): void {
    try {
      this.#file.storage.reserve(offset, length)
    } catch (error) {
      if (!(error instanceof VdiskError) || error.code !== 'NO_SPACE') throw error
    }
  }

  publish(a: Allocation): void {
    this.#bat.set(a.block, a.spaceLength / this.blockSize, a.space)
    this.#landed()
  }

  abandon(a: Allocation): void {
    this.#context.space!.free(a.space, a.spaceLength)
    this.#landed()
  }

  #landed(): void {
    this.#state[this.#slot] = 0
    this.#state[this.#slot + 1] = 0
  }

  release(offset: number, length: number, belowZero: boolean): number {
    if (this.#layout.parent && !belowZero) return 0
    const c = this.blockSize
    const bat = this.#bat
    const first = Math.floor(offset / c)
    const end = offset + length
    const whole = end >= this.size ? Math.ceil(this.size / c) : Math.floor(end / c)
    if (whole <= first) return 0
    if (first >= this.#layout.geometry.entries) return length
    const stop = Math.min(whole, bat.pageEnd(first))
    // Looked at first: a change that has begun must not miss.
    const places: number[] = []
    // What a device has of its last cluster is too little for any other: that stays where it is.
    const last = placesEnd(this.#file.storage) - c
    for (let index = first; index < stop && bat.at(index) <= last; index++) places.push(bat.at(index))
    if (places.length === 0) return 0
    bat.touch(first, places.length)
    places.forEach((host, i) => {
      if (host !== 0) bat.set(first + i, 1, 0)
    })
    this.#free(places)
    return Math.min((first + places.length) * c, this.size) - offset
  }

  /** Frees clusters; neighbours together, because the list of freed space is bounded. */
  #free(places: readonly number[]): void {
    const c = this.blockSize
    for (let i = 0; i < places.length; ) {
      const offset = places[i]!
      let count = 1
      while (offset !== 0 && places[i + count] === offset + count * c) count++
      if (offset !== 0) this.#context.space!.free(offset, count * c)
      i += count
    }
  }

  beginWriting(): void {
    const state = this.#state
    if (state[State.BEGUN] !== 0) return
    beginSession(this.#layout, this.#context, this.#bat)
    this.#context.metadata.exclusive(() => {
      state[State.BEGUN] = 1
    })
  }

  finish(): void {
    endSession(this.#layout, this.#context, this.#bat)
  }
}
