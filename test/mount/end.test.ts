/** How a mount ends: umount by us and by others, busy, signals, the foreground, a killed server. */

import { closeSync, existsSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { isAlive, startTime } from '../../lib/mount/processes.js'
import { mount as mountDirectly } from '../../lib/native/mount.js'
import { attachLoop, isMounted, listedAt, mountDevice, mountpointFor, type TestMount } from '../support/mounts.js'
import { isGone as isEnded, mountRaw, rawImage, scribble, written } from '../support/raw-mounts.js'
import { must, start, startVdiskfs, until, vdiskfs, vdiskfsMust } from '../support/run.js'
import type { TestCase } from '../support/temp.js'
import { overTransports } from '../support/transports.js'

const MiB = 1 << 20

// Many programs are started here, one after the other, and some of them wait for two seconds.
t.setTimeout(400_000)

/** Nothing is left of a mount: the server has gone, as well as its entry, and qemu gets the lock. */
function isGone(t: Test, mount: TestMount): void {
  isEnded(t, mount)
  must('qemu-io', ['-f', 'raw', '-c', 'write 0 512', mount.image])
}

await overTransports(t, 'umount returns when the image is committed and closed', [], async (t) => {
  const mount = mountRaw(t)
  const log = listedAt(mount.mountpoint)!.log!
  t.ok(existsSync(log))
  scribble(mount, 'umount')
  const { code, out, err } = vdiskfs(['umount', mount.mountpoint])
  t.same({ code, out, err }, { code: 0, out: '', err: '' })
  t.equal(startTime(mount.pid), undefined, 'no wait is needed')
  t.equal(written(mount, 6), 'umount')
  t.notOk(existsSync(log))
  isGone(t, mount)
})

await overTransports(t, 'umount(8) does as well', [], async (t) => {
  const mount = mountRaw(t)
  scribble(mount, 'other')
  must('umount', [mount.mountpoint])
  await until('the server ends', () => startTime(mount.pid) === undefined)
  t.equal(written(mount, 5), 'other')
  isGone(t, mount)
})

await overTransports(t, 'umount of what is not mounted, or not ours', [], async (t) => {
  const folder = mountpointFor(t)
  const none = vdiskfs(['umount', folder])
  t.equal(none.code, 1)
  t.match(none.err, `vdiskfs: ${folder} is not mounted\n`)
  must('mount', ['-t', 'tmpfs', 'none', folder])
  const other = vdiskfs(['umount', folder])
  t.equal(other.code, 1)
  t.match(other.err, /type tmpfs, not of vdiskfs/)
  t.ok(isMounted(folder))
})

await overTransports(t, 'a busy mount: who holds it is said, nothing changes', [], async (t) => {
  const mount = mountRaw(t)
  const fd = openSync(mount.raw, 'r+')
  const sleeper = start(t, 'sleep', ['1000'], { cwd: mount.mountpoint })
  await until('it sleeps', () => readFileSync(`/proc/${sleeper.pid}/comm`, 'utf8') === 'sleep\n')
  const { code, err } = vdiskfs(['umount', mount.mountpoint])
  t.equal(code, 1)
  t.match(err, /^vdiskfs: [^\n]* is busy: [^\n]*\n$/)
  t.match(err, `(pid ${process.pid}) has disk.raw open`)
  t.match(err, `sleep (pid ${sleeper.pid}) works in it`)
  writeSync(fd, Buffer.from('after'), 0, 5, MiB)
  closeSync(fd)
  sleeper.child.kill('SIGKILL')
  await sleeper.ended
  mount.umount()
  t.equal(written(mount, 5), 'after')
})

await overTransports(t, 'a loop device on it is named; just detached, it does not matter', [], async (t) => {
  const mount = mountRaw(t)
  const loop = attachLoop(t, mount.raw)
  const { code, err } = vdiskfs(['umount', mount.mountpoint])
  t.equal(code, 1)
  t.match(err, `${loop} is attached to disk.raw`)
  must('losetup', ['--detach', loop])
  mount.umount()
  isGone(t, mount)
})

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const)
  await overTransports(t, `${signal} commits, unmounts, closes`, [], async (t) => {
    const mount = mountRaw(t)
    scribble(mount, signal)
    process.kill(mount.pid, signal)
    await until('the server ends', () => startTime(mount.pid) === undefined)
    t.equal(written(mount, signal.length), signal)
    isGone(t, mount)
  })

await overTransports(t, 'SIGTERM of a busy mount ends it by force', [], async (t) => {
  const mount = mountRaw(t)
  const fd = openSync(mount.raw, 'r+')
  writeSync(fd, Buffer.from('forced'), 0, 6, MiB)
  process.kill(mount.pid, 'SIGTERM')
  await until('the server ends', () => startTime(mount.pid) === undefined)
  t.throws(() => writeSync(fd, Buffer.from('late'), 0, 4, MiB), 'who still has it open gets an error')
  t.throws(() => closeSync(fd), 'closing too')
  t.equal(written(mount, 6), 'forced')
  isGone(t, mount)
})

await overTransports(t, 'in the foreground: ready, Ctrl-C, exit 0', [], async (t) => {
  const image = rawImage(t)
  const mountpoint = mountpointFor(t)
  const front = startVdiskfs(t, ['mount', '-f', '--format=raw', image, mountpoint])
  await until('it is ready', () => front.err().includes('Ctrl-C'))
  t.equal(front.err(), `vdiskfs: ${image} (raw, 16 MiB) is ${mountpoint}/disk.raw; Ctrl-C ends it\n`)
  t.match(listedAt(mountpoint), { pid: front.pid, state: 'mounted' })
  const mount = { image, mountpoint, raw: join(mountpoint, 'disk.raw'), pid: front.pid, umount() {} }
  scribble(mount, 'front')
  front.child.kill('SIGINT')
  t.same(await front.ended, { code: 0, signal: null })
  t.equal(written(mount, 5), 'front')
  isGone(t, mount)
})

await overTransports(t, 'in the foreground: umount from elsewhere ends it as well', [], async (t) => {
  const mountpoint = mountpointFor(t)
  const front = startVdiskfs(t, ['mount', '-f', '--format=raw', rawImage(t), mountpoint])
  await until('it is ready', () => front.err().includes('Ctrl-C'))
  vdiskfsMust(['umount', mountpoint])
  t.same(await front.ended, { code: 0, signal: null })
})

await overTransports(t, 'in the foreground: what cannot be mounted is said once', [], async (t) => {
  const { code, err } = vdiskfs(['mount', '-f', '/nowhere/none.vhd', mountpointFor(t)])
  t.equal(code, 1)
  t.match(err, /^vdiskfs: [^\n]*none\.vhd[^\n]*\n$/)
})

/** Kills the server of a new mount. */
async function killed(t: TestCase): Promise<TestMount> {
  const mount = mountRaw(t)
  const fd = openSync(mount.raw, 'r+')
  writeSync(fd, Buffer.from('flushed'), 0, 7, MiB)
  closeSync(fd)
  const identity = { pid: mount.pid, startTime: startTime(mount.pid)! }
  process.kill(mount.pid, 'SIGKILL')
  await until('the server is gone', () => !isAlive(identity))
  return mount
}

await overTransports(t, 'a killed server: list says so, the next mount cleans up', [], async (t) => {
  const mount = await killed(t)
  t.match(listedAt(mount.mountpoint), { state: 'dead', pid: mount.pid })
  const again = vdiskfs(['mount', '--format=raw', mount.image, mount.mountpoint])
  t.equal(again.code, 0)
  t.match(again.err, /^vdiskfs: [^\n]*cleaned up the dead mount of [^\n]*disk\.img[^\n]*\n$/)
  t.match(listedAt(mount.mountpoint), { state: 'mounted' })
  t.equal(readFileSync(mount.raw).toString('latin1', MiB, MiB + 7), 'flushed')
  vdiskfsMust(['umount', mount.mountpoint])
})

await overTransports(t, 'a killed server: umount takes the dead mount away and says what that means', [], async (t) => {
  const mount = await killed(t)
  const { code, err } = vdiskfs(['umount', mount.mountpoint])
  t.equal(code, 1)
  t.match(err, /server of [^\n]* had been killed; what was not flushed is lost\n$/)
  isGone(t, mount)
})

await overTransports(t, 'a killed server whose mount is gone: list forgets it', [], async (t) => {
  const mount = await killed(t)
  const { log } = listedAt(mount.mountpoint)!
  must('umount', ['-l', mount.mountpoint])
  isGone(t, mount)
  t.notOk(existsSync(log!))
})

await overTransports(t, 'a dead mount of somebody else is left alone', [], async (t) => {
  const mountpoint = mountpointFor(t)
  const fd = openSync('/dev/fuse', 'r+')
  mountDirectly('other', mountpoint, 'fuse.other', 0, `fd=${fd},rootmode=40000,user_id=0,group_id=0`)
  closeSync(fd)
  const { code, err } = vdiskfs(['mount', '--format=raw', rawImage(t), mountpoint])
  t.equal(code, 1)
  t.match(err, /dead mount of type fuse\.other: end it first with umount/)
  t.ok(isMounted(mountpoint))
})

await overTransports(t, 'a file system inside: the loop device of a mounted one counts as a holder', [], async (t) => {
  const mount = mountRaw(t)
  must('mkfs.ext4', ['-q', mount.raw])
  const loop = attachLoop(t, mount.raw)
  const fs = mountDevice(t, loop)
  writeFileSync(join(fs, 'file'), 'inside')
  t.match(vdiskfs(['umount', mount.mountpoint]).err, `${loop} is attached to disk.raw`)
  must('umount', [fs])
  must('losetup', ['--detach', loop])
  mount.umount()
  must('e2fsck', ['-fn', mount.image])
})
