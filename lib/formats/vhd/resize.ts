/**
 * Another size for a VHD that nobody has open. A sound footer is at the end of the file at every moment, and the disk
 * has either its old size or its new one, with zeros behind the old end.
 *
 * A larger disk:
 *
 * 1. the footer as it is, behind all that will be new; barrier; the old one is zeroed
 * 2. a table that has to move is written whole, in front of that footer; else its new entries; the rest of the last
 *    block is zeroed; barrier
 * 3. where the table changed its place or length: the sector of the dynamic disk header that says so; barrier
 * 4. the footer and its copy get the new size; barrier
 * 5. the place of the old table is given back
 *
 * A smaller one:
 *
 * 1. the footer and its copy get the new size; barrier
 * 2. XenServer's map, where there is one, says nothing of blocks behind the end any more; barrier
 * 3. table entries behind the end are cleared; barrier
 * 4. their blocks are given back; the footer is written behind what is left; barrier; the file is cut behind it
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { ResizeHelp } from '../driver.js'
import { clearInBatmap, encodeBatmap } from './batmap.js'
import { encodeHeader } from './dynamic-header.js'
import { encodeFooter, FOOTER_BYTES, type Footer } from './footer.js'
import { diskSize, geometryOf, goesByGeometry, MAX_DISK_SIZE, roundUpToGeometry, SECTOR } from './geometry.js'
import { type Blocks, ENTRY_BYTES, MAX_BLOCK_START, NO_BLOCK, roundUp, type VhdLayout } from './layout.js'
import { eachBlock, scanTable } from './table.js'

const CHUNK = 2 ** 20
const PAGE = 4096

/**
 * @param size bytes; rounded up to what the format, and the program that made the image, can say
 * @throws USAGE for a size that it cannot have, CORRUPT, IO, NO_SPACE
 */
export function resizeVhd(layout: VhdLayout, storage: Storage, size: number, help: ResizeHelp): void {
  const next = newFooter(layout, size)
  const bytes = next.currentSize
  if (bytes === layout.size) return
  if (bytes > layout.size) {
    refuseParent(layout, help)
    if (layout.blocks) new Enlargement(layout, storage, next).run()
    else growFixed(layout, storage, next)
  } else shrink(layout, storage, next)
}

/** @throws USAGE */
function newFooter({ footer, path }: VhdLayout, size: number): Footer {
  const asked = Math.ceil(size / SECTOR)
  const { creatorApplication } = footer
  // Whatever the old geometry says: the new one may be the first that counts.
  const { sectors, geometry } = goesByGeometry(creatorApplication)
    ? roundUpToGeometry(asked)
    : { sectors: asked, geometry: geometryOf(asked) }
  const bytes = sectors * SECTOR
  if (bytes < SECTOR || bytes > MAX_DISK_SIZE)
    throw new VdiskError('USAGE', `a VHD of ${size} bytes: expected ${SECTOR} bytes to 2040 GiB`, { path })
  const said = diskSize(creatorApplication, bytes, geometry)
  if (said < size)
    throw new VdiskError('USAGE', `a VHD of ${size} bytes: the geometry that counts would say ${said}`, { path })
  return { ...footer, ...geometry, currentSize: bytes }
}

/** A block that is not there shows the parent, and there is no other way to say that it is zeros. */
function refuseParent({ type, size, path }: VhdLayout, help: ResizeHelp): void {
  const below = type === 'differencing' ? help.below() : 0
  if (below <= size) return
  const text = `it has ${size} bytes, and what is new would show its parent, which has ${below} bytes`
  throw new VdiskError('USAGE', text, { path })
}

function writeFooter(storage: Storage, footer: Uint8Array, offset: number): void {
  storage.write(footer, 0, FOOTER_BYTES, offset)
}

/** Writes the footer, as it is, further behind, and takes the old one away. @param to behind the old one's end */
export function moveFooter({ footerBytes, footerOffset }: VhdLayout, storage: Storage, to: number): void {
  const before = storage.size()
  try {
    writeFooter(storage, footerBytes, to)
    storage.sync()
  } catch (error) {
    if (storage.size() > before) storage.truncate(before)
    throw error
  }
  storage.zero(footerOffset, FOOTER_BYTES)
}

/** Where the footer of a larger file goes: it stays where it is, or leaves its old place altogether. */
export function footerPlace({ footerOffset }: VhdLayout, end: number): number {
  return end <= footerOffset ? footerOffset : Math.max(end, roundUp(footerOffset + FOOTER_BYTES, SECTOR))
}

function growFixed(layout: VhdLayout, storage: Storage, next: Footer): void {
  const place = footerPlace(layout, next.currentSize)
  if (place !== layout.footerOffset) moveFooter(layout, storage, place)
  storage.zero(layout.size, Math.min(layout.footerOffset, next.currentSize) - layout.size)
  storage.sync()
  writeFooter(storage, encodeFooter(next), place)
  storage.sync()
}

/** Makes a disk larger that grows as it is written. */
class Enlargement {
  readonly #layout: VhdLayout
  readonly #blocks: Blocks
  readonly #storage: Storage
  readonly #next: Footer
  /** Blocks of the old disk, and of the new one. */
  readonly #before: number
  readonly #after: number
  readonly #moves: boolean
  readonly #table: number
  readonly #entries: number
  readonly #batmap: Uint8Array
  readonly #end: number

  constructor(layout: VhdLayout, storage: Storage, next: Footer) {
    const blocks = layout.blocks!
    const { blockSize, blockBytes, maxTableEntries, tableOffset } = blocks
    this.#layout = layout
    this.#blocks = blocks
    this.#storage = storage
    this.#next = next
    this.#before = Math.ceil(layout.size / blockSize)
    this.#after = Math.ceil(next.currentSize / blockSize)
    const { end, allocated } = scanTable(layout, storage, layout.footerOffset)
    this.#moves = this.#after > this.#before && !this.#fitsInPlace()
    this.#entries = Math.max(this.#after, maxTableEntries)
    this.#table = this.#moves ? roundUp(end, PAGE) : tableOffset
    const tableEnd = this.#table + this.#tableBytes
    this.#batmap = this.#moves && layout.batmap ? this.#newBatmap(tableEnd) : new Uint8Array(0)
    this.#end = footerPlace(layout, this.#moves ? tableEnd + this.#batmap.length : end)
    const full = this.#end + (this.#after - Math.min(this.#after, allocated)) * blockBytes
    if (full > MAX_BLOCK_START) {
      const text = `a VHD of ${next.currentSize} bytes in blocks of ${blockSize} could need a file of ${full} bytes, and a VHD can address 2 TiB`
      throw new VdiskError('USAGE', text, { path: layout.path })
    }
  }

  get #tableBytes(): number {
    return roundUp(this.#entries * ENTRY_BYTES, SECTOR)
  }

  #newBatmap(offset: number): Uint8Array {
    return encodeBatmap(this.#storage, this.#layout.header!, this.#before, this.#entries, offset)
  }

  /** True where the table can have its new entries where it is. A batmap lies behind its table and goes with it. */
  #fitsInPlace(): boolean {
    if (this.#layout.batmap) return false
    const { tableOffset, maxTableEntries, reserved } = this.#blocks
    if (this.#after <= maxTableEntries) return true
    const end = tableOffset + roundUp(this.#after * ENTRY_BYTES, SECTOR)
    if (end > this.#layout.footerOffset) return false
    if (reserved.some((area) => area.start !== tableOffset && area.start < end && area.end > tableOffset)) return false
    let free = true
    eachBlock(this.#layout, this.#storage, (_block, entry) => {
      const start = entry * SECTOR
      if (start < end && start + this.#blocks.blockBytes > tableOffset) free = false
    })
    return free
  }

  run(): void {
    const layout = this.#layout
    const storage = this.#storage
    const { tableOffset, maxTableEntries } = this.#blocks
    if (this.#end !== layout.footerOffset) moveFooter(layout, storage, this.#end)
    this.#writeTable()
    this.#restOfLastBlock()
    storage.sync()
    if (this.#moves || this.#entries !== maxTableEntries) {
      const { footer, header } = layout
      const bytes = encodeHeader({ ...header!, tableOffset: this.#table, maxTableEntries: this.#entries })
      // What changes is in the first of its two sectors.
      storage.write(bytes, 0, SECTOR, footer.dataOffset!)
      storage.sync()
    }
    const footer = encodeFooter(this.#next)
    writeFooter(storage, footer, this.#end)
    writeFooter(storage, footer, 0)
    storage.sync()
    if (!this.#moves) return
    for (const { name, start, end } of this.#blocks.reserved)
      if (start === tableOffset || name.startsWith('batmap')) storage.punch(start, end - start)
    storage.sync()
  }

  /** Entries behind the end of the old disk may be anything, up to now. */
  #writeTable(): void {
    const storage = this.#storage
    const { tableOffset } = this.#blocks
    const kept = this.#before * ENTRY_BYTES
    if (this.#moves)
      for (let at = 0; at < kept; at += CHUNK) {
        const bytes = new Uint8Array(Math.min(CHUNK, kept - at))
        storage.read(bytes, 0, bytes.length, tableOffset + at)
        storage.write(bytes, 0, bytes.length, this.#table + at)
      }
    fillFree(storage, this.#table + kept, this.#table + this.#tableBytes)
    storage.write(this.#batmap, 0, this.#batmap.length, this.#table + this.#tableBytes)
  }

  /** What the last block has behind the old end, such as data of a disk that was larger before. */
  #restOfLastBlock(): void {
    const { blockSize, bitmapBytes, tableOffset } = this.#blocks
    const used = this.#layout.size % blockSize
    if (used === 0) return
    const bytes = new Uint8Array(ENTRY_BYTES)
    this.#storage.read(bytes, 0, ENTRY_BYTES, tableOffset + (this.#before - 1) * ENTRY_BYTES)
    const entry = new DataView(bytes.buffer).getUint32(0)
    if (entry !== NO_BLOCK) this.#storage.zero(entry * SECTOR + bitmapBytes + used, blockSize - used)
  }
}

/** Makes table entries say that there is no block. */
function fillFree(storage: Storage, start: number, end: number): void {
  const free = new Uint8Array(Math.min(CHUNK, Math.max(0, end - start))).fill(0xff)
  for (let at = start; at < end; at += free.length) storage.write(free, 0, Math.min(free.length, end - at), at)
}

/** Makes a disk smaller. What lies behind its end is gone. */
function shrink(layout: VhdLayout, storage: Storage, next: Footer): void {
  const { blocks, footerOffset } = layout
  const footer = encodeFooter(next)
  writeFooter(storage, footer, footerOffset)
  if (blocks) writeFooter(storage, footer, 0)
  storage.sync()
  const size = next.currentSize
  cutOff(storage, footer, footerOffset, blocks ? clearTable(layout, storage, size) : size)
}

/** Writes the footer at an end that lies in front of it, and cuts the file off behind that. */
function cutOff(storage: Storage, footer: Uint8Array, footerOffset: number, end: number): void {
  if (storage.fixedSize) storage.punch(end, Math.max(0, footerOffset - end))
  else {
    if (end + FOOTER_BYTES > footerOffset) return
    writeFooter(storage, footer, end)
    storage.sync()
    storage.truncate(end + FOOTER_BYTES)
  }
  storage.sync()
}

/** Clears the entries of blocks behind so many bytes of the disk. @returns where the last block ends */
function clearTable(layout: VhdLayout, storage: Storage, size: number): number {
  const { blockSize, tableOffset, maxTableEntries } = layout.blocks!
  const kept = Math.ceil(size / blockSize)
  if (layout.batmap) {
    // A block that lies over the map is found here, not lost.
    scanTable(layout, storage, layout.footerOffset)
    clearInBatmap(layout, storage, [{ block: kept, count: maxTableEntries - kept }])
  }
  fillFree(storage, tableOffset + kept * ENTRY_BYTES, tableOffset + maxTableEntries * ENTRY_BYTES)
  storage.sync()
  const { end, gaps } = scanTable({ ...layout, size }, storage, layout.footerOffset)
  for (const gap of gaps) storage.punch(gap.start, gap.end - gap.start)
  return end
}

/** Makes a differencing disk show its parent and nothing else. */
export function emptyVhd(layout: VhdLayout, storage: Storage): void {
  const { footerBytes, footerOffset } = layout
  cutOff(storage, footerBytes, footerOffset, clearTable(layout, storage, 0))
  storage.sync()
}
