import { Worker } from 'node:worker_threads'
import t from 'tap'
import { Turns } from '../../lib/metadata/turns.js'

const FILES = 2

function setUp() {
  const holders = new Int32Array(new SharedArrayBuffer(4 * FILES))
  return { holders, first: new Turns(holders, 0), second: new Turns(holders, 1) }
}

t.test('one thread a file has the turn', async (t) => {
  const { holders, first, second } = setUp()
  first.take(0)
  second.take(1)
  t.strictSame([...holders], [1, 2])
  first.give(0)
  t.strictSame([...holders], [0, 2])
})

t.test('who waits in vain goes on without a turn, and takes none away', async (t) => {
  const { holders, first, second } = setUp()
  first.take(0)
  second.take(0)
  second.give(0)
  t.strictSame([...holders], [1, 0])
  first.give(0)
  second.take(0)
  t.strictSame([...holders], [2, 0])
})

t.test('the turn of a thread that is gone ends', async (t) => {
  const { holders, first, second } = setUp()
  second.take(0)
  second.take(1)
  first.died(1)
  t.strictSame([...holders], [0, 0])
  first.take(1)
  second.died(1)
  t.strictSame([...holders], [0, 1], 'and that of nobody else')
})

t.test('who waits has it when it is given', async (t) => {
  const { holders, first } = setUp()
  // A thread that looks at nothing but the word: takes it, says so, and gives it up when it hears that somebody waits.
  const worker = new Worker(
    `const holders = new Int32Array(require('node:worker_threads').workerData)
     Atomics.store(holders, 0, 2)
     require('node:worker_threads').parentPort.postMessage('taken')
     setTimeout(() => Atomics.compareExchange(holders, 0, 2, 0), 20)`,
    { eval: true, workerData: holders.buffer },
  )
  await new Promise((resolve) => worker.once('message', resolve))
  for (let tries = 0; holders[0] !== 1 && tries < 1e6; tries++) {
    first.take(0)
    if (holders[0] !== 1) first.give(0)
  }
  t.equal(holders[0], 1)
  await worker.terminate()
})
