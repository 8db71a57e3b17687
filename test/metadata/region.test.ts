import t from 'tap'
import { PageMiss } from '../../lib/metadata/fill.js'
import { Region } from '../../lib/metadata/region.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import { attach, change, contents, misses, setUp } from './fixtures/metadata.js'

/** 64 KiB whose byte at n is n % 251. */
function numbered(): MemoryStorage {
  return MemoryStorage.create({ contents: Uint8Array.from({ length: 65536 }, (_, n) => n % 251) })
}

t.test('fields, in both byte orders', async (t) => {
  const bytes = Uint8Array.from([0x12, 0x34, 0x56, 0x78, 0xff, 0xfe, 0xfd, 0xfc, 0, 0, 0, 0])
  const storage = MemoryStorage.create({ contents: bytes })
  const { metadata, files } = setUp([storage])
  const region = new Region(metadata, files[0]!, 0, 12, 0)
  metadata.shared(() => {
    t.equal(region.u8(1), 0x34)
    t.equal(region.u32be(0), 0x12345678)
    t.equal(region.u32le(0), 0x78563412)
    t.equal(region.u32be(4), 0xfffefdfc)
    t.equal(region.u32le(4), 0xfcfdfeff)
  })
  change(metadata, 1, () => {
    region.setU32be(0, 0x89abcdef)
    region.setU32le(4, 0x89abcdef)
    region.setU8(9, 0x1a5)
  })
  metadata.commit()
  const after = contents(storage)
  t.equal(Buffer.from(after.subarray(0, 12)).toString('hex'), '89abcdefefcdab8900a50000')
  t.equal(after.length, 512, 'a whole sector is written')
})

t.test('only sectors of the structure are taken for metadata', async (t) => {
  const storage = numbered()
  const { metadata, files } = setUp([storage])
  // Two sectors in the middle of a page of data.
  const region = new Region(metadata, files[0]!, 4096 + 1024, 4096 + 2048, 0)
  t.equal(
    metadata.shared(() => region.u8(4096 + 1024)),
    (4096 + 1024) % 251,
  )
  t.equal(metadata.cache.valid[metadata.cache.find(0, 1)], 0b1100)
  const other = new Region(metadata, files[0]!, 4096, 4096 + 512, 0)
  t.ok(
    misses(() => other.u8(4096)),
    'the page is there, the sector is not',
  )
  storage.write(Uint8Array.from([77]), 0, 1, 4096)
  t.equal(
    metadata.shared(() => other.u8(4096)),
    77,
    'it is read when somebody wants it',
  )
})

t.test('what is cached is not read again', async (t) => {
  const storage = numbered()
  const { metadata, files } = setUp([storage])
  const region = new Region(metadata, files[0]!, 0, 8192, 0)
  metadata.shared(() => region.u8(5000))
  storage.write(Uint8Array.from([1, 2, 3]), 0, 3, 5000)
  t.equal(
    metadata.shared(() => region.u8(5000)),
    5000 % 251,
  )
  t.equal(metadata.counts().misses, 1)
})

t.test('a miss comes before any change, and names what is wanted', async (t) => {
  const { metadata, files } = setUp([numbered()])
  const region = new Region(metadata, files[0]!, 512, 20000, 0)
  const changes = [
    () => region.setU8(600, 1),
    () => region.setU32be(600, 1),
    () => region.setU32le(600, 1),
    () => region.touch(600, 1),
    () => region.u8(600),
    () => region.u32be(600),
    () => region.u32le(600),
    () => region.copyOut(600, 10, new Uint8Array(10), 0),
  ]
  for (const call of changes) t.ok(misses(call), String(call))
  t.same(metadata.counts().dirty, 0)
  const { file, page, start, end } = metadata.miss
  t.same([file?.index, page, start, end], [0, 0, 512, 20000])
})

t.test('a change of two pages, the second of which is missing, changes nothing before it has both', async (t) => {
  const { metadata, files } = setUp([numbered()])
  const region = new Region(metadata, files[0]!, 0, 65536, 0)
  metadata.shared(() => region.u8(0))
  let tries = 0
  change(metadata, 2, () => {
    tries++
    region.touch(4000, 200)
    region.setU8(4000, 1)
    region.setU8(4199, 2)
  })
  // The first page is there, and its room on the host is secured; then the second is read, and its room secured.
  t.equal(tries, 3)
  t.equal(metadata.counts().dirty, 2)
})

t.test('copyOut over pages and sectors', async (t) => {
  const { metadata, files } = setUp([numbered()])
  const region = new Region(metadata, files[0]!, 0, 65536, 0)
  const target = new Uint8Array(6002)
  metadata.shared(() => region.copyOut(4000, 6000, target, 1))
  t.same(
    target.subarray(1, 6001),
    Uint8Array.from({ length: 6000 }, (_, n) => (4000 + n) % 251),
  )
  t.equal(target[0], 0)
  t.equal(target[6001], 0)
})

t.test('a new structure is not read, and is dirty whole', async (t) => {
  const recorder = new Recorder()
  const storage = recorder.record(numbered())
  const { metadata, files } = setUp([storage])
  const region = new Region(metadata, files[0]!, 3584, 3584 + 5120, 1)
  change(metadata, 10, () => {
    region.fresh(3584, 5120, 0xff)
    region.setU32be(3584, 1)
  })
  t.equal(metadata.counts().misses, 0)
  t.equal(metadata.counts().dirty, 10)
  metadata.commit()
  t.same(recorder.describe(), ['0: file 0 write {"offset":3584,"length":5120}', '1: file 0 sync {}'])
  const expected = contents(numbered())
  expected.fill(0xff, 3584, 3584 + 5120)
  expected.set([0, 0, 0, 1], 3584)
  t.same(contents(storage), expected)
})

t.test('beyond the end of the file there are zeros', async (t) => {
  const { metadata, files } = setUp([MemoryStorage.create({ contents: Uint8Array.from([1, 2, 3]) })])
  const region = new Region(metadata, files[0]!, 0, 65536, 0)
  const all = new Uint8Array(8)
  metadata.shared(() => region.copyOut(0, 8, all, 0))
  t.same([...all], [1, 2, 3, 0, 0, 0, 0, 0])
  t.equal(
    metadata.shared(() => region.u32be(40000)),
    0,
  )
})

t.test('a structure that was freed is forgotten, dirty or not, and its neighbours are not', async (t) => {
  const recorder = new Recorder()
  const storage = recorder.record(numbered())
  const { metadata, files } = setUp([storage])
  const region = new Region(metadata, files[0]!, 512, 9000, 0)
  const neighbour = new Region(metadata, files[0]!, 0, 512, 0)
  change(metadata, 5, () => {
    region.touch(512, 8488)
    neighbour.touch(0, 1)
    for (const at of [512, 5000, 8999]) region.setU8(at, 99)
    neighbour.setU8(511, 98)
  })
  change(metadata, 5, () => region.drop())
  t.equal(metadata.counts().dirty, 1)
  metadata.commit()
  t.same(recorder.describe(), ['0: file 0 write {"offset":0,"length":512}', '1: file 0 sync {}'])
  storage.write(Uint8Array.from([55]), 0, 1, 5000)
  t.equal(
    metadata.shared(() => region.u8(5000)),
    55,
    'read again',
  )
})

t.test('another structure of the same kind', async (t) => {
  const { metadata, files } = setUp([numbered()])
  const region = new Region(metadata, files[0]!, 0, 512, 0)
  metadata.shared(() => region.u8(100))
  t.equal(region.move(8192, 8704), region)
  t.equal(
    metadata.shared(() => region.u8(8192)),
    8192 % 251,
  )
})

t.test('a byte that is not in the structure is an error, not a page that never comes', async (t) => {
  const { metadata, files } = setUp([numbered()])
  const region = new Region(metadata, files[0]!, 1000, 2000, 0)
  for (const at of [0, 511, 2048, 9000]) {
    t.throws(() => metadata.shared(() => region.u8(at)), { code: 'INTERNAL' }, String(at))
  }
  for (const at of [512, 2047]) {
    t.equal(
      metadata.shared(() => region.u8(at)),
      at % 251,
      'rounded out to sectors',
    )
  }
})

t.test('a new structure on what a commit is writing is refused', async (t) => {
  const storage = numbered()
  let during: unknown
  const { metadata, files } = setUp([storage], {
    writeOut: () => {
      t.throws(
        () => metadata.exclusive(() => region.fresh(512, 512, 0)),
        { code: 'INTERNAL' },
        'its old content would be written over the new',
      )
      during = true
    },
  })
  const region = new Region(metadata, files[0]!, 0, 4096, 0)
  change(metadata, 1, () => region.setU8(512, 1))
  metadata.commit()
  t.ok(during)
})

/** A file, and what happens after the next read of it, before the reader has put it into the cache. */
function interrupted(storage: MemoryStorage) {
  const hook = { meanwhile: () => {} }
  const read: typeof storage.read = (buffer, at, length, offset) => {
    const count = storage.read(buffer, at, length, offset)
    const { meanwhile } = hook
    hook.meanwhile = () => {}
    meanwhile()
    return count
  }
  return { hook, file: { index: 0, storage: Object.assign(Object.create(storage), { read }) as MemoryStorage } }
}

t.test('what is new while the page is read stays', async (t) => {
  const storage = numbered()
  const { metadata, files, shape } = setUp([storage], { threads: 2 })
  const other = attach(shape, 1, [storage]).metadata
  const { hook, file } = interrupted(storage)
  const region = new Region(metadata, file, 0, 4096, 0)
  hook.meanwhile = () => {
    const others = new Region(other, files[0]!, 0, 4096, 0)
    change(other, 1, () => others.fresh(512, 512, 200))
  }
  t.equal(
    metadata.shared(() => region.u8(100)),
    100,
  )
  t.equal(
    metadata.shared(() => region.u8(600)),
    200,
  )
})

t.test('a page that is forgotten while it is read, and taken by another structure', async (t) => {
  const storage = numbered()
  const { metadata, files, shape } = setUp([storage], { threads: 2 })
  const { hook, file } = interrupted(storage)
  const other = attach(shape, 1, [storage]).metadata
  const old = new Region(metadata, file, 0, 512, 0)
  const others = new Region(other, files[0]!, 0, 512, 0)
  hook.meanwhile = () => {
    other.exclusive(() => others.drop())
    // The sector is used for something else now, written straight to the file.
    storage.write(new Uint8Array(512).fill(200), 0, 512, 0)
    // Everything else is given up.
    const filler = new Region(other, files[0]!, 0, 2 ** 30, 0)
    for (let page = 1; page < 600; page++) other.shared(() => filler.u8(page * 4096))
    t.not(other.cache.find(0, 0), -1, 'the slot that is being filled is kept')
  }
  t.throws(() => old.u8(0), PageMiss)
  metadata.load()
  t.equal(
    other.shared(() => others.u8(0)),
    200,
    'what was read before is not believed',
  )
})
