/** Dirty bitmaps: shown, kept over writes, added, cleared, removed; and what they say after a crash. */

import t from 'tap'
import { parallels } from '../../../lib/formats/parallels/format.js'
import type { Image } from '../../../lib/image/image.js'
import { openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import {
  BITMAP,
  bitmapData,
  extensionBytes,
  type FeatureParts,
  fromCorpus,
  imageBytes,
  KiB,
  needsCorpus,
} from './bytes.js'

const ID = '00112233-4455-6677-8899-aabbccddeeff'
const OTHER = 'ffffffff-0000-0000-0000-000000000001'
const CLUSTER = 4 * KiB
/** 64 clusters; clusters 1 and 2 of the file are bits and extension. */
const SECTORS = 64 * 8

interface Made {
  readonly features?: (l1: readonly number[]) => readonly FeatureParts[]
  readonly bits?: readonly number[]
  readonly l1?: readonly number[]
  readonly inUse?: number
  readonly bat?: readonly number[]
  readonly clusters?: number
}

/** Granularity: 8 sectors, one cluster a bit. */
const oneBitmap = (l1: readonly number[]): FeatureParts[] => [{ magic: BITMAP, data: bitmapData(SECTORS, ID, 8, l1) }]

function made({ features = oneBitmap, bits = [], l1 = [8], inUse, bat = [], clusters = 3 }: Made = {}): MemoryStorage {
  const file = imageBytes({
    cluster: 8,
    sectors: SECTORS,
    dataOff: 8,
    extOff: 16,
    size: clusters * CLUSTER,
    bat,
    ...(inUse === undefined ? {} : { inUse }),
  })
  for (const bit of bits) file[CLUSTER + (bit >> 3)]! |= 1 << (bit & 7)
  extensionBytes(CLUSTER, features(l1)).copy(file, 2 * CLUSTER)
  return MemoryStorage.create({ path: 'x.hds', contents: file })
}

function extents(storage: MemoryStorage, id = ID): [number, number][] {
  const { layout } = parallels.open({ storage, path: 'x.hds', readOnly: true, warn: () => {} })
  return [...parallels.bitmaps!.extents(layout, [storage], id)].map(({ start, length }) => [
    start / CLUSTER,
    length / CLUSTER,
  ])
}

function list(storage: MemoryStorage) {
  const { layout } = parallels.open({ storage, path: 'x.hds', readOnly: true, warn: () => {} })
  return parallels.bitmaps!.list(layout, [storage])
}

function written(storage: MemoryStorage, use: (disk: Image) => void): void {
  const disk = openStorages([storage])
  use(disk)
  disk.close()
}

const put = (disk: Image, cluster: number, byte = 1) => disk.write(Buffer.alloc(512, byte), 0, 512, cluster * CLUSTER)

function findings(storage: MemoryStorage): string[] {
  const found: string[] = []
  parallels.check!({
    storage,
    path: 'x.hds',
    readOnly: true,
    repair: 'none',
    warn: () => {},
    found: ({ what }) => void found.push(what),
  })
  return found
}

t.test('the bitmap of a real image', needsCorpus, async (t) => {
  const storage = MemoryStorage.create({ path: 'real.hds', contents: fromCorpus('with-bitmap.hds') })
  const [bitmap] = list(storage)
  t.same(bitmap, { name: 'e4f2eed0-37fe-4539-b50b-85d2e7fd235f', granularity: 65536, flags: [] })
  const { layout } = parallels.open({ storage, path: 'real.hds', readOnly: true, warn: () => {} })
  const found = () =>
    [...parallels.bitmaps!.extents(layout, [storage], bitmap!.name)].map((r) => [r.start / 65536, r.length / 65536])
  t.same(found(), [
    [5, 2],
    [10, 3],
    [30, 1],
  ])
  written(storage, (disk) => disk.write(Buffer.alloc(1), 0, 1, 11 * 65536 - 1))
  t.same(
    found(),
    [
      [5, 2],
      [10, 3],
      [30, 1],
    ],
    'a write of what is changed already',
  )
  written(storage, (disk) => disk.write(Buffer.alloc(2), 0, 2, 8 * 65536 - 1))
  t.same(
    found(),
    [
      [5, 4],
      [10, 3],
      [30, 1],
    ],
    'two bytes over a seam: two bits',
  )
  t.equal(storage.size(), 5 * 1048576, 'header, bits, extension, two clusters of data')
  t.same(findings(storage), [])
})

t.test('L1 entries 0 and 1, bits, and the end of the disk', async (t) => {
  t.same(extents(made({ l1: [0] })), [])
  t.same(extents(made({ l1: [1] })), [[0, 64]])
  t.same(extents(made({ bits: [0, 1, 63] })), [
    [0, 2],
    [63, 1],
  ])
  t.same(extents(made({ bits: [7, 8, 64] })), [[7, 2]], 'bits behind the disk are nothing')
  t.throws(() => extents(made(), OTHER), { code: 'NOT_FOUND', message: /no bitmap 'ffff.*it has: 0011/ })
})

t.test('writes, zeros and discards are recorded; overwriting and allocating alike', async (t) => {
  const storage = made({ bits: [3], bat: [3], clusters: 4 })
  written(storage, (disk) => {
    put(disk, 0)
    put(disk, 10)
    disk.zero(20 * CLUSTER, CLUSTER, false)
    disk.zero(30 * CLUSTER, 2 * CLUSTER, true)
    disk.read(Buffer.alloc(CLUSTER), 0, CLUSTER, 40 * CLUSTER)
  })
  t.same(extents(storage), [
    [0, 1],
    [3, 1],
    [10, 1],
    [20, 1],
    [30, 2],
  ])
  t.same(findings(storage), [])
})

t.test('a bitmap with no cluster gets one', async (t) => {
  const storage = made({ l1: [0] })
  written(storage, (disk) => put(disk, 9))
  t.same(extents(storage), [[9, 1]])
  t.same(findings(storage), [])
})

t.test('all set stays all set', async (t) => {
  const storage = made({ l1: [1] })
  written(storage, (disk) => put(disk, 9))
  t.same(extents(storage), [[0, 64]])
})

t.test('several bitmaps of different granularity', async (t) => {
  const features = () => [
    { magic: BITMAP, data: bitmapData(SECTORS, ID, 8, [0]) },
    { magic: BITMAP, data: bitmapData(SECTORS, OTHER, 64, [0]) },
  ]
  const storage = made({ features })
  written(storage, (disk) => {
    put(disk, 9)
    put(disk, 50)
  })
  t.same(extents(storage), [
    [9, 1],
    [50, 1],
  ])
  t.same(extents(storage, OTHER), [
    [8, 8],
    [48, 8],
  ])
  t.same(findings(storage), [])
})

t.test('while it is written, and after a crash, all counts as changed', async (t) => {
  const storage = made({ bits: [3] })
  const disk = openStorages([storage])
  put(disk, 0)
  const crashed = MemoryStorage.create({ path: 'x.hds', contents: contentsOf(storage) })
  t.same(list(crashed)[0]!.flags, ['in-use'])
  t.same(extents(crashed), [[0, 64]])
  t.equal(u64(crashed, 56) * 512, 3 * CLUSTER, 'the header refers to a stand-in')
  crashed.write(Buffer.from([0x76, 0x32, 0x2e, 0x31]), 0, 4, 44)
  t.same(extents(crashed), [[0, 64]], 'also for who does not look at the mark')
  disk.close()
  t.same(extents(storage), [
    [0, 1],
    [3, 1],
  ])
})

t.test('somebody wrote without the bitmap: all counts as changed, from then on truly', async (t) => {
  const storage = made({ bits: [3], inUse: 0 })
  t.same(extents(storage), [[0, 64]])
  written(storage, (disk) => put(disk, 0))
  t.same(extents(storage), [[0, 64]])
  t.same(list(storage)[0]!.flags, [], 'and it can be cleared and believed again')
})

t.test('features: unknown ones that are to be carried along, dropped, or forbid writing', async (t) => {
  const unknown = (flags: number): FeatureParts => ({ magic: 0x1122n, flags, data: Buffer.from('keep me') })
  const magics = (storage: MemoryStorage) => {
    const { features = [] } = parallels.facts(
      parallels.open({ storage, path: 'x.hds', readOnly: true, warn: () => {} }).layout,
      storage,
    ) as { features?: string[] }
    return features.map((text) => text.slice(0, 16))
  }
  const transit = made({ features: (l1) => [unknown(2), ...oneBitmap(l1)] })
  written(transit, (disk) => put(disk, 5))
  t.same(magics(transit), ['2211000000000000', '4ab32c25ae5f3820'])
  t.same(extents(transit), [[5, 1]])
  const neither = made({ features: (l1) => [unknown(0), ...oneBitmap(l1)] })
  written(neither, () => {})
  t.same(magics(neither).length, 2, 'nothing is dropped while nothing is written')
  written(neither, (disk) => put(disk, 5))
  t.same(magics(neither), ['4ab32c25ae5f3820'])
  t.same(extents(neither), [[5, 1]])
  const alone = made({ features: () => [unknown(0)] })
  written(alone, (disk) => put(disk, 5))
  t.equal(u64(alone, 56), 0, 'an extension with nothing in it is none')
  const necessary = made({ features: (l1) => [...oneBitmap(l1), unknown(1)] })
  t.throws(() => openStorages([necessary]), { code: 'UNSUPPORTED', message: /feature 2211000000000000 forbids that/ })
  openStorages([necessary], { readOnly: true }).close()
})

t.test('a feature that nobody knows may own clusters: gaps are left alone', async (t) => {
  const features = (l1: readonly number[]) => [{ magic: 0x1122n, flags: 2, data: Buffer.alloc(8) }, ...oneBitmap(l1)]
  const storage = made({ features, clusters: 6 })
  storage.write(Buffer.alloc(CLUSTER, 0x77), 0, CLUSTER, 4 * CLUSTER)
  written(storage, (disk) => put(disk, 5))
  const kept = Buffer.alloc(CLUSTER)
  storage.read(kept, 0, CLUSTER, 4 * CLUSTER)
  t.ok(kept.equals(Buffer.alloc(CLUSTER, 0x77)))
  t.same(findings(storage), ['feature'], 'and no leak is claimed')
})

t.test('added, cleared, removed', async (t) => {
  const storage = MemoryStorage.create({
    path: 'x.hds',
    contents: imageBytes({ cluster: 8, sectors: SECTORS, dataOff: 8, size: CLUSTER }),
  })
  const open = () => parallels.open({ storage, path: 'x.hds', readOnly: false, warn: () => {} }).layout
  const tools = parallels.bitmaps!
  t.equal(tools.add(open(), [storage], `{${ID.toUpperCase()}}`, CLUSTER), ID)
  t.match(tools.add(open(), [storage], undefined, undefined), /^[0-9a-f-]{36}$/)
  t.same(
    list(storage).map(({ granularity }) => granularity),
    [CLUSTER, 64 * KiB],
  )
  t.throws(() => tools.add(open(), [storage], ID, CLUSTER), { code: 'EXISTS' })
  t.throws(() => tools.add(open(), [storage], 'backup', CLUSTER), { code: 'USAGE', message: /'backup' is not a GUID/ })
  t.throws(() => tools.add(open(), [storage], undefined, 3 * CLUSTER), { code: 'USAGE', message: /power of two/ })
  written(storage, (disk) => put(disk, 33))
  t.same(extents(storage), [[33, 1]])
  t.same(findings(storage), [])
  tools.clear(open(), [storage], ID)
  t.same(extents(storage), [])
  t.same(findings(storage), [])
  for (const { name } of list(storage)) tools.remove(open(), [storage], name)
  t.same(list(storage), [])
  t.equal(u64(storage, 56), 0)
  t.same(findings(storage), [])
  t.equal(storage.size() % CLUSTER, 0)
})

function u64(storage: MemoryStorage, offset: number): number {
  const buffer = Buffer.alloc(8)
  storage.read(buffer, 0, 8, offset)
  return Number(buffer.readBigUInt64LE())
}

function contentsOf(storage: MemoryStorage): Buffer {
  const buffer = Buffer.alloc(storage.size())
  storage.read(buffer, 0, buffer.length, 0)
  return buffer
}
