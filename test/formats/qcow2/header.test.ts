/** Headers against literal bytes: as the specification lays them out. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  compressedHigh,
  compressedLength,
  compressedOffset,
  hostOffset,
  isCompressed,
  isCopied,
} from '../../../lib/formats/qcow2/entries.js'
import { bitmapsExtension, ExtensionType, extensionText } from '../../../lib/formats/qcow2/extensions.js'
import { compressionType, encodeHeader, type Header, readHeader } from '../../../lib/formats/qcow2/header.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'

const bytesOf = (hex: string) => Buffer.from(hex.replaceAll(/[^0-9a-f]/g, ''), 'hex')

/** A disk of 1 MiB, clusters of 64 KiB, over `base`. */
const V2 = bytesOf(`
  514649fb 00000002 0000000000000060 00000004 00000010 0000000000100000
  00000000 00000001 0000000000030000 0000000000010000 00000001 00000002 0000000000050000
  e2792aca 00000003 7261770000000000
  00000000 00000000
  62617365
`)

/** A disk of 8 GiB with subclusters and zstd, 64-bit refcounts, lazy ones, and extensions of which one is unknown. */
const V3 = bytesOf(`
  514649fb 00000003 0000000000000000 00000000 00000011 0000000200000000
  00000002 00000002 0000000000060000 0000000000020000 00000001 00000000 0000000000000000
  0000000000000018 0000000000000001 8000000000000001 00000006 00000070
  01 00000000000000
  23852875 00000018 00000002 00000000 0000000000000040 0000000000080000
  12345678 00000005 0102030405 ffffff
  44415441 00000008 646174612e62696e
  00000000 00000000
`)

function storageOf(bytes: Uint8Array): MemoryStorage {
  const contents = new Uint8Array(65536)
  contents.set(bytes)
  return MemoryStorage.create({ contents, path: 'x.qcow2' })
}

t.test('a length that only version 2 has', async (t) => {
  const bytes = Buffer.from(V3)
  bytes.writeUInt32BE(72, 100)
  t.throws(() => readHeader(storageOf(bytes)), { code: 'CORRUPT', message: /header_length is 72: expected a multiple/ })
})

t.test('version 2', async (t) => {
  const header = readHeader(storageOf(V2))
  t.match(header, {
    version: 2,
    clusterBits: 16,
    size: 1048576,
    cryptMethod: 0,
    l1Size: 1,
    l1TableOffset: 0x30000,
    refcountTableOffset: 0x10000,
    refcountTableClusters: 1,
    nbSnapshots: 2,
    snapshotsOffset: 0x50000,
    incompatible: [],
    compatible: [],
    autoclear: [],
    refcountOrder: 4,
  })
  t.equal(Buffer.from(header.backingName!).toString(), 'base')
  t.equal(extensionText(header.extensions, ExtensionType.BACKING_FORMAT), 'raw')
  t.ok(V2.equals(encodeHeader(header, 'x')), 'is written as it was')
})

t.test('version 3', async (t) => {
  const header = readHeader(storageOf(V3))
  t.match(header, { version: 3, clusterBits: 17, size: 8 * 2 ** 30, cryptMethod: 2, l1Size: 2, refcountOrder: 6 })
  t.same(header.incompatible, [3, 4])
  t.same(header.compatible, [0])
  t.same(header.autoclear, [0, 63])
  t.equal(compressionType(header), 1)
  t.equal(header.backingName, undefined)
  t.same(bitmapsExtension(header.extensions, 'x'), {
    nbBitmaps: 2,
    bitmapDirectorySize: 64,
    bitmapDirectoryOffset: 0x80000,
  })
  t.equal(extensionText(header.extensions, ExtensionType.DATA_FILE), 'data.bin')
  const unknown = header.extensions.find(({ type }) => type === 0x12345678)
  t.same(unknown && [...unknown.data], [1, 2, 3, 4, 5], 'what is not known is kept, without its padding')
  const again = Buffer.from(encodeHeader(header, 'x'))
  t.ok(again.subarray(0, 112).equals(V3.subarray(0, 112)))
  t.same(readHeader(storageOf(again)), header)
})

t.test('a longer header, of which a part is not known', async (t) => {
  const longer = Buffer.concat([V3.subarray(0, 112), bytesOf('0102030405060708'), V3.subarray(112)])
  longer.writeUInt32BE(120, 100)
  const header = readHeader(storageOf(longer))
  t.equal(header.additional.length, 16)
  t.equal(header.extensions.length, 3)
  t.same([...encodeHeader(header, 'x').subarray(104, 120)], [1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
})

t.test('what cannot be', async (t) => {
  const cases: [string, number, string, string, RegExp][] = [
    ['another magic', 0, '00', 'FORMAT', /does not begin with/],
    ['version 1', 4, '00000001', 'UNSUPPORTED', /version 1.*2 or 3/],
    ['version 4', 4, '00000004', 'UNSUPPORTED', /version 4/],
    ['clusters of 256 bytes', 20, '00000008', 'CORRUPT', /cluster_bits is 8: expected 9 to 21/],
    ['clusters of 4 MiB', 20, '00000016', 'CORRUPT', /cluster_bits is 22/],
    ['128-bit refcounts', 96, '00000007', 'CORRUPT', /refcount_order is 7/],
    ['a short header', 100, '00000060', 'CORRUPT', /header_length is 96/],
    ['no multiple of 8', 100, '0000006a', 'CORRUPT', /header_length is 106/],
    ['a header of a cluster and more', 100, '00020008', 'CORRUPT', /the header has 131080 bytes/],
    ['a disk of 2^63 bytes', 24, '8000000000000000', 'CORRUPT', /size is 0x8000000000000000/],
    ['an extension without end', 116, '0fffffff', 'CORRUPT', /0x23852875 has 268435455 bytes/],
    ['a backing name in front', 8, '0000000000000010 00000004', 'CORRUPT', /bytes 16 to 20/],
    ['a backing name of 1 KiB', 8, '0000000000001000 00000400', 'CORRUPT', /at most 1023 bytes/],
  ]
  for (const [what, offset, hex, code, message] of cases) {
    const changed = Buffer.from(V3)
    changed.set(bytesOf(hex), offset)
    t.throws(() => readHeader(storageOf(changed)), { code, message, path: 'x.qcow2' }, what)
  }
  const short = MemoryStorage.create({ contents: V3.subarray(0, 100) })
  t.throws(() => readHeader(short), { code: 'CORRUPT', message: /ends inside of the header, at byte 100/ })
  t.throws(() => readHeader(MemoryStorage.create()), { code: 'FORMAT' })
})

t.test('a header that does not fit', async (t) => {
  const header: Header = { ...readHeader(storageOf(V2)), clusterBits: 9, backingName: new Uint8Array(500) }
  t.throws(() => encodeHeader(header, 'x'), { code: 'USAGE', message: /takes 596 bytes, and a cluster has 512/ })
})

t.test('headers of qemu-img are written as they were', async (t) => {
  const folder = temporaryFolder(t)
  for (const [options, more] of [
    ['compat=0.10', []],
    ['lazy_refcounts=on,refcount_bits=64', []],
    ['extended_l2=on,compression_type=zstd', ['-b', 'base', '-F', 'raw', '-u']],
  ] as const) {
    const path = join(folder, 'i.qcow2')
    must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, ...more, path, '10M'])
    const theirs = readFileSync(path)
    const header = readHeader(MemoryStorage.create({ contents: theirs, maxSize: 2 ** 24 }))
    const ours = encodeHeader(header, path)
    t.ok(theirs.subarray(0, ours.length).equals(ours), options)
  }
})

t.test('entries', async (t) => {
  // Copied, at 0x123456780000.
  t.equal(hostOffset(0x80001234, 0x56780000), 0x1234_5678_0000)
  t.equal(hostOffset(0xff001234, 0x567801ff), 0x1234_5678_0000, 'other bits do not count')
  t.ok(isCopied(0x80001234))
  t.notOk(isCopied(0x40001234))
  t.ok(isCompressed(0x40001234))
  // 64 KiB clusters: 54 bits of offset, 8 of sectors; 2 further sectors, at 0x12345.
  t.equal(compressedOffset(0x40800000, 0x12345, 16), 0x12345)
  t.equal(compressedLength(0x40800000, 0x12345, 16), 3 * 512 - 0x145)
  // 512-byte clusters: 61 bits of offset, 1 of sectors.
  t.equal(compressedOffset(0x60000001, 0xfffffff0, 9), 2 ** 32 + 0xfffffff0)
  t.equal(compressedLength(0x60000001, 0xfffffff0, 9), 2 * 512 - 0x1f0)
  // 2 MiB clusters: 49 bits of offset, 13 of sectors.
  t.equal(compressedOffset(0x7fffffff, 0xffffffff, 21), 2 ** 49 - 1)
  t.equal(compressedLength(0x7fffffff, 0xfffffe00, 21), 8192 * 512)
  t.equal(compressedHigh(0x12345, 2, 16), 0x40800000)
})
