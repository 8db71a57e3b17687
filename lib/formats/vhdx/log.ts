/**
 * The log: a ring of entries, each the new content of some 4 KiB pages of the file. Reading it: which entries are
 * whole, and which of them have to be replayed.
 */

import type { Storage } from '../../storage/storage.js'
import { crc32c } from '../../util/checksum.js'
import { ascii, bytes, guid, type RecordOf, Struct, u32, u64 } from '../../util/struct.js'
import { exact64 } from './header.js'

/** Entries are made of these, and change pages of this size. */
export const LOG_SECTOR = 4096

// [MS-VHDX] 2.3.1.1
export const ENTRY_HEADER = new Struct('VHDX log entry', 64, 'little', {
  signature: ascii(4),
  checksum: u32,
  entryLength: u32,
  tail: u32,
  sequenceNumber: exact64,
  descriptorCount: u32,
  reserved: u32,
  logGuid: guid('mixed'),
  flushedFileOffset: exact64,
  lastFileOffset: exact64,
})
export type EntryHeader = RecordOf<typeof ENTRY_HEADER>

export const DESCRIPTOR_BYTES = 32
// [MS-VHDX] 2.3.1.3
export const DATA_DESCRIPTOR = new Struct('VHDX log data descriptor', DESCRIPTOR_BYTES, 'little', {
  signature: ascii(4),
  trailingBytes: bytes(4),
  leadingBytes: bytes(8),
  fileOffset: u64,
  sequenceNumber: exact64,
})
// [MS-VHDX] 2.3.1.2
export const ZERO_DESCRIPTOR = new Struct('VHDX log zero descriptor', DESCRIPTOR_BYTES, 'little', {
  signature: ascii(4),
  reserved: u32,
  zeroLength: u64,
  fileOffset: u64,
  sequenceNumber: exact64,
})

/** The four bytes with which each kind of sector and descriptor begins, as a little-endian number. */
export const Signature = { ENTRY: 0x65676f6c, DATA: 0x63736564, ZERO: 0x6f72657a, SECTOR: 0x61746164 } as const

/** Bytes at both ends of a page that its descriptor holds, because the data sector has its signature there. */
export const LEADING = 8
export const TRAILING = 4

const CHECKSUM_FIELD = ENTRY_HEADER.offsetOf('checksum')
const MAX_OFFSET = BigInt(Number.MAX_SAFE_INTEGER)

/** Sectors of descriptors, the header included, of an entry with so many descriptors. */
export function descriptorSectors(count: number): number {
  return Math.ceil((ENTRY_HEADER.size + count * DESCRIPTOR_BYTES) / LOG_SECTOR)
}

/** Where the log is, by the header. */
export interface LogPlace {
  readonly logOffset: number
  readonly logLength: number
}

/** The log's sectors by their offset in the ring, read in larger pieces. */
export class Ring {
  readonly length: number
  readonly start: number
  readonly #storage: Storage
  readonly #window: Uint8Array
  #from = -1

  constructor(storage: Storage, { logOffset, logLength }: LogPlace) {
    this.#storage = storage
    this.start = logOffset
    this.length = logLength
    this.#window = new Uint8Array(Math.min(64 * LOG_SECTOR, logLength))
  }

  /** The sector at `at`, which wraps around. Holds until the next call. */
  sector(at: number): Uint8Array {
    const offset = at % this.length
    const from = offset - (offset % this.#window.length)
    if (from !== this.#from) {
      this.#from = -1
      const got = this.#storage.read(this.#window, 0, this.#window.length, this.start + from)
      this.#window.fill(0, got)
      this.#from = from
    }
    return this.#window.subarray(offset - from, offset - from + LOG_SECTOR)
  }
}

/** An entry that is whole. */
export interface LogEntry {
  /** Offset in the log. */
  readonly at: number
  readonly header: EntryHeader
}

/**
 * The entry at `at`, where there is a whole one: every field, descriptor and sector is looked at before the checksum is
 * made. No sector of an entry begins as an entry does, so that all attempts on a log together read it twice at most.
 * @param logGuid only entries of this log; undefined: of any
 */
export function readEntry(ring: Ring, at: number, logGuid: string | undefined): LogEntry | undefined {
  const first = ring.sector(at)
  if (wordAt(first, 0) !== Signature.ENTRY) return undefined
  const header = ENTRY_HEADER.read(first)
  const { entryLength, tail, sequenceNumber, descriptorCount } = header
  const sectors = entryLength / LOG_SECTOR
  const descriptors = descriptorSectors(descriptorCount)
  const right =
    Number.isInteger(sectors) &&
    sectors >= descriptors &&
    entryLength <= ring.length &&
    tail % LOG_SECTOR === 0 &&
    tail < ring.length &&
    sequenceNumber > 0n &&
    header.flushedFileOffset <= MAX_OFFSET &&
    header.lastFileOffset <= MAX_OFFSET &&
    (logGuid === undefined || header.logGuid === logGuid)
  if (!right) return undefined
  let crc = 0
  let data = 0
  for (let i = 0; i < sectors; i++) {
    const sector = ring.sector(at + i * LOG_SECTOR)
    if (i < descriptors) {
      const found = countData(sector, i, descriptorCount, sequenceNumber)
      if (found < 0) return undefined
      data += found
    } else if (!isDataSector(sector, sequenceNumber)) return undefined
    crc = i === 0 ? crcOfFirst(sector) : crc32c(sector, 0, LOG_SECTOR, crc)
  }
  if (data !== sectors - descriptors || crc !== header.checksum) return undefined
  return { at: at % ring.length, header }
}

function wordAt(sector: Uint8Array, at: number): number {
  return (sector[at]! | (sector[at + 1]! << 8) | (sector[at + 2]! << 16) | (sector[at + 3]! << 24)) >>> 0
}

const NO_CHECKSUM = new Uint8Array(4)

function crcOfFirst(sector: Uint8Array): number {
  const before = crc32c(sector, 0, CHECKSUM_FIELD)
  return crc32c(sector, CHECKSUM_FIELD + 4, LOG_SECTOR, crc32c(NO_CHECKSUM, 0, 4, before))
}

/** The byte range of the descriptors in a descriptor sector. */
function descriptorsIn(index: number, count: number): [from: number, to: number] {
  const from = index === 0 ? ENTRY_HEADER.size : 0
  const end = ENTRY_HEADER.size + count * DESCRIPTOR_BYTES - index * LOG_SECTOR
  return [from, Math.min(LOG_SECTOR, end)]
}

/** Data descriptors in a descriptor sector; -1 where one is wrong. */
function countData(sector: Uint8Array, index: number, count: number, sequence: bigint): number {
  const view = new DataView(sector.buffer, sector.byteOffset, LOG_SECTOR)
  const [from, to] = descriptorsIn(index, count)
  let data = 0
  for (let at = from; at < to; at += DESCRIPTOR_BYTES) {
    const signature = wordAt(sector, at)
    const offset = view.getBigUint64(at + 16, true)
    const length = signature === Signature.ZERO ? view.getBigUint64(at + 8, true) : BigInt(LOG_SECTOR)
    if (signature === Signature.DATA) data++
    else if (signature !== Signature.ZERO) return -1
    const aligned = offset % BigInt(LOG_SECTOR) === 0n && length % BigInt(LOG_SECTOR) === 0n
    if (!aligned || offset + length > MAX_OFFSET || view.getBigUint64(at + 24, true) !== sequence) return -1
  }
  return data
}

// [MS-VHDX] 2.3.1.4
function isDataSector(sector: Uint8Array, sequence: bigint): boolean {
  return (
    wordAt(sector, 0) === Signature.SECTOR &&
    wordAt(sector, 4) === Number(sequence >> 32n) &&
    wordAt(sector, LOG_SECTOR - TRAILING) === Number(sequence & 0xffff_ffffn)
  )
}

/** The entries that a replay applies, oldest first. */
export type Sequence = readonly LogEntry[]

/**
 * Finds the newest complete sequence of entries. [MS-VHDX] 2.3.3, where further: entries in front of the one that the
 * head calls the tail are left out, since they are in the file already.
 * @param logGuid the header's
 * @returns undefined where there is none
 */
export function findActiveSequence(ring: Ring, logGuid: string): Sequence | undefined {
  let best: LogEntry[] | undefined
  for (let tail = 0; ; ) {
    const { entries, end } = chainFrom(ring, tail, logGuid)
    const head = entries.at(-1)
    const first = head ? entries.findIndex((entry) => entry.at === head.header.tail) : -1
    if (head && first >= 0 && !(best && best.at(-1)!.header.sequenceNumber >= head.header.sequenceNumber))
      best = entries.slice(first)
    // What begins inside of this chain ends where it does: it can be no better.
    const next = head ? end : tail + LOG_SECTOR
    if (next >= ring.length) return best
    tail = next
  }
}

/** The entries from `tail` on whose sequence numbers follow each other, and the offset behind them, not wrapped. */
function chainFrom(ring: Ring, tail: number, logGuid: string): { entries: LogEntry[]; end: number } {
  const entries: LogEntry[] = []
  let end = tail
  for (;;) {
    const entry = readEntry(ring, end, logGuid)
    const last = entries.at(-1)
    if (!entry || (last && entry.header.sequenceNumber !== last.header.sequenceNumber + 1n)) break
    if (end + entry.header.entryLength - tail > ring.length) break
    entries.push(entry)
    end += entry.header.entryLength
  }
  return { entries, end }
}

/** One change that an entry makes. */
export interface LogWrite {
  /** File offset and bytes, multiples of 4096. */
  readonly offset: number
  readonly length: number
  /** File offset of the data sector; -1: zeros. */
  readonly source: number
  /** The first eight and the last four bytes, with data. */
  readonly leading: Uint8Array
  readonly trailing: Uint8Array
}

const NOTHING = new Uint8Array(0)

/** The changes that an entry makes, in order. */
export function* writesOf(ring: Ring, { at, header }: LogEntry): Generator<LogWrite> {
  const { descriptorCount } = header
  const sectors = descriptorSectors(descriptorCount)
  let source = at + sectors * LOG_SECTOR
  for (let i = 0; i < sectors; i++) {
    const sector = ring.sector(at + i * LOG_SECTOR).slice()
    const [from, to] = descriptorsIn(i, descriptorCount)
    for (let d = from; d < to; d += DESCRIPTOR_BYTES) {
      if (wordAt(sector, d) === Signature.ZERO) {
        const { fileOffset, zeroLength } = ZERO_DESCRIPTOR.read(sector, d)
        yield { offset: fileOffset, length: zeroLength, source: -1, leading: NOTHING, trailing: NOTHING }
      } else {
        const { fileOffset, leadingBytes, trailingBytes } = DATA_DESCRIPTOR.read(sector, d)
        const place = ring.start + (source % ring.length)
        yield { offset: fileOffset, length: LOG_SECTOR, source: place, leading: leadingBytes, trailing: trailingBytes }
        source += LOG_SECTOR
      }
    }
  }
}

/** Makes the changes of an entry in the file. */
export function applyEntry(storage: Storage, ring: Ring, entry: LogEntry): void {
  const page = new Uint8Array(LOG_SECTOR)
  for (const { offset, length, source, leading, trailing } of writesOf(ring, entry)) {
    if (source < 0) storage.zero(offset, length)
    else {
      storage.read(page, 0, LOG_SECTOR, source)
      page.set(leading)
      page.set(trailing, LOG_SECTOR - TRAILING)
      storage.write(page, 0, LOG_SECTOR, offset)
    }
  }
}
