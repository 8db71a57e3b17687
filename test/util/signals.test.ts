import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { holdSignals } from '../../lib/util/signals.js'

// The test runner has handlers of its own.
const others = process.listeners('SIGHUP')
t.before(() => process.removeAllListeners('SIGHUP'))
t.teardown(() => {
  for (const listener of others) process.on('SIGHUP', listener)
})

t.test('a signal that was held back comes again', async (t) => {
  const release = holdSignals()
  process.kill(process.pid, 'SIGHUP')
  await sleep(20)
  let heard = 0
  const listener = () => heard++
  process.on('SIGHUP', listener)
  t.teardown(() => process.off('SIGHUP', listener))
  release()
  await sleep(20)
  t.equal(heard, 1)
})

t.test('one that somebody else handles does not', async (t) => {
  const release = holdSignals()
  let heard = 0
  const listener = () => heard++
  process.on('SIGHUP', listener)
  t.teardown(() => process.off('SIGHUP', listener))
  process.kill(process.pid, 'SIGHUP')
  await sleep(20)
  release()
  await sleep(20)
  t.equal(heard, 1)
})

t.test('nothing is held back afterwards', async (t) => {
  const before = process.listenerCount('SIGTERM')
  const release = holdSignals()
  t.equal(process.listenerCount('SIGTERM'), before + 1)
  release()
  t.equal(process.listenerCount('SIGTERM'), before)
})
