/**
 * Replaying a log that was not emptied: into the file where that may be written, else in memory.
 *
 * Into the file, so that a crash at any moment leaves it to be replayed again:
 *
 * 1. a new FileWriteGuid in the headers, the log's GUID stays; barrier
 * 2. the file is made as long as the log says; all that the entries say is written; barrier
 * 3. the headers without the log's GUID; barrier
 */

import { ReplayedStorage, type ReplayIndex } from '../../storage/replayed.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { NIL_GUID, randomGuid } from '../../util/guid.js'
import { type Header, updateHeaders } from './header.js'
import {
  applyEntry,
  findActiveSequence,
  LEADING,
  type LogWrite,
  Ring,
  type Sequence,
  TRAILING,
  writesOf,
} from './log.js'
import { REGION_TABLE_OFFSETS } from './regions.js'

/** More than a log of 4 GiB that is full of pages has. Zeros take less room in a log than in our memory. */
const MAX_CHANGES = 2 ** 20

export interface ActiveLog {
  readonly ring: Ring
  readonly sequence: Sequence
  /** Bytes that the file has at least when all is replayed. */
  readonly size: number
}

/**
 * The entries that have to be replayed; undefined where the log is empty.
 * @throws CORRUPT where the header names a log and there is none, or where the file was cut short since
 */
export function activeLog(storage: Storage, header: Header): ActiveLog | undefined {
  const { logGuid, logOffset, logLength } = header
  if (logGuid === NIL_GUID) return undefined
  const { path } = storage
  const fail = (text: string) => new VdiskError('CORRUPT', `VHDX log: ${text}`, { path, offset: logOffset })
  const size = storage.size()
  if (logOffset + logLength > size) throw fail(`it ends at ${logOffset + logLength}, and the file at ${size}`)
  const ring = new Ring(storage, header)
  const sequence = findActiveSequence(ring, logGuid)
  const head = sequence?.at(-1)?.header
  if (!sequence || !head) throw fail(`the header says that it is in use (${logGuid}), and it has no valid entries`)
  if (size < Number(head.flushedFileOffset))
    throw fail(`the file was ${head.flushedFileOffset} bytes when it was written, and is ${size} now: it was cut short`)
  let end = Math.max(size, Number(head.lastFileOffset))
  const changes = sequence.reduce((sum, { header }) => sum + header.descriptorCount, 0)
  if (changes > MAX_CHANGES) throw fail(`it makes ${changes} changes: expected ${MAX_CHANGES} at most`)
  for (const entry of sequence)
    for (const write of writesOf(ring, entry)) {
      checkTarget(write, header, fail)
      end = Math.max(end, write.offset + write.length)
    }
  return { ring, sequence, size: end }
}

/** Headers are never changed through the log; a log that writes over itself could not be replayed twice. */
function checkTarget({ offset, length }: LogWrite, header: Header, fail: (text: string) => VdiskError): void {
  const { logOffset, logLength } = header
  if (length === 0) return
  const what = offset < REGION_TABLE_OFFSETS[0] ? 'the headers' : 'the log itself'
  if (offset >= REGION_TABLE_OFFSETS[0] && (offset >= logOffset + logLength || offset + length <= logOffset)) return
  throw fail(`an entry writes ${length} bytes at ${offset}, over ${what}`)
}

/** Replays into the file and empties the log. @returns the header as it is then */
export function replayIntoFile(storage: Storage, { ring, sequence, size }: ActiveLog): Header {
  const barrier = () => storage.sync()
  updateHeaders(storage, { fileWriteGuid: randomGuid() }, barrier)
  barrier()
  if (size > storage.size()) storage.truncate(size)
  for (const entry of sequence) applyEntry(storage, ring, entry)
  barrier()
  const header = updateHeaders(storage, { logGuid: NIL_GUID }, barrier)
  barrier()
  return header
}

/** The file as it would be after a replay; it is not changed. */
export function replayInMemory(storage: Storage, log: ActiveLog): Storage {
  return new ReplayedStorage(storage, indexOf(log))
}

/**
 * Which page is where in the end. Goes from the newest change to the oldest: the first that is met for a page is the one
 * that counts.
 */
function indexOf({ ring, sequence, size }: ActiveLog): ReplayIndex {
  const writes: LogWrite[] = []
  for (const entry of sequence) for (const write of writesOf(ring, entry)) writes.push(write)
  const offsets = [...new Set(writes.filter(({ source }) => source >= 0).map(({ offset }) => offset))]
  const pages = Float64Array.from(offsets).sort()
  const open = new OpenPages(pages)
  const chosen: (LogWrite | undefined)[] = new Array(pages.length)
  for (let i = writes.length - 1; i >= 0; i--) {
    const write = writes[i]!
    open.close(write.offset, write.offset + write.length, (page) => {
      if (write.source >= 0) chosen[page] = write
    })
  }
  const kept = chosen.filter((write) => write !== undefined)
  return pack(kept, mergeZeros(writes), size)
}

/** The pages for which no change was met yet. */
class OpenPages {
  readonly #pages: Float64Array
  /** The first open page at or behind this one, or a step on the way there. */
  readonly #next: Int32Array

  constructor(pages: Float64Array) {
    this.#pages = pages
    this.#next = Int32Array.from({ length: pages.length + 1 }, (_, i) => i)
  }

  /** Closes all open pages in [start, end), with a call for each. */
  close(start: number, end: number, visit: (page: number) => void): void {
    for (let i = this.#open(this.#lowerBound(start)); i < this.#pages.length; i = this.#open(i)) {
      if (this.#pages[i]! >= end) return
      visit(i)
      this.#next[i] = i + 1
    }
  }

  #open(from: number): number {
    const next = this.#next
    let i = from
    while (next[i] !== i) {
      next[i] = next[next[i]!]!
      i = next[i]!
    }
    return i
  }

  #lowerBound(offset: number): number {
    let low = 0
    let high = this.#pages.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#pages[middle]! < offset) low = middle + 1
      else high = middle
    }
    return low
  }
}

/** All ranges that were zeroed at some time, merged: pages that were written later come before them. */
function mergeZeros(writes: readonly LogWrite[]): [start: number, end: number][] {
  const ranges = writes.filter(({ source, length }) => source < 0 && length > 0)
  const sorted = ranges.map(({ offset, length }): [number, number] => [offset, offset + length])
  sorted.sort((a, b) => a[0] - b[0])
  const merged: [number, number][] = []
  for (const [start, end] of sorted) {
    const last = merged.at(-1)
    if (last && start <= last[1]) last[1] = Math.max(last[1], end)
    else merged.push([start, end])
  }
  return merged
}

function pack(kept: readonly LogWrite[], zeros: readonly [number, number][], size: number): ReplayIndex {
  const shared = (bytes: number) => new SharedArrayBuffer(bytes)
  const pages = new Float64Array(shared(8 * kept.length))
  const sources = new Float64Array(shared(8 * kept.length))
  const edges = new Uint8Array(shared((LEADING + TRAILING) * kept.length))
  kept.forEach(({ offset, source, leading, trailing }, i) => {
    pages[i] = offset
    sources[i] = source
    edges.set(leading, i * (LEADING + TRAILING))
    edges.set(trailing, i * (LEADING + TRAILING) + LEADING)
  })
  const ranges = new Float64Array(shared(16 * zeros.length))
  ranges.set(zeros.flat())
  return { size, pages, sources, edges, zeros: ranges }
}
