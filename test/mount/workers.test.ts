/** Which of a mount's workers serve whom. */

import { closeSync, constants, fsyncSync, openSync, readdirSync, readFileSync, readSync, writeSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { startTime } from '../../lib/mount/processes.js'
import { isMounted, mountImage, needsMounts, type TestMount } from '../support/mounts.js'
import { must, until, vdiskfs, vdiskfsMust } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

const REQUESTS = 1000

/** How often each thread of a process went to sleep so far, but for its main thread, which does so by the clock. */
function sleeps(pid: number): Map<string, number> {
  const folder = `/proc/${pid}/task`
  return new Map(
    readdirSync(folder)
      .filter((thread) => thread !== String(pid))
      .map((thread) => {
        const status = readFileSync(join(folder, thread, 'status'), 'latin1')
        return [thread, Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)![1])]
      }),
  )
}

/** The threads that `work` woke often. */
function awake(pid: number, work: () => void): number {
  const before = sleeps(pid)
  work()
  return [...sleeps(pid)].filter(([thread, count]) => count - (before.get(thread) ?? 0) > REQUESTS / 10).length
}

t.test('one client that syncs has one worker, one that reads two', needsMounts, async (t) => {
  const image = join(temporaryFolder(t), 'disk.qcow2')
  vdiskfsMust(['create', '-q', '-f', 'qcow2', image, '64M'])
  const { raw, pid } = mountImage(t, image)
  const fd = openSync(raw, constants.O_RDWR | constants.O_DIRECT)
  const buffer = Buffer.alloc(4096, 1)
  const sync = () => {
    for (let i = 0; i < REQUESTS; i++) {
      writeSync(fd, buffer, 0, 4096, i * 4096)
      fsyncSync(fd)
    }
  }
  const read = () => {
    for (let i = 0; i < REQUESTS; i++) readSync(fd, buffer, 0, 4096, i * 4096)
  }
  // The main thread looks every 4 ms; and where others have the cores, a request that waits for one worker wakes all.
  const becomes = (work: () => void, wanted: number) => {
    const end = performance.now() + 20_000
    let found: number
    do found = awake(pid, work)
    while (found !== wanted && performance.now() < end)
    return found
  }
  t.equal(becomes(sync, 1), 1)
  t.equal(becomes(read, 2), 2)
  t.equal(becomes(sync, 1), 1, 'and again')
  closeSync(fd)
})

for (const workers of [1, 3, 8])
  t.test(`however it ends while workers are parked: ${workers} of them`, needsMounts, async (t) => {
    const ends: Readonly<Record<string, (mount: TestMount) => void>> = {
      'vdiskfs umount': (mount) => mount.umount(),
      'umount -f': ({ mountpoint }) => void must('umount', ['-f', mountpoint]),
      SIGTERM: ({ pid }) => void process.kill(pid, 'SIGTERM'),
      SIGKILL: ({ pid }) => void process.kill(pid, 'SIGKILL'),
    }
    for (const [name, end] of Object.entries(ends)) {
      const image = join(temporaryFolder(t), 'disk.qcow2')
      vdiskfsMust(['create', '-q', '-f', 'qcow2', image, '64M'])
      const mount = mountImage(t, image, ['--workers', String(workers)])
      const fd = openSync(mount.raw, 'r+')
      for (let i = 0; i < 100; i++) {
        writeSync(fd, Buffer.alloc(65536, 7), 0, 65536, i * 65536)
        fsyncSync(fd)
      }
      closeSync(fd)
      end(mount)
      await until(`${name} ends the server`, () => startTime(mount.pid) === undefined)
      if (name === 'SIGKILL') vdiskfs(['umount', mount.mountpoint])
      t.notOk(isMounted(mount.mountpoint), name)
      const pattern = ['-f', 'qcow2', '-c', `read -P 7 0 ${100 * 65536}`, image]
      t.notMatch(must('qemu-io', pattern), /Pattern verification failed/, 'what was synced is there')
    }
  })

t.test('the server compiles on as many threads as there are cores beside a worker', needsMounts, async (t) => {
  const image = join(temporaryFolder(t), 'disk.qcow2')
  vdiskfsMust(['create', '-q', '-f', 'qcow2', image, '64M'])
  process.env.NODE_OPTIONS = '--no-warnings'
  const { pid } = mountImage(t, image)
  delete process.env.NODE_OPTIONS
  const environment = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0')
  const threads = Math.max(1, Math.min(4, availableParallelism() - 1))
  t.ok(environment.includes(`NODE_OPTIONS=--v8-pool-size=${threads} --no-warnings`), "the user's options come last")
})
