import t from 'tap'
import type { SpaceList } from '../../lib/metadata/space.js'
import { FaultStorage } from '../../lib/storage/fault.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import { attach, contents, setUp } from './fixtures/metadata.js'

function make(threads = 1) {
  const recorder = new Recorder()
  const inner = MemoryStorage.create({ contents: new Uint8Array(65536).fill(9) })
  const storage = recorder.record(inner)
  const { metadata, shape } = setUp([storage], { threads })
  const free = (offset: number, length: number) => metadata.exclusive(() => metadata.space.free(offset, length))
  const take = (length: number) => metadata.exclusive(() => metadata.space.take(length))
  return { recorder, storage, metadata, shape, space: metadata.space, free, take }
}

function all(space: SpaceList): number[][] {
  const ranges: number[][] = []
  space.each((offset, length) => ranges.push([offset, length]))
  return ranges.sort((a, b) => a[0]! - b[0]!)
}

t.test('what is freed can be taken after the next commit, and reads as zeros', async (t) => {
  const { metadata, storage, recorder, free, take, space } = make()
  free(4096, 8192)
  t.equal(take(8192), -1)
  t.equal(contents(storage)[4096], 9, 'somebody may still read it')
  t.same(all(space), [[4096, 8192]])
  metadata.commit()
  t.same(recorder.describe(), ['0: file 0 punch {"offset":4096,"length":8192}'])
  t.same(all(space), [[4096, 8192]])
  t.equal(take(8192), 4096)
  t.equal(take(8192), -1)
  t.same(all(space), [])
  const after = contents(storage)
  t.same([after[4095], after[4096], after[12287], after[12288]], [9, 0, 0, 9])
})

t.test('what is discarded is punched at once, and taken after the commit', async (t) => {
  const { metadata, recorder, take, space, storage } = make()
  metadata.epochs.enter()
  metadata.exclusive(() => space.discard(4096, 8192))
  t.same(recorder.describe(), [], 'not under the lock')
  space.punchDiscarded()
  metadata.epochs.leave()
  t.same(recorder.describe(), ['0: file 0 punch {"offset":4096,"length":8192}'])
  t.equal(contents(storage)[4096], 0)
  t.equal(take(8192), -1)
  space.punchDiscarded()
  t.equal(recorder.length, 1, 'once')
  metadata.commit()
  t.equal(take(8192), 4096)
})

t.test('a barrier comes between the punch and what is put there', async (t) => {
  const { metadata, recorder, free } = make()
  free(0, 512)
  metadata.commit()
  t.ok(metadata.uncommitted)
  metadata.commit()
  t.equal(recorder.describe().at(-1), '1: file 0 sync {}')
})

t.test('a range is split, and nothing is handed out twice', async (t) => {
  const { metadata, free, take } = make()
  free(0, 10240)
  metadata.commit()
  t.equal(take(20480), -1, 'too long')
  const taken = Array.from({ length: 5 }, () => take(2048))
  t.same(
    [...taken].sort((a, b) => a - b),
    [0, 2048, 4096, 6144, 8192],
  )
  t.equal(take(2048), -1)
})

t.test('the range at the end of the file', async (t) => {
  const { metadata, free, space } = make()
  free(0, 512)
  free(1024, 512)
  free(8192, 4096)
  metadata.commit()
  const takeEndingAt = (end: number) => metadata.exclusive(() => space.takeEndingAt(end))
  t.equal(takeEndingAt(12287), -1)
  t.equal(takeEndingAt(12288), 8192)
  t.equal(takeEndingAt(12288), -1)
  t.equal(takeEndingAt(512), 0)
  t.same(all(space), [[1024, 512]])
})

t.test('what is freed during a commit waits for the next', async (t) => {
  const inner = MemoryStorage.create({ contents: new Uint8Array(4096) })
  const { metadata } = setUp([inner], {
    writeOut: () => metadata.exclusive(() => metadata.space.free(1024, 512)),
  })
  metadata.exclusive(() => metadata.space.free(0, 512))
  metadata.commit()
  const take = () => metadata.exclusive(() => metadata.space.take(512))
  t.equal(take(), 0)
  t.equal(take(), -1)
  metadata.commit()
  t.equal(take(), 1024)
})

t.test('a commit that fails gives nothing back', async (t) => {
  let broken = true
  const { metadata } = setUp([MemoryStorage.create({ contents: new Uint8Array(4096) })], {
    writeOut: () => {
      if (broken) throw new Error('broken')
    },
  })
  const take = () => metadata.exclusive(() => metadata.space.take(512))
  metadata.exclusive(() => metadata.space.free(0, 512))
  t.throws(() => metadata.commit(), /broken/)
  t.equal(take(), -1)
  broken = false
  metadata.commit()
  t.equal(take(), 0)
})

t.test('space that cannot be made zeros is not used again', async (t) => {
  const storage = new FaultStorage(MemoryStorage.create({ contents: new Uint8Array(4096) }))
  const { metadata } = setUp([storage])
  metadata.exclusive(() => metadata.space.free(0, 512))
  metadata.exclusive(() => metadata.space.free(512, 512))
  storage.fail({ kinds: ['punch'], nth: 1, errno: 'EIO' })
  metadata.commit()
  const take = () => metadata.exclusive(() => metadata.space.take(512))
  t.equal(take(), 512)
  t.equal(take(), -1)
})

t.test('a list that is full forgets, and says so', async (t) => {
  const { metadata, space, take } = make()
  t.notOk(space.forgotten)
  metadata.exclusive(() => {
    for (let i = 0; i < 16384; i++) space.free(2 * i, 1)
  })
  t.notOk(space.forgotten)
  metadata.exclusive(() => space.free(60000, 1))
  t.ok(space.forgotten)
  space.looked()
  t.notOk(space.forgotten)
  metadata.commit()
  const taken = new Set<number>()
  for (let offset = take(1); offset >= 0; offset = take(1)) taken.add(offset)
  t.equal(taken.size, 16384)
  t.notOk(taken.has(60000))
})

t.test('a full list of ready space forgets too', async (t) => {
  const { metadata, space } = make()
  metadata.exclusive(() => {
    for (let i = 0; i < 16384; i++) space.free(2 * i, 1)
  })
  metadata.commit()
  space.add(50000, 1)
  t.ok(space.forgotten)
  t.equal(all(space).length, 16384)
})

t.test('space that a scan found', async (t) => {
  const { storage, space, take } = make()
  space.add(8192, 4096)
  t.equal(contents(storage)[8192], 0)
  t.equal(take(4096), 8192)
})

t.test('the list is shared by all threads', async (t) => {
  const { metadata, shape, storage, free } = make(2)
  const other = attach(shape, 1, [storage]).metadata
  free(512, 512)
  other.commit()
  t.equal(
    other.exclusive(() => other.space.take(512)),
    512,
  )
  t.equal(
    metadata.exclusive(() => metadata.space.take(512)),
    -1,
  )
})
