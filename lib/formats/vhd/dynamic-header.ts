/** The dynamic disk header: where the block allocation table is, how large blocks are, which image is the parent. */

import { onesComplementByteSum } from '../../util/checksum.js'
import { VdiskError } from '../../util/errors.js'
import {
  array,
  ascii,
  bytes,
  guid,
  type Place,
  type RecordOf,
  reserved,
  Struct,
  u32,
  u64,
  u64OrNone,
} from '../../util/struct.js'
import { checksumFault, checkVersion } from './footer.js'
import { SECTOR } from './geometry.js'

export const HEADER_BYTES = 1024
export const LOCATORS = 8

// Specification, "Parent Locator Entries"
export const LOCATOR = new Struct('parent locator', 24, 'big', {
  platformCode: ascii(4),
  platformDataSpace: u32,
  platformDataLength: u32,
  reserved: u32,
  platformDataOffset: u64,
})

// Specification, "Dynamic Disk Header Format"
export const HEADER = new Struct('VHD dynamic disk header', HEADER_BYTES, 'big', {
  cookie: ascii(8),
  dataOffset: u64OrNone,
  tableOffset: u64,
  headerVersion: u32,
  maxTableEntries: u32,
  blockSize: u32,
  checksum: u32,
  parentUniqueId: guid('big'),
  parentTimeStamp: u32,
  reserved: u32,
  parentUnicodeName: bytes(512),
  parentLocators: array(LOCATORS, LOCATOR),
  reserved2: reserved(256),
})

export type DynamicHeader = RecordOf<typeof HEADER>
export type Locator = RecordOf<typeof LOCATOR>

export const HEADER_COOKIE = 'cxsparse'
export const HEADER_CHECKSUM = HEADER.offsetOf('checksum')
const ENTRY_BYTES = 4

/** The numbers of an image that the header's fields are held against. */
export interface HeaderLimits {
  /** Bytes of the disk. */
  readonly diskSize: number
  /** Byte offset at which the footer begins, or the file ends where it has none. */
  readonly end: number
}

/**
 * The fields of a header, every one checked that is used before the parent is looked for.
 * @param buffer 1024 bytes
 * @throws CORRUPT, UNSUPPORTED
 */
export function decodeHeader(buffer: Uint8Array, limits: HeaderLimits, place: Place): DynamicHeader {
  const cookie = String.fromCharCode(...buffer.subarray(0, HEADER_COOKIE.length))
  if (cookie !== HEADER_COOKIE) {
    const found = JSON.stringify(cookie)
    throw new VdiskError('CORRUPT', `VHD dynamic disk header: cookie is ${found}: expected "${HEADER_COOKIE}"`, place)
  }
  const header = HEADER.read(buffer, 0, place)
  checkVersion('VHD dynamic disk header: version', header.headerVersion, place)
  const faults = [checksumFault(buffer, HEADER_CHECKSUM), headerFault(header, limits)].filter((fault) => fault)
  if (faults.length === 0) return header
  throw new VdiskError('CORRUPT', `VHD dynamic disk header: ${faults.join('; ')}`, place)
}

function headerFault(header: DynamicHeader, { diskSize, end }: HeaderLimits): string | undefined {
  const { blockSize, maxTableEntries, tableOffset } = header
  if (blockSize < SECTOR || (blockSize & (blockSize - 1)) !== 0)
    return `block size is ${blockSize}: expected a power of two of at least ${SECTOR}`
  const needed = Math.ceil(diskSize / blockSize)
  if (maxTableEntries < needed)
    return `Max Table Entries is ${maxTableEntries}: expected at least ${needed} for ${diskSize} bytes in blocks of ${blockSize}`
  if (tableOffset % SECTOR !== 0) return `Table Offset is ${tableOffset}: expected a multiple of ${SECTOR}`
  const tableEnd = tableOffset + maxTableEntries * ENTRY_BYTES
  if (tableOffset < SECTOR || tableEnd > end)
    return `Max Table Entries is ${maxTableEntries} at Table Offset ${tableOffset}: the table would end at byte ${tableEnd}, and there is room up to ${end}`
  return undefined
}

/** The bytes of a header, its checksum made right. */
export function encodeHeader(header: DynamicHeader): Uint8Array {
  const buffer = HEADER.encode(header)
  HEADER.write({ ...header, checksum: onesComplementByteSum(buffer, HEADER_CHECKSUM) }, buffer)
  return buffer
}
