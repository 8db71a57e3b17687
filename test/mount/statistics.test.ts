/** `list --stats`, SIGUSR1, and DEBUG: what a mount tells of itself. */

import {
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { isMounted, listedAt, mountImage, needsMounts, type TestMount } from '../support/mounts.js'
import { must, startVdiskfs, until, vdiskfs, vdiskfsMust } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

const MiB = 1 << 20

// Many programs are started here, one after the other.
t.setTimeout(400_000)

interface Statistics {
  readonly workers: number
  readonly requests: readonly { kind: string; count: number; failed: number; bytes: number; microseconds: object }[]
  readonly 'metadata-cache': { hits: number; misses: number; pages: number; commits: number }
}

function mountNew(t: TestCase): TestMount {
  const image = join(temporaryFolder(t), 'disk.vhd')
  vdiskfsMust(['create', '-q', '-f', 'vhd', image, '64M'])
  return mountImage(t, image)
}

function statisticsOf({ mountpoint }: TestMount): Statistics {
  const [entry] = JSON.parse(vdiskfsMust(['list', '--stats', '--json', mountpoint])) as { statistics: Statistics }[]
  return entry!.statistics
}

const kind = ({ requests }: Statistics, name: string) => requests.find((request) => request.kind === name)

/** Reads and writes, of which is known how many requests they are. */
function exercise({ raw }: TestMount): void {
  const fd = openSync(raw, constants.O_RDWR | constants.O_DIRECT)
  const buffer = Buffer.alloc(MiB)
  for (let i = 0; i < 10; i++) writeSync(fd, buffer, 0, 4096, i * 4 * MiB)
  fsyncSync(fd)
  for (let i = 0; i < 20; i++) readSync(fd, buffer, 0, 8192, i * MiB)
  closeSync(fd)
}

t.test('counts, bytes, times, and the cache', needsMounts, async (t) => {
  const mount = mountNew(t)
  t.equal(kind(statisticsOf(mount), 'write'), undefined)
  exercise(mount)
  const statistics = statisticsOf(mount)
  t.match(kind(statistics, 'write'), { count: 10, failed: 0, bytes: 10 * 4096 })
  t.match(kind(statistics, 'read'), { count: 20, failed: 0, bytes: 20 * 8192 })
  // The fsync, and a flush for every close.
  t.ok(kind(statistics, 'sync')!.count >= 2)
  const { microseconds } = kind(statistics, 'read') as { microseconds: { mean: number; p50: number; max: number } }
  t.ok(microseconds.mean > 0 && microseconds.mean <= microseconds.max)
  t.ok(statistics.workers >= 1)
  const cache = statistics['metadata-cache']
  t.ok(cache.misses >= 1, 'the BAT was read')
  t.ok(cache.hits >= 30, `${cache.hits} hits`)
  t.ok(cache.commits >= 1)
})

t.test('what fails is counted as such', needsMounts, async (t) => {
  const mount = mountNew(t)
  const fd = openSync(mount.raw, 'r+')
  t.throws(() => writeSync(fd, Buffer.alloc(4096), 0, 4096, 64 * MiB), { code: 'ENOSPC' })
  closeSync(fd)
  t.match(kind(statisticsOf(mount), 'write'), { count: 1, failed: 1, bytes: 0 })
})

t.test('large reads, which are spliced, count too', needsMounts, async (t) => {
  const mount = mountNew(t)
  exercise(mount)
  const fd = openSync(mount.raw, constants.O_RDONLY | constants.O_DIRECT)
  readSync(fd, Buffer.alloc(MiB), 0, MiB, 0)
  closeSync(fd)
  t.equal(kind(statisticsOf(mount), 'read')!.bytes, 20 * 8192 + MiB)
})

t.test('as text; one mount only', needsMounts, async (t) => {
  const mount = mountNew(t)
  const other = mountNew(t)
  exercise(mount)
  const text = vdiskfsMust(['list', '--stats', mount.mountpoint])
  t.match(text, /\n {2}request +count +failed +bytes +average +50 % +99 % +longest\n/)
  t.match(text, /\n {2}write +10 +0 +40 KiB +\d/)
  t.match(text, /metadata cache: \d+\.\d\d % hits, \d+ pages read/)
  t.notMatch(text, other.mountpoint)
  const none = vdiskfs(['list', temporaryFolder(t)])
  t.match(none, { code: 1, err: /is not mounted/ })
})

t.test('SIGUSR1 writes a report into the log; list --stats does not', needsMounts, async (t) => {
  const mount = mountNew(t)
  exercise(mount)
  const log = listedAt(mount.mountpoint)!.log!
  statisticsOf(mount)
  t.equal(readFileSync(log, 'utf8'), '')
  process.kill(mount.pid, 'SIGUSR1')
  await until('it is in the log', () => /write +10 +0 +40 KiB/.test(readFileSync(log, 'utf8')))
  t.ok(isMounted(mount.mountpoint), 'it goes on')
  const names = readdirSync('/run/vdiskfs')
  mount.umount()
  const left = readdirSync('/run/vdiskfs').filter((name) => names.includes(name) && name.endsWith('.stats'))
  const own = names.filter((name) => name.endsWith('.stats') && !left.includes(name))
  t.ok(own.length >= 1, 'what was written for list is removed with the mount')
  t.notOk(existsSync(log))
})

t.test('in the foreground SIGUSR1 reports to standard error', needsMounts, async (t) => {
  const mount = mountNew(t)
  mount.umount()
  const front = startVdiskfs(t, ['mount', '-f', mount.image, mount.mountpoint])
  await until('it is ready', () => front.err().includes('Ctrl-C'))
  front.child.kill('SIGUSR1')
  await until('it reports', () => /vdiskfs: up \d+ s, \d+ workers/.test(front.err()))
  front.child.kill('SIGINT')
  t.same(await front.ended, { code: 0, signal: null })
})

t.test('DEBUG: a request is followed through the layers by its number', needsMounts, async (t) => {
  const image = join(temporaryFolder(t), 'disk.vhd')
  vdiskfsMust(['create', '-q', '-f', 'vhd', image, '64M'])
  process.env.DEBUG = 'vdiskfs:*'
  const mount = mountImage(t, image)
  delete process.env.DEBUG
  exercise(mount)
  const log = readFileSync(listedAt(mount.mountpoint)!.log!, 'utf8')
  const number = /vdiskfs:fuse #(\d+) WRITE inode 2 4096 at 4194304\n/.exec(log)?.[1]
  t.ok(number, 'the request')
  const lines = log.split('\n').filter((line) => line.includes(`#${number} `))
  t.ok(
    lines.some((line) => line.includes(`vdiskfs:image #${number} allocated: 4194304+4096 at `)),
    'the place for it',
  )
  t.ok(lines.at(-1)!.includes(`vdiskfs:fuse #${number} reply: 8 bytes`), 'the reply')
  const sync = /vdiskfs:fuse #(\d+) FSYNC inode 2\n/.exec(log)?.[1]
  t.match(log, new RegExp(`vdiskfs:commit #${sync} class \\d: \\d+ bytes at \\d+ of file 0\\n`))
  t.match(log, new RegExp(`vdiskfs:commit #${sync} commit \\d+ is durable\\n`))
  t.notMatch(log, /died/)
})

/** MiB of a server that does nothing, and what each worker may add to that under load. */
const AT_REST = 75
const PER_WORKER = 12

t.test('memory does not grow with the requests that were served', needsMounts, (t) => {
  const mount = mountNew(t)
  const load = ['--rw=randrw', '--bsrange=4k-1M', '--direct=1', '--ioengine=libaio', '--iodepth=16', '--loops=20']
  must('fio', ['--name=load', `--filename=${mount.raw}`, '--size=64M', '--output=/dev/null', ...load])
  const many = ['--rw=randrw', '--bs=4k', '--direct=1', '--ioengine=libaio', '--iodepth=16', '--loops=8']
  must('fio', ['--name=many', `--filename=${mount.raw}`, '--size=64M', '--output=/dev/null', ...many])
  const { workers } = statisticsOf(mount)
  const resident = Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${mount.pid}/status`, 'utf8'))![1]) / 1024
  const most = AT_REST + PER_WORKER * workers
  t.ok(resident <= most, `${resident.toFixed(0)} MiB with ${workers} workers, expected at most ${most}`)
  t.end()
})
