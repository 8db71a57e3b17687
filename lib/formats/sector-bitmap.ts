/**
 * Sector bitmaps, as VHD and VHDX have them: a bit for every sector of a block, which says whether the block has the
 * sector. VHD has the most significant bit of a byte first, VHDX the least significant one.
 */

import { LRUCache } from 'lru-cache'

/** Sectors whose bits are decoded together: those of 512 bytes of bitmap. */
export const UNIT_SECTORS = 4096

/** Which bit of a byte is the first sector's. */
export type BitOrder = 'msb-first' | 'lsb-first'

/** The bits of a byte in the other order. */
const REVERSED = Uint8Array.from({ length: 256 }, (_, byte) => {
  let reversed = 0
  for (let bit = 0; bit < 8; bit++) if ((byte >> bit) & 1) reversed |= 0x80 >> bit
  return reversed
})

/** Sets the bits of `count` sectors from `first` on. */
export function setBits(bitmap: Uint8Array, first: number, count: number, order: BitOrder): void {
  for (let sector = first; sector < first + count; ) {
    const byte = sector >> 3
    if (sector % 8 === 0 && sector + 8 <= first + count) {
      bitmap[byte] = 0xff
      sector += 8
    } else {
      bitmap[byte] = bitmap[byte]! | (order === 'msb-first' ? 0x80 >> (sector & 7) : 1 << (sector & 7))
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
export function decodeRuns(bitmap: Uint8Array, sectors: number, order: BitOrder): Runs {
  const reverse = order === 'lsb-first'
  const first = (reverse ? REVERSED[bitmap[0]!]! : bitmap[0]!) >= 0x80
  let count = 0
  let current = first ? 0xff : 0
  for (let sector = 0; sector < sectors; ) {
    const stored = bitmap[sector >> 3]!
    const byte = reverse ? REVERSED[stored]! : stored
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
/** Units of a disk of 2040 GiB in blocks of 512 bytes, and of one of 64 TiB in blocks of 1 MiB, are below 2^32. */
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
