/**
 * VHDs for tests, made of the bytes of real ones: what Windows 10 wrote, field by field, with what a test changes.
 * Checksums are made right again here, by the specification's few lines and not by the code under test.
 */

import { closeSync, existsSync, ftruncateSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'
import type { OpenContext } from '../../lib/formats/driver.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { attachLoop } from '../support/mounts.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

export function bytesOf(hex: string, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  bytes.set(Buffer.from(hex.replace(/\s/g, ''), 'hex'))
  return bytes
}

/** Footer of a dynamic disk of 10 MiB that Windows 10 made; what follows is zeros. */
export const WINDOWS_FOOTER = bytesOf(
  `636f6e6563746978 00000002 00010000 0000000000000200 260cf38f 77696e20
   000a0000 5769326b 0000000000a00000 0000000000a00000 012d 04 11 00000003
   ffffee6f 4b6a0d04f946d74e836fd3dc87e1816b 00`,
  512,
)

/** The same disk's dynamic disk header. */
export const WINDOWS_HEADER = bytesOf(
  '6378737061727365 ffffffffffffffff 0000000000000600 00010000 00000005 00200000 fffff472',
  1024,
)

/** Footer of a fixed disk of 10 MiB that Windows 10 made. */
export const WINDOWS_FIXED_FOOTER = bytesOf(
  `636f6e6563746978 00000002 00010000 ffffffffffffffff 260cf355 77696e20
   000a0000 5769326b 0000000000a00000 0000000000a00000 012d 04 11 00000002
   ffffe5f7 b895e4183894e7449a889a420be4e5ca 00`,
  512,
)

/** Footer of a dynamic disk that Virtual PC made: its geometry is the size. */
export const VIRTUAL_PC_FOOTER = bytesOf(
  `636f6e6563746978 00000002 00010000 0000000000000200 1e56f9c4 76706320
   00010000 5769326b 0000001fc0000000 0000001fc0000000 fefe 10 ff 00000003
   ffffec98 33ea001361914d02b93f88af84296f85 00`,
  512,
)

/** Footer of a dynamic disk that Disk2vhd made: the geometry is at its maximum. */
export const DISK2VHD_FOOTER = bytesOf(
  `636f6e6563746978 00000002 00010000 0000000000000200 1e61ed8f 64327600
   00010000 5769326b 000000000fb40000 000000000fb40000 ffff 10 ff 00000003
   ffffea55 e7b829fde66dba49ac196ebdab26cea3 00`,
  512,
)

/** Byte offsets, from the tables of the specification. */
export const FooterAt = {
  dataOffset: 16,
  creator: 28,
  currentSize: 48,
  geometry: 56,
  type: 60,
  checksum: 64,
  id: 68,
  savedState: 84,
  version: 12,
} as const
export const HeaderAt = {
  cookie: 0,
  table: 16,
  version: 24,
  entries: 28,
  blockSize: 32,
  checksum: 36,
  parentId: 40,
  parentTime: 56,
  name: 64,
  locators: 576,
} as const

/** Makes the checksum right: the one's complement of the sum of all other bytes. */
export function seal(bytes: Uint8Array, field: number): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  view.setUint32(field, 0)
  view.setUint32(field, ~bytes.reduce((sum, byte) => sum + byte, 0) >>> 0)
  return bytes
}

type Change = (view: DataView) => void

/** A copy with some fields changed and the checksum made right. */
export function changed(bytes: Uint8Array, field: number, change: Change): Uint8Array {
  const copy = bytes.slice()
  change(new DataView(copy.buffer))
  return seal(copy, field)
}

export const footerWith = (change: Change, footer = WINDOWS_FOOTER) => changed(footer, FooterAt.checksum, change)
export const headerWith = (change: Change) => changed(WINDOWS_HEADER, HeaderAt.checksum, change)

export interface Parts {
  readonly footer?: Uint8Array
  /** The copy at the beginning. */
  readonly copy?: Uint8Array
  readonly header?: Uint8Array
  readonly table?: readonly number[]
  /** Byte offset and bytes. */
  readonly more?: readonly (readonly [number, Uint8Array])[]
  /** Byte offset of the footer. */
  readonly end?: number
}

/** A dynamic disk of 10 MiB in 5 blocks, as Windows lays it out, with nothing allocated. */
export function dynamicImage(parts: Parts = {}): MemoryStorage {
  const { footer = WINDOWS_FOOTER, header = WINDOWS_HEADER, end = 0x2000 } = parts
  const storage = MemoryStorage.create({ path: 'test.vhd' })
  const put = (bytes: Uint8Array, offset: number) => storage.write(bytes, 0, bytes.length, offset)
  put(parts.copy ?? footer, 0)
  put(header, 512)
  const table = new Uint8Array(512).fill(0xff)
  parts.table?.forEach((entry, i) => {
    new DataView(table.buffer).setUint32(4 * i, entry)
  })
  put(table, 0x600)
  for (const [offset, bytes] of parts.more ?? []) put(bytes, offset)
  put(footer, end)
  return storage
}

/** XenServer's map of full blocks: what is said of it in blktap's include/vhd.h. */
export const BatmapAt = { offset: 8, sectors: 16, version: 20, checksum: 24, map: 512 } as const

/** What version 1.2 of the map has for a checksum: the one's complement of the sum of its bytes. */
export const batmapSum = (map: Uint8Array) => ~map.reduce((sum, byte) => sum + byte, 0) >>> 0

/** Puts a batmap behind the table of a new image, whose table is at 0x600 and one sector: locators follow it. */
export function withBatmap(file: Buffer, map: Uint8Array): Buffer {
  const at = 0x800
  const head = Buffer.from(file.subarray(0, at))
  for (let locator = 512 + HeaderAt.locators; locator < 512 + HeaderAt.locators + 8 * 24; locator += 24) {
    const offset = head.readBigUInt64BE(locator + 16)
    if (offset >= at) head.writeBigUInt64BE(offset + 1024n, locator + 16)
  }
  seal(head.subarray(512, 1536), HeaderAt.checksum)
  const batmap = Buffer.alloc(1024)
  batmap.write('tdbatmap')
  batmap.writeBigUInt64BE(BigInt(at + BatmapAt.map), BatmapAt.offset)
  batmap.writeUInt32BE(1, BatmapAt.sectors)
  batmap.writeUInt32BE(0x10002, BatmapAt.version)
  batmap.set(map, BatmapAt.map)
  batmap.writeUInt32BE(batmapSum(batmap.subarray(BatmapAt.map)), BatmapAt.checksum)
  return Buffer.concat([head, batmap, file.subarray(at)])
}

/** The map of an image of `withBatmap`, in hexadecimal without the zeros at its end, where its checksum is right. */
export function batmapOf(file: Uint8Array): string {
  const batmap = Buffer.from(file.subarray(0x800, 0xc00))
  const map = batmap.subarray(BatmapAt.map)
  const right = batmap.readUInt32BE(BatmapAt.checksum) === batmapSum(map)
  return right ? map.toString('hex').replace(/(00)+$/, '') : 'wrong checksum'
}

/** A loop device of so many bytes that holds an image, whose footer is at its end as programs for such images have it. */
export function deviceWith(t: TestCase, image: Uint8Array, size: number): string {
  const file = join(temporaryFolder(t), 'device')
  const bytes = Buffer.alloc(size)
  bytes.set(image.subarray(0, -512))
  bytes.set(image.subarray(-512), size - 512)
  writeFileSync(file, bytes)
  return attachLoop(t, file)
}

/**
 * A disk of 4 blocks of 4 KiB and 2048 bytes, of which the first holds 0x10 and the last 0x14; and what it holds. The
 * last block is in the file as far as the disk has it: the footer, behind so many bytes of rubbish, lies where the block
 * would end.
 */
export function shortImage(rubbish = 0): { storage: MemoryStorage; disk: Buffer } {
  const [start, end] = [0x800, 0x800 + 4608 + 512 + 2048]
  const disk = Buffer.alloc(4 * 4096 + 2048)
  disk.fill(0x10, 0, 4096).fill(0x14, 4 * 4096)
  const storage = dynamicImage({
    footer: footerWith((view) => view.setBigUint64(FooterAt.currentSize, BigInt(disk.length))),
    header: headerWith((view) => view.setUint32(HeaderAt.blockSize, 4096)),
    table: [start / 512, 0xffffffff, 0xffffffff, 0xffffffff, (start + 4608) / 512],
    more: [
      [start, new Uint8Array(4608).fill(0x10).fill(0xff, 0, 512)],
      [start + 4608, new Uint8Array(2560).fill(0x14).fill(0xff, 0, 512)],
      [end, new Uint8Array(rubbish).fill(0xee)],
    ],
    end: end + rubbish,
  })
  return { storage, disk }
}

/** What `Format.open` gets; warnings are collected. */
export function contextOf(storage: MemoryStorage, readOnly = true): OpenContext & { warnings: string[] } {
  const warnings: string[] = []
  return {
    storage,
    path: `/images/${storage.path}`,
    readOnly,
    warnings,
    warn: (message) => void warnings.push(message),
  }
}

export const CORPUS = fileURLToPath(new URL('../../../../shared/corpus', import.meta.url))

/** Tests of images that other programs wrote: skipped visibly where there are none. */
export const needsCorpus = existsSync(CORPUS) ? {} : { skip: 'needs ../shared/corpus' }

export interface CorpusImage {
  readonly path: string
  readonly virtualSize: number
  readonly contentSha256: string | null
}

/** Unpacks an image of the corpus, such as `vhd/dynamic.vhd`, sparsely, into a temporary folder. */
export function corpusImage(t: TestCase, name: string): CorpusImage {
  const manifest = JSON.parse(readFileSync(join(CORPUS, 'manifest.json'), 'utf8')) as (CorpusImage & { file: string })[]
  const entry = manifest.find(({ file }) => file === `${name}.gz`)!
  const path = join(temporaryFolder(t), basename(name))
  writeSparsely(path, gunzipSync(readFileSync(join(CORPUS, `${name}.gz`)), { maxOutputLength: 2 ** 30 }))
  return { ...entry, path }
}

const PIECE = 65536

function writeSparsely(path: string, content: Buffer): void {
  const fd = openSync(path, 'wx')
  try {
    ftruncateSync(fd, content.length)
    const zeros = Buffer.alloc(PIECE)
    for (let at = 0; at < content.length; at += PIECE) {
      const piece = content.subarray(at, at + PIECE)
      if (zeros.compare(piece, 0, piece.length, 0, piece.length) !== 0) writeSync(fd, piece, 0, piece.length, at)
    }
  } finally {
    closeSync(fd)
  }
}
