import t from 'tap'
import { decodeRuns, runOf, setBits } from '../../lib/formats/sector-bitmap.js'
import { decodeHeader, encodeHeader } from '../../lib/formats/vhd/dynamic-header.js'
import { decodeFooter, encodeFooter, timeOf, timeStampOf } from '../../lib/formats/vhd/footer.js'
import { diskSize, geometryOf, geometrySectors, roundUpToGeometry } from '../../lib/formats/vhd/geometry.js'
import { alignBlock, bitmapBytesOf, blocksOf } from '../../lib/formats/vhd/layout.js'
import {
  DISK2VHD_FOOTER,
  FooterAt,
  footerWith,
  VIRTUAL_PC_FOOTER,
  WINDOWS_FIXED_FOOTER,
  WINDOWS_FOOTER,
  WINDOWS_HEADER,
} from './vhd-images.js'

const GiB = 2 ** 30

t.test('a footer of Windows, field by field', async (t) => {
  t.same(decodeFooter(WINDOWS_FOOTER, {}), {
    cookie: 'conectix',
    features: 2,
    fileFormatVersion: 0x10000,
    dataOffset: 512,
    timeStamp: 0x260cf38f,
    creatorApplication: 'win ',
    creatorVersion: 0xa0000,
    creatorHostOs: 'Wi2k',
    originalSize: 10485760,
    currentSize: 10485760,
    cylinders: 301,
    heads: 4,
    sectorsPerTrack: 17,
    diskType: 3,
    checksum: 0xffffee6f,
    uniqueId: '4b6a0d04-f946-d74e-836f-d3dc87e1816b',
    savedState: 0,
  })
  t.equal(decodeFooter(WINDOWS_FIXED_FOOTER, {}).dataOffset, undefined)
  t.equal(decodeFooter(DISK2VHD_FOOTER, {}).creatorApplication, 'd2v\0')
})

t.test('footers are written as they were found', async (t) => {
  for (const footer of [WINDOWS_FOOTER, WINDOWS_FIXED_FOOTER, VIRTUAL_PC_FOOTER, DISK2VHD_FOOTER])
    t.same(encodeFooter({ ...decodeFooter(footer, {}), checksum: 0 }), footer)
})

t.test('a wrong checksum is refused with what was found and expected', async (t) => {
  const wrong = WINDOWS_FOOTER.slice()
  wrong[FooterAt.id]!++
  t.throws(() => decodeFooter(wrong, { path: 'x.vhd', offset: 8192 }), {
    code: 'CORRUPT',
    message: 'x.vhd: VHD footer: checksum is 0xffffee6f: expected 0xffffee6e',
    offset: 8192,
  })
})

t.test('another major version is refused, another minor version is not', async (t) => {
  const version = (value: number) => footerWith((view) => view.setUint32(FooterAt.version, value))
  t.throws(() => decodeFooter(version(0x20000), {}), {
    code: 'UNSUPPORTED',
    message: /0x00020000: expected 0x00010000/,
  })
  t.equal(decodeFooter(version(0x10007), {}).fileFormatVersion, 0x10007)
})

t.test('a header of Windows, field by field, and back', async (t) => {
  const header = decodeHeader(WINDOWS_HEADER, { diskSize: 10485760, end: 0x2000 }, {})
  t.match(header, {
    cookie: 'cxsparse',
    dataOffset: undefined,
    tableOffset: 1536,
    headerVersion: 0x10000,
    maxTableEntries: 5,
    blockSize: 2 ** 21,
    checksum: 0xfffff472,
    parentUniqueId: '00000000-0000-0000-0000-000000000000',
    parentTimeStamp: 0,
  })
  t.equal(header.parentLocators.length, 8)
  t.same(encodeHeader({ ...header, checksum: 0 }), WINDOWS_HEADER)
})

t.test('time stamps count seconds from 2000', async (t) => {
  t.equal(new Date(timeOf(0x260cf38f)).toISOString(), '2020-03-24T16:36:31.000Z')
  t.equal(timeStampOf(Date.UTC(2020, 2, 24, 16, 36, 31, 999)), 0x260cf38f)
  t.equal(timeStampOf(0), 0, 'before 2000')
  t.equal(timeStampOf(Date.UTC(2300, 0, 1)), 0xffffffff, 'behind the end of the field')
})

t.test('geometry', async (t) => {
  // By the specification's pseudo-code, by hand; those marked are of real images.
  const table: [sectors: number, cylinders: number, heads: number, sectorsPerTrack: number, from?: string][] = [
    [68, 1, 4, 17, 'qemu'],
    [204, 3, 4, 17, 'qemu'],
    [20480, 301, 4, 17, 'Windows, 10 MiB'],
    [4 * 17 * 1024 - 1, 1023, 4, 17],
    [4 * 17 * 1024, 140, 16, 31],
    [5 * 17 * 1024 - 1, 1023, 5, 17],
    [16 * 17 * 1023, 1023, 16, 17],
    [16 * 17 * 1024, 561, 16, 31],
    [16 * 31 * 1024 - 1, 1023, 16, 31],
    [16 * 31 * 1024, 503, 16, 63],
    [2 ** 21, 2080, 16, 63],
    [65535 * 16 * 63 - 1, 65534, 16, 63],
    [65535 * 16 * 63, 16191, 16, 255],
    [65278 * 16 * 255, 65278, 16, 255, 'Virtual PC'],
    [65535 * 16 * 255, 65535, 16, 255],
    [(2040 * GiB) / 512, 65535, 16, 255],
  ]
  for (const [sectors, cylinders, heads, sectorsPerTrack, from = ''] of table)
    t.same(geometryOf(sectors), { cylinders, heads, sectorsPerTrack }, `${sectors} ${from}`)
})

t.test('the geometry is never more than the disk, and the next one that says it is the nearest', async (t) => {
  for (const sectors of [1, 67, 68, 20480, 20481, 69565, 69615, 278528, 507904, 2 ** 21 + 1, 65535 * 16 * 63 + 5]) {
    t.ok(geometrySectors(geometryOf(sectors)) <= sectors, `${sectors}`)
    const { sectors: up, geometry } = roundUpToGeometry(sectors)
    t.ok(up >= sectors, `${sectors} rounded up to ${up}`)
    t.equal(geometrySectors(geometry), up)
  }
  t.equal(roundUpToGeometry(20480).sectors, 302 * 4 * 17)
  t.equal(roundUpToGeometry(2 ** 30).sectors, 2 ** 30, 'above the largest geometry there is none')
})

t.test('what counts for the size depends on the creator', async (t) => {
  const size = (footer: Uint8Array) => {
    const { creatorApplication, currentSize, ...geometry } = decodeFooter(footer, {})
    return diskSize(creatorApplication, currentSize, geometry)
  }
  t.equal(size(WINDOWS_FOOTER), 10485760, 'Windows: the current size, not 301 × 4 × 17 sectors')
  t.equal(size(VIRTUAL_PC_FOOTER), 136363130880, 'Virtual PC: the geometry, not 136365211648')
  t.equal(size(DISK2VHD_FOOTER), 263454720, 'Disk2vhd: the current size')
  const geometry = { cylinders: 301, heads: 4, sectorsPerTrack: 17 }
  const cases: [creator: string, size: number][] = [
    ['vpc ', 10479616],
    ['vs  ', 10479616],
    ['qemu', 10479616],
    ['qem2', 10485760],
    ['win ', 10485760],
    ['d2v ', 10485760],
    ['tap\0', 10485760],
    ['CTXS', 10485760],
    ['wa\0\0', 10485760],
    ['????', 10485760],
  ]
  for (const [creator, expected] of cases) t.equal(diskSize(creator, 10485760, geometry), expected, creator)
  const largest = { cylinders: 65535, heads: 16, sectorsPerTrack: 255 }
  t.equal(diskSize('vpc ', 200 * GiB, largest), 200 * GiB, 'a geometry at its maximum says nothing')
  t.equal(diskSize('vpc ', 4096, { ...geometry, cylinders: 0 }), 4096, 'nor does one of nothing')
  t.equal(diskSize('win ', 4099, geometry), 4096, 'a disk is whole sectors')
})

t.test('bitmaps have the first sector in the most significant bit', async (t) => {
  const bitmap = new Uint8Array(4)
  setBits(bitmap, 9, 1, 'msb-first')
  t.same([...bitmap], [0, 0x40, 0, 0])
  setBits(bitmap, 14, 11, 'msb-first')
  t.same([...bitmap], [0, 0x43, 0xff, 0x80])
  setBits(bitmap, 0, 32, 'msb-first')
  t.same([...bitmap], [0xff, 0xff, 0xff, 0xff])
})

t.test('runs of bits', async (t) => {
  const cases: [bytes: number[], sectors: number, first: boolean, ends: number[]][] = [
    [[0, 0], 16, false, [16]],
    [[0xff, 0xff], 16, true, [16]],
    [[0x00, 0x40], 16, false, [9, 10, 16]],
    [[0x80, 0x01], 16, true, [1, 15, 16]],
    [[0xff, 0x0f, 0xff], 24, true, [8, 12, 24]],
    [[0xaa], 8, true, [1, 2, 3, 4, 5, 6, 7, 8]],
    [[0x80], 1, true, [1]],
    [[0x40], 1, false, [1]],
  ]
  for (const [bytes, sectors, first, ends] of cases) {
    const runs = decodeRuns(Uint8Array.from(bytes), sectors, 'msb-first')
    t.same({ first: runs.first, ends: [...runs.ends] }, { first, ends }, bytes.join())
    for (let sector = 0; sector < sectors; sector++) {
      const bit = (bytes[sector >> 3]! & (0x80 >> (sector & 7))) !== 0
      t.equal(runs.first === (runOf(runs, sector) % 2 === 0), bit, `sector ${sector} of ${bytes.join()}`)
    }
  }
})

t.test('where blocks lie', async (t) => {
  t.equal(bitmapBytesOf(2 ** 21), 512)
  t.equal(bitmapBytesOf(512), 512)
  t.equal(bitmapBytesOf(2 ** 22), 1024)
  const header = decodeHeader(WINDOWS_HEADER, { diskSize: 10485760, end: 0x2000 }, {})
  const reserved = [{ name: 'table', start: 0x600, end: 0x614 }]
  const blocks = blocksOf(header, reserved)
  t.equal(blocks.reservedEnd, 0x800)
  // As Windows does it: the first of its blocks are at 0x1e00, 0x202e00, 0x403e00.
  t.equal(alignBlock(blocks, 0x1001), 0x1e00)
  t.equal(alignBlock(blocks, 0x1e00), 0x1e00)
  t.equal(alignBlock(blocks, 0x1e00 + 0x200200), 0x202e00)
  t.equal(blocks.stride, 0x201000)
  const small = blocksOf({ ...header, blockSize: 4096, maxTableEntries: 2560 }, reserved)
  t.equal(small.stride, 4096 + 512, 'small blocks have no room between them')
  const full = blocksOf({ ...header, blockSize: 2 ** 19, maxTableEntries: (2040 * GiB) / 2 ** 19 }, reserved)
  t.equal(full.stride, 2 ** 19 + 512, 'nor have the blocks of a disk that fits into 2 TiB only so')
})
