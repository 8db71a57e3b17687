/**
 * Mends a VHD. Every step is durable before the next, and after a crash in any of them the image is at least as good as
 * it was, since a footer that is sound, or its sound copy, is there at every moment at which one was there before:
 *
 * 1. the checksum of the dynamic disk header, where all else confirms the header
 * 2. the copy of the footer, from the footer at the end; with both of them wrong, the one at the end comes first
 * 3. the footer at the end, behind what the next steps need; one that a block lies over stays in it, as what the block
 *    shows
 * 4. a copy of each block that lies over something else, in a place of its own; nothing refers to it yet
 * 5. the block allocation table: entries of blocks that have moved; then those that are taken out, first from XenServer's
 *    map, where there is one
 * 6. sector bitmaps: bits that change nothing of what this program shows
 * 7. space between blocks is punched
 * 8. the footer behind the last block; then the file is cut behind it
 *
 * Space is not given back (7, 8) in a run that found faults in the table: the data of a block whose entry is wrong may
 * be there. The next run does it.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { clearInBatmap } from './batmap.js'
import type { FaultKind, TableCheck, TableFault } from './check-table.js'
import { FOOTER_BYTES } from './footer.js'
import { SECTOR } from './geometry.js'
import { alignBlock, ENTRY_BYTES, MAX_BLOCK_START, roundUp, type VhdLayout } from './layout.js'
import type { Range } from './table.js'

const CHUNK = 2 ** 20

/** Faults of the table that are mended by a copy of the block. */
export const COPIED: readonly FaultKind[] = ['area', 'shared']
/** Those that are mended by taking the entry out. */
const DROPPED: readonly FaultKind[] = ['outside', 'metadata']

/** A block that gets a place of its own. */
export interface BlockCopy {
  readonly block: number
  readonly from: number
  readonly to: number
}

/**
 * Places behind the last block for all that must be copied; undefined: not all have room in the 2 TiB of a VHD.
 * @param limit where blocks must end
 */
export function planCopies(
  layout: VhdLayout,
  { faults, lastEnd, wholeEnd }: TableCheck,
  limit: number,
): readonly BlockCopy[] | undefined {
  const copies: BlockCopy[] = []
  if (lastEnd > limit) return undefined
  let end = wholeEnd
  for (const { kind, block, start } of faults) {
    if (!COPIED.includes(kind)) continue
    const to = alignBlock(layout.blocks!, end)
    end = to + layout.blocks!.blockBytes
    if (to >= MAX_BLOCK_START || end > limit) return undefined
    copies.push({ block, from: start, to })
  }
  return copies
}

export class VhdRepair {
  readonly #storage: Storage
  /** 512 bytes with the right checksum. */
  readonly #footer: Uint8Array
  /** Where the footer at the end begins; the file's end where there is none. */
  #offset: number
  /** Bytes of it; 0 where there is none. */
  #length: number

  constructor(storage: Storage, footer: Uint8Array, offset: number, length: number) {
    this.#storage = storage
    this.#footer = footer
    this.#offset = offset
    this.#length = length
  }

  /** Where blocks must end now. */
  get footerOffset(): number {
    return this.#offset
  }

  /** Step 1, and 2: writes a structure and makes it durable. */
  write(bytes: Uint8Array, offset: number): void {
    this.#storage.write(bytes, 0, bytes.length, offset)
    this.#storage.sync()
  }

  writeCopy(): void {
    this.write(this.#footer, 0)
  }

  /** Step 3, in place: the footer that is there is wrong, or one byte short. */
  rewriteFooter(): void {
    this.write(this.#footer, this.#offset)
    this.#length = FOOTER_BYTES
  }

  /**
   * Step 3 where there is no footer: writes it, and ends the file behind it.
   * @param keep the file may hold data that nothing refers to: it is not cut
   * @throws NO_SPACE where a block lies at the end of a device
   */
  restoreFooter(lastEnd: number, keep: boolean): void {
    const size = this.#storage.size()
    const device = this.#storage.fixedSize
    const offset = device ? size - FOOTER_BYTES : keep ? Math.max(lastEnd, roundUp(size, SECTOR)) : lastEnd
    if (offset < lastEnd) {
      const text = `no room for the footer: blocks end at byte ${lastEnd} of the device's ${size}`
      throw new VdiskError('NO_SPACE', text, { path: this.#storage.path })
    }
    this.write(this.#footer, offset)
    this.#cutAt(offset + FOOTER_BYTES)
    this.#offset = offset
    this.#length = FOOTER_BYTES
  }

  /** Step 3: makes room up to `end`. */
  growTo(end: number): void {
    if (end <= this.#offset) return
    const offset = Math.max(end, roundUp(this.#offset + this.#length, SECTOR))
    this.write(this.#footer, offset)
    this.#offset = offset
    this.#length = FOOTER_BYTES
  }

  /**
   * Steps 3 to 5.
   * @param lastEnd end of the last block
   * @param copies as `planCopies` gave them
   */
  mendTable(layout: VhdLayout, faults: readonly TableFault[], copies: readonly BlockCopy[], lastEnd: number): void {
    const { blockBytes, tableOffset } = layout.blocks!
    const last = copies.at(-1)
    this.growTo(last ? last.to + blockBytes : lastEnd)
    for (const { from, to } of copies) this.#copy(from, to, blockBytes)
    this.#storage.sync()
    for (const { block, to } of copies) {
      const bytes = new Uint8Array(ENTRY_BYTES)
      new DataView(bytes.buffer).setUint32(0, to / SECTOR)
      this.#storage.write(bytes, 0, ENTRY_BYTES, tableOffset + block * ENTRY_BYTES)
    }
    this.#storage.sync()
    const dropped = faults.filter(({ kind }) => DROPPED.includes(kind))
    // No block lies over the map any more.
    if (dropped.length > 0) clearInBatmap(layout, this.#storage, dropped)
    for (const { block, count } of dropped) this.#fillEntries(tableOffset + block * ENTRY_BYTES, count * ENTRY_BYTES)
    this.#storage.sync()
  }

  #fillEntries(offset: number, length: number): void {
    const free = new Uint8Array(Math.min(CHUNK, length)).fill(0xff)
    for (let done = 0; done < length; done += free.length)
      this.#storage.write(free, 0, Math.min(free.length, length - done), offset + done)
  }

  /** What is behind the file's end counts as zeros. Holes cost nothing: a block can have 2 GiB. */
  #copy(from: number, to: number, length: number): void {
    const storage = this.#storage
    const buffer = Buffer.alloc(Math.min(CHUNK, length))
    storage.punch(to, length)
    const end = Math.min(from + length, storage.size())
    for (let at = nextData(storage, from, end); at < end; ) {
      const count = storage.read(buffer, 0, Math.min(buffer.length, end - at), at)
      if (count === 0) break
      storage.write(buffer, 0, count, to + at - from)
      at = nextData(storage, at + count, end)
    }
  }

  /** Step 7. */
  punch({ start, end }: Range): void {
    this.#storage.punch(start, end - start)
  }

  /** Step 8. `lastEnd` is at least 512 bytes in front of the footer. */
  cutTail(lastEnd: number): void {
    this.write(this.#footer, lastEnd)
    this.#cutAt(lastEnd + FOOTER_BYTES)
    this.#offset = lastEnd
    this.#length = FOOTER_BYTES
  }

  #cutAt(size: number): void {
    if (this.#storage.size() <= size) return
    this.#storage.truncate(size)
    this.#storage.sync()
  }
}

function nextData(storage: Storage, offset: number, end: number): number {
  return offset < end ? storage.nextData(offset) : end
}
