import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { WorkerPool } from '../../lib/transports/kernel/pool.js'
import { NEGOTIATED } from './fixtures/exchange.js'
import type { PoolJob } from './fixtures/pool-worker.js'

/** A pool over workers that do what they are told, with a file in place of the device. */
function setUp(
  t: Pick<Test, 'testdir' | 'teardown'>,
  options: { initial?: number; patience?: number; failAtStart?: boolean } = {},
) {
  const { initial, patience, failAtStart = false } = options
  const device = join(t.testdir({ device: '' }), 'device')
  const fd = openSync(device, 'r+')
  t.teardown(() => closeSync(fd))
  const starts = new Int32Array(new SharedArrayBuffer(20 * 4))
  const command = new Int32Array(new SharedArrayBuffer(20 * 4))
  const deaths: [number, string][] = []
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
  })
  const tell = (thread: number, what: number) => {
    Atomics.store(command, thread, what)
    Atomics.notify(command, thread)
  }
  const answers = () => readFileSync(device).toString('hex')
  const until = async (condition: () => boolean) => {
    while (!condition()) await sleep(5)
  }
  return { pool, starts, deaths, tell, answers, until }
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
