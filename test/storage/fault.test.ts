import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { attachStorage } from '../../lib/storage/attach.js'
import { FAULT_KINDS, type FaultKind, FaultStorage } from '../../lib/storage/fault.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import type { Storage } from '../../lib/storage/storage.js'
import { testStorage } from './suite.js'

testStorage('a fault storage without faults', {
  make: () => new FaultStorage(MemoryStorage.create()),
  readOnly: (storage) => {
    const handle = storage.handle()
    if (handle.kind !== 'fault' || handle.inner.kind !== 'memory') throw new Error('not what was made')
    return attachStorage({ ...handle, inner: { ...handle.inner, readOnly: true } })
  },
  sparse: true,
  limit: 2 ** 30,
})

const bytes = new Uint8Array(8192).fill(1)
const DO: Readonly<Record<FaultKind, (storage: Storage) => unknown>> = {
  read: (s) => s.read(new Uint8Array(10), 0, 10, 512),
  write: (s) => s.write(bytes, 0, 10, 512),
  truncate: (s) => s.truncate(9000),
  sync: (s) => s.sync(),
  punch: (s) => s.punch(512, 10),
  zero: (s) => s.zero(512, 10),
  reserve: (s) => s.reserve(512, 10),
  seek: (s) => s.nextData(512),
}

function made(): FaultStorage {
  return new FaultStorage(MemoryStorage.create({ path: 'disk.vhd', contents: bytes }))
}

t.test('every kind fails at its n-th operation, once, and is counted', async (t) => {
  for (const kind of FAULT_KINDS) {
    const storage = made()
    storage.fail({ kinds: [kind], nth: 3, errno: 'EIO' })
    for (const other of FAULT_KINDS) if (other !== kind) DO[other](storage)
    DO[kind](storage)
    DO[kind](storage)
    t.throws(
      () => DO[kind](storage),
      { code: 'IO', errno: 'EIO', path: 'disk.vhd', message: 'input/output error' },
      kind,
    )
    DO[kind](storage)
    t.equal(storage.fired, 1)
    t.equal(storage.count(kind), 4)
    t.equal(storage.count(), 4 + FAULT_KINDS.length - 1)
  }
})

t.test('says where, as a file does', async (t) => {
  const storage = made()
  storage.fail({ kinds: ['write'], nth: 1, errno: 'ENOSPC' })
  t.throws(() => DO.write(storage), {
    code: 'NO_SPACE',
    errno: 'ENOSPC',
    message: 'cannot write disk.vhd at byte 512: no space left on the device',
    offset: 512,
  })
})

t.test('a persistent fault lasts until it is healed', async (t) => {
  const storage = made()
  storage.fail({ kinds: ['write', 'sync'], nth: 2, errno: 'EIO', persistent: true })
  DO.write(storage)
  for (let i = 0; i < 3; i++) {
    t.throws(() => DO.sync(storage), { code: 'IO' })
    t.throws(() => DO.write(storage), { code: 'IO' })
  }
  DO.read(storage)
  storage.heal()
  DO.write(storage)
  DO.sync(storage)
  t.equal(storage.fired, 6)
})

t.test('any operation: the n-th of all', async (t) => {
  const storage = made()
  storage.fail({ nth: 3, errno: 'EIO' })
  DO.read(storage)
  DO.write(storage)
  t.throws(() => DO.sync(storage), { code: 'IO' })
})

t.test('a failing write writes nothing, or the part that was ordered', async (t) => {
  for (const shortWrite of [0, 3, 10000]) {
    const memory = MemoryStorage.create()
    const storage = new FaultStorage(memory)
    storage.fail({ nth: 1, errno: 'ENOSPC', shortWrite })
    t.throws(() => storage.write(bytes, 0, 10, 100), { code: 'NO_SPACE' })
    t.equal(memory.size(), shortWrite === 0 ? 0 : 100 + Math.min(10, shortWrite))
  }
})

t.test('orders and counts hold for all threads', async (t) => {
  const storage = made()
  storage.fail({ kinds: ['read'], nth: 51, errno: 'EIO' })
  const code = `
    import { parentPort, workerData } from 'node:worker_threads'
    const { attachStorage } = await import(workerData.module)
    const storage = attachStorage(workerData.handle)
    let failed = 0
    for (let i = 0; i < 50; i++) try { storage.read(new Uint8Array(1), 0, 1, 0) } catch { failed++ }
    parentPort.postMessage(failed)`
  const module = new URL('../../lib/storage/attach.js', import.meta.url).href
  const failures = await Promise.all(
    [1, 2].map(async () => {
      const url = new URL(`data:text/javascript,${encodeURIComponent(code)}`)
      const worker = new Worker(url, { workerData: { module, handle: storage.handle() } })
      const [[failed]] = await Promise.all([once(worker, 'message'), once(worker, 'exit')])
      return failed as number
    }),
  )
  t.equal(failures[0]! + failures[1]!, 1)
  t.equal(storage.count('read'), 100)
  t.equal(storage.fired, 1)
})
