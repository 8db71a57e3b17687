/** The hard disk footer: the last 512 bytes of every VHD, with a copy at the beginning of those that grow. */

import { onesComplementByteSum } from '../../util/checksum.js'
import { VdiskError } from '../../util/errors.js'
import {
  ascii,
  guid,
  type Place,
  type RecordOf,
  reserved,
  Struct,
  u8,
  u16,
  u32,
  u64,
  u64OrNone,
} from '../../util/struct.js'

export const FOOTER_BYTES = 512
/** Programs before Virtual PC 2004 left the last, reserved byte out. */
export const OLD_FOOTER_BYTES = 511

// Specification, "Hard Disk Footer Format"
export const FOOTER = new Struct('VHD footer', FOOTER_BYTES, 'big', {
  cookie: ascii(8),
  features: u32,
  fileFormatVersion: u32,
  dataOffset: u64OrNone,
  timeStamp: u32,
  creatorApplication: ascii(4),
  creatorVersion: u32,
  creatorHostOs: ascii(4),
  originalSize: u64,
  currentSize: u64,
  cylinders: u16,
  heads: u8,
  sectorsPerTrack: u8,
  diskType: u32,
  checksum: u32,
  uniqueId: guid('big'),
  savedState: u8,
  reserved: reserved(427),
})

export type Footer = RecordOf<typeof FOOTER>

export const FOOTER_COOKIE = 'conectix'
export const FOOTER_CHECKSUM = FOOTER.offsetOf('checksum')

/** "Disk Type" */
export const DiskType = { FIXED: 2, DYNAMIC: 3, DIFFERENCING: 4 } as const

/** "Features": the bit that is always set. */
export const FEATURE_RESERVED = 2
/** "File Format Version" and "Header Version" 1.0; only another major version is another format. */
export const VERSION_1_0 = 0x0001_0000

/** Time stamps count seconds from 2000-01-01 00:00:00 UTC. */
const EPOCH_2000_MS = Date.UTC(2000, 0, 1)

/** @param ms milliseconds since 1970 @returns a time stamp, within the field's range */
export function timeStampOf(ms: number): number {
  return Math.min(0xffff_ffff, Math.max(0, Math.floor((ms - EPOCH_2000_MS) / 1000)))
}

/** @returns milliseconds since 1970 */
export function timeOf(timeStamp: number): number {
  return EPOCH_2000_MS + 1000 * timeStamp
}

export function hex32(value: number): string {
  return `0x${value.toString(16).padStart(8, '0')}`
}

/** True where a footer, sound or not, begins at index `at`. */
export function looksLikeFooter(buffer: Uint8Array, at: number): boolean {
  if (at < 0 || at + FOOTER_COOKIE.length > buffer.length) return false
  for (let i = 0; i < FOOTER_COOKIE.length; i++) if (buffer[at + i] !== FOOTER_COOKIE.charCodeAt(i)) return false
  return true
}

/** What is wrong with a checksum, or undefined. */
export function checksumFault(buffer: Uint8Array, field: number): string | undefined {
  const found = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength).getUint32(field)
  const expected = onesComplementByteSum(buffer, field)
  return found === expected ? undefined : `checksum is ${hex32(found)}: expected ${hex32(expected)}`
}

/** What is wrong with the checksum of 512 bytes that look like a footer, or undefined. */
export function footerFault(buffer: Uint8Array): string | undefined {
  return checksumFault(buffer, FOOTER_CHECKSUM)
}

/**
 * The fields of a footer whose checksum is right.
 * @param buffer 512 bytes
 * @throws CORRUPT, UNSUPPORTED
 */
export function decodeFooter(buffer: Uint8Array, place: Place): Footer {
  const fault = footerFault(buffer)
  if (fault) throw new VdiskError('CORRUPT', `VHD footer: ${fault}`, place)
  const footer = FOOTER.read(buffer, 0, place)
  checkVersion('VHD footer: file format version', footer.fileFormatVersion, place)
  return footer
}

/** @throws UNSUPPORTED for another major version than 1 */
export function checkVersion(name: string, version: number, place: Place): void {
  if (version >>> 16 === VERSION_1_0 >>> 16) return
  throw new VdiskError('UNSUPPORTED', `${name} is ${hex32(version)}: expected ${hex32(VERSION_1_0)}`, place)
}

/** The bytes of a footer, its checksum made right. */
export function encodeFooter(footer: Footer): Uint8Array {
  const buffer = FOOTER.encode(footer)
  FOOTER.write({ ...footer, checksum: onesComplementByteSum(buffer, FOOTER_CHECKSUM) }, buffer)
  return buffer
}
