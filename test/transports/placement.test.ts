import t from 'tap'
import { type PlacedWorker, Placement } from '../../lib/transports/kernel/placement.js'

const MANY = 1000

/** Workers that are threads 101, 102, …, on a system that remembers where they may run. */
function setUp({ workers = 2, cores = [0, 1] }: { workers?: number; cores?: number[] } = {}) {
  const allowed = new Map(Array.from({ length: workers }, (_, i) => [101 + i, [...cores]]))
  const counts = [...allowed.keys()].map((systemThread) => ({ systemThread, taken: 0, waiting: 0 }))
  const cut = (thread: number) => {
    const found = allowed.get(thread)
    if (!found) throw new Error('ESRCH')
    return found
  }
  const means = {
    coresOf: (thread: number) => cut(thread),
    setCores: (thread: number, own: readonly number[]) => {
      cut(thread)
      allowed.set(thread, [...own])
    },
  }
  const placement = new Placement(means, cores.length)
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
  const where = () => [...allowed.values()]
  return { placement, allowed, counts, looks, where }
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
  looks(6, MANY, MANY, counts.slice(0, 1))
  t.same(where()[1], [0, 1], 'it is not among those that serve')
  looks(4, MANY, MANY)
  t.same(where(), [[0], [1]])
  allowed.delete(102)
  t.doesNotThrow(() => looks(6, 0, 0))
  t.same(where(), [[0, 1]])
})

t.test('whom an administrator moved meanwhile stays there', async (t) => {
  const { looks, where, allowed } = setUp()
  looks(4, MANY, MANY)
  allowed.set(101, [1])
  looks(6, 0, 0)
  t.same(where(), [[1], [0, 1]])
  looks(4, MANY, MANY)
  t.same(where(), [[1], [1]], 'the first of those that it may use, and the second')
  looks(6, 0, 0)
  t.same(where(), [[1], [0, 1]])
})

t.test('threads that are not known', async (t) => {
  const { looks, where, counts } = setUp()
  counts[1]!.systemThread = 0
  looks(20, MANY, MANY)
  t.same(where()[0], [0, 1])
})
