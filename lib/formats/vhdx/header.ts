/**
 * The file type identifier and the two headers. Headers are not changed through the log: always the one that is not
 * current is written, with a higher sequence number, so that one sound header is there at every moment.
 */

import type { Storage } from '../../storage/storage.js'
import { crc32cWithoutField } from '../../util/checksum.js'
import { VdiskError } from '../../util/errors.js'
import { NIL_GUID } from '../../util/guid.js'
import {
  ascii,
  bytes,
  type FieldType,
  guid,
  type RecordOf,
  reserved,
  Struct,
  u16,
  u32,
  u64,
} from '../../util/struct.js'
import { UNIT } from './layout.js'

/** A 64-bit number in full: Windows begins the sequence numbers of logs anywhere. */
export const exact64: FieldType<bigint> = {
  width: 8,
  read: ({ view, little }, at) => view.getBigUint64(at, little),
  write: ({ view, little }, at, value) => view.setBigUint64(at, value, little),
}

const IDENTIFIER_BYTES = 520

// [MS-VHDX] 2.2.1
export const IDENTIFIER = new Struct('VHDX file type identifier', IDENTIFIER_BYTES, 'little', {
  signature: ascii(8),
  creator: bytes(512),
})
export const IDENTIFIER_SIGNATURE = 'vhdxfile'

export const HEADER_BYTES = 4096
/** Where the two headers are. */
export const HEADER_OFFSETS = [65536, 131072] as const

// [MS-VHDX] 2.2.2
export const HEADER = new Struct('VHDX header', HEADER_BYTES, 'little', {
  signature: ascii(4),
  checksum: u32,
  sequenceNumber: exact64,
  fileWriteGuid: guid('mixed'),
  dataWriteGuid: guid('mixed'),
  logGuid: guid('mixed'),
  logVersion: u16,
  version: u16,
  logLength: u32,
  logOffset: u64,
  reserved: reserved(4016),
})
export type Header = RecordOf<typeof HEADER>

export const HEADER_SIGNATURE = 'head'
const CHECKSUM_FIELD = HEADER.offsetOf('checksum')
const VERSION = 1
const LOG_VERSION = 0

export const hex32 = (value: number) => `0x${value.toString(16).padStart(8, '0')}`

/** True where the first bytes of a file are those of a VHDX. */
export function looksLikeVhdx(head: Uint8Array): boolean {
  if (head.length < IDENTIFIER_SIGNATURE.length) return false
  return [...IDENTIFIER_SIGNATURE].every((c, i) => head[i] === c.charCodeAt(0))
}

/** @returns the creator, as it names itself. @throws FORMAT */
export function readIdentifier(storage: Storage): string {
  const buffer = new Uint8Array(IDENTIFIER_BYTES)
  storage.read(buffer, 0, IDENTIFIER_BYTES, 0)
  if (!looksLikeVhdx(buffer))
    throw new VdiskError('FORMAT', `not a VHDX: it does not begin with '${IDENTIFIER_SIGNATURE}'`, {
      path: storage.path,
      offset: 0,
    })
  return new TextDecoder('utf-16le').decode(IDENTIFIER.read(buffer).creator).split('\0')[0]!
}

/** One of the two headers: its content, or what is wrong with it. */
export type ReadHeader = { readonly header: Header; readonly bytes: Uint8Array } | { readonly fault: string }

/** Reads the header at HEADER_OFFSETS[slot]. */
export function readHeader(storage: Storage, slot: number): ReadHeader {
  const buffer = new Uint8Array(HEADER_BYTES)
  const got = storage.read(buffer, 0, HEADER_BYTES, HEADER_OFFSETS[slot]!)
  if (got < HEADER_BYTES) return { fault: 'the file ends before it does' }
  const place = { path: storage.path, offset: HEADER_OFFSETS[slot]! }
  const signature = String.fromCharCode(...buffer.subarray(0, 4))
  if (signature !== HEADER_SIGNATURE) return { fault: `it does not begin with '${HEADER_SIGNATURE}'` }
  const found = new DataView(buffer.buffer).getUint32(CHECKSUM_FIELD, true)
  const expected = crc32cWithoutField(buffer, CHECKSUM_FIELD)
  if (found !== expected) return { fault: `its checksum is ${hex32(found)}: expected ${hex32(expected)}` }
  return { header: HEADER.read(buffer, 0, place), bytes: buffer }
}

export interface CurrentHeader {
  readonly header: Header
  /** Which of the two it is. */
  readonly slot: number
  /** What is wrong with the other one, if anything. */
  readonly otherFault: string | undefined
}

/**
 * Finds the current header: the sound one with the higher sequence number.
 * @throws CORRUPT where there is none, or two that contradict each other
 */
export function currentHeader(storage: Storage): CurrentHeader {
  const [first, second] = [readHeader(storage, 0), readHeader(storage, 1)]
  const { path } = storage
  if ('fault' in first) {
    if ('fault' in second)
      throw new VdiskError('CORRUPT', `VHDX headers: the first: ${first.fault}; the second: ${second.fault}`, { path })
    return { header: second.header, slot: 1, otherFault: first.fault }
  }
  if ('fault' in second) return { header: first.header, slot: 0, otherFault: second.fault }
  const [a, b] = [first.header.sequenceNumber, second.header.sequenceNumber]
  // Disk2vhd writes the same header twice, which leaves nothing to choose.
  if (a === b && first.bytes.some((byte, i) => byte !== second.bytes[i])) {
    const text = `VHDX headers: both have sequence number ${a}, and they are not the same`
    throw new VdiskError('CORRUPT', text, { path, offset: HEADER_OFFSETS[0] })
  }
  const slot = b > a ? 1 : 0
  return { header: (slot === 1 ? second : first).header, slot, otherFault: undefined }
}

/** @throws UNSUPPORTED, CORRUPT for a header that this program cannot go by */
export function checkHeader(header: Header, path: string): void {
  const { version, logGuid, logLength, logOffset } = header
  const fail = (code: 'UNSUPPORTED' | 'CORRUPT', text: string) => new VdiskError(code, `VHDX header: ${text}`, { path })
  if (version !== VERSION) throw fail('UNSUPPORTED', `version is ${version}: expected ${VERSION}`)
  if (logGuid !== NIL_GUID) checkLogVersion(header, path)
  if (logOffset % UNIT !== 0 || logOffset < UNIT)
    throw fail('CORRUPT', `log offset is ${logOffset}: expected a multiple of 1 MiB from 1 MiB on`)
  if (logLength % UNIT !== 0 || logLength === 0)
    throw fail('CORRUPT', `log length is ${logLength}: expected a multiple of 1 MiB`)
}

/** Where the log is empty, nothing depends on its version. [MS-VHDX] 2.2.2 @throws UNSUPPORTED */
export function checkLogVersion({ logVersion }: Header, path: string): void {
  const text = `VHDX header: log version is ${logVersion}: expected ${LOG_VERSION}`
  if (logVersion !== LOG_VERSION) throw new VdiskError('UNSUPPORTED', text, { path })
}

/** The bytes of a header, its checksum made right. */
export function encodeHeader(header: Header): Uint8Array {
  const buffer = HEADER.encode(header)
  HEADER.write({ ...header, checksum: crc32cWithoutField(buffer, CHECKSUM_FIELD) }, buffer)
  return buffer
}

/**
 * Changes fields of the header. [MS-VHDX] 2.2.2.1: the one that is not current is written first and made durable; then
 * the other, so that both say the same. The second is not made durable here: until it is, the first holds. What is in
 * the log from then on is ours.
 * @param barrier makes everything durable that was written
 * @returns the header as it is now
 */
export function updateHeaders(storage: Storage, change: Partial<Header>, barrier: () => void): Header {
  const { header, slot } = currentHeader(storage)
  const sequenceNumber = BigInt.asUintN(64, header.sequenceNumber + 1n)
  const next = { ...header, logVersion: LOG_VERSION, ...change, sequenceNumber }
  storage.write(encodeHeader(next), 0, HEADER_BYTES, HEADER_OFFSETS[1 - slot]!)
  barrier()
  const last = { ...next, sequenceNumber: BigInt.asUintN(64, next.sequenceNumber + 1n) }
  storage.write(encodeHeader(last), 0, HEADER_BYTES, HEADER_OFFSETS[slot]!)
  return last
}
