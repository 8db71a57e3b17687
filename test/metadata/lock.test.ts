import t from 'tap'
import { Epochs, Mutex, RwLock } from '../../lib/metadata/lock.js'
import { viewShared } from '../../lib/metadata/shared.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Crew, ended, pause } from './fixtures/crew.js'
import { attach, randomFrom, setUp } from './fixtures/metadata.js'
import { LOCK_EVENT } from './fixtures/words.js'

const storage = () => MemoryStorage.create({ contents: new Uint8Array(4096) })

t.test('a waiting writer comes in between readers that never stop', async (t) => {
  const crew = new Crew(t, storage())
  const { lock } = crew.metadata
  const readers = [1, 2, 3].map((thread) => crew.run('reading', thread))
  await crew.arrived(3)
  for (let i = 0; i < 200; i++) {
    lock.acquireExclusive()
    const looks = crew.word('LOOKS')
    for (let spin = 0; spin < 1000; spin++) Atomics.load(crew.words, 3)
    // A reader counts after it has let go: each may do that once while the lock is held.
    if (crew.word('LOOKS') > looks + 3) t.fail('somebody read under the exclusive lock')
    lock.releaseExclusive()
  }
  const before = crew.word('LOOKS')
  while (crew.word('LOOKS') < before + 10) await pause(1)
  crew.go()
  t.same(await Promise.all(readers), [0, 0, 0])
})

t.test('readers share', async (t) => {
  const crew = new Crew(t, storage())
  crew.metadata.lock.acquireShared()
  const reader = crew.run('reading', 1)
  while (crew.word('LOOKS') < 10) await pause(1)
  crew.go()
  await reader
  crew.metadata.lock.releaseShared()
})

t.test('who changes waits for every reader, whatever its number', async (t) => {
  for (const [reader, writer] of [
    [1, 4],
    [4, 1],
  ] as const) {
    const crew = new Crew(t, storage())
    const reading = crew.run('holdShared', reader)
    await crew.arrived(1)
    const changing = crew.run('changeOnce', writer)
    await crew.arrived(2)
    await pause(50)
    t.equal(crew.word('COMMIT_ENDED'), 0, `thread ${reader} reads`)
    crew.go()
    t.same(await Promise.all([reading, changing]), [0, 0])
    t.ok(crew.word('SYNC_ENDED') < crew.word('COMMIT_ENDED'))
  }
})

t.test('and is woken by the last of them', async (t) => {
  const crew = new Crew(t, storage())
  const { lock } = crew.metadata
  lock.acquireShared()
  const reading = crew.run('holdShared', 2)
  await crew.arrived(1)
  const changing = crew.run('changeOnce', 3)
  await crew.arrived(2)
  await pause(50)
  crew.go()
  await reading
  await pause(50)
  t.equal(crew.word('COMMIT_ENDED'), 0, 'this thread reads')
  lock.releaseShared()
  await changing
  t.not(crew.word('COMMIT_ENDED'), 0)
})

t.test('readers that wait for a long change do not wake each other all the time', async (t) => {
  const crew = new Crew(t, storage())
  const { lock } = crew.metadata
  const events = viewShared(crew.setup.shape).lock.subarray(LOCK_EVENT, LOCK_EVENT + 1)
  lock.acquireExclusive()
  const readers = [1, 2, 3, 4].map((thread) => ended(crew.start('waitShared', thread)))
  await crew.arrived(4)
  await pause(100)
  const before = Atomics.load(events, 0)
  await pause(200)
  t.ok(Atomics.load(events, 0) - before < 10, `${Atomics.load(events, 0) - before} events`)
  lock.releaseExclusive()
  t.same(await Promise.all(readers), [0, 0, 0, 0])
})

t.test('nobody sees half of a change, and no change is lost', async (t) => {
  const crew = new Crew(t, storage())
  const codes = await Promise.all([1, 2, 3, 4].map((thread) => crew.run('twins', thread, { steps: 100_000 })))
  t.same(codes, [0, 0, 0, 0])
  t.equal(crew.word('WRONG'), 0)
  t.equal(crew.word('TWIN'), crew.word('COUNTER'))
  t.ok(crew.word('COUNTER') > 50_000)
})

t.test('changes under the exclusive lock by several threads: none is lost', async (t) => {
  const crew = new Crew(t, MemoryStorage.create({ contents: new Uint8Array(4096) }))
  const codes = await Promise.all([1, 2, 3, 4].map((thread) => crew.run('counting', thread, { steps: 20_000 })))
  t.same(codes, [0, 0, 0, 0])
  const { metadata } = crew
  metadata.commit()
  const changes = [1, 2, 3, 4].reduce((sum, thread) => sum + countOf(thread, 20_000), 0)
  const word = new Uint8Array(4)
  crew.setup.files[0]!.storage.read(word, 0, 4, 0)
  t.equal(new DataView(word.buffer).getUint32(0, true), changes)
})

/** How many of a worker's steps are changes: it follows from its seed. */
function countOf(seed: number, steps: number): number {
  const random = randomFrom(seed)
  let count = 0
  for (let step = 0; step < steps; step++) if (random() < 0.3) count++
  return count
}

t.test('ranges that overlap exclude each other', async (t) => {
  const crew = new Crew(t, storage())
  await Promise.all([1, 2, 3, 4].map((thread) => crew.run('ranges', thread, { steps: 2_000 })))
  t.equal(crew.word('COUNTER'), 8_000)
})

t.test('ranges that only touch do not', async (t) => {
  const crew = new Crew(t, storage())
  const workers = [1, 2, 3, 4].map((thread) => crew.run('apart', thread))
  await crew.arrived(4)
  crew.go()
  t.same(await Promise.all(workers), [0, 0, 0, 0])
})

t.test('a range that was given back can be had, by the same thread or another', async () => {
  const { metadata, shape } = setUp([storage()], { threads: 2 })
  const other = attach(shape, 1, [storage()]).metadata
  for (const user of [metadata, metadata, other, metadata]) {
    user.ranges.acquire(0, 4096)
    user.ranges.release()
  }
})

t.test('settling waits for those who are inside, not for those who come later', async (t) => {
  const crew = new Crew(t, storage())
  const { metadata } = crew
  metadata.epochs.settle()
  const inside = crew.run('inside', 1)
  await crew.arrived(1)
  const settler = crew.run('settling', 2)
  await crew.arrived(2)
  await pause(50)
  t.equal(crew.word('COMMIT_ENDED'), 0, 'somebody is inside')
  // Comes after the settling began, and stays.
  metadata.epochs.enter()
  crew.go()
  t.same(await Promise.all([inside, settler]), [0, 0])
  t.ok(crew.word('SYNC_ENDED') < crew.word('COMMIT_ENDED'))
  metadata.epochs.leave()
})

t.test('freed space is not given away while somebody may be on it', async (t) => {
  const crew = new Crew(t, storage())
  const { metadata } = crew
  const inside = crew.run('inside', 1)
  await crew.arrived(1)
  metadata.exclusive(() => metadata.space.free(0, 512))
  const committing = crew.run('asking', 2)
  await crew.arrived(2)
  await pause(50)
  const take = () => metadata.exclusive(() => metadata.space.take(512))
  t.equal(take(), -1)
  crew.go()
  await Promise.all([inside, committing])
  t.equal(take(), 0)
})

t.test('a barrier waits for the sync that another thread has begun', async (t) => {
  const crew = new Crew(t, storage())
  const syncing = crew.run('slowSync', 1)
  await crew.arrived(1)
  const committing = crew.run('noted', 2)
  await crew.arrived(2)
  await pause(50)
  t.equal(crew.word('COMMIT_WROTE'), 0, 'metadata waits until the data is there')
  t.equal(crew.word('COMMIT_ENDED'), 0)
  crew.go()
  t.same(await Promise.all([syncing, committing]), [0, 0])
  t.ok(crew.word('SYNC_ENDED') < crew.word('COMMIT_WROTE'))
})

t.test('who asks for a commit while one runs is not satisfied by that one', async (t) => {
  const disk = storage()
  const crew = new Crew(t, disk)
  const first = crew.run('slowCommit', 1)
  await crew.arrived(1)
  // The first holds its commit up, with its own change in it; this one is changed after that.
  const second = crew.run('noted', 2)
  await crew.arrived(2)
  await pause(50)
  t.equal(crew.word('COMMIT_ENDED'), 0)
  crew.go()
  await Promise.all([first, second])
  t.equal(crew.metadata.counts().commits, 2)
  t.ok(crew.word('COMMIT_WROTE') > 0)
  t.ok(crew.word('COMMIT_WROTE') < crew.word('COMMIT_ENDED'))
})

t.test('several who ask while one runs share the next', async (t) => {
  const crew = new Crew(t, storage())
  const first = crew.run('slowCommit', 1)
  await crew.arrived(1)
  const others = [2, 3, 4].map((thread) => crew.run('asking', thread))
  await crew.arrived(4)
  await pause(50)
  crew.go()
  await Promise.all([first, ...others])
  t.equal(crew.metadata.counts().commits, 2)
})

t.test('a lock that is poisoned ends all waiting', async (t) => {
  const crew = new Crew(t, storage())
  const { lock, growth } = crew.metadata
  lock.acquireExclusive()
  growth.acquire()
  const waiting = (['waitExclusive', 'waitShared', 'waitGrowth'] as const).map((job, i) =>
    ended(crew.start(job, 1 + i)),
  )
  for (const wait of waiting) wait.catch(() => {})
  await crew.arrived(3)
  lock.poison()
  for (const wait of waiting) await t.rejects(wait, { code: 'INTERNAL' })
})

t.test('the main thread does not wait for ever for one that may be dead', async (t) => {
  const lock = new RwLock(new Int32Array(new SharedArrayBuffer(4 * RwLock.words(2))), 0)
  const words = new Int32Array(new SharedArrayBuffer(4))
  new Mutex(words, 0, 1, lock).acquire()
  t.throws(() => new Mutex(words, 0, 0, lock).acquire(), { code: 'IO', message: /waited 5 seconds/ })
  const epochs = new Int32Array(new SharedArrayBuffer(4 * Epochs.words(2)))
  new Epochs(epochs, 1, 2).enter()
  t.equal(new Epochs(epochs, 0, 2).settle(), false)
})

t.test('nor for the lock, and leaves it as it was', async (t) => {
  const crew = new Crew(t, storage())
  const { lock } = crew.metadata
  const changing = crew.run('holdExclusive', 1)
  await crew.arrived(1)
  const tooLong = { code: 'IO', message: /waited 5 seconds/ }
  t.throws(() => lock.acquireShared(), tooLong)
  t.throws(() => lock.acquireExclusive(), tooLong)
  crew.go()
  t.equal(await changing, 0)
  t.equal(await crew.run('counting', 2, { steps: 100 }), 0)
  lock.acquireExclusive()
  lock.releaseExclusive()
  lock.acquireShared()
  lock.releaseShared()
})

for (const holder of ['holdShared', 'holdExclusive'] as const)
  t.test(`being woken in vain costs it no patience: ${holder}`, async (t) => {
    const crew = new Crew(t, storage())
    const { lock } = crew.metadata
    const held = crew.run(holder, 1)
    await crew.arrived(1)
    const noise = crew.run('noise', 2)
    await crew.arrived(2)
    t.doesNotThrow(() => lock.acquireExclusive(true))
    lock.releaseExclusive()
    t.same(await Promise.all([held, noise]), [0, 0])
  })

t.test('woken in vain, who reads does not lose patience either', async (t) => {
  const crew = new Crew(t, storage())
  const { lock } = crew.metadata
  const held = crew.run('holdExclusive', 1)
  await crew.arrived(1)
  const noise = crew.run('noise', 2)
  await crew.arrived(2)
  t.doesNotThrow(() => lock.acquireShared())
  lock.releaseShared()
  t.same(await Promise.all([held, noise]), [0, 0])
})

t.test('where it cannot clean up, nothing can be relied on', async (t) => {
  const crew = new Crew(t, storage())
  const { lock } = crew.metadata
  const reading = crew.run('holdShared', 3)
  await crew.arrived(1)
  t.throws(() => lock.acquireExclusive(true), { code: 'IO', message: /waited 5 seconds/ })
  t.equal(lock.poisoned, true)
  crew.go()
  await reading
  t.throws(() => lock.acquireShared(), { code: 'INTERNAL' })
})
