/** A host that reads and writes less than it was asked, and is interrupted: what calls it is put in its place. */

import { register } from 'node:module'
import { join } from 'node:path'
import t from 'tap'
import { between } from './fixtures/odd-host.js'
import { temporaryFolder } from './host.js'

const STAND_IN = new URL('./fixtures/odd-host.js', import.meta.url).href
const HOOKS = `
  export const resolve = (specifier, context, next) =>
    /native\\/transfer/.test(specifier) && /file-storage/.test(context.parentURL)
      ? { url: ${JSON.stringify(STAND_IN)}, shortCircuit: true }
      : next(specifier, context)`
register(`data:text/javascript,${encodeURIComponent(HOOKS)}`)
const { openFile } = await import('../../lib/storage/file.js')

type Transfer = (fd: number, buffer: Uint8Array, at: number, length: number, offset: number) => number

/** Lets a test stand between the storage and the host. */
function intercept(t: Test, name: 'read' | 'write', make: (host: Transfer) => Transfer): void {
  t.teardown(() => {
    between[name] = undefined
  })
  let made: Transfer | undefined
  between[name] = (host) => {
    made ??= make(host)
    return made
  }
}

type Test = { teardown(undo: () => void): void }

function failure(code: string): Error {
  return Object.assign(new Error(code), { code })
}

const data = Uint8Array.from({ length: 5000 }, (_, i) => (i * 11) & 0xff)

/** Fails with EINTR and EAGAIN in between, and moves at most 700 bytes at once. */
function unwilling(host: Transfer): Transfer {
  let calls = 0
  return (fd, buffer, at, length, offset) => {
    calls++
    if (calls % 3 === 1) throw failure(calls % 2 ? 'EINTR' : 'EAGAIN')
    return host(fd, buffer, at, Math.min(length, 700), offset)
  }
}

t.test('transfers are completed', async (t) => {
  const storage = openFile(
    join(
      temporaryFolder((undo) => t.teardown(undo)),
      'x',
    ),
    { create: true },
  )
  t.teardown(() => storage.close())
  intercept(t, 'write', unwilling)
  intercept(t, 'read', unwilling)
  storage.write(data, 10, 4900, 33)
  const back = new Uint8Array(5000)
  t.equal(storage.read(back, 7, 4990, 33), 4900)
  t.same(back.subarray(7, 4907), data.subarray(10, 4910))
  t.equal(storage.size(), 4933)
})

t.test('an error behind a part names the byte where it happened', async (t) => {
  const storage = openFile(
    join(
      temporaryFolder((undo) => t.teardown(undo)),
      'x',
    ),
    { create: true },
  )
  t.teardown(() => storage.close())
  storage.write(data, 0, 5000, 0)
  for (const doing of ['read', 'write'] as const) {
    intercept(t, doing, (host) => (fd, buffer, at, length, offset) => {
      if (offset >= 1400) throw failure('EIO')
      return host(fd, buffer, at, Math.min(length, 700), offset)
    })
    t.throws(() => storage[doing](new Uint8Array(5000), 0, 5000, 0), {
      code: 'IO',
      errno: 'EIO',
      offset: 1400,
      message: `cannot ${doing} ${storage.path} at byte 1400: input/output error`,
    })
  }
})

t.test('a host that takes nothing is an error, not a loop', async (t) => {
  const storage = openFile(
    join(
      temporaryFolder((undo) => t.teardown(undo)),
      'x',
    ),
    { create: true },
  )
  t.teardown(() => storage.close())
  intercept(t, 'write', () => () => 0)
  t.throws(() => storage.write(data, 0, 10, 0), { code: 'IO', message: `cannot write ${storage.path}` })
})
