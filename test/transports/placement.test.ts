import t from 'tap'
import { type PlacedWorker, Placement } from '../../lib/transports/kernel/placement.js'

const MANY = 1000

/** Workers that are threads 101, 102, …, on a system that remembers where they may run, and the main thread, 0. */
function setUp({ workers = 2, cores = [0, 1] }: { workers?: number; cores?: number[] } = {}) {
  const allowed = new Map([0, ...Array.from({ length: workers }, (_, i) => 101 + i)].map((id) => [id, [...cores]]))
  const counts = Array.from({ length: workers }, (_, i) => ({ systemThread: 101 + i, taken: 0, waiting: 0 }))
  const system = { error: undefined as Error | undefined, calls: 0 }
  const cut = (thread: number) => {
    const found = allowed.get(thread)
    if (!found) throw Object.assign(new Error('ESRCH'), { code: 'ESRCH' })
    return found
  }
  const means = {
    coresOf: (thread: number) => cut(thread),
    setCores: (thread: number, own: readonly number[]) => {
      system.calls++
      if (system.error) throw system.error
      cut(thread)
      allowed.set(thread, [...own])
    },
  }
  const placement = new Placement(means)
  /** Looks, after each took so many, of which a part was waiting. */
  const looks = (times: number, taken: number, waiting: number, seen: readonly PlacedWorker[] = counts) => {
    for (let i = 0; i < times; i++) {
      for (const count of counts) {
        count.taken = (count.taken + taken) >>> 0
        count.waiting = (count.waiting + waiting) >>> 0
      }
      placement.look(seen)
    }
  }
  const where = () => [...allowed.values()].slice(1)
  return { placement, allowed, counts, looks, where, system }
}

t.test('where many short requests wait for all, each gets cores of its own, until they do not', async (t) => {
  const { looks, where } = setUp()
  looks(3, MANY, MANY)
  t.same(
    where(),
    [
      [0, 1],
      [0, 1],
    ],
    'the first look has nothing to compare with',
  )
  looks(1, MANY, MANY / 2)
  t.same(where(), [[0], [1]])
  looks(10, MANY, MANY)
  looks(5, MANY, MANY / 4)
  t.same(where(), [[0], [1]], 'a moment')
  looks(1, MANY, MANY / 4)
  t.same(where(), [
    [0, 1],
    [0, 1],
  ])
  looks(2, MANY, MANY)
  t.same(where()[0], [0, 1])
  looks(1, MANY, MANY)
  t.same(where(), [[0], [1]], 'and again')
})

t.test('few requests, and one worker that does less', async (t) => {
  const few = setUp()
  few.looks(20, 200, 200)
  t.same(few.where()[0], [0, 1], 'few are long ones')
  const uneven = setUp()
  for (let i = 0; i < 20; i++) {
    uneven.looks(1, MANY, MANY)
    uneven.counts[1]!.waiting -= MANY
  }
  t.same(uneven.where()[0], [0, 1], 'one that nothing waits for')
})

t.test('counts that begin again at 0', async (t) => {
  const { looks, where, counts } = setUp()
  for (const count of counts) count.taken = count.waiting = 2 ** 32 - 2500
  looks(4, MANY, MANY)
  t.same(where(), [[0], [1]])
})

t.test('more cores', async (t) => {
  const three = setUp({ cores: [2, 5, 7] })
  three.looks(4, MANY, MANY)
  t.same(three.where(), [[2, 7], [5]])
  const four = setUp({ cores: [0, 1, 2, 3] })
  four.looks(20, MANY, MANY)
  t.same(four.where()[0], [0, 1, 2, 3], 'nobody is in another’s way')
  const many = setUp({ workers: 3, cores: [0, 1, 2, 3, 4] })
  many.looks(4, MANY, MANY)
  t.same(many.where(), [[0, 3], [1, 4], [2]])
})

t.test('more workers than cores, and one worker', async (t) => {
  for (const workers of [1, 3]) {
    const { looks, where } = setUp({ workers })
    looks(20, MANY, MANY)
    t.same(where()[0], [0, 1])
  }
})

t.test('a worker that comes lets all run anywhere', async (t) => {
  const { looks, where, counts, allowed } = setUp()
  looks(10, MANY, MANY)
  t.same(where(), [[0], [1]])
  allowed.set(103, [0, 1])
  counts.push({ systemThread: 103, taken: 0, waiting: 0 })
  looks(1, MANY, MANY)
  t.same(where(), [
    [0, 1],
    [0, 1],
    [0, 1],
  ])
})

t.test('one that is parked, or has died', async (t) => {
  const { looks, where, counts, allowed } = setUp()
  looks(10, MANY, MANY)
  looks(1, MANY, MANY, counts.slice(0, 1))
  t.same(
    where(),
    [
      [0, 1],
      [0, 1],
    ],
    'it is not among those that serve',
  )
  looks(4, MANY, MANY)
  t.same(where(), [[0], [1]])
  allowed.delete(102)
  t.doesNotThrow(() => looks(6, 0, 0))
  t.same(where(), [[0, 1]])
})

t.test('whom an administrator moved meanwhile stays there, and nobody is placed any more', async (t) => {
  const { looks, where, allowed } = setUp({ cores: [0, 1, 2] })
  looks(4, MANY, MANY)
  t.same(where(), [[0, 2], [1]])
  allowed.set(101, [1])
  looks(6, 0, 0)
  t.same(where(), [[1], [0, 1, 2]])
  looks(20, MANY, MANY)
  t.same(where(), [[1], [0, 1, 2]])
  allowed.set(101, [0, 1, 2])
  looks(1, MANY, MANY)
  t.same(where(), [[0, 2], [1]])
})

t.test('what the whole process may use is what is divided, and given back', async (t) => {
  const { looks, where, allowed } = setUp()
  looks(4, MANY, MANY)
  // The set of cores is made another one, and the system moves who has none left.
  for (const thread of allowed.keys()) allowed.set(thread, [2, 3])
  looks(6, 0, 0)
  t.same(where(), [
    [2, 3],
    [2, 3],
  ])
  looks(4, MANY, MANY)
  t.same(where(), [[2], [3]])
  allowed.set(0, [2, 3, 4])
  looks(6, 0, 0)
  t.same(where(), [
    [2, 3, 4],
    [2, 3, 4],
  ])
})

t.test('cores that were taken away and come back are not a thread’s own any more', async (t) => {
  const { looks, allowed, system } = setUp()
  looks(4, MANY, MANY)
  for (const thread of allowed.keys()) allowed.set(thread, [0, 1])
  const { calls } = system
  looks(6, 0, 0)
  t.equal(system.calls, calls + 2, 'it is said once more that they may use all')
})

t.test('a system that does not allow it is not asked again', async (t) => {
  const { looks, where, system } = setUp()
  system.error = new Error('EPERM')
  looks(20, MANY, MANY)
  const { calls } = system
  looks(20, MANY, MANY)
  t.equal(system.calls, calls)
  t.same(where()[0], [0, 1])
})

t.test('one that ends just then', async (t) => {
  const { looks, where, allowed, counts } = setUp({ workers: 3, cores: [0, 1, 2] })
  allowed.delete(103)
  looks(4, MANY, MANY)
  t.same(where()[0], [0, 1, 2])
  looks(4, MANY, MANY, counts.slice(0, 2))
  t.same(where(), [[0, 2], [1]], 'the others')
})

t.test('one that has ended, whose number is another’s now', async (t) => {
  const { placement, looks, where } = setUp()
  looks(4, MANY, MANY)
  placement.forget(102)
  looks(6, 0, 0)
  t.same(where(), [[0, 1], [1]])
})

t.test('threads that are not known', async (t) => {
  const { looks, where, counts } = setUp()
  counts[1]!.systemThread = 0
  looks(20, MANY, MANY)
  t.same(where()[0], [0, 1])
})
