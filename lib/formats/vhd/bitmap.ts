/**
 * Sector bitmaps: a bit for every sector of a block, the most significant bit of a byte first. In a differencing disk a
 * clear bit means that the sector is the parent's; in a dynamic disk that it was never written.
 */

import { LRUCache } from 'lru-cache'
import { SECTOR } from './geometry.js'

/** Sectors whose bits are decoded together: those of one sector of bitmap. */
export const UNIT_SECTORS = SECTOR * 8
export const UNIT_BYTES = UNIT_SECTORS * SECTOR

/** Sets the bits of `count` sectors from `first` on. */
export function setBits(bitmap: Uint8Array, first: number, count: number): void {
  for (let sector = first; sector < first + count; ) {
    const byte = sector >> 3
    if (sector % 8 === 0 && sector + 8 <= first + count) {
      bitmap[byte] = 0xff
      sector += 8
    } else {
      bitmap[byte] = bitmap[byte]! | (0x80 >> (sector & 7))
      sector++
    }
  }
}

/** Bits of neighbouring sectors that are alike, decoded. */
export interface Runs {
  /** Whether the first run is of set bits; the next is of clear ones, and so on. */
  readonly first: boolean
  /** Where each run ends, in sectors; the last is the number of sectors. */
  readonly ends: Uint16Array
}

const ends = new Uint16Array(UNIT_SECTORS)

/** @param sectors at most UNIT_SECTORS */
export function decodeRuns(bitmap: Uint8Array, sectors: number): Runs {
  const first = bitmap[0]! >= 0x80
  let count = 0
  let current = first ? 0xff : 0
  for (let sector = 0; sector < sectors; ) {
    const byte = bitmap[sector >> 3]!
    if (byte === current) {
      sector += 8
      continue
    }
    for (const end = sector + 8; sector < end && sector < sectors; sector++) {
      const bit = (byte << (sector & 7)) & 0x80 ? 0xff : 0
      if (bit === current) continue
      ends[count++] = sector
      current = bit
    }
  }
  ends[count++] = sectors
  return { first, ends: ends.slice(0, count) }
}

/** The number of the run that a sector is in. Even ones are like `first`. */
export function runOf({ ends }: Runs, sector: number): number {
  let low = 0
  let high = ends.length - 1
  while (low < high) {
    const middle = (low + high) >> 1
    if (ends[middle]! > sector) high = middle
    else low = middle + 1
  }
  return low
}

interface Cached {
  readonly owner: number
  readonly generation: number
  readonly runs: Runs
}

/** Decoded bitmaps that a thread remembers, of all layers of all its images together. */
const MAX_REMEMBERED = 4096
const MAX_REMEMBERED_BYTES = 4 * 2 ** 20
const OVERHEAD_BYTES = 64
/** Units of a disk of 2040 GiB in blocks of 512 bytes are below 2^32. */
const UNITS_PER_OWNER = 2 ** 32
const OWNER_KEYS = 2 ** 20

let remembered: LRUCache<number, Cached> | undefined
let owners = 0

/** What one driver remembers of its bitmaps. An entry holds as long as its generation is the same. */
export class RunsCache {
  readonly #owner = ++owners

  #key(unit: number): number {
    return (this.#owner % OWNER_KEYS) * UNITS_PER_OWNER + unit
  }

  get(unit: number, generation: number): Runs | undefined {
    const found = remembered?.get(this.#key(unit))
    return found?.owner === this.#owner && found.generation === generation ? found.runs : undefined
  }

  set(unit: number, generation: number, runs: Runs): void {
    remembered ??= new LRUCache<number, Cached>({
      max: MAX_REMEMBERED,
      maxSize: MAX_REMEMBERED_BYTES,
      sizeCalculation: ({ runs }) => runs.ends.byteLength + OVERHEAD_BYTES,
    })
    remembered.set(this.#key(unit), { owner: this.#owner, generation, runs })
  }
}

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
