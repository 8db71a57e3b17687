/**
 * Looks through the sector bitmaps of all blocks. In a dynamic disk a clear bit says that the sector is zeros; in a
 * differencing disk there are no sectors behind the end of a block for which a bit could be set.
 */

import type { Storage } from '../../storage/storage.js'
import { decodeRuns, setBits, UNIT_SECTORS } from '../sector-bitmap.js'
import { BIT_ORDER } from './bitmap.js'
import { SECTOR } from './geometry.js'
import { reservedAt, type VhdLayout } from './layout.js'
import { eachBlock } from './table.js'

const ZEROS = Buffer.alloc(262144)

/** The offset of the first byte from `from` on that is not 0; `end` where there is none before it. */
export function nextNonZero(storage: Storage, from: number, end: number): number {
  let buffer: Buffer | undefined
  for (let at = storage.nextData(from); at < end; ) {
    buffer ??= Buffer.allocUnsafe(Math.min(ZEROS.length, end - at))
    const count = storage.read(buffer, 0, Math.min(buffer.length, end - at), at)
    if (count === 0) return end
    if (buffer.compare(ZEROS, 0, count, 0, count) !== 0) return at + buffer.findIndex((byte) => byte !== 0)
    at = storage.nextData(at + count)
  }
  return end
}

/** The offsets of the sectors from `from` to `end`, both at sectors, that are not zeros. Every byte is read once. */
function* nonZeroSectors(storage: Storage, from: number, end: number): Generator<number> {
  const atSector = (offset: number) => offset - (offset % SECTOR)
  let buffer: Buffer | undefined
  for (let at = atSector(storage.nextData(from)); at < end; ) {
    buffer ??= Buffer.allocUnsafe(Math.min(ZEROS.length, end - at))
    const count = storage.read(buffer, 0, Math.min(buffer.length, end - at), at)
    if (count === 0) return
    for (let i = 0; i < count; i += SECTOR) {
      const sectorEnd = Math.min(count, i + SECTOR)
      if (buffer.compare(ZEROS, 0, sectorEnd - i, i, sectorEnd) !== 0) yield at + i
    }
    at = atSector(storage.nextData(at + count))
  }
}

/** What is told of a block, and whether it shall be mended. */
export interface BitmapEvents {
  /** @param offset of the first such sector in the file @param guest of it on the disk */
  unmarked(block: number, sectors: number, offset: number, guest: number): boolean
  /** A block of which bits behind its end are set; only of a differencing disk. */
  behindEnd(block: number, offset: number): boolean
}

/** @param end where blocks must end; those that do not, or that lie over something reserved, are left out */
export function checkBitmaps(layout: VhdLayout, storage: Storage, end: number, events: BitmapEvents): void {
  const { blockSize, bitmapBytes } = layout.blocks!
  const bitmap = new Uint8Array(bitmapBytes)
  const full = Buffer.alloc(bitmapBytes, 0xff)
  eachBlock(layout, storage, (block, entry) => {
    const start = entry * SECTOR
    const used = Math.min(blockSize, Math.max(0, layout.size - block * blockSize))
    const blockEnd = start + bitmapBytes + used
    if (used === 0 || blockEnd > end || reservedAt(layout.blocks!, start, blockEnd)) return
    storage.read(bitmap, 0, bitmapBytes, start)
    const sectors = Math.ceil(used / SECTOR)
    const mended =
      layout.type === 'differencing'
        ? clearBehind(bitmap, sectors) && events.behindEnd(block, start)
        : full.compare(bitmap) !== 0 && markSectors(layout, storage, block, start, bitmap, sectors, events)
    if (mended) storage.write(bitmap, 0, bitmapBytes, start)
  })
}

/** Sets the bits of sectors that hold something; true where that is to be written. */
function markSectors(
  layout: VhdLayout,
  storage: Storage,
  block: number,
  start: number,
  bitmap: Uint8Array,
  sectors: number,
  events: BitmapEvents,
): boolean {
  const { blockSize, bitmapBytes } = layout.blocks!
  let count = 0
  let firstSector = 0
  for (let unit = 0; unit < sectors; unit += UNIT_SECTORS) {
    const inUnit = Math.min(UNIT_SECTORS, sectors - unit)
    const runs = decodeRuns(bitmap.subarray(unit / 8), inUnit, BIT_ORDER)
    runs.ends.forEach((runEnd, run) => {
      if (runs.first === (run % 2 === 0)) return
      const first = unit + (run === 0 ? 0 : runs.ends[run - 1]!)
      const [from, end] = [first, unit + runEnd].map((sector) => start + bitmapBytes + sector * SECTOR) as [
        number,
        number,
      ]
      for (const at of nonZeroSectors(storage, from, end)) {
        const sector = first + (at - from) / SECTOR
        if (count === 0) firstSector = sector
        setBits(bitmap, sector, 1, BIT_ORDER)
        count++
      }
    })
  }
  if (count === 0) return false
  const inBlock = firstSector * SECTOR
  return events.unmarked(block, count, start + bitmapBytes + inBlock, block * blockSize + inBlock)
}

/** Clears what is set behind the last sector. @returns true where something was */
function clearBehind(bitmap: Uint8Array, sectors: number): boolean {
  let found = 0
  const partial = sectors >> 3
  const kept = sectors % 8 === 0 ? 0 : 0xff00 >> (sectors & 7)
  for (let i = partial; i < bitmap.length; i++) {
    const mask = i === partial ? kept & 0xff : 0
    found |= bitmap[i]! & ~mask
    bitmap[i] = bitmap[i]! & mask
  }
  return found !== 0
}
