/**
 * Sector bitmaps of a VHD. In a differencing disk a clear bit means that the sector is the parent's; in a dynamic disk
 * that it was never written.
 */

import { UNIT_SECTORS } from '../sector-bitmap.js'
import { SECTOR } from './geometry.js'

export const UNIT_BYTES = UNIT_SECTORS * SECTOR

/** The most significant bit of a byte is the first sector's. */
export const BIT_ORDER = 'msb-first'

/** Units that are remembered at most, for 1 MiB of memory in a thread that writes: 2 TiB in blocks of 512 KiB. */
const MAX_FULL = 2 ** 23

/**
 * Units whose bits are all set. In a dynamic disk bits are never cleared, so what was found once need not be looked for
 * again before the next overwriting.
 */
export class FullUnits {
  readonly #count: number
  #units: Uint8Array | undefined

  /** @param count units of the disk */
  constructor(count: number) {
    this.#count = Math.min(count, MAX_FULL)
  }

  has(unit: number): boolean {
    return this.#units !== undefined && unit < this.#count && ((this.#units[unit >> 3]! >> (unit & 7)) & 1) === 1
  }

  add(unit: number): void {
    if (unit >= this.#count) return
    this.#units ??= new Uint8Array(Math.ceil(this.#count / 8))
    this.#units[unit >> 3] = this.#units[unit >> 3]! | (1 << (unit & 7))
  }
}
