import t from 'tap'
import { Region } from '../../lib/metadata/region.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Crew, ended } from './fixtures/crew.js'
import { change, contents } from './fixtures/metadata.js'
import { type JobName, Word } from './fixtures/words.js'

/** Deaths behind which the others go on, and what they must be able to do. */
const HARMLESS: readonly [JobName, what: string][] = [
  ['dieIdle', 'doing nothing'],
  ['dieShared', 'holding the lock shared'],
  ['dieInEpoch', 'inside an epoch'],
  ['dieInRange', 'holding a range'],
]

for (const [job, what] of HARMLESS) {
  t.test(`a worker that dies ${what}`, async (t) => {
    const storage = MemoryStorage.create({ contents: new Uint8Array(4096) })
    const crew = new Crew(t, storage)
    const { metadata } = crew
    t.equal(await crew.run(job, 1), 1)
    t.equal(crew.word('ARRIVED'), 1)
    metadata.threadDied(1)
    t.notOk(metadata.lock.poisoned)
    const region = new Region(metadata, crew.setup.files[0]!, 0, 4096, 0)
    metadata.ranges.acquire(150, 160)
    change(metadata, 1, () => {
      region.setU8(0, 7)
      metadata.space.free(512, 512)
    })
    metadata.ranges.release()
    metadata.commit()
    t.equal(contents(storage)[0], 7)
    t.equal(
      metadata.exclusive(() => metadata.space.take(512)),
      512,
      'nobody is waited for',
    )
    // Another worker takes its place.
    Atomics.store(crew.words, Word.GO, 1)
    t.equal(await crew.run('inside', 1), 0)
    t.equal(await crew.run('apart', 1), 0)
  })
}

/** Deaths after which nobody can say what is true. */
const FATAL: readonly [JobName, what: string][] = [
  ['dieExclusive', 'holding the lock for a change'],
  ['dieReserved', 'between reserving and changing'],
  ['dieGrowing', 'making the file larger'],
  ['dieFilling', 'reading a page'],
  ['dieCommitting', 'in a commit'],
  ['dieSyncing', 'in a sync'],
]

for (const [job, what] of FATAL) {
  t.test(`a worker that dies ${what}`, async (t) => {
    const storage = MemoryStorage.create({ contents: new Uint8Array(4096) })
    const crew = new Crew(t, storage)
    const { metadata } = crew
    t.equal(await crew.run(job, 1), 1)
    t.equal(crew.word('ARRIVED'), 1)
    metadata.threadDied(1)
    t.ok(metadata.lock.poisoned)
    const error = { code: 'INTERNAL' }
    t.throws(() => metadata.shared(() => {}), error)
    t.throws(() => metadata.exclusive(() => {}), error)
    t.throws(() => metadata.reserve(1), error)
    t.throws(() => metadata.commit(), error)
    t.same(contents(storage), new Uint8Array(4096), 'nothing is written')
  })
}

t.test('a worker that dies waiting for the lock', async (t) => {
  const crew = new Crew(t, MemoryStorage.create({ contents: new Uint8Array(4096) }))
  const { metadata } = crew
  metadata.lock.acquireExclusive()
  const worker = crew.start('waitExclusive', 1)
  await crew.arrived(1)
  await new Promise((resolve) => setTimeout(resolve, 20))
  await worker.terminate()
  metadata.threadDied(1)
  metadata.lock.releaseExclusive()
  t.notOk(metadata.lock.poisoned)
  metadata.shared(() => t.pass('nobody waits to change any more, so readers go on'))
  metadata.exclusive(() => t.pass('and so do changes'))
})

t.test('those who wait for a dead one are told', async (t) => {
  const crew = new Crew(t, MemoryStorage.create({ contents: new Uint8Array(4096) }))
  t.equal(await crew.run('dieExclusive', 1), 1)
  const waiting = [2, 3].map((thread) => ended(crew.start(thread === 2 ? 'waitExclusive' : 'waitShared', thread)))
  for (const wait of waiting) wait.catch(() => {})
  await crew.arrived(3)
  crew.metadata.threadDied(1)
  for (const wait of waiting) await t.rejects(wait, { code: 'INTERNAL', message: /unmounted and checked/ })
})
