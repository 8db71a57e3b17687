/** Dirty bitmaps: shown, kept over writes, added, cleared, removed; and what they say after a crash. */

import t from 'tap'
import { parallels } from '../../../lib/formats/parallels/format.js'
import type { Image } from '../../../lib/image/image.js'
import { openStorages } from '../../../lib/image/open.js'
import { FaultStorage } from '../../../lib/storage/fault.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import type { Storage } from '../../../lib/storage/storage.js'
import { Device } from '../../support/device.js'
import { bundleXml, NIL, TOP } from './bundles.js'
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

/** A bundle of these parts, each of 64 clusters, as the tools get it. */
function bundle(parts: readonly Storage[]) {
  const xml = bundleXml({
    sectors: SECTORS * parts.length,
    storages: parts.map((_, i) => ({
      start: SECTORS * i,
      end: SECTORS * (i + 1),
      images: [[TOP, 'Compressed', String(i)]],
    })),
    shots: [[TOP, NIL]],
  })
  const storage = MemoryStorage.create({ path: 'x.hdd/DiskDescriptor.xml', contents: Buffer.from(xml) })
  const openFile = (name: string) => ({ index: 1 + Number(name), storage: parts[Number(name)]! })
  const tools = parallels.bitmaps!
  const open = () => parallels.open({ storage, path: storage.path, readOnly: false, openFile, warn: () => {} }).layout
  const files = [storage, ...parts]
  return {
    list: () => tools.list(open(), files),
    add: (name?: string, granularity = CLUSTER) => tools.add(open(), files, name, granularity),
    clear: (name: string) => tools.clear(open(), files, name),
    remove: (name: string) => tools.remove(open(), files, name),
    extents: (name: string) =>
      [...tools.extents(open(), files, name)].map(({ start, length }) => [start / CLUSTER, length / CLUSTER]),
  }
}

const empty = (): MemoryStorage =>
  MemoryStorage.create({
    path: 'x.hds',
    contents: imageBytes({ cluster: 8, sectors: SECTORS, dataOff: 8, size: CLUSTER }),
  })

function bytesOf(storage: Storage): Buffer {
  const bytes = Buffer.alloc(storage.size())
  storage.read(bytes, 0, bytes.length, 0)
  return bytes
}

t.test('a bitmap of a bundle is one in all of its parts', async (t) => {
  const parts = [empty(), empty(), empty()]
  const tools = bundle(parts)
  t.equal(tools.add(ID), ID)
  t.same(tools.list(), [{ name: ID, granularity: CLUSTER, flags: [] }])
  t.same(parts.map(list), Array(3).fill([{ name: ID, granularity: CLUSTER, flags: [] }]))
  written(parts[0]!, (disk) => put(disk, 63))
  written(parts[1]!, (disk) => put(disk, 0))
  written(parts[2]!, (disk) => put(disk, 5))
  t.same(tools.extents(ID), [
    [63, 2],
    [133, 1],
  ])
  tools.clear(ID)
  t.same(tools.extents(ID), [])
  tools.remove(ID)
  t.same(parts.flatMap(list), [])
  t.throws(() => tools.remove(ID), { code: 'NOT_FOUND', message: /no bitmap/ })
})

t.test('a bitmap that some parts of a bundle lack: nothing is changed but what can be removed', async (t) => {
  const parts = [made({ bits: [3] }), empty(), made({ bits: [5] })]
  const before = parts.map(bytesOf)
  const unchanged = (name: string) =>
    t.ok(
      parts.every((part, i) => bytesOf(part).equals(before[i]!)),
      name,
    )
  const tools = bundle(parts)
  t.same(tools.list(), [{ name: ID, granularity: CLUSTER, flags: ['inconsistent'] }])
  t.throws(() => tools.extents(ID), { code: 'NOT_FOUND', message: /lacks the bitmap/ })
  t.throws(() => tools.clear(ID), { code: 'NOT_FOUND', message: /lacks the bitmap/ })
  unchanged('clear')
  t.throws(() => tools.add(ID), { code: 'EXISTS' })
  unchanged('add of what a later part has')
  t.same(bundle([parts[1]!, parts[0]!]).list(), tools.list())
  t.throws(() => bundle([parts[1]!, parts[0]!]).add(ID), { code: 'EXISTS' })
  unchanged('add of what the last part has')
  t.throws(() => tools.extents(OTHER), { code: 'NOT_FOUND', message: /no bitmap/ })
  t.throws(() => tools.clear(OTHER), { code: 'NOT_FOUND', message: /no bitmap/ })
  tools.remove(ID)
  t.same(parts.flatMap(list), [])
  t.equal(tools.add(ID), ID)
  const one = bundle([made({ inUse: 0 }), made({ bits: [5] })])
  t.same(one.list(), [{ name: ID, granularity: CLUSTER, flags: ['in-use'] }], 'one part alone was not kept')
  t.same(one.extents(ID), [
    [0, 64],
    [69, 1],
  ])
})

t.test('a copy that was cut short: no bitmap is put where its clusters were', async (t) => {
  const cut = imageBytes({ cluster: 8, sectors: SECTORS, dataOff: 8, bat: [1, 2], size: 2 * CLUSTER })
  const storage = MemoryStorage.create({ path: 'x.hds', contents: cut })
  const whole = empty()
  for (const tools of [bundle([storage]), bundle([whole, storage])])
    t.throws(() => tools.add(ID), { code: 'CORRUPT', message: /BAT entry 1 says byte 8192.*check --repair all/ })
  t.ok(bytesOf(storage).equals(cut))
  t.ok(bytesOf(whole).equals(bytesOf(empty())))
  const two = [made(), made({ bat: [3] })]
  const before = two.map(bytesOf)
  t.throws(() => bundle(two).clear(ID), { code: 'CORRUPT' })
  t.throws(() => bundle(two).remove(ID), { code: 'CORRUPT' })
  t.same(two.map(bytesOf), before)
})

t.test('with a feature that nobody knows, a change of bitmaps leaves no cluster behind', async (t) => {
  const features = (l1: readonly number[]) => [{ magic: 0x1122n, flags: 2, data: Buffer.alloc(8) }, ...oneBitmap(l1)]
  const storage = made({ features, bits: [3] })
  const tools = bundle([storage])
  for (let i = 0; i < 3; i++) {
    tools.add(OTHER)
    tools.clear(OTHER)
    tools.remove(OTHER)
  }
  t.equal(storage.size(), 3 * CLUSTER)
  t.same(extents(storage), [[3, 1]])
})

t.test('on a device: what bitmaps need goes to clusters that nothing uses', async (t) => {
  const memory = made({ bits: [3], bat: [3], clusters: 4 })
  const device = new Device(memory, 12 * CLUSTER)
  const disk = openStorages([device])
  put(disk, 10, 7)
  t.equal(u64(memory, 56) * 512, 4 * CLUSTER, 'the header refers to a stand-in in the first gap')
  put(disk, 11, 8)
  disk.close()
  t.same(extents(memory), [
    [3, 1],
    [10, 2],
  ])
  t.equal(u64(memory, 56) * 512, 2 * CLUSTER)
  t.same(
    findings(memory).filter((what) => what !== 'leak'),
    [],
  )
  const tools = bundle([device])
  tools.add(OTHER)
  const again = openStorages([device])
  put(again, 5)
  again.close()
  t.same(extents(memory, OTHER), [[5, 1]])
  tools.clear(OTHER)
  t.same(extents(memory, OTHER), [])
  tools.remove(OTHER)
  t.same(
    tools.list().map(({ name }) => name),
    [ID],
  )
  const bytes = Buffer.alloc(1)
  const after = openStorages([memory], { readOnly: true })
  for (const [cluster, byte] of [
    [10, 7],
    [11, 8],
    [5, 1],
  ] as const) {
    after.read(bytes, 0, 1, cluster * CLUSTER)
    t.equal(bytes[0], byte)
  }
})

t.test('a device that is full of clusters: nothing is changed', async (t) => {
  for (const storage of [
    made({ bat: [3], clusters: 4 }),
    made({ clusters: 6, features: (l1) => [{ magic: 0x1122n, flags: 2, data: Buffer.alloc(8) }, ...oneBitmap(l1)] }),
  ]) {
    const device = new Device(storage)
    const before = bytesOf(storage)
    const disk = openStorages([device])
    t.throws(() => put(disk, 0), { code: 'NO_SPACE', message: /device/ })
    disk.close()
    t.throws(() => bundle([device]).add(OTHER), { code: 'NO_SPACE', message: /device/ })
    t.ok(bytesOf(storage).equals(before))
  }
})

t.test('a bitmap that a part of a bundle cannot have is added to none', async (t) => {
  for (const errno of ['EIO', 'ENOSPC'] as const)
    for (let nth = 1, fired = 1; fired > 0; nth++) {
      const parts = [empty(), empty()]
      const failing = new FaultStorage(parts[1]!)
      const tools = bundle([parts[0]!, failing])
      failing.fail({ kinds: ['write', 'sync', 'truncate', 'punch'], nth, errno })
      try {
        tools.add(ID)
      } catch {
        t.equal(failing.fired, 1)
      }
      fired = failing.fired
      t.same(
        parts.map((part) => list(part).length),
        fired > 0 ? [0, 0] : [1, 1],
        `${errno}, the ${nth}.`,
      )
      t.ok(nth < 50)
      failing.heal()
      t.same(
        parts.flatMap(findings).filter((what) => what !== 'leak'),
        [],
      )
    }
})
