/** The block allocation table and the header in front of it, through the metadata cache. */

import { Region } from '../../metadata/region.js'
import { PAGE } from '../../metadata/shared.js'
import type { LayerContext } from '../driver.js'
import { outsideError } from './entries.js'
import { BAT_ENTRY_SIZE, HEADER, HEADER_SIZE } from './header.js'
import type { ImageLayout } from './layout.js'
import { Search, State } from './layout.js'

/** Commits write all of this format's metadata after the data and at once: nothing in it depends on its order. */
const ORDER = 0
const ENTRIES_PER_SECTOR = 512 / BAT_ENTRY_SIZE

export class Bat {
  /** Header and BAT as one structure, because they share a sector. */
  readonly #region: Region
  readonly #state: Float64Array
  readonly #layout: ImageLayout
  readonly #path: string

  constructor(layout: ImageLayout, context: LayerContext) {
    this.#region = new Region(context.metadata, context.files[0]!, 0, layout.geometry.batEnd, ORDER)
    this.#state = context.state
    this.#layout = layout
    this.#path = context.files[0]!.storage.path
  }

  /** Where cluster `index` of the disk is in the file, in bytes; 0: nowhere. @throws CORRUPT */
  at(index: number): number {
    const { geometry } = this.#layout
    if (this.emptyFrom(index)) return 0
    const entry = this.#region.u32le(HEADER_SIZE + index * BAT_ENTRY_SIZE)
    if (entry === 0) return 0
    const offset = entry * geometry.unit
    if (offset < geometry.batEnd || offset >= this.#end)
      throw outsideError(this.#path, geometry, this.#end, index, offset)
    return offset
  }

  /** True where no cluster of the disk from this one on is anywhere. */
  emptyFrom(index: number): boolean {
    return index >= this.#layout.geometry.entries || this.#state[State.EMPTY] !== 0
  }

  /** Behind all that an entry may say. Until all entries were looked at, what is new in the file is nobody's. */
  get #end(): number {
    return this.#state[this.#state[State.SEARCH] === Search.DONE ? State.END : State.FLOOR]!
  }

  /** Index behind the last entry that lies in the same page as `index`: a call that stays below misses one page at most. */
  pageEnd(index: number): number {
    const byte = HEADER_SIZE + index * BAT_ENTRY_SIZE
    const end = (Math.floor(byte / PAGE) + 1) * PAGE
    return Math.min(this.#layout.geometry.entries, (end - HEADER_SIZE) / BAT_ENTRY_SIZE)
  }

  /** Sets `count` entries from `index` on to clusters that lie one behind the other from `offset` on; 0 unmaps them. */
  set(index: number, count: number, offset: number): void {
    const { unit, clusterSize } = this.#layout.geometry
    this.touch(index, count)
    for (let i = 0; i < count; i++)
      this.#region.setU32le(
        HEADER_SIZE + (index + i) * BAT_ENTRY_SIZE,
        offset === 0 ? 0 : (offset + i * clusterSize) / unit,
      )
  }

  /** Makes sure that `set` cannot miss a page. */
  touch(index: number, count: number): void {
    this.#region.touch(HEADER_SIZE + index * BAT_ENTRY_SIZE, count * BAT_ENTRY_SIZE)
  }

  /** Number of the sector that an entry is in. */
  sectorOf(index: number): number {
    return Math.floor((index + HEADER_SIZE / BAT_ENTRY_SIZE) / ENTRIES_PER_SECTOR)
  }

  /** Changes header fields; undefined leaves one as it is. */
  setHeader(fields: { inUse?: number; flags?: number; extOff?: number }): void {
    this.#region.touch(0, HEADER_SIZE)
    if (fields.inUse !== undefined) this.#region.setU32le(HEADER.offsetOf('inUse'), fields.inUse)
    if (fields.flags !== undefined) this.#region.setU32le(HEADER.offsetOf('flags'), fields.flags)
    if (fields.extOff === undefined) return
    this.#region.setU32le(HEADER.offsetOf('extOff'), fields.extOff % 2 ** 32)
    this.#region.setU32le(HEADER.offsetOf('extOff') + 4, Math.floor(fields.extOff / 2 ** 32))
  }
}
