import t from 'tap'
import { Parking } from '../../lib/transports/kernel/parking.js'
import { WorkerSlot } from '../../lib/transports/kernel/slots.js'

function setUp() {
  const slots = WorkerSlot.allocate(3)
  const [first, second] = [new WorkerSlot(slots, 1), new WorkerSlot(slots, 2)]
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
  second.release()
  commitAlone()
  t.equal(parking.oneIsEnough, true, 'that it ends one is nothing new')
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
  parking.park()
  t.pass('nobody parks then')
  commitAlone(8)
  t.equal(parking.oneIsEnough, true)
})
