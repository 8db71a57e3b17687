/** Entries of the block allocation table, through the metadata cache. */

import { Region } from '../../metadata/region.js'
import type { LayerContext } from '../driver.js'
import { ENTRY_BYTES, roundUp, UNIT, type VhdxLayout } from './layout.js'

const SECTOR = 512
/** All metadata goes out through the log, which has no order inside. */
const ORDER = 0

/** The state in the low word of an entry. [MS-VHDX] 2.5.1: bits 0 to 2 */
export const stateOf = (low: number) => low & 7
/** The byte offset in the file that an entry gives: FileOffsetMB is its bits 20 to 63. */
export const placeOf = (low: number, high: number) => (high * 4096 + (low >>> 20)) * UNIT

/** Bits 3 to 19, which have to be zeros. */
export const reservedOf = (low: number) => (low >>> 3) & 0x1ffff

/** The two words of an entry. @param place a multiple of 1 MiB */
export function encodeEntry(state: number, place: number): [low: number, high: number] {
  const unit = place / UNIT
  return [(((unit % 4096) << 20) | state) >>> 0, Math.floor(unit / 4096)]
}

export class Bat {
  readonly #region: Region
  readonly #start: number

  constructor(layout: VhdxLayout, { metadata, files }: LayerContext) {
    this.#start = layout.tableOffset
    const end = layout.tableOffset + roundUp(layout.entries * ENTRY_BYTES, SECTOR)
    this.#region = new Region(metadata, files[0]!, layout.tableOffset, end, ORDER)
  }

  #at(index: number): number {
    return this.#start + index * ENTRY_BYTES
  }

  state(index: number): number {
    return stateOf(this.#region.u32le(this.#at(index)))
  }

  /** Byte offset in the file. */
  place(index: number): number {
    const at = this.#at(index)
    return placeOf(this.#region.u32le(at), this.#region.u32le(at + 4))
  }

  /** Makes sure that `set` cannot miss. */
  touch(index: number): void {
    this.#region.touch(this.#at(index), ENTRY_BYTES)
  }

  set(index: number, state: number, place: number): void {
    const [low, high] = encodeEntry(state, place)
    const at = this.#at(index)
    this.#region.setU32le(at, low)
    this.#region.setU32le(at + 4, high)
  }

  /** The first entry behind `index` that lies in another page of the cache. */
  pageEnd(index: number): number {
    const at = this.#at(index)
    return index + (4096 - (at % 4096)) / ENTRY_BYTES
  }
}
