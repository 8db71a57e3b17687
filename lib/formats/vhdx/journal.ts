/**
 * Writing through the log. A commit makes one entry of all pages that are dirty, and syncs twice:
 *
 * 1. barrier: the guest's data, and the pages that the last commit put in place
 * 2. the entry is written behind the newest one; barrier
 * 3. where the headers do not carry the log's GUID yet: they get it; barrier
 * 4. the pages are written in place; no barrier
 *
 * After step 2 (3 in the first commit) everything is durable: what is not in place yet is in the log. Step 1 of the next
 * commit makes the pages durable in place, so that every entry is a sequence of its own: its tail is itself. The space
 * of an entry is used again only when a newer one is durable, because headers with a log's GUID and no valid entry
 * behind it mean a corrupt file. Where the newest entry leaves too little room, an entry without changes is put behind
 * it first, with a barrier of its own, and takes its place.
 *
 * [MS-VHDX] 2.2.2 wants a new GUID in the headers before the log is written. There the headers would name a log without
 * a valid entry for a moment. The order here is safe because the headers carry no GUID in that moment: the log counts as
 * empty whatever is in it, and nothing in it is needed any more.
 */

import { randomBytes } from 'node:crypto'
import type { DirtyBatch } from '../../metadata/commit.js'
import { crc32c } from '../../util/checksum.js'
import { VdiskError } from '../../util/errors.js'
import { formatGuid, NIL_GUID } from '../../util/guid.js'
import { MiB } from '../../util/sizes.js'
import type { LayerContext } from '../driver.js'
import { updateHeaders } from './header.js'
import { State, type VhdxLayout } from './layout.js'
import {
  DATA_DESCRIPTOR,
  DESCRIPTOR_BYTES,
  descriptorSectors,
  ENTRY_HEADER,
  LEADING,
  LOG_SECTOR,
  Signature,
  TRAILING,
} from './log.js'

const DIRTY_SECTOR = 512
/** Pages that one entry takes at most, however large the log is: so many pages of memory. */
const MAX_PAGES = 1024
const GUID_WORDS = 4

const signature = (word: number) =>
  String.fromCharCode(word & 0xff, (word >> 8) & 0xff, (word >> 16) & 0xff, word >>> 24)
const DATA_DESCRIPTOR_SIGNATURE = signature(Signature.DATA)
const ENTRY_SIGNATURE = signature(Signature.ENTRY)

/** Pages that one entry of a log of so many bytes can take: room for an entry without changes is left. */
export function pagesOfLog(logLength: number): number {
  const sectors = logLength / LOG_SECTOR - 1
  let pages = Math.min(MAX_PAGES, sectors)
  while (descriptorSectors(pages) + pages > sectors) pages--
  return pages
}

export class Journal {
  readonly #layout: VhdxLayout
  readonly #context: LayerContext
  #buffer = new Uint8Array(0)

  constructor(layout: VhdxLayout, context: LayerContext) {
    this.#layout = layout
    this.#context = context
  }

  get #storage() {
    return this.#context.files[0]!.storage
  }

  /** Writes a batch of dirty sectors through the log. One thread at a time, no lock. */
  commit(batch: DirtyBatch): void {
    const { metadata, files, state } = this.#context
    metadata.barrier()
    if (batch.count === 0) return
    const pages = pagesOf(batch)
    const length = (descriptorSectors(pages.length) + pages.length) * LOG_SECTOR
    const { logLength } = this.#layout.header
    if (length > logLength - LOG_SECTOR)
      throw new VdiskError('INTERNAL', `${pages.length} pages do not fit into a log of ${logLength} bytes`)
    if (length > logLength - state[State.LOG_USED]!) this.#append(LOG_SECTOR, [], batch)
    this.#append(length, pages, batch)
    if (state[State.LOG_OPEN] === 0) this.#open()
    for (const { bytes, offset } of batch.runs()) this.#storage.write(bytes, 0, bytes.length, offset)
    metadata.wrote(files[0]!.index)
  }

  /** Puts one entry behind the newest one; it is durable then and takes its place. */
  #append(length: number, pages: readonly number[], batch: DirtyBatch): void {
    const { metadata, files, state } = this.#context
    const { logOffset, logLength } = this.#layout.header
    const at = (state[State.LOG_AT]! + state[State.LOG_USED]!) % logLength
    const guid = state[State.LOG_USED] === 0 ? newGuid() : this.#guid()
    const entry = this.#encode(length, at, guid, pages, batch)
    const first = Math.min(length, logLength - at)
    this.#storage.write(entry, 0, first, logOffset + at)
    if (first < length) this.#storage.write(entry, first, length - first, logOffset)
    metadata.wrote(files[0]!.index)
    metadata.barrier()
    for (let i = 0; i < GUID_WORDS; i++) state[State.LOG_GUID + i] = guid[i]!
    state[State.LOG_AT] = at
    state[State.LOG_USED] = length
  }

  #guid(): Uint32Array {
    const { state } = this.#context
    return Uint32Array.from(state.subarray(State.LOG_GUID, State.LOG_GUID + GUID_WORDS))
  }

  /** Writes the log's GUID into the headers. */
  #open(): void {
    const { state } = this.#context
    this.#updateHeaders({ logGuid: formatGuid(new Uint8Array(this.#guid().buffer), 'mixed') })
    state[State.LOG_OPEN] = 1
  }

  /** The second header is not durable then: it may come when it likes. */
  #updateHeaders(change: Parameters<typeof updateHeaders>[1]): void {
    const { metadata, files } = this.#context
    const wrote = () => metadata.wrote(files[0]!.index)
    updateHeaders(this.#storage, change, () => {
      wrote()
      metadata.barrier()
    })
    wrote()
  }

  /** Changes the headers outside of a commit; they are durable then. */
  writeHeaders(change: Parameters<typeof updateHeaders>[1]): void {
    this.#updateHeaders(change)
    this.#context.metadata.barrier()
  }

  /** Says that nothing in the log is needed any more. After the last commit. */
  empty(): void {
    const { metadata, state } = this.#context
    metadata.barrier()
    if (state[State.LOG_USED] === 0) return
    this.writeHeaders({ logGuid: NIL_GUID })
    state[State.LOG_USED] = 0
    state[State.LOG_OPEN] = 0
  }

  /** The bytes of an entry. [MS-VHDX] 2.3.1 */
  #encode(length: number, at: number, guid: Uint32Array, pages: readonly number[], batch: DirtyBatch): Uint8Array {
    const { state, metadata } = this.#context
    if (this.#buffer.length < length) this.#buffer = new Uint8Array(length)
    const entry = this.#buffer.subarray(0, length)
    const dataStart = descriptorSectors(pages.length) * LOG_SECTOR
    entry.fill(0, 0, dataStart)
    // Never given twice, also not to an entry that was not finished: what is left of it cannot be taken for a part of
    // another.
    const sequence = state[State.LOG_SEQUENCE]!
    state[State.LOG_SEQUENCE] = sequence + 1
    const [limit, next] = metadata.shared(() => [state[State.LIMIT]!, state[State.NEXT]!] as const)
    const header = {
      signature: ENTRY_SIGNATURE,
      checksum: 0,
      entryLength: length,
      tail: at,
      sequenceNumber: BigInt(sequence),
      descriptorCount: pages.length,
      reserved: 0,
      logGuid: formatGuid(new Uint8Array(guid.buffer), 'mixed'),
      flushedFileOffset: BigInt(Math.floor(limit / MiB) * MiB),
      lastFileOffset: BigInt(next),
    }
    ENTRY_HEADER.write(header, entry)
    this.#fillPages(entry.subarray(dataStart), pages, batch)
    pages.forEach((page, i) => {
      encodePage(entry, ENTRY_HEADER.size + i * DESCRIPTOR_BYTES, dataStart + i * LOG_SECTOR, page, sequence)
    })
    new DataView(entry.buffer).setUint32(ENTRY_HEADER.offsetOf('checksum'), crc32c(entry), true)
    return entry
  }

  /** The pages as they will be: what is not dirty in them comes from the file. */
  #fillPages(target: Uint8Array, pages: readonly number[], batch: DirtyBatch): void {
    const dirty = new Map<number, number>()
    for (const { offset, bytes } of batch.runs())
      for (let at = offset; at < offset + bytes.length; at += DIRTY_SECTOR) {
        const page = at - (at % LOG_SECTOR)
        dirty.set(page, (dirty.get(page) ?? 0) + DIRTY_SECTOR)
      }
    const places = new Map<number, number>()
    pages.forEach((page, i) => {
      places.set(page, i * LOG_SECTOR)
      if (dirty.get(page) === LOG_SECTOR) return
      const got = this.#storage.read(target, i * LOG_SECTOR, LOG_SECTOR, page)
      target.fill(0, i * LOG_SECTOR + got, (i + 1) * LOG_SECTOR)
    })
    for (const { offset, bytes } of batch.runs())
      for (let at = 0; at < bytes.length; at += DIRTY_SECTOR) {
        const inPage = (offset + at) % LOG_SECTOR
        target.set(bytes.subarray(at, at + DIRTY_SECTOR), places.get(offset + at - inPage)! + inPage)
      }
  }
}

/** File offsets of the pages that a batch changes, rising. */
function pagesOf(batch: DirtyBatch): number[] {
  const pages: number[] = []
  for (const { offset, bytes } of batch.runs())
    for (let page = offset - (offset % LOG_SECTOR); page < offset + bytes.length; page += LOG_SECTOR)
      if (pages.at(-1) !== page) pages.push(page)
  return pages
}

function newGuid(): Uint32Array {
  const bytes = new Uint8Array(randomBytes(16))
  return new Uint32Array(bytes.buffer)
}

/** Makes a data sector of a page in the entry, and its descriptor. [MS-VHDX] 2.3.1.3, .4 */
function encodePage(entry: Uint8Array, descriptorAt: number, sectorAt: number, page: number, sequence: number): void {
  const sector = entry.subarray(sectorAt, sectorAt + LOG_SECTOR)
  const descriptor = {
    signature: DATA_DESCRIPTOR_SIGNATURE,
    trailingBytes: sector.subarray(LOG_SECTOR - TRAILING),
    leadingBytes: sector.subarray(0, LEADING),
    fileOffset: page,
    sequenceNumber: BigInt(sequence),
  }
  DATA_DESCRIPTOR.write(descriptor, entry, descriptorAt)
  const view = new DataView(sector.buffer, sector.byteOffset, LOG_SECTOR)
  view.setUint32(0, Signature.SECTOR, true)
  view.setUint32(4, Math.floor(sequence / 2 ** 32), true)
  view.setUint32(LOG_SECTOR - TRAILING, sequence % 2 ** 32, true)
}
