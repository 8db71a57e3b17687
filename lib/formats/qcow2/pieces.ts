/** Tables of 64-bit entries as they lie in the file, for the tools that work without the cache; halves as in `entries.ts`. */

import type { Storage } from '../../storage/storage.js'

/** Read at a time. */
const PIECE = 1 << 16

/** All 64 bits as messages show them. */
export function hexOf(high: number, low: number): string {
  return `0x${((BigInt(high >>> 0) << 32n) | BigInt(low >>> 0)).toString(16)}`
}

export function entryBytes(high: number, low: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeUInt32BE(high >>> 0, 0)
  bytes.writeUInt32BE(low >>> 0, 4)
  return bytes
}

/**
 * The pieces of a table that the file has; holes, which hold no entries, are left out. A piece is used again for the next.
 * @param entrySize bytes; no entry is cut
 */
export function* pieces(
  storage: Storage,
  offset: number,
  length: number,
  entrySize = 8,
): Generator<{ readonly at: number; readonly bytes: Buffer }> {
  const buffer = Buffer.alloc(Math.min(PIECE, length))
  const end = offset + length
  for (let at = offset; at < end; ) {
    const data = storage.nextData(at)
    if (data >= end) return
    if (data - at >= entrySize) at += Math.floor((data - at) / entrySize) * entrySize
    const bytes = buffer.subarray(0, Math.min(buffer.length, end - at))
    bytes.fill(0, storage.read(bytes, 0, bytes.length, at))
    yield { at, bytes }
    at += bytes.length
  }
}

/** Calls back for every entry that is not 0, of tables of 8-byte entries. */
export function eachEntry(
  storage: Storage,
  offset: number,
  entries: number,
  visit: (index: number, high: number, low: number) => void,
): void {
  for (const { at, bytes } of pieces(storage, offset, entries * 8)) {
    const first = (at - offset) / 8
    for (let i = 0; i * 8 < bytes.length; i++) {
      const high = bytes.readUInt32BE(i * 8)
      const low = bytes.readUInt32BE(i * 8 + 4)
      if (high !== 0 || low !== 0) visit(first + i, high, low)
    }
  }
}
