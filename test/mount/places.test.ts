/** Mounts that are hidden, moved, or shown at several places: what is unmounted is ours, or nothing is. */

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { startTime } from '../../lib/mount/processes.js'
import { guard, listedAt, mountpointFor } from '../support/mounts.js'
import { isGone, mountRaw, rawImage, scribble, written } from '../support/raw-mounts.js'
import { CLI, must, run, start, until, vdiskfs, vdiskfsMust } from '../support/run.js'
import { atEnd, type TestCase, temporaryFolder } from '../support/temp.js'
import { currentTransport, overTransports } from '../support/transports.js'

// Some of it waits for seconds.
t.setTimeout(400_000)

/** Mounts something else over a mount point; it is taken away with the test. */
function mountOver(t: TestCase, mountpoint: string): string {
  must('mount', ['-t', 'tmpfs', 'stranger', mountpoint])
  const file = join(mountpoint, 'precious')
  writeFileSync(file, 'precious')
  atEnd(t, () => {
    if (existsSync(file)) must('umount', [mountpoint])
  })
  return file
}

await overTransports(t, 'mounted over: it is named, and nobody unmounts it', [], async (t) => {
  const mount = mountRaw(t)
  scribble(mount, 'below')
  const file = mountOver(t, mount.mountpoint)
  const { log } = listedAt(mount.mountpoint)!
  t.equal(listedAt(mount.mountpoint)?.state, 'mounted')
  const { code, err } = vdiskfs(['umount', mount.mountpoint])
  t.equal(code, 1)
  t.match(err, /^vdiskfs: [^\n]*: tmpfs \(stranger\) is mounted over it[^\n]*\n$/)
  process.kill(mount.pid, 'SIGTERM')
  await until('it is said', () => readFileSync(log!, 'utf8').includes('tmpfs (stranger) is mounted over it'))
  t.ok(existsSync(file))
  t.not(startTime(mount.pid), undefined, 'the server goes on')
  must('umount', [mount.mountpoint])
  t.ok(existsSync(mount.raw))
  process.kill(mount.pid, 'SIGTERM')
  await until('the server ends', () => startTime(mount.pid) === undefined)
  t.equal(written(mount, 5), 'below')
  isGone(t, mount)
})

await overTransports(t, 'hidden by a mount on a folder above it', [], async (t) => {
  const above = mountpointFor(t)
  const mountpoint = join(above, 'mnt')
  mkdirSync(mountpoint)
  guard(t, mountpoint)
  vdiskfsMust(['mount', '--format', 'raw', rawImage(t), mountpoint])
  must('mount', ['-t', 'tmpfs', 'stranger', above])
  atEnd(t, () => run('umount', [above]))
  const { code, err } = vdiskfs(['umount', mountpoint])
  t.equal(code, 1)
  t.match(err, 'something is mounted over a folder above it')
  must('umount', [above])
  vdiskfsMust(['umount', mountpoint])
})

await overTransports(t, 'bound to a second place: umount names it, SIGTERM ends it by force', [], async (t) => {
  const mount = mountRaw(t)
  const second = mountpointFor(t)
  must('mount', ['--bind', mount.mountpoint, second])
  const { code, err } = vdiskfs(['umount', mount.mountpoint])
  t.equal(code, 1)
  t.equal(err, `vdiskfs: ${mount.mountpoint} is busy: it is mounted at ${second} too\n`)
  scribble(mount, 'bound')
  process.kill(mount.pid, 'SIGTERM')
  await until('the server ends', () => startTime(mount.pid) === undefined)
  t.equal(written(mount, 5), 'bound')
  must('umount', [second])
  isGone(t, mount)
})

await overTransports(t, 'held in another mount namespace: after a while it is said by whom', [], async (t) => {
  const mount = mountRaw(t)
  const holder = start(t, 'unshare', ['--mount', '--propagation', 'private', 'sleep', '1000'])
  await until('it sleeps', () => readFileSync(`/proc/${holder.pid}/comm`, 'utf8') === 'sleep\n')
  for (let tries = 0; tries < 2; tries++) {
    const { code, err } = vdiskfs(['umount', mount.mountpoint])
    t.equal(code, 1)
    t.match(err, `goes on: sleep (pid ${holder.pid}) has it in its mount namespace\n`)
  }
  holder.child.kill('SIGKILL')
  await until('the server ends', () => startTime(mount.pid) === undefined)
  isGone(t, mount)
})

/** What is mounted on a shared mount cannot be moved; in this namespace nothing is shared, and all ends with it. */
const MOVE = `
  set -e
  first=$1 second=$2; shift 2
  "$@" mount $WORDS "$first"
  pid=$("$@" list --json "$first" | node -pe 'JSON.parse(require("fs").readFileSync(0))[0].pid')
  mount --move "$first" "$second"
  test -e "$second/disk.raw"
  case $HOW in
  SIGTERM) kill -TERM $pid ;;
  umount) "$@" umount "$first" ;;
  esac
  for i in $(seq 100); do
    kill -0 $pid 2>/dev/null || exit 0
    sleep 0.1
  done
  kill -KILL $pid
  exit 9`

for (const how of ['SIGTERM', 'umount'])
  await overTransports(t, `moved to another folder: ${how} ends it`, [], async (t) => {
    const folder = temporaryFolder(t)
    const [first, second] = ['first', 'second'].map((name) => join(folder, name)) as [string, string]
    for (const path of [first, second]) mkdirSync(path)
    const WORDS = `--transport ${currentTransport()} --format raw ${rawImage(t)}`
    const inside = ['--mount', '--propagation', 'private', 'sh', '-c', MOVE, 'sh', first, second, process.execPath, CLI]
    const { code, err } = run('unshare', inside, { env: { HOW: how, WORDS } })
    t.same({ code, err }, { code: 0, err: '' })
    t.equal(listedAt(first), undefined)
  })
