/** The check: every fault by a hand-made image, what is said of it, and what a repair leaves. */

import t from 'tap'
import type { Finding, Repair } from '../../../lib/formats/driver.js'
import { parallels } from '../../../lib/formats/parallels/format.js'
import { openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import type { Storage } from '../../../lib/storage/storage.js'
import { Device } from '../../support/device.js'
import {
  BITMAP,
  bitmapData,
  CLOSED,
  extensionBytes,
  fromCorpus,
  type ImageParts,
  imageBytes,
  KiB,
  needsCorpus,
  OPEN,
} from './bytes.js'

const CLUSTER = 4 * KiB
const SECTORS = 64 * 8
const ID = '00112233-4455-6677-8899-aabbccddeeff'

/** Cluster n of the file is filled with byte n. */
function image(parts: Partial<ImageParts> & { fill?: boolean } = {}): MemoryStorage {
  const file = imageBytes({ cluster: 8, sectors: SECTORS, dataOff: 8, size: 4 * CLUSTER, ...parts })
  for (let n = 1; parts.fill !== false && n * CLUSTER < file.length; n++)
    file.fill(n, n * CLUSTER, Math.min(file.length, (n + 1) * CLUSTER))
  return MemoryStorage.create({ path: 'x.hds', contents: file })
}

function check(storage: Storage, repair: Repair = 'none') {
  const findings: Finding[] = []
  const totals = parallels.check!({
    storage,
    path: 'x.hds',
    readOnly: repair === 'none',
    repair,
    warn: () => {},
    found: (finding) => void findings.push(finding),
  })
  const said = findings.map(({ severity, what, repaired }) => `${severity} ${what}${repaired ? ' repaired' : ''}`)
  return { said, findings, totals }
}

/** What cluster `index` of the disk is filled with. */
function content(storage: MemoryStorage, index: number): number {
  const disk = openStorages([storage], { readOnly: true })
  const buffer = Buffer.alloc(CLUSTER)
  disk.read(buffer, 0, CLUSTER, index * CLUSTER)
  disk.close()
  return buffer.every((byte) => byte === buffer[0]) ? buffer[0]! : -1
}

const contentsOf = (storage: MemoryStorage) => {
  const buffer = Buffer.alloc(storage.size())
  storage.read(buffer, 0, buffer.length, 0)
  return buffer
}

const u32 = (storage: MemoryStorage, offset: number) => {
  const buffer = Buffer.alloc(4)
  storage.read(buffer, 0, 4, offset)
  return buffer.readUInt32LE()
}

t.test('nothing wrong', async (t) => {
  const storage = image({ bat: [1, 3, 2] })
  const { said, totals } = check(storage)
  t.same(said, [])
  t.same(totals, { imageEnd: 4 * CLUSTER, clusters: 64, allocated: 3, fragmented: 2, compressed: 0 })
  t.same(check(storage, 'all').said, [])
})

t.test('real images', needsCorpus, async (t) => {
  for (const name of ['v1.hds', 'with-bitmap.hds']) {
    const before = fromCorpus(name)
    const storage = MemoryStorage.create({ contents: before })
    t.same(check(storage, 'all').said, [], name)
    const after = Buffer.alloc(before.length)
    t.equal(storage.read(after, 0, after.length, 0), before.length)
    t.ok(after.equals(before), 'a repair of what is right changes nothing')
  }
})

t.test('left in use', async (t) => {
  const storage = image({ bat: [1, 2, 3], inUse: OPEN })
  t.same(check(storage).said, ['warning in-use'])
  t.same(check(storage, 'leaks').said, ['warning in-use'])
  t.equal(u32(storage, 44), OPEN)
  t.same(check(storage, 'all').said, ['warning in-use repaired'])
  t.equal(u32(storage, 44), CLOSED)
  t.same(check(storage).said, [])
})

t.test('leaks: old data in a gap, and what is behind the last cluster', async (t) => {
  const storage = image({ bat: [1, 3], size: 6 * CLUSTER + 100 })
  const { said, findings } = check(storage)
  t.same(said, ['leak leak', 'leak leak'])
  t.match(findings, [{ offset: 2 * CLUSTER }, { offset: 4 * CLUSTER, count: 3 }])
  t.same(check(storage, 'leaks').said, ['leak leak repaired', 'leak leak repaired'])
  t.equal(storage.size(), 4 * CLUSTER)
  t.same(
    [0, 1].map((i) => content(storage, i)),
    [1, 3],
  )
  t.same(check(storage).said, [], 'a gap of zeros is free space')
})

t.test('entries behind the file and in front of the data', async (t) => {
  const storage = image({ bat: [1, 9, 2, 3] })
  const { said, findings } = check(storage)
  t.same(said, ['corruption bat-range'])
  t.match(findings, [{ offset: 68, guest: CLUSTER, found: 9 * CLUSTER, repairable: true }])
  t.same(check(storage, 'all').said, ['corruption bat-range repaired'])
  t.same(
    [0, 1, 2, 3].map((i) => content(storage, i)),
    [1, 0, 2, 3],
  )
  t.same(check(storage).said, [])
})

t.test('two entries with one cluster: both keep what they show', async (t) => {
  const storage = image({ bat: [1, 2, 1, 3] })
  t.same(check(storage).said, ['corruption shared-cluster'])
  t.same(check(storage, 'all').said, ['corruption shared-cluster repaired'])
  t.same(
    [0, 1, 2, 3].map((i) => content(storage, i)),
    [1, 2, 1, 3],
  )
  t.equal(u32(storage, 72), 4, 'a cluster of its own at the end')
  t.same(check(storage).said, [])
})

t.test('two entries with one cluster of a device: one gets a cluster that nothing uses', async (t) => {
  const bat = [1, 2, 1, 3, 3]
  const storage = image({ bat, extOff: 32, size: 5 * CLUSTER })
  storage.write(
    extensionBytes(CLUSTER, [{ magic: BITMAP, data: bitmapData(SECTORS, ID, 8, [1]) }]),
    0,
    CLUSTER,
    4 * CLUSTER,
  )
  const device = new Device(storage, 7 * CLUSTER)
  t.same(check(device, 'all').said, Array(2).fill('corruption shared-cluster repaired'))
  t.same(
    [0, 1, 2, 3, 4].map((i) => content(storage, i)),
    [1, 2, 1, 3, 3],
  )
  t.same([u32(storage, 72), u32(storage, 80)], [5, 6])
  t.same(check(device).said, [])
})

t.test('two entries with one cluster of a full device: said, and nothing is changed', async (t) => {
  const storage = image({ bat: [1, 2, 1, 3] })
  const before = contentsOf(storage)
  t.same(check(new Device(storage), 'all').said, ['corruption shared-cluster'])
  t.ok(contentsOf(storage).equals(before))
  const unknown = image({ bat: [1, 1], extOff: 24, size: 6 * CLUSTER })
  unknown.write(extensionBytes(CLUSTER, [{ magic: 0x1122n, flags: 2, data: Buffer.alloc(8) }]), 0, CLUSTER, 3 * CLUSTER)
  t.same(check(new Device(unknown), 'all').said, ['warning feature', 'corruption shared-cluster'])
  t.equal(u32(unknown, 68), 1, 'what looks free may be in use')
})

t.test('an image that was left in use and could not be mended stays so, and is not written', async (t) => {
  const storage = image({ bat: [1, 2, 1, 3], inUse: OPEN })
  t.same(check(new Device(storage), 'all').said, ['corruption shared-cluster', 'warning in-use'])
  t.equal(u32(storage, 44), OPEN)
  t.same(check(storage, 'all').said, ['corruption shared-cluster repaired', 'warning in-use repaired'])
  t.not(u32(storage, 44), OPEN)
})

t.test('an entry that is no whole number of clusters behind the beginning of the data', async (t) => {
  const storage = image({ magic: 'WithoutFreeSpace', bat: [8, 20], size: 4 * CLUSTER, fill: true })
  t.same(check(storage).said, ['corruption bat-alignment', 'leak leak'])
  storage.write(Buffer.alloc(CLUSTER, 0x99), 0, CLUSTER, 20 * 512)
  t.same(
    check(storage, 'all').said.filter((line) => line.startsWith('corruption')),
    ['corruption bat-alignment repaired'],
  )
  t.same(
    [0, 1].map((i) => content(storage, i)),
    [1, 0x99],
  )
  t.same(check(storage).said, [])
})

t.test('header fields', async (t) => {
  const storage = image({ dataOff: 0, bat: [1, 2, 3] })
  t.same(check(storage, 'all').said, ['corruption data-offset repaired'])
  t.equal(u32(storage, 48), 8)
  t.same(
    [0, 1, 2].map((i) => content(storage, i)),
    [1, 2, 3],
  )
  t.same(check(storage).said, [])
  const short = image({ entries: 63, bat: [1, 2, 3] })
  t.same(check(short, 'all').said, ['corruption bat-size'], 'which nothing can mend')
})

/** Clusters 1 and 2 of the file are bits and extension. */
function withBitmap(parts: Partial<ImageParts> = {}, l1 = 8, bits = 0): MemoryStorage {
  const storage = image({ size: 3 * CLUSTER, extOff: 16, fill: false, ...parts })
  const data = bitmapData(SECTORS, ID, 8, [l1])
  storage.write(extensionBytes(CLUSTER, [{ magic: BITMAP, data }]), 0, CLUSTER, 2 * CLUSTER)
  storage.write(Buffer.from([bits]), 0, 1, CLUSTER)
  return storage
}

function extents(storage: MemoryStorage): [number, number][] {
  const { layout } = parallels.open({ storage, path: 'x.hds', readOnly: true, warn: () => {} })
  const ranges = [...parallels.bitmaps!.extents(layout, [storage], ID)]
  return ranges.map(({ start, length }) => [start / CLUSTER, length / CLUSTER])
}

t.test('the extension’s clusters are no leaks', async (t) => {
  const storage = withBitmap({}, 8, 5)
  t.same(check(storage, 'all').said, [])
  t.same(extents(storage), [
    [0, 1],
    [2, 1],
  ])
  t.equal(storage.size(), 3 * CLUSTER)
})

t.test('an extension whose sum is wrong is dropped, and what it had is free', async (t) => {
  const storage = withBitmap({}, 8, 5)
  storage.write(Buffer.from([1]), 0, 1, 2 * CLUSTER + 100)
  const { said, findings } = check(storage)
  t.same(said, ['corruption extension', 'leak leak'])
  t.match(findings[0]!.message, /its MD5 is/)
  check(storage, 'all')
  t.equal(u32(storage, 56), 0)
  t.equal(storage.size(), CLUSTER)
  t.same(check(storage).said, [])
})

t.test('an extension that does not load, and stays, keeps what may be its clusters', async (t) => {
  const storage = withBitmap({ size: 5 * CLUSTER }, 8, 5)
  storage.write(Buffer.from([1]), 0, 1, 2 * CLUSTER + 100)
  const before = contentsOf(storage)
  t.same(check(storage, 'leaks').said, ['corruption extension', 'leak leak'])
  t.ok(contentsOf(storage).equals(before))
})

t.test('features that do not load, and stay, keep what may be their clusters', async (t) => {
  const bits = bitmapData(SECTORS, ID, 8, [8])
  const otherSize = bitmapData(SECTORS - 8, ID, 8, [8])
  for (const features of [
    [{ magic: BITMAP, data: otherSize }],
    [
      { magic: 0x1122n, data: Buffer.alloc(8, 4) },
      { magic: BITMAP, data: bits },
    ],
  ]) {
    const storage = image({ extOff: 16, bat: [5], size: 8 * CLUSTER })
    storage.write(extensionBytes(CLUSTER, features), 0, CLUSTER, 2 * CLUSTER)
    const before = contentsOf(storage)
    const { said } = check(storage, 'leaks')
    t.ok(said.includes('leak leak'))
    t.notOk(said.includes('leak leak repaired'))
    t.ok(contentsOf(storage).equals(before))
    t.ok(check(storage, 'all').said.includes('leak leak repaired'), 'they go with what they belonged to')
    t.same(check(storage).said, [])
    t.equal(content(storage, 0), 5)
  }
})

t.test('guest data in a bitmap’s cluster: the data stays, the bitmap says all', async (t) => {
  const storage = withBitmap({ bat: [1] }, 8, 5)
  t.same(check(storage).said, ['corruption shared-cluster'])
  const before = Buffer.alloc(CLUSTER)
  storage.read(before, 0, CLUSTER, CLUSTER)
  t.same(
    check(storage, 'all').said.filter((line) => line.startsWith('corruption')),
    ['corruption shared-cluster repaired'],
  )
  t.same(extents(storage), [[0, 64]])
  const disk = openStorages([storage])
  const after = Buffer.alloc(CLUSTER)
  disk.read(after, 0, CLUSTER, 0)
  disk.close()
  t.ok(after.equals(before))
  t.same(check(storage).said, [])
})

t.test('bitmaps that somebody did not keep', async (t) => {
  const storage = withBitmap({ inUse: 0 }, 8, 5)
  t.same(check(storage).said, ['warning bitmaps'])
  t.same(check(storage, 'all').said, ['warning bitmaps repaired', 'leak leak repaired'])
  t.equal(u32(storage, 44), CLOSED)
  t.same(extents(storage), [[0, 64]])
  t.same(check(storage).said, [])
})

t.test('giving leaks back does not make stale bitmaps true', async (t) => {
  const storage = withBitmap({ inUse: 0, size: 6 * CLUSTER }, 8, 5)
  t.same(check(storage, 'leaks').said, ['warning bitmaps', 'leak leak repaired'])
  t.equal(u32(storage, 44), 0)
  t.same(extents(storage), [[0, 64]])
})

t.test('a feature that forbids changes: nothing is changed', async (t) => {
  const storage = image({ size: 4 * CLUSTER, extOff: 16, fill: false, bat: [9], inUse: OPEN })
  storage.write(extensionBytes(CLUSTER, [{ magic: 0x99n, flags: 1, data: Buffer.alloc(8) }]), 0, CLUSTER, 2 * CLUSTER)
  const before = Buffer.alloc(4 * CLUSTER)
  storage.read(before, 0, before.length, 0)
  t.same(check(storage, 'all').said, ['warning feature', 'corruption bat-range', 'warning in-use'])
  const after = Buffer.alloc(4 * CLUSTER)
  storage.read(after, 0, after.length, 0)
  t.ok(after.equals(before))
})

t.test('everything at once is mended in one go', async (t) => {
  const storage = withBitmap({ inUse: OPEN, dataOff: 0, bat: [1, 900, 3, 3, 5], size: 8 * CLUSTER }, 8, 5)
  storage.write(Buffer.alloc(CLUSTER, 0x33), 0, CLUSTER, 3 * CLUSTER)
  storage.write(Buffer.alloc(CLUSTER, 0x66), 0, CLUSTER, 6 * CLUSTER)
  check(storage, 'all')
  t.same(check(storage).said, [])
  t.same(
    [1, 2, 3, 4].map((i) => content(storage, i)),
    [0, 0x33, 0x33, 0],
  )
})
