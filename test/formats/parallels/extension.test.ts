/** The format extension: a real one, and what is wrong with broken ones. */

import { createHash } from 'node:crypto'
import t from 'tap'
import {
  encodeExtension,
  type Feature,
  forbidding,
  isOpaque,
  keptFeatures,
  l1Places,
  parseExtension,
} from '../../../lib/formats/parallels/extension.js'
import type { Geometry } from '../../../lib/formats/parallels/header.js'
import { BITMAP, bitmapData, extensionBytes, type FeatureParts } from './bytes.js'

/** The extension that Virtuozzo wrote, without the zeros that fill its cluster of 1 MiB. */
const VIRTUOZZO = Buffer.from(
  '87eadc23ef4c23ab7a52d838bc32657367b4f6b0e761f7ba4ab32c25ae5f38200000000000000000' +
    '28000000000000000000000800000000e4f2eed037fe4539b50b85d2e7fd235f80000000010000000008000000000000',
  'hex',
)
const ID = 'e4f2eed0-37fe-4539-b50b-85d2e7fd235f'
const MiB = 1048576
const geometry: Geometry = {
  size: 68719476736,
  clusterSize: MiB,
  entries: 65536,
  unit: MiB,
  batEnd: 64 + 4 * 65536,
  dataStart: MiB,
}
const FILE = 3 * MiB

const real = () => Buffer.concat([VIRTUOZZO], MiB)

const featuresOf = (bytes: Uint8Array, of = geometry, file = FILE): readonly Feature[] => {
  const loaded = parseExtension(bytes, of, file)
  if ('error' in loaded) throw new Error(loaded.error)
  return loaded.extension.features
}

t.test('a real extension is read', async (t) => {
  const [feature, ...more] = featuresOf(real())
  t.same(more, [])
  t.same(feature!.bitmap, { id: ID, granularity: 65536, l1: [MiB] })
  t.equal(feature!.flags, 0)
})

t.test('and written again with the same bytes', async (t) => {
  t.same(Buffer.from(encodeExtension(featuresOf(real()), MiB)!), real())
  t.same(l1Places(featuresOf(real())).tables, [80])
})

t.test('every byte behind the sum is summed', async (t) => {
  for (const at of [24, 48, MiB - 1]) {
    const bytes = real()
    bytes[at]! ^= 1
    t.match(parseExtension(bytes, geometry, FILE), { error: /its MD5 is 7a52d838bc32657367b4f6b0e761f7ba, expected/ })
  }
  const bytes = real()
  bytes[0] = 0
  t.match(parseExtension(bytes, geometry, FILE), { error: /magic is 00eadc23ef4c23ab, expected 87eadc23ef4c23ab/ })
})

t.test('features of all flags: which are kept, which forbid writing', async (t) => {
  const unknown = (flags: number): FeatureParts => ({ magic: 0x1122334455667788n, flags, data: Buffer.from('abc') })
  const bitmap = (size: number, flags = 0): FeatureParts => ({
    magic: BITMAP,
    flags,
    data: bitmapData(size, ID, 128, [1]),
  })
  const sectors = geometry.size / 512
  const of = (...features: FeatureParts[]) => featuresOf(extensionBytes(MiB, features))
  const kept = (...features: FeatureParts[]) => keptFeatures(of(...features)).length
  t.equal(kept(unknown(0)), 0, 'neither: dropped')
  t.equal(kept(unknown(2)), 1, 'transit: kept')
  t.equal(kept(unknown(1)), 1)
  t.equal(kept(bitmap(sectors)), 1)
  t.equal(kept(bitmap(sectors - 1)), 0, 'a bitmap that does not load is dropped')
  t.equal(kept(bitmap(sectors - 1, 2)), 0, 'whatever transit says: it is not unknown')
  t.equal(forbidding(of(unknown(2))), undefined)
  t.equal(forbidding(of(unknown(2), unknown(1)))?.flags, 1)
  t.equal(forbidding(of(bitmap(sectors, 1))), undefined, 'necessary and understood')
  t.equal(
    forbidding(of(bitmap(sectors - 1, 1)))?.error,
    `the bitmap is for 134217727 sectors, expected 134217728, the disk's size`,
  )
  t.ok(isOpaque(of(unknown(2))))
  t.notOk(isOpaque(of(unknown(0), bitmap(sectors))))
  t.same(
    of(unknown(2), bitmap(sectors)).map(({ magic }) => magic),
    ['8877665544332211', '4ab32c25ae5f3820'],
  )
  const two = extensionBytes(MiB, [unknown(2), bitmap(sectors)])
  t.same(Buffer.from(encodeExtension(of(unknown(2), bitmap(sectors)), MiB)!), two, 'data that is no multiple of 8')
})

t.test('bitmaps that cannot be', async (t) => {
  const sectors = geometry.size / 512
  const error = (data: Buffer) => featuresOf(extensionBytes(MiB, [{ magic: BITMAP, data }]))[0]!.error
  t.match(error(bitmapData(sectors, ID, 100, [0])), /granularity is 100 sectors, expected a power of two/)
  t.match(error(bitmapData(sectors, ID, 128, [0, 0])), /L1 table has 2 entries, expected 1/)
  t.match(error(bitmapData(sectors, ID, 128, [2049])), /L1 entry 0, byte 1049088, is not that of a cluster/)
  t.match(error(bitmapData(sectors, ID, 128, [2])), /byte 1024, is in front of the data area/)
  t.match(error(bitmapData(sectors, ID, 128, [6144])), /byte 3145728, is behind the file's end/)
  t.match(error(bitmapData(sectors, ID, 128, [0]).subarray(0, 36)), /cut off/)
  t.match(error(bitmapData(sectors, ID, 128, []).subarray(0, 20)), /20 bytes, expected at least 32/)
  t.equal(error(bitmapData(sectors, ID, 128, [1])), undefined)
})

t.test('features that end nowhere', async (t) => {
  const bytes = extensionBytes(512, [])
  const broken = Buffer.alloc(512)
  extensionBytes(512, [{ magic: 0x99n, data: Buffer.alloc(456) }]).copy(broken)
  t.match(parseExtension(broken, { ...geometry, clusterSize: 512 }, FILE), { error: /no end/ })
  broken.writeUInt32LE(1 << 30, 24 + 16)
  createHash('md5').update(broken.subarray(24)).digest().copy(broken, 8)
  t.match(parseExtension(broken, { ...geometry, clusterSize: 512 }, FILE), { error: /end behind the cluster/ })
  t.same(parseExtension(bytes, { ...geometry, clusterSize: 512 }, FILE), { extension: { features: [] } })
})
