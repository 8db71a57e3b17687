/** `attach` and `detach`: loop devices with partitions, who uses them, and what is left where one is interrupted. */

import { closeSync, openSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { isAlive, startTime } from '../../lib/mount/processes.js'
import { isMounted, type Listed, listed, mountDevice, needsMounts } from '../support/mounts.js'
import { must, run, startVdiskfs, until, vdiskfs, vdiskfsMust } from '../support/run.js'
import { atEnd, type TestCase, temporaryFolder } from '../support/temp.js'

const MiB = 1 << 20

// Many programs are started here, and a server looks after its loop device every five seconds.
t.setTimeout(600_000)

const attachedTo = (image: string): Listed | undefined => listed().find((entry) => entry.image === image)

/** Loop devices over the private mount of an image, by the name that its folder has. */
const loopsOf = (image: string): string[] =>
  must('losetup', ['--list', '--noheadings', '--output', 'NAME,BACK-FILE'])
    .split('\n')
    .filter((line) => line.includes(`/attached/${basename(image)}-`))
    .map((line) => line.split(' ')[0]!)

const foldersOf = (image: string): string[] =>
  readdirSync('/run/vdiskfs/attached').filter((name) => name.startsWith(`${basename(image)}-`))

let images = 0

/** An image of a name that no other has, with two partitions. What is attached to it when the test ends is detached. */
function image(t: TestCase, script = 'label: gpt\nsize=16M\nsize=16M, name=second\n'): string {
  const path = join(temporaryFolder(t), `disk-${process.pid}-${images++}.img`)
  writeFileSync(path, '')
  truncateSync(path, 64 * MiB)
  must('sfdisk', ['-q', path], { input: script })
  atEnd(t, async () => {
    await settled(path)
    for (const device of loopsOf(path)) run('losetup', ['--detach', device])
    const entry = attachedTo(path)
    if (entry) vdiskfs(['detach', entry.mountpoint])
    if (entry && isMounted(entry.mountpoint)) must('umount', ['-f', '-l', entry.mountpoint])
  })
  return path
}

/** Waits for servers that still begin or end. */
const settled = (path: string) =>
  until('no server begins or ends', () =>
    listed().every(({ image, state }) => image !== path || !['starting', 'closing'].includes(state)),
  )

const attach = (path: string, ...options: string[]) => vdiskfsMust(['attach', '--format=raw', ...options, path]).trim()

/** Nothing is left of an attachment. */
function isGone(t: Test, path: string): void {
  t.equal(attachedTo(path), undefined, 'not in the list')
  t.same(loopsOf(path), [], 'no loop device')
  t.same(foldersOf(path), [], 'no folder')
  must('qemu-io', ['-f', 'raw', '-c', 'write 63M 512', path])
}

const partitionsOf = (device: string): string[] => {
  const name = basename(device)
  return readdirSync(`/sys/block/${name}`).filter((entry) => entry.startsWith(`${name}p`))
}

t.test('a loop device with its partitions; detach ends it', needsMounts, async (t) => {
  const path = image(t)
  const device = attach(path)
  t.match(device, /^\/dev\/loop\d+$/)
  const name = basename(device)
  t.equal(must('blockdev', ['--getsize64', device]).trim(), String(64 * MiB))
  t.same(partitionsOf(device).sort(), [`${name}p1`, `${name}p2`])
  t.equal(must('blockdev', ['--getsize64', `${device}p2`]).trim(), String(16 * MiB))
  t.equal(readFileSync(`/sys/block/${name}/loop/dio`, 'utf8'), '1\n', 'direct I/O')
  t.match(attachedTo(path), { state: 'mounted', loop: device })
  t.match(vdiskfsMust(['list']), device)
  must('mkfs.ext4', ['-q', `${device}p1`])
  const folder = mountDevice(t, `${device}p1`)
  writeFileSync(join(folder, 'file'), 'inside')
  must('umount', [folder])
  const { pid } = attachedTo(path)!
  const { code, out, err } = vdiskfs(['detach', device])
  t.same({ code, out, err }, { code: 0, out: '', err: '' })
  t.equal(startTime(pid), undefined, 'the server is gone')
  must('e2fsck', ['-fn', `${path}?offset=${MiB}`])
  isGone(t, path)
})

t.test('--json', needsMounts, async (t) => {
  const path = image(t)
  const facts = JSON.parse(attach(path, '--json')) as { device: string; mountpoint: string }
  t.match(facts, {
    image: path,
    format: 'raw',
    'virtual-size': 64 * MiB,
    'read-only': false,
    partitions: [
      { number: 1, device: `${facts.device}p1`, start: MiB, size: 16 * MiB },
      { number: 2, device: `${facts.device}p2`, start: 17 * MiB, size: 16 * MiB, name: 'second' },
    ],
  })
  vdiskfsMust(['detach', facts.mountpoint])
  isGone(t, path)
})

t.test('read-only, twice, detached by the image only where that says which', needsMounts, async (t) => {
  const path = image(t)
  const one = attach(path, '-r')
  t.equal(must('blockdev', ['--getro', one]).trim(), '1')
  t.equal(must('blockdev', ['--getro', `${one}p1`]).trim(), '1')
  const two = attach(path, '-r')
  t.not(one, two)
  const which = vdiskfs(['detach', path])
  t.equal(which.code, 2)
  t.match(which.err, /attached more than once: say which, of \/dev\/loop\d+, \/dev\/loop\d+\n$/)
  vdiskfsMust(['detach', one])
  vdiskfsMust(['detach', path])
  isGone(t, path)
})

t.test('sectors of 4096 bytes; logical partitions; no table', needsMounts, async (t) => {
  const large = image(t)
  writeFileSync(large, '')
  truncateSync(large, 64 * MiB)
  must('fdisk', ['-b', '4096', large], { input: 'g\nn\n1\n\n+8M\nw\n' })
  const device = attach(large)
  t.equal(must('blockdev', ['--getss', device]).trim(), '4096')
  t.equal(must('blockdev', ['--getsize64', `${device}p1`]).trim(), String(8 * MiB))
  t.match(must('fdisk', ['-l', device]), /Disklabel type: gpt/)
  vdiskfsMust(['detach', device])

  const mbr = image(t, 'label: dos\nsize=8M\nsize=30M, type=5\n5: size=5M\n6: size=6M\n')
  const second = attach(mbr)
  t.ok(['p1', 'p5'].every((end) => partitionsOf(second).includes(basename(second) + end)))
  vdiskfsMust(['detach', second])

  writeFileSync(mbr, '')
  truncateSync(mbr, 4 * MiB)
  const { code, out, err } = vdiskfs(['attach', '--format=raw', mbr])
  t.match({ code, err }, { code: 0, err: '' })
  t.same(partitionsOf(out.trim()), [])
  vdiskfsMust(['detach', out.trim()])
})

t.test('a VHDX with sectors of 4096 bytes', needsMounts, async (t) => {
  const path = image(t)
  rmSync(path)
  vdiskfsMust(['create', '-q', '-f', 'vhdx', '-o', 'logical_sector_size=4096', path, '64M'])
  const device = vdiskfsMust(['attach', path]).trim()
  t.equal(must('blockdev', ['--getss', device]).trim(), '4096')
  must('sfdisk', ['-q', '--no-tell-kernel', '--no-reread', device], {
    input: 'label: dos\nsize=8M\nsize=30M, type=5\n5: size=5M\n',
  })
  vdiskfsMust(['detach', device])
  const again = vdiskfsMust(['attach', path]).trim()
  t.ok(['p1', 'p5'].every((end) => partitionsOf(again).includes(basename(again) + end)))
  t.equal(must('blockdev', ['--getsize64', `${again}p5`]).trim(), String(5 * MiB))
  vdiskfsMust(['detach', again])
})

t.test('busy: who uses it is said, nothing changes', needsMounts, async (t) => {
  const path = image(t)
  const device = attach(path)
  must('mkfs.ext4', ['-q', `${device}p1`])
  const folder = mountDevice(t, `${device}p1`)
  const mounted = vdiskfs(['detach', device])
  t.equal(mounted.code, 1)
  t.equal(mounted.err, `vdiskfs: ${device} is in use: ${device}p1 is mounted on ${folder}\n`)
  writeFileSync(join(folder, 'file'), 'still there')
  must('umount', [folder])
  const fd = openSync(`${device}p2`, 'r+')
  const open = vdiskfs(['detach', path])
  t.equal(open.code, 1)
  t.match(open.err, `(pid ${process.pid}) has ${device}p2 open\n`)
  writeSync(fd, 'written after that')
  closeSync(fd)
  vdiskfsMust(['detach', device])
  t.equal(readFileSync(path).toString('latin1', 17 * MiB, 17 * MiB + 18), 'written after that')
  isGone(t, path)
})

t.test('a size that is no multiple of a sector: what cannot be reached is said', needsMounts, async (t) => {
  const path = image(t)
  truncateSync(path, 64 * MiB + 700)
  const { code, out, err } = vdiskfs(['attach', '--format=raw', path])
  t.equal(code, 0)
  t.equal(Number(must('blockdev', ['--getsize64', out.trim()])), 64 * MiB + 512)
  t.match(err, new RegExp(`^vdiskfs: ${basename(path)}: [^\\n]*last 188 bytes[^\\n]*\\n$`))
  vdiskfsMust(['detach', out.trim()])
  truncateSync(path, 64 * MiB)
  isGone(t, path)
})

t.test('what is not attached', needsMounts, async (t) => {
  const path = image(t)
  const none = vdiskfs(['detach', path])
  t.match(none, { code: 1, err: /is not attached/ })
  t.match(vdiskfs(['detach', '/dev/loop999']), { code: 1, err: /loop999 is not attached/ })
  const other = must('losetup', ['--find', '--show', path]).trim()
  atEnd(t, () => must('losetup', ['--detach', other]))
  t.match(vdiskfs(['detach', other]), { code: 1, err: /was not made by vdiskfs attach/ })
  t.match(must('losetup', [other]), path)
})

t.test('what cannot be attached leaves nothing behind', needsMounts, async (t) => {
  const path = image(t)
  const missing = vdiskfs(['attach', `${path}.none`])
  t.equal(missing.code, 1)
  t.match(missing.err, /^vdiskfs: [^\n]*none[^\n]*\n$/)
  t.same(foldersOf(path), [])
  const device = attach(path)
  const twice = vdiskfs(['attach', '--format=raw', path])
  t.match(twice, { code: 1, out: '', err: /is in use: it is being written by vdiskfs/ })
  t.same(loopsOf(path), [device])
  t.equal(foldersOf(path).length, 1)
  vdiskfsMust(['detach', device])
})

t.test('a device that is detached by losetup: the mount ends by itself, or by detach', needsMounts, async (t) => {
  const path = image(t)
  must('losetup', ['--detach', attach(path)])
  await until('the server ends', () => attachedTo(path) === undefined)
  isGone(t, path)
  const device = attach(path)
  must('losetup', ['--detach', device])
  const byDevice = vdiskfs(['detach', device])
  // It may be somebody else's by now: then the image is what tells.
  const { code, err } = /was not made by/.test(byDevice.err) ? vdiskfs(['detach', path]) : byDevice
  // The server may have been faster.
  if (code !== 0) t.match(err, /is not attached/)
  isGone(t, path)
})

t.test('SIGTERM to the server detaches and commits', needsMounts, async (t) => {
  const path = image(t)
  const device = attach(path)
  const fd = openSync(device, 'r+')
  writeSync(fd, 'on the way', 60 * MiB)
  closeSync(fd)
  process.kill(attachedTo(path)!.pid, 'SIGTERM')
  await until('the server ends', () => attachedTo(path) === undefined)
  t.equal(readFileSync(path).toString('latin1', 60 * MiB, 60 * MiB + 10), 'on the way')
  isGone(t, path)
})

t.test('a killed server: detach takes all of it away, and says what that means', needsMounts, async (t) => {
  const path = image(t)
  const device = attach(path)
  const { pid } = attachedTo(path)!
  const identity = { pid, startTime: startTime(pid)! }
  process.kill(pid, 'SIGKILL')
  await until('the server is gone', () => !isAlive(identity))
  t.match(attachedTo(path), { state: 'dead', loop: device })
  const { code, err } = vdiskfs(['detach', device])
  t.equal(code, 1)
  t.match(err, /had been killed; what was not flushed is lost\n$/)
  isGone(t, path)
})

t.test('in the foreground: Ctrl-C ends all of it', needsMounts, async (t) => {
  const path = image(t)
  const front = startVdiskfs(t, ['attach', '-f', '--format=raw', path])
  await until('it is attached', () => attachedTo(path)?.state === 'mounted')
  t.equal(loopsOf(path).length, 1)
  front.child.kill('SIGINT')
  t.same(await front.ended, { code: 0, signal: null })
  isGone(t, path)
})

/** Milliseconds after which the command is interrupted: from before its server starts until after its end. */
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGKILL'] as const
const MOMENTS = [30, 110, 180, 250, 330, 450, 700]

t.test('attach interrupted: nothing is left, or what detach ends; it can be repeated', needsMounts, async (t) => {
  const path = image(t)
  for (const [turn, moment] of MOMENTS.entries()) {
    const command = startVdiskfs(t, ['attach', '--format=raw', path])
    await sleep(moment)
    command.child.kill(SIGNALS[turn % SIGNALS.length])
    await command.ended
    // A server that was started just before may not be in the list yet: the image's lock is what counts.
    let device: string | undefined
    await until('attach can be repeated, or is done', () => {
      const entry = attachedTo(path)
      if (entry?.state === 'mounted' && entry.loop) device = entry.loop
      else if (entry === undefined) device = tryAttach(path)
      return device !== undefined
    })
    // It may be about to end all by itself, having found nobody to tell that it is ready.
    // By the image: the device may be somebody else's by now.
    const { code, err } = vdiskfs(['detach', path])
    if (code !== 0) t.match(err, /is not attached/, `after ${moment} ms`)
    await settled(path)
    isGone(t, path)
  }
})

t.test('attach interrupted while the image is being opened: nothing is left', needsMounts, async (t) => {
  const path = image(t)
  const secret = join(temporaryFolder(t), 'secret')
  writeFileSync(secret, 'geheim')
  // A key that takes a second to derive.
  const options = ['-o', 'encrypt.format=luks,encrypt.iter-time=1000', '--secret', secret]
  rmSync(path)
  vdiskfsMust(['create', '-q', '-f', 'qcow2', ...options, path, '64M'])
  const command = startVdiskfs(t, ['attach', '--secret', secret, path])
  await sleep(600)
  command.child.kill('SIGTERM')
  t.not((await command.ended).code, 0)
  t.equal(attachedTo(path), undefined)
  t.same(foldersOf(path), [])
  t.same(loopsOf(path), [])
})

function tryAttach(path: string): string | undefined {
  const { code, out, err } = vdiskfs(['attach', '--format=raw', path])
  if (code === 0) return out.trim()
  if (!/in use|lock/.test(err)) throw new Error(err)
  return undefined
}

t.test('detach interrupted: it can be repeated', needsMounts, async (t) => {
  const path = image(t)
  for (const moment of MOMENTS.slice(2)) {
    const device = attach(path)
    const command = startVdiskfs(t, ['detach', device])
    await sleep(moment)
    command.child.kill('SIGKILL')
    await command.ended
    const { code, err } = vdiskfs(['detach', path])
    if (code !== 0) t.match(err, /is not attached/, `after ${moment} ms`)
    await settled(path)
    isGone(t, path)
  }
})
