/** Expanding images: what is read, where new data goes, what is in the file at which moment. */

import t from 'tap'
import { parallels } from '../../../lib/formats/parallels/format.js'
import { openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Device } from '../../support/device.js'
import {
  BITMAP,
  bitmapData,
  CLOSED,
  extensionBytes,
  type FeatureParts,
  fromCorpus,
  type ImageParts,
  imageBytes,
  KiB,
  needsCorpus,
  OPEN,
} from './bytes.js'

const CLUSTER = 64 * KiB
const base = { cluster: 128, sectors: 8 * 128, dataOff: 128, size: CLUSTER }

const storageOf = (contents: Buffer) => MemoryStorage.create({ path: 'x.hds', contents })
const image = (parts: Partial<ImageParts> = {}) => storageOf(imageBytes({ ...base, ...parts }))

const bytesOf = (storage: MemoryStorage, offset: number, length: number) => {
  const buffer = Buffer.alloc(length)
  storage.read(buffer, 0, length, offset)
  return buffer
}
const u32 = (storage: MemoryStorage, offset: number) => bytesOf(storage, offset, 4).readUInt32LE()
const bat = (storage: MemoryStorage, index: number) => u32(storage, 64 + 4 * index)
const IN_USE = 44

t.test('data, zeros and the seam between clusters', async (t) => {
  const storage = image({ bat: [2, 0, 1], size: 3 * CLUSTER })
  storage.write(Buffer.alloc(CLUSTER, 0xaa), 0, CLUSTER, 2 * CLUSTER)
  storage.write(Buffer.alloc(CLUSTER, 0xbb), 0, CLUSTER, CLUSTER)
  const disk = openStorages([storage], { readOnly: true })
  const all = Buffer.alloc(8 * CLUSTER)
  disk.read(all, 0, all.length, 0)
  const expected = Buffer.alloc(8 * CLUSTER)
  expected.fill(0xaa, 0, CLUSTER)
  expected.fill(0xbb, 2 * CLUSTER, 3 * CLUSTER)
  t.ok(all.equals(expected))
  t.equal(disk.format, 'parallels')
  disk.close()
})

t.test('a real image of the older kind', needsCorpus, async (t) => {
  const disk = openStorages([storageOf(fromCorpus('v1.hds'))], { readOnly: true })
  const data = Buffer.alloc(5)
  for (const i of [0, 1, 2, 3, 4]) disk.read(data, i, 1, i * 64 * KiB + 7)
  t.same([...data], [0x11, 0x22, 0x33, 0x44, 0])
  disk.close()
})

t.test('clusters of 63 sectors, in the older kind, behind data that begins anywhere', async (t) => {
  const bytes = 63 * 512
  const storage = image({ magic: 'WithoutFreeSpace', cluster: 63, sectors: 1000, dataOff: 5, size: 5 * 512 })
  const disk = openStorages([storage])
  const data = Buffer.alloc(3 * bytes, 0x5a)
  disk.write(data, 0, data.length, bytes - 100)
  disk.close()
  t.same(
    [0, 1, 2, 3].map((i) => bat(storage, i)),
    [5, 68, 131, 194],
    'in sectors from the data area on',
  )
  t.equal(storage.size(), (5 + 4 * 63) * 512, 'the file ends with its last cluster')
  const again = openStorages([storage], { readOnly: true })
  const back = Buffer.alloc(data.length + 2)
  again.read(back, 0, back.length, bytes - 101)
  t.ok(back.equals(Buffer.concat([Buffer.alloc(1), data, Buffer.alloc(1)])))
  again.close()
})

t.test('the mark is there before the first change, and gone after a clean end', async (t) => {
  const storage = image()
  const disk = openStorages([storage])
  t.equal(u32(storage, IN_USE), CLOSED, 'reading does not set it')
  disk.write(Buffer.alloc(512, 1), 0, 512, 0)
  t.equal(u32(storage, IN_USE), OPEN)
  t.equal(bat(storage, 0), 0, 'nothing refers to the data yet')
  disk.flush()
  t.equal(bat(storage, 0), 1)
  t.equal(u32(storage, IN_USE), OPEN)
  disk.close()
  t.equal(u32(storage, IN_USE), CLOSED)
})

t.test('an image that is only read is not changed', async (t) => {
  const storage = image({ bat: [1], size: 2 * CLUSTER })
  const before = bytesOf(storage, 0, 2 * CLUSTER)
  const disk = openStorages([storage])
  disk.read(Buffer.alloc(512), 0, 512, 0)
  disk.flush()
  disk.close()
  t.ok(bytesOf(storage, 0, 2 * CLUSTER).equals(before))
})

t.test('discarded clusters are holes at once after a commit, and used again', async (t) => {
  const storage = image()
  const disk = openStorages([storage])
  disk.write(Buffer.alloc(4 * CLUSTER, 7), 0, 4 * CLUSTER, 0)
  disk.flush()
  t.same(
    [0, 1, 2, 3].map((i) => bat(storage, i)),
    [1, 2, 3, 4],
  )
  const full = storage.allocated()
  disk.zero(CLUSTER, 2 * CLUSTER, true)
  disk.flush()
  t.same(
    [0, 1, 2, 3].map((i) => bat(storage, i)),
    [1, 0, 0, 4],
  )
  t.equal(full - storage.allocated(), 2 * CLUSTER)
  disk.write(Buffer.alloc(512, 8), 0, 512, 6 * CLUSTER + 512)
  disk.close()
  t.ok([2, 3].includes(bat(storage, 6)), 'the file did not grow')
  t.equal(storage.size(), 5 * CLUSTER)
  const back = bytesOf(storage, bat(storage, 6) * CLUSTER, CLUSTER)
  t.ok(back.equals(Buffer.concat([Buffer.alloc(512), Buffer.alloc(512, 8)], CLUSTER)), 'nothing old shows')
})

t.test('the free tail is cut off at a clean end', async (t) => {
  const storage = image()
  const disk = openStorages([storage])
  disk.write(Buffer.alloc(4 * CLUSTER, 7), 0, 4 * CLUSTER, 0)
  disk.zero(CLUSTER, 3 * CLUSTER, true)
  disk.close()
  t.equal(storage.size(), 2 * CLUSTER)
})

t.test('a hole that an earlier session left in front of the free tail is cut off with it', async (t) => {
  const storage = image()
  const session = (use: (disk: ReturnType<typeof openStorages>) => void) => {
    const disk = openStorages([storage])
    use(disk)
    disk.close()
  }
  session((disk) => disk.write(Buffer.alloc(3 * CLUSTER, 7), 0, 3 * CLUSTER, 0))
  session((disk) => disk.zero(CLUSTER, CLUSTER, true))
  t.equal(storage.size(), 4 * CLUSTER)
  session((disk) => disk.zero(2 * CLUSTER, CLUSTER, true))
  t.equal(storage.size(), 2 * CLUSTER)
  const kept = Buffer.alloc(CLUSTER)
  session((disk) => disk.read(kept, 0, CLUSTER, 0))
  t.ok(kept.equals(Buffer.alloc(CLUSTER, 7)))
})

t.test('the tail that a crash left is cut off at the next clean end', async (t) => {
  const bits = (l1: number) => bitmapData(base.sectors, '00112233-4455-6677-8899-aabbccddeeff', 128, [l1])
  for (const [l1, clusters] of [
    [undefined, 3],
    [0, 5],
    [5 * 128, 5],
  ] as const) {
    const parts = { inUse: OPEN, bat: [2], size: 9 * CLUSTER, extOff: l1 === undefined ? 0 : 4 * 128 }
    const file = imageBytes({ ...base, ...parts })
    file.fill(7, 2 * CLUSTER, 3 * CLUSTER)
    if (l1 !== undefined) extensionBytes(CLUSTER, [{ magic: BITMAP, data: bits(l1) }]).copy(file, 4 * CLUSTER)
    const storage = storageOf(file)
    openStorages([storage]).close()
    t.equal(u32(storage, IN_USE), CLOSED)
    // Of a bitmap that was not kept up to date everything is set, and its bits are used no more.
    t.equal(storage.size(), clusters * CLUSTER)
    t.ok(bytesOf(storage, 2 * CLUSTER, CLUSTER).equals(Buffer.alloc(CLUSTER, 7)))
  }
})

t.test('gaps that an earlier session left are found before the file grows', async (t) => {
  const storage = image({ bat: [1, 0, 0, 5], size: 6 * CLUSTER })
  const disk = openStorages([storage])
  disk.write(Buffer.alloc(2 * CLUSTER, 9), 0, 2 * CLUSTER, CLUSTER)
  disk.close()
  t.same(
    [1, 2].map((i) => bat(storage, i)),
    [2, 3],
  )
  t.equal(storage.size(), 6 * CLUSTER)
})

t.test('a gap with old data in it reads as zeros when it is used again', async (t) => {
  const storage = image({ bat: [1, 0, 3], size: 4 * CLUSTER })
  storage.write(Buffer.alloc(CLUSTER, 0xee), 0, CLUSTER, 2 * CLUSTER)
  const disk = openStorages([storage])
  disk.write(Buffer.alloc(512, 1), 0, 512, CLUSTER)
  const back = Buffer.alloc(CLUSTER)
  disk.read(back, 0, CLUSTER, CLUSTER)
  t.ok(back.equals(Buffer.concat([Buffer.alloc(512, 1)], CLUSTER)))
  disk.close()
  t.equal(bat(storage, 1), 2)
})

t.test('an image that says it is empty reads as zeros, and forgets its BAT when it is written', async (t) => {
  const storage = image({ flags: 1, bat: [1, 2], size: 3 * CLUSTER })
  storage.write(Buffer.alloc(2 * CLUSTER, 0xcc), 0, 2 * CLUSTER, CLUSTER)
  const disk = openStorages([storage])
  const data = Buffer.alloc(CLUSTER, 1)
  disk.read(data, 0, CLUSTER, 0)
  t.ok(data.equals(Buffer.alloc(CLUSTER)))
  disk.write(Buffer.alloc(512, 3), 0, 512, CLUSTER)
  disk.read(data, 0, CLUSTER, 0)
  t.ok(data.equals(Buffer.alloc(CLUSTER)))
  disk.close()
  t.equal(u32(storage, 52), 0, 'the flag is gone')
  t.equal(bat(storage, 0), 0)
  t.not(bat(storage, 1), 0)
  const again = openStorages([storage], { readOnly: true })
  again.read(data, 0, CLUSTER, CLUSTER)
  t.ok(data.equals(Buffer.concat([Buffer.alloc(512, 3)], CLUSTER)))
})

t.test('an entry that points outside is an error, not somebody else’s bytes', async (t) => {
  for (const entry of [0x7fffffff, 3]) {
    const disk = openStorages([image({ bat: [entry], size: 3 * CLUSTER })], { readOnly: true })
    t.throws(() => disk.read(Buffer.alloc(1), 0, 1, 5), {
      code: 'CORRUPT',
      message: /BAT entry 0 says byte/,
      offset: 64,
    })
  }
  const inside = image({ magic: 'WithoutFreeSpace', entries: 300, bat: [1], size: 3 * CLUSTER })
  t.throws(() => openStorages([inside], { readOnly: true }).read(Buffer.alloc(1), 0, 1, 5), { code: 'CORRUPT' })
})

const FEATURES: Readonly<Record<string, readonly FeatureParts[]>> = {
  'no extension': [],
  'a feature that nobody knows': [{ magic: 0x1122n, flags: 2, data: Buffer.alloc(8) }],
  'a bitmap': [{ magic: BITMAP, data: bitmapData(base.sectors, '00112233-4455-6677-8899-aabbccddeeff', 128, [0]) }],
}

for (const [name, features] of Object.entries(FEATURES))
  t.test(`a copy that was cut short, with ${name}: nothing new takes the place of what is missing`, async (t) => {
    // Guest clusters 1 and 2 were in clusters 3 and 4 of the file.
    const file = imageBytes({ ...base, bat: [2, 3, 4], size: 3 * CLUSTER, extOff: features.length > 0 ? 128 : 0 })
    if (features.length > 0) extensionBytes(CLUSTER, features).copy(file, CLUSTER)
    const storage = storageOf(file)
    const disk = openStorages([storage])
    for (let again = 0; again < 3; again++) {
      t.throws(() => disk.write(Buffer.alloc(CLUSTER, 1), 0, CLUSTER, 6 * CLUSTER), { code: 'CORRUPT', offset: 68 })
      for (const missing of [1, 2]) {
        t.throws(() => disk.read(Buffer.alloc(1), 0, 1, missing * CLUSTER), { code: 'CORRUPT' })
        t.throws(() => disk.write(Buffer.alloc(1), 0, 1, missing * CLUSTER), { code: 'CORRUPT' })
      }
    }
    disk.close()
    t.equal(bat(storage, 6), 0)
    t.equal(storage.size(), 3 * CLUSTER)
  })

t.test('a file that ends inside its last cluster', async (t) => {
  const storage = image({ bat: [1], size: CLUSTER + 1000 })
  storage.write(Buffer.alloc(1000, 4), 0, 1000, CLUSTER)
  const disk = openStorages([storage])
  const data = Buffer.alloc(CLUSTER, 1)
  disk.read(data, 0, CLUSTER, 0)
  t.ok(data.equals(Buffer.concat([Buffer.alloc(1000, 4)], CLUSTER)))
  disk.write(Buffer.alloc(10, 5), 0, 10, CLUSTER)
  disk.close()
  t.equal(bat(storage, 1), 2, 'the next cluster begins where that one would end')
})

t.test('a device that ends inside its last cluster: nothing else is put there', async (t) => {
  const storage = image({ bat: [1, 0, 0], size: CLUSTER + 1000 })
  const device = new Device(storage)
  const disk = openStorages([device])
  t.throws(() => disk.write(Buffer.alloc(10, 5), 0, 10, CLUSTER), { code: 'NO_SPACE' })
  disk.write(Buffer.alloc(1000, 6), 0, 1000, 0)
  disk.zero(0, CLUSTER, true)
  disk.flush()
  t.throws(() => disk.write(Buffer.alloc(10, 5), 0, 10, CLUSTER), { code: 'NO_SPACE' })
  disk.write(Buffer.alloc(1000, 7), 0, 1000, 0)
  disk.close()
  t.same([bat(storage, 0), bat(storage, 1)], [1, 0])
  const free = image({ bat: [0, 0, 0], size: CLUSTER + 1000 })
  const other = openStorages([new Device(free)])
  t.throws(
    () => other.write(Buffer.alloc(10, 5), 0, 10, CLUSTER),
    { code: 'NO_SPACE' },
    'a part of a cluster is no gap',
  )
  other.close()
  t.same([bat(free, 0), bat(free, 1)], [0, 0])
})

t.test('left in use: read as it is; written after a check that finds no more than leaks', async (t) => {
  const warnings: string[] = []
  const warn = (text: string) => void warnings.push(text)
  const left = image({ inUse: OPEN, bat: [1], size: 4 * CLUSTER })
  openStorages([left], { readOnly: true, warn }).close()
  t.equal(u32(left, IN_USE), OPEN, 'reading leaves the mark')
  const disk = openStorages([left], { warn })
  t.match(warnings, [/x\.hds: it was left in use; a check found 1 leaked ranges and no errors/])
  disk.write(Buffer.alloc(512, 1), 0, 512, CLUSTER)
  disk.close()
  t.equal(u32(left, IN_USE), CLOSED)
  const unwritten = image({ inUse: OPEN, bat: [1], size: 2 * CLUSTER })
  openStorages([unwritten], { warn }).close()
  t.equal(u32(unwritten, IN_USE), CLOSED, 'it was found right: the next program need not look again')
  const damaged = image({ inUse: OPEN, bat: [1, 1], size: 2 * CLUSTER })
  t.throws(() => openStorages([damaged]), {
    code: 'CORRUPT',
    message:
      /left in use, and is damaged: BAT entry 1 says byte 65536, which another entry uses too; vdiskfs check --repair all/,
  })
  openStorages([damaged], { readOnly: true }).close()
})

t.test('marks of other programs are those of a closed image', async (t) => {
  for (const inUse of [0, 0x37316470]) {
    const storage = image({ inUse, bat: [1, 1], size: 2 * CLUSTER })
    const disk = openStorages([storage])
    disk.close()
    t.equal(u32(storage, IN_USE), inUse, 'and stay until something is written')
  }
})

t.test('header faults keep it from being written, not from being read', async (t) => {
  for (const parts of [{ dataOff: 0 }, { entries: 4 }]) {
    t.throws(() => openStorages([image(parts)]), { code: 'CORRUPT', message: /not opened for writing/ })
    const disk = openStorages([image(parts)], { readOnly: true })
    disk.read(Buffer.alloc(512), 0, 512, 7 * CLUSTER)
    disk.close()
  }
})

t.test('the largest disk with clusters of the usual size', async (t) => {
  // As many entries as other programs read: 2^29 − 1, in a table of nearly 2 GiB.
  const storage = MemoryStorage.create({ path: 'big.hds', maxSize: 2 ** 31 + 2 ** 26 })
  const options = { cluster_size: 1024 * 1024 }
  parallels.create({ storage, path: 'big.hds', size: 2 ** 49 - 2 ** 20, options, backing: undefined })
  const disk = openStorages([storage])
  t.equal(disk.size, 2 ** 49 - 2 ** 20)
  const data = Buffer.alloc(512, 6)
  disk.write(data, 0, 512, disk.size - 512)
  const back = Buffer.alloc(512)
  disk.read(back, 0, 512, disk.size - 512)
  t.same(back, data)
  disk.close()
  t.throws(() => parallels.create({ storage, path: 'big.hds', size: 2 ** 50, options, backing: undefined }), {
    code: 'USAGE',
    message: /expected a cluster_size of at least 3M/,
  })
})
