import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { NOT_PARKED, SYNC_ANSWERED, Syncs } from '../../lib/transports/kernel/syncs.js'
import { type SyncsJob, Tally } from './fixtures/syncs-job.js'

/** Two views of one record, and what was answered through them. */
function pair(capacity?: number) {
  const shared = Syncs.allocate(capacity)
  const answered: [number, number, number][] = []
  const answer = (first: number, second: number, errno: number) => answered.push([first, second, errno])
  return { one: new Syncs(shared, 1), two: new Syncs(shared, 2), answered, answer }
}

t.test('an fsync alone is answered by its caller', async (t) => {
  const { one, answered, answer } = pair()
  t.equal(
    one.sync(7, 0, 4, () => 0, answer),
    0,
  )
  t.equal(
    one.sync(9, 0, 4, () => 28, answer),
    28,
  )
  t.same(answered, [])
  t.equal(one.committing, false)
})

t.test('what is parked while a commit runs is covered by the next commit, not by that one', async (t) => {
  const { one, two, answered, answer } = pair()
  let commits = 0
  const never = () => t.fail('the second worker must not commit') as unknown as number
  const flush = () => {
    commits++
    t.ok(two.committing)
    if (commits === 1) {
      t.equal(two.sync(0xfffffffe, 1, 4, never, answer), SYNC_ANSWERED)
      t.equal(two.sync(12, 0, 4, never, answer), SYNC_ANSWERED)
      t.same(answered, [])
    }
    // Its own is answered before the next round begins.
    else t.same(answered, [[10, 0, 0]])
    return commits === 1 ? 0 : 5
  }
  t.equal(one.sync(10, 0, 4, flush, answer), SYNC_ANSWERED)
  t.equal(commits, 2)
  t.same(
    answered.map(([first, second, errno]) => [first >>> 0, second, errno]),
    [
      [10, 0, 0],
      [0xfffffffe, 1, 5],
      [12, 0, 5],
    ],
  )
  t.equal(one.committing, false)
})

t.test('a parked fsync can be taken back', async (t) => {
  const { one, two, answered, answer } = pair()
  const none = () => 0
  const flush = () => {
    if (one.cancel(20, 0) !== NOT_PARKED) return 0
    for (const unique of [22, 24, 26]) two.sync(unique, 0, unique === 24 ? 4 : 0, none, answer)
    t.equal(two.cancel(24, 1), NOT_PARKED, 'another one')
    t.equal(two.cancel(24, 0), 4, 'the errno that it was parked with')
    t.equal(two.cancel(24, 0), NOT_PARKED, 'once')
    t.equal(one.cancel(22, 0), 0)
    return 0
  }
  let rounds = 0
  one.sync(20, 0, 4, () => (rounds++ === 0 ? flush() : 0), answer)
  t.same(answered, [
    [20, 0, 0],
    [26, 0, 0],
  ])
})

t.test('no room to park: commits by itself, for itself', async (t) => {
  const { one, two, answered, answer } = pair(1)
  let rounds = 0
  const flush = () => {
    if (rounds++ > 0) return 0
    t.equal(
      two.sync(30, 0, 4, () => 1, answer),
      SYNC_ANSWERED,
    )
    t.equal(
      two.sync(32, 0, 4, () => 2, answer),
      2,
      'answered by its caller',
    )
    return 0
  }
  t.equal(one.sync(34, 0, 4, flush, answer), SYNC_ANSWERED)
  t.same(answered, [
    [34, 0, 0],
    [30, 0, 0],
  ])
})

t.test('the death of who commits', async (t) => {
  const { one, two, answered, answer } = pair()
  const main = new Syncs(Syncs.allocate(), 0)
  main.abandon(1, 5, answer)
  t.same(answered, [], 'nothing to do')
  const dies = () => {
    two.sync(42, 0, 4, () => 0, answer)
    two.abandon(2, 5, answer)
    t.same(answered, [], 'another thread than who commits')
    throw new Error('dies')
  }
  t.throws(() => one.sync(40, 0, 4, dies, answer), { message: 'dies' })
  t.equal(two.committing, true)
  two.abandon(1, 5, answer)
  t.same(answered, [[42, 0, 5]], 'its own is in its slot')
  t.equal(two.committing, false)
  t.equal(
    two.sync(44, 0, 4, () => 0, answer),
    0,
    'the next one commits',
  )
})

for (const capacity of [2, 1024])
  t.test(`several workers, room for ${capacity}`, async (t) => {
    const [threads, rounds] = [4, 300]
    const shared = Syncs.allocate(capacity)
    const tally = new SharedArrayBuffer(Tally.WORDS * 4)
    const uniques = new SharedArrayBuffer((threads + 1) * rounds * 4)
    const exits = Array.from({ length: threads }, (_, index) => {
      const job: SyncsJob = { shared, tally, uniques, thread: index + 1, rounds }
      return once(new Worker(new URL('./fixtures/syncs-worker.js', import.meta.url), { workerData: job }), 'exit')
    })
    await Promise.all(exits)
    const words = new Int32Array(tally)
    t.equal(words[Tally.ANSWERED], threads * rounds, 'each fsync is answered')
    t.equal(words[Tally.UNASKED], 0, 'once')
    t.equal(words[Tally.TOO_EARLY], 0, 'and never before what it covers is durable')
    t.ok(words[Tally.FLUSHES]! < threads * rounds, 'by fewer commits')
    t.equal(new Syncs(shared, 0).committing, false)
  })
