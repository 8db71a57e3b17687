import t from 'tap'
import { Linger } from '../../lib/transports/kernel/linger.js'

/** A clock that a look moves by a microsecond, and a device whose next request comes at `next`. */
function setUp(cores = 2) {
  const at = { ms: 0, next: Number.POSITIVE_INFINITY, looks: 0, ways: 0 }
  const means = {
    now: () => at.ms,
    ready: () => {
      at.looks++
      at.ms += 0.001
      return at.ms >= at.next
    },
    giveWay: () => {
      at.ways++
    },
  }
  const linger = new Linger(means, cores)
  const took = (ms: number, times: number) => {
    for (let i = 0; i < times; i++) linger.took(ms)
  }
  return { at, linger, took }
}

t.test('a worker looks when requests came soon of late', async (t) => {
  const { at, linger, took } = setUp()
  linger.wait()
  t.equal(at.looks, 0, 'not at the beginning')
  took(0.02, 7)
  linger.wait()
  t.equal(at.looks, 0)
  took(0.02, 1)
  at.next = 0.01
  linger.wait()
  t.equal(at.looks, 10, 'until there is one')
  t.equal(at.ways, 9, 'and lets others have the core after each look in vain')
})

t.test('it looks no longer than 50 µs', async (t) => {
  const { at, linger, took } = setUp()
  took(0.02, 16)
  linger.wait()
  t.equal(at.ms.toFixed(3), '0.050')
})

t.test('what comes late ends it, and what only being woken made late does not', async (t) => {
  const { linger, took } = setUp()
  took(0.02, 100)
  took(0.2, 2)
  t.equal(linger.pays, true, 'a pause now and then')
  took(0.2, 1)
  t.equal(linger.pays, false)
  took(0.1, 4)
  t.equal(linger.pays, true)
})

t.test('requests that wait already are not looked for', async (t) => {
  const { linger, took } = setUp()
  took(0.02, 16)
  took(0.001, 8)
  t.equal(linger.pays, true)
  took(0.001, 1)
  t.equal(linger.pays, false)
  took(0.001, 1000)
  took(0.02, 7)
  t.equal(linger.pays, false)
})

t.test('a single core is left to who sends the requests', async (t) => {
  const { at, linger, took } = setUp(1)
  took(0.02, 100)
  linger.wait()
  t.equal(at.looks, 0)
})
