/**
 * Writing through the log. A commit makes a sequence of entries of all pages that are dirty, and syncs twice:
 *
 * 1. barrier: the guest's data, and the pages that the last commit put in place
 * 2. the entries are written behind the active ones; barrier
 * 3. where the headers do not carry the log's GUID yet: they get it; barrier
 * 4. the pages are written in place; no barrier
 *
 * After step 2 (3 in the first commit) everything is durable: what is not in place yet is in the log. Step 1 of the next
 * commit makes the pages durable in place, so that the entries of every commit are a sequence of their own. Their space is
 * used again only when a newer sequence is durable, because headers with a log's GUID and no valid entry behind it mean a
 * corrupt file. Where they leave too little room, an entry without changes is put behind them first, with a barrier of
 * its own, and takes their place.
 *
 * Should step 4 fail half way, the entries are all that makes the file whole. Before anything is put behind them, which
 * would take their place, the pages are brought in place out of the log, with a barrier.
 *
 * Of a sequence that a crash cut short, the first entries count: that is as good, since the pages are in such an order
 * that each is right with those before it alone.
 *
 * [MS-VHDX] 2.2.2 wants a new GUID in the headers before the log is written. There the headers would name a log without
 * a valid entry for a moment. The order here is safe because the headers carry no GUID in that moment: the log counts as
 * empty whatever is in it, and nothing in it is needed any more.
 */

import { randomBytes } from 'node:crypto'
import type { DirtyBatch } from '../../metadata/commit.js'
import { VdiskError } from '../../util/errors.js'
import { formatGuid, NIL_GUID } from '../../util/guid.js'
import type { LayerContext } from '../driver.js'
import { updateHeaders } from './header.js'
import { ENTRY_BYTES, State, type VhdxLayout } from './layout.js'
import { applyEntry, LOG_SECTOR, Ring, readEntry } from './log.js'
import { encodeEntry, PAGES_PER_ENTRY } from './log-entry.js'

const DIRTY_SECTOR = 512
const GUID_WORDS = 4

/** Bytes of the entries for so many pages. */
function bytesFor(pages: number): number {
  return (pages + Math.ceil(pages / PAGES_PER_ENTRY)) * LOG_SECTOR
}

/** Pages that one commit can take through a log of so many bytes: room for an entry without changes is left. */
export function pagesOfLog(logLength: number): number {
  const room = logLength - LOG_SECTOR
  let pages = Math.floor((room / LOG_SECTOR / (PAGES_PER_ENTRY + 1)) * PAGES_PER_ENTRY)
  while (bytesFor(pages + 1) <= room) pages++
  return pages
}

/** A page that changes. */
interface Page {
  /** File offset. */
  readonly offset: number
  /** Its dirty sectors: where in the page, and the bytes. */
  readonly sectors: (readonly [inPage: number, bytes: Uint8Array])[]
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
    this.#complete()
    const pages = this.#pagesOf(batch)
    const length = bytesFor(pages.length)
    const { logLength } = this.#layout.header
    if (length > logLength - LOG_SECTOR)
      throw new VdiskError('INTERNAL', `${pages.length} pages do not fit into a log of ${logLength} bytes`)
    if (length > logLength - state[State.LOG_USED]!) this.#append([])
    this.#append(pages)
    if (state[State.LOG_OPEN] === 0) this.#open()
    state[State.HALF_IN_PLACE] = 1
    for (const { bytes, offset } of batch.runs()) this.#storage.write(bytes, 0, bytes.length, offset)
    metadata.wrote(files[0]!.index)
    state[State.HALF_IN_PLACE] = 0
  }

  /** Where the last commit failed while pages were written in place: brings them there, durably, as the log has them. */
  #complete(): void {
    const { metadata, files, state } = this.#context
    if (state[State.HALF_IN_PLACE] === 0) return
    const storage = this.#storage
    const ring = new Ring(storage, this.#layout.header)
    const from = state[State.LOG_AT]!
    for (let done = 0; done < state[State.LOG_USED]!; ) {
      const entry = readEntry(ring, from + done, this.#guidText())
      if (!entry) {
        const text = `VHDX log: the entry at byte ${(from + done) % ring.length} of it is not what was written there`
        throw new VdiskError('IO', text, { path: storage.path, offset: ring.start })
      }
      applyEntry(storage, ring, entry)
      done += entry.header.entryLength
    }
    metadata.wrote(files[0]!.index)
    metadata.barrier()
    state[State.HALF_IN_PLACE] = 0
  }

  /**
   * The pages that a batch changes, in the order in which they may come into the file one by one: sector bitmaps first,
   * then the table from its end on, where the entry of a sector bitmap block lies behind those of its payload blocks.
   */
  #pagesOf(batch: DirtyBatch): Page[] {
    const pages = new Map<number, Page>()
    for (const { offset, bytes } of batch.runs())
      for (let at = 0; at < bytes.length; at += DIRTY_SECTOR) {
        const inPage = (offset + at) % LOG_SECTOR
        const start = offset + at - inPage
        let page = pages.get(start)
        if (!page) {
          page = { offset: start, sectors: [] }
          pages.set(start, page)
        }
        page.sectors.push([inPage, bytes.subarray(at, at + DIRTY_SECTOR)])
      }
    const { tableOffset, entries } = this.#layout
    const isTable = ({ offset }: Page) => offset >= tableOffset && offset < tableOffset + entries * ENTRY_BYTES
    return [...pages.values()].sort((a, b) => Number(isTable(a)) - Number(isTable(b)) || b.offset - a.offset)
  }

  /**
   * Puts a sequence of entries behind the active one, without pages one entry that changes nothing. It is durable then,
   * and is the active one.
   */
  #append(pages: readonly Page[]): void {
    const { metadata, files, state } = this.#context
    const { logLength } = this.#layout.header
    const tail = (state[State.LOG_AT]! + state[State.LOG_USED]!) % logLength
    const guid = state[State.LOG_USED] === 0 ? newGuid() : this.#guid()
    let length = 0
    do {
      const first = (length / LOG_SECTOR / (PAGES_PER_ENTRY + 1)) * PAGES_PER_ENTRY
      const entry = this.#encode(pages.slice(first, first + PAGES_PER_ENTRY), tail, guid)
      this.#write(entry, (tail + length) % logLength)
      length += entry.length
    } while (length < bytesFor(pages.length))
    metadata.wrote(files[0]!.index)
    metadata.barrier()
    for (let i = 0; i < GUID_WORDS; i++) state[State.LOG_GUID + i] = guid[i]!
    state[State.LOG_AT] = tail
    state[State.LOG_USED] = length
  }

  /** Writes an entry into the ring, at an offset in it. */
  #write(entry: Uint8Array, at: number): void {
    const { logOffset, logLength } = this.#layout.header
    const first = Math.min(entry.length, logLength - at)
    this.#storage.write(entry, 0, first, logOffset + at)
    if (first < entry.length) this.#storage.write(entry, first, entry.length - first, logOffset)
  }

  #guid(): Uint32Array {
    const { state } = this.#context
    return Uint32Array.from(state.subarray(State.LOG_GUID, State.LOG_GUID + GUID_WORDS))
  }

  #guidText(): string {
    return formatGuid(new Uint8Array(this.#guid().buffer), 'mixed')
  }

  /** Writes the log's GUID into the headers. */
  #open(): void {
    const { state } = this.#context
    this.#updateHeaders({ logGuid: this.#guidText() })
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
    this.#complete()
    this.writeHeaders({ logGuid: NIL_GUID })
    state[State.LOG_USED] = 0
    state[State.LOG_OPEN] = 0
  }

  /** The bytes of an entry. [MS-VHDX] 2.3.1 */
  #encode(pages: readonly Page[], tail: number, guid: Uint32Array): Uint8Array {
    const { state, metadata } = this.#context
    const length = LOG_SECTOR * (1 + pages.length)
    if (this.#buffer.length < length) this.#buffer = new Uint8Array(length)
    const entry = this.#buffer.subarray(0, length)
    // Never given twice, also not to an entry that was not finished: what is left of it cannot be taken for a part of
    // another.
    const sequence = state[State.LOG_SEQUENCE]!
    state[State.LOG_SEQUENCE] = sequence + 1
    const [limit, next] = metadata.shared(() => [state[State.LIMIT]!, state[State.NEXT]!] as const)
    pages.forEach((page, i) => {
      this.#fill(entry.subarray(LOG_SECTOR * (1 + i), LOG_SECTOR * (2 + i)), page)
    })
    const header = {
      tail,
      sequence,
      guid: formatGuid(new Uint8Array(guid.buffer), 'mixed'),
      fileSize: limit,
      // A device may end inside of the last block: nobody is to make it longer for a replay.
      end: Math.min(next, limit),
    }
    const offsets = pages.map(({ offset }) => offset)
    encodeEntry(entry, header, offsets)
    return entry
  }

  /** The page as it will be: what is not dirty in it comes from the file. */
  #fill(target: Uint8Array, { offset, sectors }: Page): void {
    if (sectors.length * DIRTY_SECTOR < LOG_SECTOR) {
      const got = this.#storage.read(target, 0, LOG_SECTOR, offset)
      target.fill(0, got)
    }
    for (const [inPage, bytes] of sectors) target.set(bytes, inPage)
  }
}

function newGuid(): Uint32Array {
  const bytes = new Uint8Array(randomBytes(16))
  return new Uint32Array(bytes.buffer)
}
