/**
 * Giving a disk another size.
 *
 * 1. new GUIDs in the headers; barrier
 * 2. what nothing refers to yet: what the file has behind its last block becomes zeros; new blocks, a new place for a
 *    table that does not fit any more, entries behind the old end; barrier
 * 3. one log entry: the size, the page of the table in which the old end lies, the bitmap of the last block, the region
 *    tables; barrier; the log's GUID in the headers; barrier; the pages in place; barrier; the log is emptied; barrier
 * 4. what nothing refers to any more is given back
 */

import { cutOff } from '../../storage/shorten.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { randomGuid } from '../../util/guid.js'
import { formatSize } from '../../util/sizes.js'
import { setBits } from '../sector-bitmap.js'
import { encodeEntry as encodeTableEntry, placeOf, stateOf } from './bat.js'
import { updateHeaders } from './header.js'
import { DISK_SIZE, findItem, Item } from './items.js'
import {
  BITMAP_BYTES,
  Bitmap,
  bitmapIndex,
  checkPlace,
  ENTRY_BYTES,
  type Geometry,
  geometryOf,
  logArea,
  MAX_DISK_SIZE,
  Payload,
  payloadIndex,
  roundUp,
  UNIT,
  type VhdxLayout,
} from './layout.js'
import { LOG_SECTOR } from './log.js'
import { LoggedPages } from './logged-pages.js'
import { encodeRegionTable, REGION_TABLE_OFFSETS, type Regions, readRegions } from './regions.js'
import { scanTable } from './scan.js'

const CHUNK = 2 ** 20

/** @param size bytes; rounded up to whole sectors. @throws USAGE, CORRUPT, IO, NO_SPACE */
export function resizeVhdx(layout: VhdxLayout, storage: Storage, size: number): void {
  const { blockSize, sectorSize, differencing } = layout
  const bytes = roundUp(size, sectorSize)
  if (bytes < sectorSize || bytes > MAX_DISK_SIZE)
    throw new VdiskError('USAGE', `a VHDX of ${size} bytes: expected 1 byte to ${formatSize(MAX_DISK_SIZE)}`)
  const geometry = geometryOf(bytes, blockSize, sectorSize, differencing)
  const { end } = scanTable(layout, storage, storage.size())
  const barrier = () => storage.sync()
  updateHeaders(storage, { fileWriteGuid: randomGuid(), dataWriteGuid: layout.nextDataWriteGuid }, barrier)
  barrier()
  const regions = readRegions(storage, logArea(layout.header), () => {})
  if (bytes < layout.size) shrink(layout, storage, geometry, regions)
  else new Enlargement(layout, storage, geometry, regions, end).run()
}

function putSize(pages: LoggedPages, storage: Storage, { metadata }: Regions, size: number): void {
  pages.put(findItem(storage, metadata, Item.VIRTUAL_DISK_SIZE), DISK_SIZE.encode({ size }))
}

/** Makes a disk larger. What is new reads as zeros. */
class Enlargement {
  readonly #old: VhdxLayout
  readonly #new: Geometry
  readonly #storage: Storage
  readonly #regions: Regions
  readonly #pages: LoggedPages
  /** Where the table will be. */
  readonly #tableOffset: number
  readonly #moves: boolean
  /** Where nothing is in use any more, before anything is new. */
  readonly #free: number
  /** End of what is in use, with what is new. */
  #end: number
  /** What of that a device must have: of the last block, which has to be the last in the file, the disk's bytes do. */
  #least = 0

  constructor(layout: VhdxLayout, storage: Storage, geometry: Geometry, regions: Regions, end: number) {
    this.#old = layout
    this.#new = geometry
    this.#storage = storage
    this.#regions = regions
    this.#pages = new LoggedPages(storage)
    this.#moves = geometry.entries * ENTRY_BYTES > regions.bat.length
    this.#tableOffset = this.#moves ? end : layout.tableOffset
    this.#free = end
    this.#end = end + (this.#moves ? this.#tableBytes : 0)
  }

  get #tableBytes(): number {
    return roundUp(this.#new.entries * ENTRY_BYTES, UNIT)
  }

  run(): void {
    const storage = this.#storage
    // A crash, or another program, may have left data there, and blocks of fixed and differencing disks show all they have.
    storage.punch(this.#free, Math.max(0, storage.size() - this.#free))
    if (this.#moves) this.#copyTable()
    this.#newEntries()
    this.#restOfLastBlock()
    // Never shorter: what is behind the end may be in use again when the log is replayed.
    const least = storage.fixedSize && this.#end === this.#free ? this.#least : this.#end
    if (storage.size() < least) storage.truncate(least)
    putSize(this.#pages, storage, this.#regions, this.#new.size)
    if (this.#moves) this.#putRegions()
    this.#pages.commit(this.#old, this.#end)
    const { bat } = this.#regions
    if (this.#moves) storage.punch(bat.fileOffset, bat.length)
    storage.sync()
  }

  #copyTable(): void {
    const storage = this.#storage
    storage.truncate(Math.max(storage.size(), this.#end))
    storage.zero(this.#tableOffset, this.#tableBytes)
    const length = this.#old.entries * ENTRY_BYTES
    const chunk = new Uint8Array(Math.min(CHUNK, length))
    for (let at = 0; at < length; at += chunk.length) {
      const count = storage.read(chunk, 0, Math.min(chunk.length, length - at), this.#old.tableOffset + at)
      storage.write(chunk, 0, count, this.#tableOffset + at)
    }
  }

  /** Entries that the old disk did not have: zeros, but for fixed disks and for those that would show a parent. */
  #newEntries(): void {
    const { payloadBlocks, blockSize, differencing, leaveAllocated } = this.#old
    const first = payloadIndex(this.#old, payloadBlocks)
    const end = this.#new.entries
    if (!leaveAllocated && !differencing) {
      this.#clearEntries(first, end)
      return
    }
    const chunk = new Uint8Array(CHUNK)
    const words = new DataView(chunk.buffer)
    const { chunkRatio } = this.#new
    for (let from = first; from < end; from += CHUNK / ENTRY_BYTES) {
      const to = Math.min(end, from + CHUNK / ENTRY_BYTES)
      chunk.fill(0)
      for (let index = from; index < to; index++) {
        const isBitmap = index % (chunkRatio + 1) === chunkRatio
        // The last chunk may have its sector bitmap block already.
        if (isBitmap && index < this.#old.entries) this.#copyEntry(index, words, index - from)
        if (isBitmap) continue
        const [low, high] = leaveAllocated
          ? encodeTableEntry(Payload.FULLY_PRESENT, this.#take(blockSize))
          : encodeTableEntry(Payload.ZERO, 0)
        words.setUint32((index - from) * ENTRY_BYTES, low, true)
        words.setUint32((index - from) * ENTRY_BYTES + 4, high, true)
      }
      this.#writeEntries(from, chunk.subarray(0, (to - from) * ENTRY_BYTES))
    }
  }

  #clearEntries(first: number, end: number): void {
    const pageEnd = Math.min(end, roundUp(this.#old.entries * ENTRY_BYTES, LOG_SECTOR) / ENTRY_BYTES)
    if (first < pageEnd) this.#writeEntries(first, new Uint8Array((pageEnd - first) * ENTRY_BYTES))
    const from = Math.max(first, pageEnd)
    if (from < end) this.#storage.zero(this.#tableOffset + from * ENTRY_BYTES, (end - from) * ENTRY_BYTES)
  }

  #copyEntry(index: number, words: DataView, at: number): void {
    const entry = this.#entry(index)
    const [low, high] = encodeTableEntry(entry.state, entry.place)
    words.setUint32(at * ENTRY_BYTES, low, true)
    words.setUint32(at * ENTRY_BYTES + 4, high, true)
  }

  /** Entries in pages that are in use go through the log, others straight to the file: they mean nothing yet. */
  #writeEntries(index: number, bytes: Uint8Array): void {
    const at = this.#tableOffset + index * ENTRY_BYTES
    const usedEnd = this.#tableOffset + roundUp(this.#old.entries * ENTRY_BYTES, LOG_SECTOR)
    const logged = this.#moves ? 0 : Math.max(0, Math.min(bytes.length, usedEnd - at))
    if (logged > 0) this.#pages.put(at, bytes.subarray(0, logged))
    if (logged < bytes.length) this.#storage.write(bytes, logged, bytes.length - logged, at + logged)
  }

  #setEntry(index: number, state: number, place: number): void {
    this.#writeEntries(index, new Uint8Array(Uint32Array.from(encodeTableEntry(state, place)).buffer))
  }

  #entry(index: number): { state: number; place: number } {
    const bytes = new Uint8Array(ENTRY_BYTES)
    this.#storage.read(bytes, 0, ENTRY_BYTES, this.#old.tableOffset + index * ENTRY_BYTES)
    const words = new DataView(bytes.buffer)
    const low = words.getUint32(0, true)
    return { state: stateOf(low), place: placeOf(low, words.getUint32(4, true)) }
  }

  #take(length: number): number {
    const start = this.#end
    this.#end += length
    return start
  }

  /** What the last block has behind the old end may be anything: old data of a larger disk, or the parent's. */
  #restOfLastBlock(): void {
    const { size, blockSize, payloadBlocks, differencing } = this.#old
    const used = size % blockSize
    if (used === 0) return
    const block = payloadBlocks - 1
    const { state, place } = this.#entry(payloadIndex(this.#old, block))
    const hasData = state === Payload.FULLY_PRESENT || state === Payload.PARTIALLY_PRESENT
    if (hasData) {
      this.#least = place + Math.min(blockSize, this.#new.size - block * blockSize)
      this.#storage.zero(place + used, blockSize - used)
      // A file may end inside of its last block.
      this.#end = Math.max(this.#end, place + blockSize)
    }
    if (!differencing || !(state === Payload.PARTIALLY_PRESENT || state === Payload.NOT_PRESENT)) return
    if (!hasData) this.#setEntry(payloadIndex(this.#old, block), Payload.PARTIALLY_PRESENT, this.#take(blockSize))
    this.#setBits(block, used, !hasData)
  }

  /** Says that a block has its sectors from `used` on, and with `alone` no other. */
  #setBits(block: number, used: number, alone: boolean): void {
    const { blockSize, sectorSize, chunkRatio } = this.#old
    const chunk = Math.floor(block / chunkRatio)
    const index = bitmapIndex(this.#old, chunk)
    const found = this.#entry(index)
    const bytes = blockSize / sectorSize / 8
    const isNew = found.state !== Bitmap.PRESENT
    const place = isNew ? this.#take(BITMAP_BYTES) : found.place
    if (isNew) {
      this.#setEntry(index, Bitmap.PRESENT, place)
      this.#storage.truncate(Math.max(this.#storage.size(), this.#end))
      this.#storage.zero(place, BITMAP_BYTES)
    } else checkPlace(this.#old, `sector bitmap block ${chunk}`, place, BITMAP_BYTES, this.#storage.size())
    const at = place + (block % chunkRatio) * bytes
    const bits = alone ? new Uint8Array(bytes) : this.#pages.read(at, bytes)
    setBits(bits, used / sectorSize, (blockSize - used) / sectorSize, 'lsb-first')
    this.#pages.put(at, bits)
  }

  #putRegions(): void {
    const { entries, bat } = this.#regions
    const moved = { ...bat, fileOffset: this.#tableOffset, length: this.#tableBytes }
    const table = encodeRegionTable(entries.map((entry) => (entry === bat ? moved : entry)))
    for (const offset of REGION_TABLE_OFFSETS) this.#pages.put(offset, table)
  }
}

/** Makes a disk smaller. What lies behind its end is gone. */
function shrink(layout: VhdxLayout, storage: Storage, geometry: Geometry, regions: Regions): void {
  const pages = new LoggedPages(storage)
  putSize(pages, storage, regions, geometry.size)
  pages.commit(layout, storage.size())
  // From here on the entries behind the end mean nothing; they are cleared, since a larger disk may have them again.
  const { chunkRatio } = geometry
  const lastChunk = Math.floor((geometry.payloadBlocks - 1) / chunkRatio)
  const from = payloadIndex(geometry, geometry.payloadBlocks)
  const clear = (first: number, end: number) => {
    const last = Math.min(end, layout.entries)
    if (first < last) storage.zero(layout.tableOffset + first * ENTRY_BYTES, (last - first) * ENTRY_BYTES)
  }
  clear(Math.min(from, bitmapIndex(geometry, lastChunk)), bitmapIndex(geometry, lastChunk))
  clear((lastChunk + 1) * (chunkRatio + 1), layout.entries)
  storage.sync()
  const { end, gaps } = scanTable({ ...layout, ...geometry }, storage, storage.size())
  for (const gap of gaps) storage.punch(gap.start, gap.end - gap.start)
  cutOff(storage, end)
  storage.sync()
}
