/**
 * VHDX files for tests, made of the bytes of a real one: what Windows 10 wrote, field by field, with what a test changes.
 * Checksums are made right again here, and log entries are put together here, at the offsets of the specification's
 * tables and not by the code under test.
 */

import type { OpenContext } from '../../../lib/formats/driver.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import type { Storage, StorageHandle } from '../../../lib/storage/storage.js'
import { crc32c } from '../../../lib/util/checksum.js'

export const MiB = 2 ** 20

export function hex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text.replace(/\s/g, ''), 'hex'))
}

export function bytesOf(text: string, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  bytes.set(hex(text))
  return bytes
}

/** The current header of a disk of 1 GiB that Windows 10 made; what follows is zeros. */
export const WINDOWS_HEADER = bytesOf(
  `68656164 f0a3f8a9 1300000000000000
   91b84337e05c994c825b3572b8b649f5 4f7af1f8ccf9034386e850f9cf42c339 00000000000000000000000000000000
   0000 0100 00001000 0000100000000000`,
  4096,
)
/** Its other header. */
export const WINDOWS_OLD_HEADER = bytesOf(
  `68656164 873f002b 1200000000000000
   91b84337e05c994c825b3572b8b649f5 4f7af1f8ccf9034386e850f9cf42c339 00000000000000000000000000000000
   0000 0100 00001000 0000100000000000`,
  4096,
)
/** Its region table: block allocation table at 3 MiB, metadata at 2 MiB. */
export const WINDOWS_REGIONS = bytesOf(
  `72656769 ae8c6bc6 02000000 00000000
   6677c22d23f600429d64115e9bfd4a08 0000300000000000 00001000 01000000
   06a27c8b90479a4bb8fe575f050f886e 0000200000000000 00001000 01000000`,
  65536,
)
/** Its metadata table: five items. */
export const WINDOWS_METADATA = bytesOf(
  `6d65746164617461 0000 0500 0000000000000000000000000000000000000000
   3767a1ca36fa434db3b633f0aa44e76b 00000100 08000000 04000000 00000000
   2442a52f1bcd7648b2115dbed83bf4b8 08000100 08000000 06000000 00000000
   1dbf41816fa90947ba47f233a8faab5f 10000100 04000000 06000000 00000000
   c748a3cd5d4471449cc9e9885251c556 14000100 04000000 06000000 00000000
   ab12cabee6b2234593efc309e000c746 18000100 10000000 06000000 00000000`,
  65536,
)
/** The items: blocks of 32 MiB, 1 GiB, logical sectors of 512 and physical ones of 4096 bytes, the disk's id. */
export const WINDOWS_ITEMS = hex('0000000200000000 0000004000000000 00020000 00100000 634f8dd36a597e46b103506dab1b3208')

export const At = {
  header1: 65536,
  header2: 131072,
  regions1: 196608,
  regions2: 262144,
  log: MiB,
  metadata: 2 * MiB,
  items: 2 * MiB + 65536,
  bat: 3 * MiB,
} as const

/** Byte offsets in a header. [MS-VHDX] 2.2.2 */
export const HeaderAt = { sequence: 8, fileWriteGuid: 16, dataWriteGuid: 32, logGuid: 48, logVersion: 64, version: 66 }

export function put(target: Uint8Array, at: number, bytes: Uint8Array): Uint8Array {
  target.set(bytes, at)
  return target
}

export function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer)
}

export function u64(value: number | bigint): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer)
}

/** The structure with the checksum at byte 4 made right. */
export function sealed(structure: Uint8Array): Uint8Array {
  const copy = structure.slice()
  copy.fill(0, 4, 8)
  return put(copy, 4, u32(crc32c(copy)))
}

/** A header with some bytes changed, and its checksum right. */
export function header(changes: readonly (readonly [at: number, bytes: Uint8Array])[], base = WINDOWS_HEADER) {
  const copy = base.slice()
  for (const [at, bytes] of changes) copy.set(bytes, at)
  return sealed(copy)
}

/** What a test puts into the image instead of what Windows wrote. */
export interface Parts {
  readonly header1?: Uint8Array
  readonly header2?: Uint8Array
  readonly regions1?: Uint8Array
  readonly regions2?: Uint8Array
  readonly metadata?: Uint8Array
  readonly items?: Uint8Array
  /** Entries of the block allocation table from the first on. */
  readonly bat?: readonly (number | bigint)[]
  /** Bytes of the log, from its beginning. */
  readonly log?: readonly (readonly [at: number, bytes: Uint8Array])[]
  /** Bytes of the file; 4 MiB where it is not given. */
  readonly size?: number
}

/** The image of Windows, in memory. */
export function windowsImage(parts: Parts = {}): MemoryStorage {
  const storage = MemoryStorage.create({ path: 'test.vhdx' })
  storage.truncate(parts.size ?? 4 * MiB)
  const write = (at: number, bytes: Uint8Array) => storage.write(bytes, 0, bytes.length, at)
  write(0, new Uint8Array(Buffer.from('vhdxfile')))
  write(8, new Uint8Array(Buffer.from('Microsoft Windows 10.0.15063.0', 'utf16le')))
  write(At.header1, parts.header1 ?? WINDOWS_OLD_HEADER)
  write(At.header2, parts.header2 ?? WINDOWS_HEADER)
  write(At.regions1, parts.regions1 ?? WINDOWS_REGIONS)
  write(At.regions2, parts.regions2 ?? WINDOWS_REGIONS)
  write(At.metadata, parts.metadata ?? WINDOWS_METADATA)
  write(At.items, parts.items ?? WINDOWS_ITEMS)
  parts.bat?.forEach((entry, i) => {
    write(At.bat + 8 * i, u64(entry))
  })
  for (const [at, bytes] of parts.log ?? [])
    for (let done = 0; done < bytes.length; done += 4096)
      write(At.log + ((at + done) % MiB), bytes.subarray(done, done + 4096))
  return storage
}

/** A block allocation table's entry. */
export const entry = (state: number, mib: number) => BigInt(state) | (BigInt(mib) << 20n)

/** A page that a log entry writes, or a range that it zeroes. */
export type LoggedChange = readonly [offset: number, page: Uint8Array] | readonly [offset: number, zeros: number]

export interface EntryParts {
  readonly sequence: bigint
  /** 16 bytes. */
  readonly guid: Uint8Array
  readonly tail: number
  readonly flushed?: number
  readonly last?: number
  readonly changes?: readonly LoggedChange[]
}

/** The bytes of a log entry. [MS-VHDX] 2.3.1 */
export function logEntry({ sequence, guid, tail, flushed = 4 * MiB, last = 4 * MiB, changes = [] }: EntryParts) {
  const sectors = Math.ceil((64 + 32 * changes.length) / 4096)
  const pages = changes.filter(([, what]) => typeof what !== 'number').length
  const bytes = new Uint8Array(4096 * (sectors + pages))
  put(bytes, 0, new Uint8Array(Buffer.from('loge')))
  put(bytes, 8, u32(bytes.length))
  put(bytes, 12, u32(tail))
  put(bytes, 16, u64(sequence))
  put(bytes, 24, u32(changes.length))
  put(bytes, 32, guid)
  put(bytes, 48, u64(flushed))
  put(bytes, 56, u64(last))
  let data = 4096 * sectors
  changes.forEach(([offset, what], i) => {
    const at = 64 + 32 * i
    put(bytes, at + 16, u64(offset))
    put(bytes, at + 24, u64(sequence))
    if (typeof what === 'number') {
      put(bytes, at, new Uint8Array(Buffer.from('zero')))
      put(bytes, at + 8, u64(what))
      return
    }
    put(bytes, at, new Uint8Array(Buffer.from('desc')))
    put(bytes, at + 4, what.subarray(4092))
    put(bytes, at + 8, what.subarray(0, 8))
    put(bytes, data, what)
    put(bytes, data, new Uint8Array(Buffer.from('data')))
    put(bytes, data + 4, u32(Number(sequence >> 32n)))
    put(bytes, data + 4092, u32(Number(sequence & 0xffff_ffffn)))
    data += 4096
  })
  return sealed(bytes)
}

/** What a format is opened with. */
export function contextOf(storage: Storage, readOnly = true, warnings: string[] = []): OpenContext {
  return { storage, path: `/images/${storage.path}`, readOnly, warn: (message) => warnings.push(message) }
}

export function viewOf(storage: MemoryStorage): MemoryStorage {
  return MemoryStorage.attach(storage.handle() as StorageHandle & { kind: 'memory' })
}

export function bytesAt(storage: Storage, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  storage.read(bytes, 0, length, offset)
  return bytes
}

export function u64At(storage: Storage, offset: number): bigint {
  return new DataView(bytesAt(storage, offset, 8).buffer).getBigUint64(0, true)
}
