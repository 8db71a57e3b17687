/** The checksums of on-disk structures, over bytes in place. */

/**
 * The checksum of VHD footers and headers: the one's complement of the sum of all bytes, with the four bytes of the
 * checksum field itself, at `field`, counted as zeros. (Microsoft VHD Image Format Specification, "Checksum".)
 * @param bytes the whole structure and nothing else.
 * @returns an unsigned 32-bit number.
 */
export function onesComplementByteSum(bytes: Uint8Array, field: number): number {
  let sum = 0
  for (let i = 0; i < bytes.length; i++) sum += bytes[i]!
  for (let i = field; i < field + 4; i++) sum -= bytes[i]!
  return ~sum >>> 0
}

/** The Castagnoli polynomial, bits reversed. */
const CRC32C_POLYNOMIAL = 0x82f63b78
const SLICES = 8
/** SLICES tables of 256 entries: entry n of table k is the CRC of byte n with k zero bytes behind it. */
let crcTables: Int32Array | undefined

function makeCrcTables(): Int32Array {
  const tables = new Int32Array(SLICES * 256)
  for (let n = 0; n < 256; n++) {
    let crc = n
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? CRC32C_POLYNOMIAL : 0)
    tables[n] = crc
  }
  for (let i = 256; i < tables.length; i++) {
    const before = tables[i - 256]!
    tables[i] = tables[before & 0xff]! ^ (before >>> 8)
  }
  return tables
}

/**
 * CRC-32C (Castagnoli) of `bytes[start, end)`, as RFC 3720 12.1 and [MS-VHDX] have it.
 * @param previous the CRC of what comes before, to go on from there.
 * @returns an unsigned 32-bit number.
 */
export function crc32c(bytes: Uint8Array, start = 0, end = bytes.length, previous = 0): number {
  crcTables ??= makeCrcTables()
  const t = crcTables
  let crc = ~previous
  let i = start
  for (; i + SLICES <= end; i += SLICES) {
    crc ^= bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24)
    crc =
      t[0x700 + (crc & 0xff)]! ^
      t[0x600 + ((crc >>> 8) & 0xff)]! ^
      t[0x500 + ((crc >>> 16) & 0xff)]! ^
      t[0x400 + (crc >>> 24)]! ^
      t[0x300 + bytes[i + 4]!]! ^
      t[0x200 + bytes[i + 5]!]! ^
      t[0x100 + bytes[i + 6]!]! ^
      t[bytes[i + 7]!]!
  }
  for (; i < end; i++) crc = t[(crc ^ bytes[i]!) & 0xff]! ^ (crc >>> 8)
  return ~crc >>> 0
}

const FOUR_ZEROS = new Uint8Array(4)

/** CRC-32C of a whole structure whose own four checksum bytes, at `field`, count as zeros. */
export function crc32cWithoutField(bytes: Uint8Array, field: number): number {
  const before = crc32c(bytes, 0, field)
  const zeros = crc32c(FOUR_ZEROS, 0, 4, before)
  return crc32c(bytes, field + 4, bytes.length, zeros)
}
