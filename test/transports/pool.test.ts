import { closeSync, openSync, readdirSync, readFileSync, readSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { coresOf } from '../../lib/native/scheduling.js'
import { WorkerPool } from '../../lib/transports/kernel/pool.js'
import { must } from '../support/run.js'
import { NEGOTIATED } from './fixtures/exchange.js'
import type { PoolJob } from './fixtures/pool-worker.js'

/** A pool over workers that do what they are told, with a file in place of the device, or a pipe. */
function setUp(
  t: Pick<Test, 'testdir' | 'teardown'>,
  options: { initial?: number; patience?: number; failAtStart?: boolean; pipe?: boolean } = {},
) {
  const { initial, patience, failAtStart = false, pipe = false } = options
  const device = join(t.testdir(pipe ? {} : { device: '' }), 'device')
  if (pipe) must('mkfifo', [device])
  const fd = openSync(device, 'r+')
  t.teardown(() => closeSync(fd))
  const starts = new Int32Array(new SharedArrayBuffer(20 * 4))
  const command = new Int32Array(new SharedArrayBuffer(20 * 4))
  const deaths: [number, string][] = []
  const heard = { messages: 0 }
  const job: PoolJob = {
    starts: starts.buffer as SharedArrayBuffer,
    command: command.buffer as SharedArrayBuffer,
    failAtStart,
  }
  const pool = new WorkerPool({
    entry: new URL('./fixtures/pool-worker.js', import.meta.url),
    data: () => job,
    fd,
    negotiated: NEGOTIATED,
    initial,
    patience,
    onDeath: (thread, reason) => deaths.push([thread, reason.message]),
    onMessage: () => heard.messages++,
  })
  const tell = (thread: number, what: number) => {
    Atomics.store(command, thread, what)
    Atomics.notify(command, thread)
  }
  const answers = () => readFileSync(device).toString('hex')
  const until = async (condition: () => boolean) => {
    while (!condition()) await sleep(5)
  }
  return { pool, fd, starts, command, deaths, heard, tell, answers, until }
}

t.test('a worker that dies in a request: EIO in its place, and another worker', async (t) => {
  const { pool, starts, deaths, tell, answers, until } = setUp(t)
  await pool.start()
  t.equal(pool.size, 2)
  tell(2, 1)
  await until(() => starts[2] === 2)
  t.same(deaths, [[2, 'dies in a request']])
  // struct fuse_out_header: len 16, error -5, unique
  t.equal(answers(), '10000000fbffffff04030201080706f5')
  t.same([...starts.subarray(0, 4)], [0, 1, 2, 0], 'under the same number')
  tell(1, 3)
  tell(2, 3)
  await pool.ended
  t.equal(pool.size, 0)
})

t.test('what a worker posts is passed on', async (t) => {
  const { pool, heard, tell, until } = setUp(t)
  await pool.start()
  t.equal(heard.messages, 0)
  tell(2, 7)
  await until(() => heard.messages === 1)
  for (const thread of [1, 2]) tell(thread, 3)
  await pool.ended
  t.equal(heard.messages, 1)
})

const CORES = coresOf(0).length
/** Placing is for as many workers as there are cores, or nearly, and there are at most 16. */
const placing = CORES < 2 || CORES > 16 ? { skip: `${CORES} cores` } : {}

t.test('workers for whom many requests wait get a core each, and give it back', placing, async (t) => {
  const { pool, tell, until } = setUp(t, { initial: CORES })
  const threads = () => readdirSync('/proc/self/task').map(Number)
  const before = threads()
  const all = coresOf(0)
  const workers = Array.from({ length: CORES }, (_, i) => i + 1)
  await pool.start()
  const placed = () => threads().filter((thread) => !before.includes(thread) && coresOf(thread).length === 1)
  for (const thread of workers) tell(thread, 8)
  await until(() => placed().length === CORES)
  t.same(
    placed()
      .map((thread) => coresOf(thread)[0])
      .sort((a, b) => a! - b!),
    all,
  )
  for (const thread of workers) tell(thread, 4)
  await until(() => placed().length === 0)
  for (const thread of workers) tell(thread, 3)
  await pool.ended
  t.same(coresOf(0), all)
})

t.test('one that dies between requests owes no answer', async (t) => {
  const { pool, starts, deaths, tell, answers, until } = setUp(t, { initial: 3 })
  await pool.start()
  tell(3, 2)
  await until(() => starts[3] === 2)
  t.same(deaths, [[3, 'worker 3 ended with code 3']])
  t.equal(answers(), '')
  for (const thread of [1, 2, 3]) tell(thread, 3)
  await pool.ended
})

t.test('after the unmount nobody is replaced', async (t) => {
  const { pool, starts, deaths, tell, until } = setUp(t)
  await pool.start()
  tell(1, 3)
  await until(() => pool.size === 1)
  tell(2, 1)
  await pool.ended
  t.same(deaths, [[2, 'dies in a request']])
  t.same([...starts.subarray(1, 3)], [1, 1])
})

t.test('workers that are not needed any more leave, and come again', async (t) => {
  const { pool, starts, deaths, tell, until } = setUp(t, { initial: 1, patience: 400 })
  await pool.start()
  for (const times of [1, 2]) {
    tell(1, 5)
    await until(() => starts[2] === times)
    t.equal(pool.size, 2, 'one that sleeps in a request has another started')
    tell(1, 4)
    tell(2, 5)
    await sleep(1000)
    t.equal(pool.size, 2, 'one that is busy stays')
    tell(2, 4)
    await sleep(1000)
    tell(2, 4)
    await sleep(100)
    t.equal(pool.size, 2, 'behind a time without requests all are there')
    while (pool.size > 1) {
      await sleep(100)
      tell(2, 4)
    }
  }
  t.same(deaths, [])
  tell(1, 3)
  await pool.ended
})

t.test('workers that cannot start', async (t) => {
  const { pool, starts } = setUp(t, { initial: 1, failAtStart: true })
  await t.rejects(pool.start(), { message: 'cannot start' })
  await t.rejects(pool.ended, { message: 'cannot start' })
  t.equal(starts[1], 3, 'tried three times')
})

t.test('who is parked is there again for requests that wait, for an end, and after a death', async (t) => {
  const { pool, fd, starts, tell, until } = setUp(t, { pipe: true })
  await pool.start()
  tell(2, 6)
  await sleep(300)
  t.equal(starts[0], 0, 'parked while there is nothing to do')
  tell(1, 5)
  await sleep(300)
  t.equal(starts[0], 0, 'and while the other one has the only request')
  writeSync(fd, 'x')
  await until(() => starts[0] === 1)
  t.pass('unparked where one more waits')
  readSync(fd, Buffer.alloc(1))
  tell(1, 4)
  await sleep(100)
  tell(2, 6)
  await sleep(300)
  t.equal(starts[0], 1, 'parked again')
  tell(1, 1)
  await until(() => starts[0] === 2)
  t.equal(starts[2], 1, 'unparked, not started again, when the other one died')
  t.equal(readSync(fd, Buffer.alloc(64)), 16, 'the answer in its place')
  await until(() => starts[1] === 2)
  await sleep(100)
  tell(2, 6)
  await sleep(300)
  t.equal(starts[0], 2)
  tell(1, 3)
  await until(() => starts[0] === 3)
  tell(2, 3)
  await pool.ended
  t.equal(pool.size, 0)
})

t.test('who is parked while the others are at work comes back when there are no commits any more', async (t) => {
  const { pool, starts, tell, until } = setUp(t, { pipe: true })
  await pool.start()
  tell(2, 6)
  await sleep(200)
  t.equal(starts[0], 0)
  const stop = setInterval(() => tell(1, 4), 1)
  t.teardown(() => clearInterval(stop))
  await until(() => starts[0] === 1)
  clearInterval(stop)
  tell(1, 3)
  tell(2, 3)
  await pool.ended
})

t.test('nobody parks where the first worker died and cannot be replaced', async (t) => {
  const { pool, starts, command, deaths, tell, until } = setUp(t, { initial: 3, pipe: true })
  await pool.start()
  command[0] = 1
  tell(3, 2)
  await until(() => deaths.length === 4)
  t.equal(starts[3], 4, 'tried three times')
  tell(1, 2)
  await until(() => pool.size === 1)
  t.equal(starts[1], 1)
  tell(2, 6)
  await until(() => starts[0] === 1)
  tell(2, 3)
  await pool.ended
})
