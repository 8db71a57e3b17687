import t from 'tap'
import { Region } from '../../lib/metadata/region.js'
import { FaultStorage } from '../../lib/storage/fault.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import type { Storage } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'
import { change, contents, setUp } from './fixtures/metadata.js'

function recorded(size = 65536) {
  const recorder = new Recorder()
  const inner = MemoryStorage.create({ contents: new Uint8Array(size) })
  const storage = recorder.record(inner)
  const { metadata, files } = setUp([storage])
  const file = files[0]!
  const region = (start: number, end: number, order: number) => new Region(metadata, file, start, end, order)
  const log = () => recorder.describe().map((line) => line.replace(/^\d+: file 0 /, ''))
  return { recorder, storage, metadata, region, log }
}

const write = (offset: number, length: number) => `write ${JSON.stringify({ offset, length })}`
const SYNC = 'sync {}'

t.test(
  'data, barrier, order after order with a barrier behind each; dirty sectors only, neighbours joined',
  async (t) => {
    const { storage, metadata, region, log } = recorded()
    const bitmaps = region(0, 8192, 0)
    const table = region(16384, 32768, 1)
    const header = region(40960, 41472, 3)
    storage.write(new Uint8Array(10), 0, 10, 60000)
    metadata.wrote(0)
    change(metadata, 20, () => {
      for (const at of [0, 4608, 16384, 20000, 20480, 31000]) (at < 16384 ? bitmaps : table).touch(at, 1)
      header.touch(40960, 1)
      header.setU8(40960, 1)
      table.setU8(31000, 1)
      table.setU8(16384, 1)
      // Two sectors of one page, and the next page's first.
      table.touch(19968, 1024)
      table.setU8(20000, 1)
      table.setU8(20479, 1)
      table.setU8(20480, 1)
      bitmaps.setU8(4608, 1)
      bitmaps.setU8(0, 1)
      bitmaps.setU8(511, 1)
    })
    metadata.commit()
    t.same(log(), [
      write(60000, 10),
      SYNC,
      write(0, 512),
      write(4608, 512),
      SYNC,
      write(16384, 512),
      write(19968, 1024),
      write(30720, 512),
      SYNC,
      write(40960, 512),
      SYNC,
    ])
  },
)

t.test('a commit with nothing to do does nothing', async (t) => {
  const { metadata, log, storage } = recorded()
  metadata.commit()
  t.same(log(), [])
  t.notOk(metadata.uncommitted)
  storage.write(new Uint8Array(1), 0, 1, 0)
  metadata.wrote(0)
  t.ok(metadata.uncommitted)
  metadata.commit()
  metadata.commit()
  t.same(log(), [write(0, 1), SYNC])
  t.notOk(metadata.uncommitted)
})

t.test('what was committed is clean, and what is changed again is written again', async (t) => {
  const { metadata, region, log, storage } = recorded()
  const table = region(0, 4096, 0)
  change(metadata, 1, () => table.setU8(0, 1))
  t.ok(metadata.dirty)
  metadata.commit()
  t.notOk(metadata.dirty)
  change(metadata, 1, () => table.setU8(0, 2))
  metadata.commit()
  t.same(log(), [write(0, 512), SYNC, write(0, 512), SYNC])
  t.equal(contents(storage)[0], 2)
})

t.test('changes during a commit wait for the next', async (t) => {
  const inner = MemoryStorage.create({ contents: new Uint8Array(4096) })
  const seen: number[] = []
  const { metadata, files } = setUp([inner], {
    writeOut: (batch) => {
      // In the middle of a commit the lock is free.
      if (seen.length === 0) metadata.exclusive(() => table.setU8(0, 2))
      t.ok(metadata.uncommitted)
      for (const run of batch.runs()) seen.push(run.bytes[0]!)
    },
  })
  const table = new Region(metadata, files[0]!, 0, 512, 0)
  change(metadata, 1, () => table.setU8(0, 1))
  metadata.commit()
  t.same(seen, [1])
  t.equal(metadata.counts().dirty, 1)
  metadata.commit()
  t.same(seen, [1, 2])
  t.notOk(metadata.uncommitted)
})

t.test("a format's own way of writing gets file, order, offset and bytes of every run", async (t) => {
  const runs: unknown[] = []
  const storages = [0, 1].map(() => MemoryStorage.create({ contents: new Uint8Array(8192) }))
  const { metadata, files } = setUp(storages, {
    writeOut: (batch) => {
      t.equal(batch.count, 4)
      for (const { file, order, offset, bytes } of batch.runs())
        runs.push([file, order, offset, bytes.length, bytes[1]])
    },
  })
  const a = new Region(metadata, files[0]!, 0, 8192, 2)
  const b = new Region(metadata, files[1]!, 0, 8192, 1)
  change(metadata, 4, () => {
    a.fresh(512, 1024, 7)
    b.fresh(1024, 512, 8)
    b.fresh(4096, 512, 9)
  })
  metadata.commit()
  t.same(runs, [
    [1, 1, 1024, 512, 8],
    [1, 1, 4096, 512, 9],
    [0, 2, 512, 1024, 7],
  ])
})

function faulty() {
  const inner = MemoryStorage.create({ contents: new Uint8Array(65536) })
  const storage = new FaultStorage(inner)
  const { metadata, files } = setUp([storage])
  const region = (start: number, end: number, order: number) => new Region(metadata, files[0]!, start, end, order)
  return { inner, storage, metadata, region }
}

t.test('a write that fails, at every place: all of it is dirty again, and the next commit does it', async (t) => {
  for (let nth = 1; nth <= 3; nth++) {
    const { inner, storage, metadata, region } = faulty()
    const [bitmaps, table] = [region(0, 8192, 0), region(16384, 32768, 1)]
    change(metadata, 3, () => {
      bitmaps.fresh(0, 512, 1)
      bitmaps.fresh(4096, 512, 2)
      table.fresh(16384, 512, 3)
    })
    storage.fail({ kinds: ['write'], nth, errno: 'EIO', shortWrite: 100 })
    t.throws(() => metadata.commit(), { code: 'IO' })
    t.equal(metadata.counts().dirty, 3)
    t.equal(metadata.counts().commits, 0)
    t.notOk(metadata.failed)
    metadata.commit()
    t.equal(metadata.counts().dirty, 0)
    const after = contents(inner)
    t.same(
      [0, 511, 4096, 4607, 16384, 16895, 16896].map((at) => after[at]),
      [1, 1, 2, 2, 3, 3, 0],
      `failing at write ${nth}`,
    )
  }
})

t.test('a sync that fails ends writing', async (t) => {
  for (let nth = 1; nth <= 2; nth++) {
    const { inner, storage, metadata, region } = faulty()
    const table = region(0, 8192, 0)
    storage.write(Uint8Array.from([1]), 0, 1, 60000)
    metadata.wrote(0)
    change(metadata, 1, () => table.setU8(0, 9))
    storage.fail({ kinds: ['sync'], nth, errno: 'EIO' })
    t.throws(() => metadata.commit(), { code: 'IO' })
    t.ok(metadata.failed)
    const before = contents(inner)
    t.equal(before[0], nth === 1 ? 0 : 9, 'metadata comes after the data barrier only')
    const syncs = storage.count('sync')
    t.throws(() => metadata.commit(), { code: 'IO', message: /opened again/ })
    t.throws(() => metadata.barrier(), { code: 'IO', message: /opened again/ })
    t.equal(storage.count('sync'), syncs, 'a sync that would succeed now proves nothing')
    t.same(contents(inner), before)
    t.ok(metadata.uncommitted)
  }
})

t.test('a barrier syncs what was written, once', async (t) => {
  const { metadata, storage, log } = recorded()
  storage.write(new Uint8Array(1), 0, 1, 0)
  metadata.wrote(0)
  metadata.barrier()
  metadata.barrier()
  t.same(log(), [write(0, 1), SYNC])
})

t.test('while a barrier is under way, what it syncs is not durable yet', async (t) => {
  const storage = MemoryStorage.create({ contents: new Uint8Array(4096) })
  const { metadata } = setUp([storage])
  const seen: boolean[] = []
  storage.sync = () => void seen.push(metadata.uncommitted)
  storage.write(new Uint8Array(1), 0, 1, 0)
  metadata.wrote(0)
  metadata.barrier()
  // Who asks for an fsync in that moment has to wait for it.
  t.same(seen, [true])
  t.notOk(metadata.uncommitted)
})

t.test('what a commit had under way when it failed and was freed meanwhile is not written any more', async (t) => {
  const inner = MemoryStorage.create({ contents: new Uint8Array(8192) })
  let broken = true
  const { metadata, files } = setUp([inner], {
    writeOut: (batch) => {
      if (!broken) {
        t.equal(batch.count, 0)
        return
      }
      broken = false
      metadata.exclusive(() => table.drop())
      throw new Error('broken')
    },
  })
  const table = new Region(metadata, files[0]!, 0, 512, 0)
  change(metadata, 1, () => table.setU8(0, 1))
  t.throws(() => metadata.commit(), /broken/)
  t.equal(metadata.counts().dirty, 0)
  metadata.commit()
})

t.test('read-only files are never synced', async (t) => {
  const storage: Storage = MemoryStorage.create({ contents: new Uint8Array(512) })
  let synced = false
  storage.sync = () => {
    synced = true
  }
  const { metadata } = setUp([storage])
  metadata.commit()
  t.notOk(synced)
})

t.test('what a commit is writing keeps its room, since it comes back where that fails', async (t) => {
  const fault = new FaultStorage(MemoryStorage.create({ contents: new Uint8Array(2 ** 20) }))
  let during: (() => void) | undefined
  const writeOut = () => {
    during?.()
    throw new VdiskError('IO', 'once')
  }
  const { metadata, files } = setUp([fault], { writeOut })
  const region = new Region(metadata, files[0]!, 0, 2 ** 20, 1)
  const most = 256
  const dirty = (from: number, count: number) => {
    for (let i = from; i < from + count; i += 8) change(metadata, 8, () => region.fresh(i * 512, 4096, 1))
  }
  dirty(0, most - 8)
  during = () => {
    t.equal(metadata.uncommitted, true)
    metadata.commit = () => {
      throw new Error('it has to wait')
    }
    dirty(most - 8, 8)
    t.throws(() => dirty(most, 8), { message: 'it has to wait' })
  }
  t.throws(() => metadata.commit(), { message: 'once' })
  t.equal(metadata.counts().dirty, most)
  t.equal(metadata.uncommitted, true)
})
