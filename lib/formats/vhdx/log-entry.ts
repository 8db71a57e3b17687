/** Making log entries. */

import { crc32c } from '../../util/checksum.js'
import { MiB } from '../../util/sizes.js'
import { DATA_DESCRIPTOR, DESCRIPTOR_BYTES, ENTRY_HEADER, LEADING, LOG_SECTOR, Signature, TRAILING } from './log.js'

/** Pages that one entry takes: with more, descriptors fill a second sector, and QEMU (7.2) fails to read those. */
export const PAGES_PER_ENTRY = Math.floor((LOG_SECTOR - ENTRY_HEADER.size) / DESCRIPTOR_BYTES)

const text = (word: number) => String.fromCharCode(word & 0xff, (word >> 8) & 0xff, (word >> 16) & 0xff, word >>> 24)
const ENTRY_SIGNATURE = text(Signature.ENTRY)
const DATA_DESCRIPTOR_SIGNATURE = text(Signature.DATA)

export interface NewEntry {
  /** Offset in the log of the first entry of the sequence. */
  readonly tail: number
  /** Above 0. */
  readonly sequence: number
  /** Of the log, as text. */
  readonly guid: string
  /** Bytes of the file, durably. */
  readonly fileSize: number
  /** End of all structures in the file. */
  readonly end: number
}

/**
 * Makes an entry in place. [MS-VHDX] 2.3.1
 * @param entry one sector, then the pages as they are to be in the file
 * @param offsets the file offsets of the pages, at most PAGES_PER_ENTRY
 */
export function encodeEntry(entry: Uint8Array, header: NewEntry, offsets: readonly number[]): void {
  const { tail, sequence, guid, fileSize, end } = header
  entry.fill(0, 0, LOG_SECTOR)
  const fields = {
    signature: ENTRY_SIGNATURE,
    checksum: 0,
    entryLength: entry.length,
    tail,
    sequenceNumber: BigInt(sequence),
    descriptorCount: offsets.length,
    reserved: 0,
    logGuid: guid,
    flushedFileOffset: BigInt(Math.floor(fileSize / MiB) * MiB),
    lastFileOffset: BigInt(Math.ceil(end / MiB) * MiB),
  }
  ENTRY_HEADER.write(fields, entry)
  offsets.forEach((fileOffset, i) => {
    const page = entry.subarray(LOG_SECTOR * (1 + i), LOG_SECTOR * (2 + i))
    const descriptor = {
      signature: DATA_DESCRIPTOR_SIGNATURE,
      trailingBytes: page.slice(LOG_SECTOR - TRAILING),
      leadingBytes: page.slice(0, LEADING),
      fileOffset,
      sequenceNumber: BigInt(sequence),
    }
    DATA_DESCRIPTOR.write(descriptor, entry, ENTRY_HEADER.size + i * DESCRIPTOR_BYTES)
    sealPage(page, sequence)
  })
  const view = new DataView(entry.buffer, entry.byteOffset, entry.length)
  view.setUint32(ENTRY_HEADER.offsetOf('checksum'), crc32c(entry), true)
}

/** Makes a page a data sector. [MS-VHDX] 2.3.1.4 */
function sealPage(page: Uint8Array, sequence: number): void {
  const view = new DataView(page.buffer, page.byteOffset, LOG_SECTOR)
  view.setUint32(0, Signature.SECTOR, true)
  view.setUint32(4, Math.floor(sequence / 2 ** 32), true)
  view.setUint32(LOG_SECTOR - TRAILING, sequence % 2 ** 32, true)
}
