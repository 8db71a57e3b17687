/** The table of transports, and the choice of the first that works. */

import t from 'tap'
import {
  DEFAULT_TRANSPORT,
  findTransport,
  firstOf,
  type MountTransport,
  type ServeRequest,
  type TransportEntry,
} from '../../lib/mount/transports.js'
import { VdiskError } from '../../lib/util/errors.js'

const request = {} as ServeRequest

/** A transport that mounts, or fails with an error; it says what it is asked for. */
function entry(name: string, done: string[], error?: Error): TransportEntry {
  const transport: MountTransport = {
    threads: () => 3,
    serve: async () => {
      done.push(`${name} serves`)
      if (error) throw error
      return { ended: Promise.resolve(), requests: () => ({ workers: 1, requests: [] }) }
    },
    unmount: async () => void done.push(`${name} unmounts`),
  }
  return { help: '', abilities: [], load: async () => ({ transport }) }
}

const cannot = new VdiskError('UNSUPPORTED', 'the kernel speaks 7.1')

t.test('the first one mounts', async (t) => {
  const done: string[] = []
  const chosen = await firstOf({ a: entry('a', done), b: entry('b', done) })
  t.equal(chosen.threads({} as never), 3)
  t.match(await chosen.serve(request), { transport: 'a', notice: undefined })
  await chosen.unmount('/m')
  t.same(done, ['a serves', 'a unmounts'])
})

t.test('the next one, where the first cannot work here', async (t) => {
  const done: string[] = []
  const chosen = await firstOf({ a: entry('a', done, cannot), b: entry('b', done) })
  t.match(await chosen.serve(request), { transport: 'b', notice: 'mounted through b, as the kernel speaks 7.1' })
  await chosen.unmount('/m')
  t.same(done, ['a serves', 'b serves', 'b unmounts'])
})

t.test('the first one’s reason, where none can', async (t) => {
  const done: string[] = []
  const missing = { ...entry('b', done), load: async () => Promise.reject(new VdiskError('UNSUPPORTED', 'missing')) }
  const chosen = await firstOf({ a: entry('a', done, cannot), b: missing, c: entry('c', done, new Error('worse')) })
  await t.rejects(chosen.serve(request), cannot)
  t.same(done, ['a serves', 'c serves'])
})

t.test('any other failure is final', async (t) => {
  const done: string[] = []
  const busy = new VdiskError('IN_USE', 'taken')
  const chosen = await firstOf({ a: entry('a', done, busy), b: entry('b', done) })
  await t.rejects(chosen.serve(request), busy)
  t.same(done, ['a serves'])
})

t.test('names', async (t) => {
  await t.rejects(findTransport('nbd'), {
    code: 'USAGE',
    message: 'no transport is called nbd; there is: kernel, fuse-native',
  })
  await t.rejects(findTransport('toString'), { code: 'USAGE' })
  t.ok(await findTransport(DEFAULT_TRANSPORT))
})
