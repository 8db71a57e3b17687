import t from 'tap'
import { encodeEntry, placeOf, stateOf } from '../../../lib/formats/vhdx/bat.js'
import { currentHeader, encodeHeader, HEADER, readHeader } from '../../../lib/formats/vhdx/header.js'
import { bitmapIndex, geometryOf, payloadIndex } from '../../../lib/formats/vhdx/layout.js'
import {
  decodeLocator,
  encodeLocator,
  newLocator,
  parentCandidates,
  parentLinks,
} from '../../../lib/formats/vhdx/locator.js'
import { encodeRegionTable } from '../../../lib/formats/vhdx/regions.js'
import {
  At,
  HeaderAt,
  header,
  hex,
  put,
  sealed,
  u64,
  WINDOWS_HEADER,
  WINDOWS_OLD_HEADER,
  WINDOWS_REGIONS,
  windowsImage,
} from './bytes.js'

t.test('a header of Windows, both ways', async (t) => {
  const decoded = HEADER.read(WINDOWS_HEADER)
  t.match(decoded, {
    signature: 'head',
    checksum: 0xa9f8a3f0,
    sequenceNumber: 19n,
    fileWriteGuid: '3743b891-5ce0-4c99-825b-3572b8b649f5',
    dataWriteGuid: 'f8f17a4f-f9cc-4303-86e8-50f9cf42c339',
    logGuid: '00000000-0000-0000-0000-000000000000',
    logVersion: 0,
    version: 1,
    logLength: 1048576,
    logOffset: 1048576,
  })
  t.same(Buffer.from(encodeHeader({ ...decoded, checksum: 0 })), Buffer.from(WINDOWS_HEADER))
})

t.test('the current header', async (t) => {
  const sequenceOf = (parts: Parameters<typeof windowsImage>[0]) =>
    currentHeader(windowsImage(parts)).header.sequenceNumber
  t.equal(sequenceOf({}), 19n, 'the second is newer')
  t.equal(sequenceOf({ header1: WINDOWS_HEADER, header2: WINDOWS_OLD_HEADER }), 19n, 'the first is newer')
  t.equal(
    sequenceOf({ header1: WINDOWS_HEADER, header2: WINDOWS_HEADER }),
    19n,
    'twice the same, as Disk2vhd writes it',
  )
  const torn = put(WINDOWS_HEADER.slice(), 2000, hex('01'))
  t.equal(sequenceOf({ header2: torn }), 18n, 'the newer one is torn')
  t.match(currentHeader(windowsImage({ header2: torn })).otherFault, /checksum is 0xa9f8a3f0: expected 0x/)
  t.throws(() => sequenceOf({ header1: torn, header2: torn }), {
    code: 'CORRUPT',
    message: /the first: .*the second: /,
  })
  const other = header([[HeaderAt.dataWriteGuid, u64(1)]])
  t.throws(() => sequenceOf({ header1: other, header2: WINDOWS_HEADER }), {
    code: 'CORRUPT',
    message: /test.vhdx: VHDX headers: both have sequence number 19/,
  })
  const large = header([[HeaderAt.sequence, u64(2n ** 64n - 1n)]])
  t.equal(sequenceOf({ header1: large }), 2n ** 64n - 1n, 'all 64 bits count')
  const gone = windowsImage()
  gone.truncate(At.header2 + 100)
  t.match(readHeader(gone, 1), { fault: /the file ends/ })
})

t.test('the region table of Windows, as it is written', async (t) => {
  const table = encodeRegionTable([
    { guid: '2dc27766-f623-4200-9d64-115e9bfd4a08', fileOffset: 3145728, length: 1048576, required: 1 },
    { guid: '8b7ca206-4790-4b9a-b8fe-575f050f886e', fileOffset: 2097152, length: 1048576, required: 1 },
  ])
  t.same(Buffer.from(table), Buffer.from(WINDOWS_REGIONS))
  t.same(sealed(WINDOWS_REGIONS), WINDOWS_REGIONS, "the tests' own checksum agrees with that of Windows")
})

t.test('entries of the block allocation table', async (t) => {
  // The first words of the table of differencing.avhdx and of dirtylog-10G.vhdx, and one beyond 4 PiB.
  for (const [bytes, state, mib] of [
    ['0600400000000000', 6, 4],
    ['0700000100000000', 7, 16],
    ['0600100300000000', 6, 49],
    ['0600f0ff01000000', 6, 8191],
  ] as const) {
    const view = new DataView(hex(bytes).buffer)
    const [low, high] = [view.getUint32(0, true), view.getUint32(4, true)]
    t.same([stateOf(low), placeOf(low, high)], [state, mib * 1048576], bytes)
    t.same(encodeEntry(state, mib * 1048576), [low, high])
  }
})

t.test('where entries are: sector bitmap blocks follow those of their chunk', async (t) => {
  // [MS-VHDX] 2.4: a chunk is 2^23 sectors, so with 512-byte sectors 4 GiB.
  const dynamic = geometryOf(2 ** 40, 32 * 2 ** 20, 512, false)
  t.match(dynamic, { chunkRatio: 128, payloadBlocks: 32768, entries: 32768 + 255 })
  t.match(geometryOf(2 ** 40, 32 * 2 ** 20, 512, true), { entries: 256 * 129 })
  t.match(geometryOf(2 ** 33, 2 ** 21, 512, true), { chunkRatio: 2048, entries: 2 * 2049 })
  t.match(geometryOf(2 ** 46, 2 ** 20, 4096, false), { chunkRatio: 32768, payloadBlocks: 2 ** 26 })
  t.match(geometryOf(512, 2 ** 28, 512, true), { chunkRatio: 16, payloadBlocks: 1, entries: 17 })
  t.same(
    [0, 127, 128, 255, 256].map((block) => payloadIndex(dynamic, block)),
    [0, 127, 129, 256, 258],
  )
  t.same(
    [0, 1].map((chunk) => bitmapIndex(dynamic, chunk)),
    [128, 257],
  )
})

/** Of differencing.avhdx, which Hyper-V wrote, cut to its first and its last key. */
const LOCATOR = hex(
  `b7ef4ab09ed1814ab78925b8e9445913 0000 0200
   2c000000 48000000 1c00 4c00
   94000000 ae000000 1a00 1800
   70006100720065006e0074005f006c0069006e006b00610067006500
   7b00660066003300340030003000330062002d0031003100650064002d0034006300660038002d0061003100360036002d00620032006200650030003500650032003000620038003000 7d00
   720065006c00610074006900760065005f007000610074006800
   2e005c0061005c0062002e007600680064007800 00000000`,
)

t.test('parent locators', async (t) => {
  t.same(decodeLocator(LOCATOR, 'x'), [
    { key: 'parent_linkage', value: '{ff34003b-11ed-4cf8-a166-b2be05e20b80}' },
    { key: 'relative_path', value: '.\\a\\b.vhdx' },
  ])
  t.same(parentLinks(decodeLocator(LOCATOR, 'x')), ['ff34003b-11ed-4cf8-a166-b2be05e20b80'])
  const fails = (at: number, bytes: string, message: RegExp, code = 'CORRUPT') =>
    t.throws(() => decodeLocator(put(LOCATOR.slice(), at, hex(bytes)), 'x.vhdx'), { code, message })
  fails(0, '00', /its type is b04aef00-/, 'UNSUPPORTED')
  fails(18, 'ffff', /it has 65535 entries/)
  fails(20, 'f0ff0000', /key 1 is at 65520, 28 bytes: the item has 198/)
  fails(28, '0000', /key 1 is at 44, 0 bytes/)
  fails(32, '2c000000480000001c004c00', /parent_linkage is there twice/)
  fails(0xae + 4, '0000', /the value of relative_path has a NUL in it/)
})

t.test('a new parent locator says everything, and is read back', async (t) => {
  const entries = newLocator('/vm/child/c.vhdx', '/vm/base/a b.vhdx', 'ff34003b-11ed-4cf8-a166-b2be05e20b80')
  t.same(entries, [
    { key: 'parent_linkage', value: '{ff34003b-11ed-4cf8-a166-b2be05e20b80}' },
    { key: 'parent_linkage2', value: '{00000000-0000-0000-0000-000000000000}' },
    { key: 'relative_path', value: '..\\base\\a b.vhdx' },
    { key: 'volume_path', value: '\\\\?\\Volume{00000000-0000-0000-0000-000000000000}\\vm\\base\\a b.vhdx' },
    { key: 'absolute_win32_path', value: '\\\\?\\C:\\vm\\base\\a b.vhdx' },
  ])
  t.same(decodeLocator(encodeLocator(entries), 'x'), entries)
  t.same(parentLinks(entries), ['ff34003b-11ed-4cf8-a166-b2be05e20b80'], 'the nil GUID links to nothing')
  t.same(parentCandidates(entries, '/vm/child/c.vhdx'), ['/vm/base/a b.vhdx', '/vm/child/a b.vhdx'])
  t.same(newLocator('/vm/c.vhdx', '/vm/a.vhdx', 'x')[2], { key: 'relative_path', value: '.\\a.vhdx' })
  t.throws(() => newLocator('/vm/c.vhdx', '/vm/a\\b.vhdx', 'x'), { code: 'USAGE' })
})

t.test('where a parent is looked for: relative, volume, absolute, as Windows writes them', async (t) => {
  const entries = [
    { key: 'absolute_win32_path', value: '\\\\?\\d:\\path2\\sub3\\parent.vhdx' },
    { key: 'volume_path', value: '\\\\?\\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\\vol\\parent.vhdx' },
    { key: 'relative_path', value: '..\\..\\path2\\sub3\\rel.vhdx' },
  ]
  t.same(parentCandidates(entries, '/d/path1/sub2/file.vhdx'), [
    '/d/path2/sub3/rel.vhdx',
    '/d/path1/sub2/rel.vhdx',
    '/d/path1/sub2/parent.vhdx',
    '/vol/parent.vhdx',
    '/path2/sub3/parent.vhdx',
  ])
  const share = [{ key: 'absolute_win32_path', value: '\\\\?\\UNC\\server\\share\\p.vhdx' }]
  t.same(parentCandidates(share, '/d/c.vhdx'), ['/d/p.vhdx'], 'of a share the name alone')
})
