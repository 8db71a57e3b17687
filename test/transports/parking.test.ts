import t from 'tap'
import { Parking } from '../../lib/transports/kernel/parking.js'
import { WorkerSlot, WorkerState } from '../../lib/transports/kernel/slots.js'

function setUp() {
  const slots = WorkerSlot.allocate(3)
  const [first, second] = [new WorkerSlot(slots, 1), new WorkerSlot(slots, 2)]
  first.begin()
  const parking = new Parking(Parking.allocate(), slots)
  const commitAlone = (times = 1) => {
    for (let i = 0; i < times; i++) parking.during(() => {})
  }
  return { first, second, parking, commitAlone }
}

t.test('one is enough after some commits with nothing beside them', async (t) => {
  const { first, second, parking, commitAlone } = setUp()
  first.take(1, 0)
  t.equal(
    parking.during(() => 7),
    7,
  )
  commitAlone()
  t.equal(parking.oneIsEnough, false)
  parking.during(() => second.take(2, 0))
  commitAlone(2)
  t.equal(parking.oneIsEnough, false, 'not where another took a request meanwhile')
  parking.during(() => second.release())
  commitAlone(2)
  t.equal(parking.oneIsEnough, true, 'that it ends one is nothing new')
})

t.test('one is not enough while another is at a long request', async (t) => {
  const { first, second, parking, commitAlone } = setUp()
  second.take(1, 0)
  first.take(2, 0)
  commitAlone(20)
  t.equal(parking.oneIsEnough, false)
  second.release()
  commitAlone(3)
  t.equal(parking.oneIsEnough, true)
})

t.test('nobody parks where the first worker is not there', async (t) => {
  const { first, parking, commitAlone } = setUp()
  first.clear()
  commitAlone(20)
  t.equal(parking.oneIsEnough, false)
  parking.park(-1)
  first.begin()
  t.equal(parking.oneIsEnough, true)
})

t.test('what a worker took still counts when another has its place', async (t) => {
  const { first, second, parking, commitAlone } = setUp()
  for (let i = 0; i < 300; i++) second.take(i, 0)
  second.release()
  commitAlone(3)
  second.clear()
  t.equal(second.state, WorkerState.ABSENT)
  first.take(1, 0)
  t.equal(parking.stale, false)
})

t.test('a commit that throws counts too', async (t) => {
  const { parking, commitAlone } = setUp()
  commitAlone(2)
  t.throws(
    () =>
      parking.during(() => {
        throw new Error('no')
      }),
    { message: 'no' },
  )
  t.equal(parking.oneIsEnough, true)
})

t.test('commits that are rare say nothing', async (t) => {
  const { first, parking, commitAlone } = setUp()
  commitAlone(2)
  t.equal(parking.stale, false)
  for (let i = 0; i < 300; i++) first.take(i, 0)
  t.equal(parking.stale, true)
  commitAlone()
  t.equal(parking.stale, false)
  t.equal(parking.oneIsEnough, false)
})

t.test('after unparking it takes more of them', async (t) => {
  const { parking, commitAlone } = setUp()
  commitAlone(3)
  parking.unpark()
  commitAlone(3)
  t.equal(parking.oneIsEnough, false)
  parking.park(-1)
  t.pass('nobody parks then')
  commitAlone(8)
  t.equal(parking.oneIsEnough, true)
})

t.test('who is soon unparked again parks the later, up to a limit', async (t) => {
  const { parking, commitAlone } = setUp()
  /** Commits until one is enough. */
  const wait = () => {
    let commits = 0
    for (; !parking.oneIsEnough; commits++) commitAlone()
    return commits
  }
  const waits: number[] = []
  for (let times = 0; times < 10; times++) {
    waits.push(wait())
    parking.unpark()
  }
  t.same(waits, [3, 11, 19, 35, 67, 131, 259, 515, 1027, 1027])
  wait()
  commitAlone(5000)
  parking.unpark()
  parking.unpark()
  wait()
  parking.unpark()
  t.equal(wait(), 11, 'and as before after one that was worth it')
})
