import t from 'tap'
import { Region } from '../../lib/metadata/region.js'
import { MAX_CACHE_SIZE, makeShared, viewShared } from '../../lib/metadata/shared.js'
import { FaultStorage } from '../../lib/storage/fault.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import { change, contents, randomFrom, setUp } from './fixtures/metadata.js'

function table(bytes: number, options: Parameters<typeof setUp>[1] = {}) {
  const storage = MemoryStorage.create({ contents: new Uint8Array(bytes) })
  const { metadata, files } = setUp([storage], options)
  return { storage, metadata, file: files[0]!, region: new Region(metadata, files[0]!, 0, bytes, 0) }
}

t.test('the largest cache has all its parts, and a larger one is refused', async (t) => {
  const sizes = { threads: 257, files: 512, stateNumbers: 512 }
  const { data, staging } = viewShared(makeShared({ ...sizes, cacheSize: MAX_CACHE_SIZE }))
  data[MAX_CACHE_SIZE - 1] = 1
  staging[staging.length - 1] = 1
  t.same([data.length, data.at(-1), staging.at(-1)], [2 ** 31, 1, 1])
  for (const cacheSize of [MAX_CACHE_SIZE + 1, 2 ** 47, Number.NaN])
    t.throws(() => makeShared({ ...sizes, cacheSize }), { code: 'USAGE', message: /expected at most 2147483648/ })
})

t.test('a change that throws before it has changed anything is harmless', async (t) => {
  const { metadata, region } = table(4096)
  const refusal = new Error('no')
  t.throws(
    () =>
      change(metadata, 1, () => {
        region.u8(0)
        throw refusal
      }),
    refusal,
  )
  t.notOk(metadata.lock.poisoned)
  change(metadata, 1, () => region.setU8(0, 1))
  metadata.commit()
})

t.test('one that throws after it has changed something ends all changing, reading and writing', async (t) => {
  const { storage, metadata, region } = table(4096)
  const refusal = new Error('half way')
  t.throws(
    () =>
      change(metadata, 2, () => {
        region.setU8(0, 1)
        throw refusal
      }),
    refusal,
  )
  const ended = { code: 'INTERNAL', message: /unmounted and checked/ }
  t.throws(() => metadata.exclusive(() => {}), ended)
  t.throws(() => metadata.shared(() => region.u8(0)), ended)
  t.throws(() => metadata.commit(), ended)
  t.throws(() => metadata.reserve(1), ended)
  t.same(contents(storage), new Uint8Array(4096), 'nothing of it is written')
})

t.test('one that misses a page after it has changed something is a mistake, and ends it too', async (t) => {
  const { metadata, region } = table(8192)
  metadata.shared(() => region.u8(0))
  t.throws(
    () =>
      change(metadata, 2, () => {
        region.setU8(0, 1)
        region.setU8(4096, 1)
      }),
    { code: 'INTERNAL', message: /half way/ },
  )
  t.ok(metadata.lock.poisoned)
})

t.test('a page that cannot be read', async (t) => {
  const storage = new FaultStorage(MemoryStorage.create({ contents: Uint8Array.from([5]) }))
  const { metadata, files } = setUp([storage])
  const region = new Region(metadata, files[0]!, 0, 4096, 0)
  storage.fail({ kinds: ['read'], nth: 1, errno: 'EIO' })
  t.throws(() => metadata.shared(() => region.u8(0)), { code: 'IO' })
  t.notOk(metadata.lock.poisoned)
  t.equal(
    metadata.shared(() => region.u8(0)),
    5,
    'the next try works',
  )
})

t.test('room is reserved, and a cache that is full of dirt commits', async (t) => {
  const recorder = new Recorder()
  const storage = recorder.record(MemoryStorage.create({ contents: new Uint8Array(2 ** 20) }))
  const { metadata, files } = setUp([storage])
  const region = new Region(metadata, files[0]!, 0, 2 ** 20, 0)
  // Five eighths of the 256 pages may be dirty.
  for (let page = 0; page < 160; page++) change(metadata, 1, () => region.setU8(page * 4096, 1))
  t.equal(recorder.length, 0)
  change(metadata, 1, () => region.setU8(200 * 4096, 1))
  t.equal(metadata.counts().commits, 1)
  t.equal(metadata.counts().dirty, 1)
  t.equal(recorder.describe().filter((line) => line.includes('write')).length, 160)
})

t.test('what is reserved is kept free of what others do', async (t) => {
  const { metadata, region } = table(2 ** 20)
  metadata.reserve(100)
  t.equal(metadata.counts().commits, 0)
  metadata.exclusive(() => region.setU8(0, 1))
  metadata.unreserve()
  metadata.reserve(159)
  metadata.unreserve()
  t.equal(metadata.counts().commits, 0)
  metadata.reserve(160)
  t.equal(metadata.counts().commits, 1)
  metadata.unreserve()
  t.throws(() => metadata.reserve(161), { code: 'INTERNAL', message: /161 sectors/ })
})

t.test('more dirt than can be committed at once is refused, not lost', async (t) => {
  const { metadata, file } = table(2 ** 20)
  const region = new Region(metadata, file, 0, 2 ** 20, 0)
  metadata.exclusive(() => region.fresh(0, 257 * 512, 1))
  t.throws(() => metadata.commit(), { code: 'INTERNAL', message: /257 sectors/ })
  t.equal(metadata.counts().dirty, 257)
})

t.test('a reservation that cannot be had because nothing can be written', async (t) => {
  const inner = MemoryStorage.create({ contents: new Uint8Array(2 ** 20) })
  const storage = new FaultStorage(inner)
  const { metadata, files } = setUp([storage])
  const region = new Region(metadata, files[0]!, 0, 2 ** 20, 0)
  for (let page = 0; page < 160; page++) change(metadata, 1, () => region.setU8(page * 4096, 1))
  storage.fail({ kinds: ['write'], nth: 1, errno: 'ENOSPC', persistent: true })
  t.throws(() => metadata.reserve(1), { code: 'NO_SPACE' })
  storage.heal()
  metadata.reserve(1)
  metadata.unreserve()
  t.equal(metadata.counts().dirty, 0)
})

t.test('a table that is larger than the cache, against a plain buffer', async (t) => {
  const seed = 1
  const random = randomFrom(seed)
  const size = 8 * 2 ** 20
  const model = new DataView(new ArrayBuffer(size))
  const storage = MemoryStorage.create({ contents: new Uint8Array(size) })
  const open = () => {
    const { metadata, files } = setUp([storage])
    return { metadata, region: new Region(metadata, files[0]!, 0, size, 0) }
  }
  let { metadata, region } = open()
  let wrong = 0
  for (let step = 0; step < 60_000; step++) {
    // Half of the accesses in a part that fits, so that there are hits too.
    const at = 4 * Math.floor((random() * (random() < 0.5 ? size / 64 : size)) / 4)
    const dice = random()
    if (dice < 0.4) {
      const value = Math.floor(random() * 2 ** 32)
      change(metadata, 1, () => region.setU32be(at, value))
      model.setUint32(at, value)
    } else if (dice < 0.998) {
      if (metadata.shared(() => region.u32be(at)) !== model.getUint32(at)) wrong++
    } else if (dice < 0.9998) metadata.commit()
    else {
      metadata.commit()
      ;({ metadata, region } = open())
    }
  }
  t.equal(wrong, 0, `seed ${seed}`)
  t.ok(metadata.counts().evictions > 0)
  metadata.commit()
  t.ok(Buffer.from(model.buffer).equals(contents(storage)), `the file is the model, seed ${seed}`)
})

t.test('several files are kept apart, and only writable ones are synced', async (t) => {
  const recorder = new Recorder()
  const storages = [1, 2].map((n) => recorder.record(MemoryStorage.create({ contents: new Uint8Array(512).fill(n) })))
  const { metadata, files } = setUp(storages)
  const [a, b] = files.map((file) => new Region(metadata, file, 0, 512, 0))
  t.same(
    metadata.shared(() => [a!.u8(0), b!.u8(0)]),
    [1, 2],
  )
  change(metadata, 1, () => b!.setU8(0, 9))
  metadata.commit()
  t.same(recorder.describe(), ['0: file 1 write {"offset":0,"length":512}', '1: file 1 sync {}'])
})

t.test('the numbers of a layer are shared', async (t) => {
  const { metadata } = table(512)
  metadata.state(2, 3).set([1.5, 2 ** 53, -1])
  t.same([...metadata.state(3, 2)], [2 ** 53, -1])
})
