import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { LARGEST_MEMORY, MemoryStorage } from '../../lib/storage/memory.js'
import { testStorage } from './suite.js'

testStorage('memory', {
  make: () => MemoryStorage.create({ maxSize: LARGEST_MEMORY }),
  readOnly: (storage) => MemoryStorage.attach({ ...(storage as MemoryStorage).handle(), readOnly: true }),
  sparse: true,
  limit: LARGEST_MEMORY,
})

t.test('begins with contents', async (t) => {
  const storage = MemoryStorage.create({ path: 'x.vhd', contents: Uint8Array.of(1, 2, 3) })
  const bytes = new Uint8Array(4)
  t.equal(storage.read(bytes, 0, 4, 0), 3)
  t.same(bytes, [1, 2, 3, 0])
  t.equal(storage.path, 'x.vhd')
})

t.test('says NO_SPACE at its limit, and keeps what it has', async (t) => {
  const storage = MemoryStorage.create({ path: 'small', maxSize: 10000 })
  storage.write(new Uint8Array(10000).fill(1), 0, 10000, 0)
  for (const change of [
    () => storage.write(new Uint8Array(2), 0, 2, 9999),
    () => storage.truncate(10001),
    () => storage.reserve(9000, 1001),
  ])
    t.throws(change, { code: 'NO_SPACE', errno: 'ENOSPC', message: 'cannot grow small to 10001 bytes' })
  t.equal(storage.size(), 10000)
})

t.test('threads that grow it at once lose nothing', async (t) => {
  const threads = 3
  const writes = 200
  const storage = MemoryStorage.create()
  const code = `
    import { workerData } from 'node:worker_threads'
    const { attachStorage } = await import(workerData.module)
    const storage = attachStorage(workerData.handle)
    const bytes = new Uint8Array(1000).fill(workerData.number)
    for (let i = 0; i < ${writes}; i++) storage.write(bytes, 0, 1000, (i * ${threads} + workerData.number - 1) * 1000)`
  const module = new URL('../../lib/storage/attach.js', import.meta.url).href
  const workers = Array.from({ length: threads }, (_, i) => {
    const url = new URL(`data:text/javascript,${encodeURIComponent(code)}`)
    return new Worker(url, { workerData: { module, handle: storage.handle(), number: i + 1 } })
  })
  await Promise.all(workers.map((worker) => once(worker, 'exit')))
  t.equal(storage.size(), threads * writes * 1000)
  const bytes = new Uint8Array(storage.size())
  storage.read(bytes, 0, bytes.length, 0)
  t.equal(
    bytes.findIndex((byte, i) => byte !== (Math.floor(i / 1000) % threads) + 1),
    -1,
  )
})

t.test('a last page that is cut by the end is freed with what is in front of it', async (t) => {
  const storage = MemoryStorage.create({ contents: new Uint8Array(4096 + 10).fill(1) })
  storage.punch(4096, 5)
  t.equal(storage.allocated(), 8192, 'not where some of it is left')
  storage.punch(4096, 10)
  t.equal(storage.allocated(), 4096)
})
