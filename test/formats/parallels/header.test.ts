/** The header: real bytes, and the rules of the specification one by one. */

import t from 'tap'
import {
  geometryOf,
  HEADER,
  type Header,
  headerProblems,
  InUse,
  isParallels,
  MAGIC_CLUSTERS,
  MAGIC_SECTORS,
  readHeader,
  stateText,
} from '../../../lib/formats/parallels/header.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { type ImageParts, imageBytes } from './bytes.js'

/** The first 64 bytes of an image that Virtuozzo wrote. */
const VIRTUOZZO = Buffer.from(
  '576974686f754672655370616345787402000000100000000000040000080000' +
    '00000100000000080000000076322e3100080000000000000010000000000000',
  'hex',
)

/** The first 64 bytes of the image with the older magic in QEMU's test suite. */
const OLDER = Buffer.from(
  '576974686f757446726565537061636502000000100000000800000080000000' +
    '2000000000100000000000000000000080000000000000000000000000000000',
  'hex',
)

const header = (parts: Partial<ImageParts> = {}): Header =>
  HEADER.read(imageBytes({ cluster: 2048, sectors: 131072, dataOff: 2048, size: 64 * 1024, ...parts }))

t.test('a header of Virtuozzo', async (t) => {
  t.same(HEADER.read(VIRTUOZZO), {
    magic: MAGIC_CLUSTERS,
    version: 2,
    heads: 16,
    cylinders: 0x40000,
    tracks: 2048,
    nbBatEntries: 65536,
    nbSectors: 0x8000000,
    inUse: InUse.CLOSED,
    dataOff: 2048,
    flags: 0,
    extOff: 4096,
  })
  t.same(geometryOf(HEADER.read(VIRTUOZZO)), {
    size: 68719476736,
    clusterSize: 1048576,
    entries: 65536,
    unit: 1048576,
    batEnd: 64 + 4 * 65536,
    dataStart: 1048576,
  })
  const bytes = new Uint8Array(64)
  HEADER.write(HEADER.read(VIRTUOZZO), bytes)
  t.same(Buffer.from(bytes), VIRTUOZZO, 'and back')
})

t.test('a header of the older kind counts in sectors', async (t) => {
  const older = HEADER.read(OLDER)
  t.equal(older.magic, MAGIC_SECTORS)
  t.match(geometryOf(older), { size: 2097152, clusterSize: 65536, unit: 512, dataStart: 65536 })
  t.same(headerProblems(older), [])
})

t.test('recognised by either magic, by nothing else', async (t) => {
  t.ok(isParallels(VIRTUOZZO))
  t.ok(isParallels(OLDER))
  t.notOk(isParallels(VIRTUOZZO.subarray(0, 63)), 'a byte short')
  t.notOk(isParallels(Buffer.from(VIRTUOZZO).fill('X', 15, 16)))
})

t.test('where the data begins', async (t) => {
  const start = (parts: Partial<ImageParts>) => geometryOf(header(parts)).dataStart
  const older = { magic: 'WithoutFreeSpace' as const }
  t.equal(start({ ...older, dataOff: 0 }), 512, '64 bytes and 64 entries end in the first sector')
  t.equal(start({ ...older, dataOff: 0, entries: 113 }), 1024, 'and 113 in the second')
  t.equal(start({ ...older, dataOff: 63 }), 63 * 512, 'at any sector, in the older kind')
  t.equal(start({ dataOff: 4096 }), 2 * 1048576)
  t.equal(start({ dataOff: 0 }), 1048576, 'missing where it must not be: the first cluster behind the BAT')
  t.same(headerProblems(header({ dataOff: 4096 })), [], 'room in front of the data is no fault')
})

t.test('what breaks a rule is told, with what is expected', async (t) => {
  const problems = (parts: Partial<ImageParts>) =>
    headerProblems(header(parts)).map(({ what, expected }) => [what, expected])
  t.same(problems({}), [])
  t.same(problems({ dataOff: 0 }), [['data-offset', 2048]])
  t.same(problems({ dataOff: 2049 }), [['data-offset', 4096]])
  t.same(problems({ magic: 'WithoutFreeSpace', dataOff: 0 }), [])
  t.same(problems({ magic: 'WithoutFreeSpace', dataOff: 1, entries: 1000 }), [['data-offset', 2049]], 'inside the BAT')
  t.same(problems({ entries: 63 }), [['bat-size', 64]])
  t.same(problems({ magic: 'WithoutFreeSpace', sectors: 2 ** 32 + 2048, entries: 64 }), [['disk-size', 2048]])
})

t.test('what nothing can be read with is refused', async (t) => {
  const read = (parts: Partial<ImageParts>) =>
    readHeader(
      MemoryStorage.create({
        path: 'x.hds',
        contents: imageBytes({ cluster: 1, sectors: 64, dataOff: 1, size: 4096, ...parts }),
      }),
    )
  t.equal(read({}).nbBatEntries, 64)
  t.throws(() => read({ version: 3 }), { code: 'UNSUPPORTED', message: /x\.hds.*version 3, expected 2/ })
  t.throws(() => read({ cluster: 0, entries: 64 }), { code: 'CORRUPT', message: /cluster size .* 0/ })
  t.throws(() => read({ entries: 2000 }), { code: 'CORRUPT', message: /2000 entries ends at byte 8064.*4096/ })
  t.throws(() => read({ entries: 1, sectors: 2 ** 45 }), { code: 'CORRUPT', message: /out of range/ })
  t.throws(() => readHeader(MemoryStorage.create({ contents: Buffer.from('short') })), { code: 'FORMAT' })
})

t.test('in-use marks of real images', async (t) => {
  const state = (inUse: number) => stateText(header({ inUse }))
  t.equal(state(0x312e3276), 'closed')
  t.equal(state(0x746f6e59), 'in use, or left in use')
  t.equal(state(0x37316470), 'closed (0x37316470)', 'Parallels Desktop 17')
  t.equal(state(0), 'closed by software without format extensions')
})
