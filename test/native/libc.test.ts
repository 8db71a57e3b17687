import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { declareLibc, errnoName, fallocate, lseek } from '../../lib/native/libc.js'
import { temporaryFolder } from '../storage/host.js'

t.test('64-bit offsets, both ways', async (t) => {
  const fd = openSync(
    join(
      temporaryFolder((undo) => t.teardown(undo)),
      'x',
    ),
    'w+',
  )
  t.teardown(() => closeSync(fd))
  t.equal(fallocate(fd, 0, 5 * 2 ** 32, 4096), 0)
  t.equal(lseek(fd, 0, 2), 5 * 2 ** 32 + 4096)
})

t.test('a failure is an error like those of node:fs', async (t) => {
  t.throws(() => fallocate(1 << 20, 0, 0, 1), {
    code: 'EBADF',
    errno: -9,
    syscall: 'fallocate',
    message: 'EBADF: fallocate',
  })
  const rmdir = declareLibc<[path: string]>('int rmdir(const char *path)')
  t.throws(() => rmdir('/nowhere'), { code: 'ENOENT', errno: -2, syscall: 'rmdir' })
  t.throws(() => rmdir('/proc'), { code: 'EBUSY' })
})

t.test('errno names', async (t) => {
  t.equal(errnoName(28), 'ENOSPC')
  t.equal(errnoName(11), 'EAGAIN')
  t.equal(errnoName(95), 'EOPNOTSUPP')
  t.equal(errnoName(524), 'errno 524')
})

t.test('importing it loads nothing; the first call does', async (t) => {
  const module = JSON.stringify(new URL('../../lib/native/libc.js', import.meta.url).href)
  const script = `
    import { readFileSync } from 'node:fs'
    import { declareLibc } from ${module}
    const loaded = () => /koffi/.test(readFileSync('/proc/self/maps', 'utf8'))
    const getpid = declareLibc('int getpid(void)')
    const before = loaded()
    console.log(getpid() === process.pid, before, loaded())`
  t.equal(
    execFileSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8' }),
    'true false true\n',
  )
})

t.test('works in worker threads', async (t) => {
  const module = JSON.stringify(new URL('../../lib/native/libc.js', import.meta.url).href)
  const code = `
    import { parentPort } from 'node:worker_threads'
    import { fallocate } from ${module}
    try { fallocate(-1, 0, 0, 1) } catch (error) { parentPort.postMessage(error.code) }`
  const codes = await Promise.all(
    [1, 2, 3].map(async () => {
      const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`))
      const [[message]] = await Promise.all([once(worker, 'message'), once(worker, 'exit')])
      return message
    }),
  )
  t.same(codes, ['EBADF', 'EBADF', 'EBADF'])
})
