/** `vdiskfs mount`: ready when it returns, or nothing left behind; what the mount looks like; refused mount points. */

import { execFileSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { registryFolder } from '../../lib/mount/registry.js'
import { guard, isMounted, listed, listedAt, mountImage, mountpointFor, tryMount } from '../support/mounts.js'
import { must, run, until, vdiskfs, vdiskfsMust } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'
import { currentTransport, overTransports } from '../support/transports.js'

const MiB = 1 << 20

// Many programs are started here, one after the other, and some of them wait for two seconds.
t.setTimeout(400_000)

/** A raw image of 16 MiB with some data at 1 MiB. */
function rawImage(t: TestCase, name = 'disk.img'): string {
  const path = join(temporaryFolder(t), name)
  writeFileSync(path, '')
  truncateSync(path, 16 * MiB)
  const fd = openSync(path, 'r+')
  writeSync(fd, Buffer.alloc(64 * 1024, 0x5a), 0, 64 * 1024, MiB)
  closeSync(fd)
  return path
}

await overTransports(t, 'the file is there when mount returns, and its bytes are the disk’s', [], async (t) => {
  const image = rawImage(t)
  utimesSync(image, 1_600_000_000, 1_500_000_000)
  const mount = mountImage(t, image, ['--format', 'raw'])
  t.same(readdirSync(mount.mountpoint), ['disk.raw'])
  const stat = statSync(mount.raw)
  t.equal(stat.size, 16 * MiB)
  t.equal(stat.blocks, 128, 'what the image takes on the host')
  t.equal(stat.mode & 0o7777, 0o600)
  t.equal(statSync(mount.mountpoint).mode & 0o7777, 0o700)
  t.same([stat.uid, stat.gid], [process.getuid!(), process.getgid!()])
  t.equal(stat.mtimeMs, 1_500_000_000_000, 'the image’s')
  t.ok(readFileSync(mount.raw).equals(readFileSync(image)))

  const fd = openSync(mount.raw, 'r+')
  writeSync(fd, Buffer.from('hello'), 0, 5, 5 * MiB)
  fsyncSync(fd)
  closeSync(fd)
  t.equal(readFileSync(image).toString('latin1', 5 * MiB, 5 * MiB + 5), 'hello')
  t.ok(statSync(mount.raw).mtimeMs > 1_500_000_000_000, 'writing moves the time')

  const line = readFileSync('/proc/mounts', 'utf8')
    .split('\n')
    .find((l) => l.includes(mount.mountpoint))
  t.match(line, new RegExp(`^${image} ${mount.mountpoint} fuse\\.vdiskfs rw,nosuid,nodev`))
  t.match(must('df', ['--output=size,used,avail', '-B4096', mount.mountpoint]), /\n\s*4096\s+\d+\s+\d+\n/)
  mount.umount()
  t.notOk(isMounted(mount.mountpoint))
  t.equal(listedAt(mount.mountpoint), undefined)
})

await overTransports(t, 'requests are as large as the transport takes them', [], async (t) => {
  // So many for a MiB.
  const expected: Record<string, number> = { kernel: 2, 'fuse-native': 8 }
  const mount = mountImage(t, rawImage(t), ['--format=raw'])
  must('dd', ['if=/dev/zero', `of=${mount.raw}`, 'bs=1M', 'count=1', 'oflag=direct', 'conv=notrunc', 'status=none'])
  must('dd', [`if=${mount.raw}`, 'of=/dev/null', 'bs=1M', 'count=1', 'iflag=direct', 'status=none'])
  const [entry] = JSON.parse(vdiskfsMust(['list', '--json', '--stats', mount.mountpoint]))
  for (const kind of ['read', 'write'])
    t.match(
      entry.statistics.requests.find((request: { kind: string }) => request.kind === kind),
      { count: expected[currentTransport()], bytes: MiB, failed: 0 },
      kind,
    )
  mount.umount()
})

await overTransports(t, 'list tells what is mounted', [], async (t) => {
  const image = rawImage(t)
  const mount = mountImage(t, image, ['--format', 'raw', '--umask', '022', '--workers=3', '-r'])
  const entry = listedAt(mount.mountpoint)
  t.match(entry, { mountpoint: mount.mountpoint, image, format: 'raw', state: 'mounted' })
  t.match(entry?.options, { 'read-only': true, transport: currentTransport(), format: 'raw', umask: '022', workers: 3 })
  const [program, , ...names] = readFileSync(`/proc/${entry!.pid}/cmdline`, 'utf8').split('\0')
  t.same([program, ...names], ['vdiskfs', image, mount.mountpoint, ''], 'ps shows whose server it is')
  t.equal(realpathSync(`/proc/${entry!.pid}/cwd`), '/', 'it keeps no folder busy')
  t.match(
    vdiskfsMust(['list']),
    new RegExp(`${mount.mountpoint} +${image} +raw +16 MiB +ro +${entry!.pid} +- +mounted`),
  )
})

await overTransports(t, 'read-only: nothing can be written, and the image stays as it is', [], async (t) => {
  for (const option of ['-r', '-oro']) {
    const image = rawImage(t)
    const before = [readFileSync(image), statSync(image).mtimeMs] as const
    const mount = mountImage(t, image, [option, '--format', 'raw'])
    t.equal(statSync(mount.raw).mode & 0o777, 0o400)
    t.throws(() => openSync(mount.raw, 'r+'), { code: 'EROFS' })
    t.ok(readFileSync(mount.raw).equals(before[0]))
    mount.umount()
    t.ok(readFileSync(image).equals(before[0]))
    t.equal(statSync(image).mtimeMs, before[1])
  }
})

await overTransports(t, '--uid, --gid, --umask and --allow-other let another user in', [], async (t) => {
  const NOBODY = 65534
  const image = rawImage(t)
  const read = (file: string) => run('head', ['-c1', file], { uid: NOBODY }).code === 0
  const open = (...options: string[]) => {
    const mount = mountImage(t, image, ['--format=raw', ...options])
    // The folders above are made for root alone.
    must('chmod', ['a+x', join(mount.mountpoint, '..')])
    return mount
  }
  const own = open('--allow-other', '--uid', String(NOBODY), '--gid=7')
  t.match(statSync(own.raw), { uid: NOBODY, gid: 7 })
  t.ok(read(own.raw))
  own.umount()
  const other = open('--allow-other')
  t.notOk(read(other.raw), 'the umask is 077')
  other.umount()
  const masked = open('-o', 'allow_other,umask=022')
  t.ok(read(masked.raw))
  masked.umount()
  const closed = open('--umask', '0')
  t.notOk(read(closed.raw), 'not without --allow-other')
})

await overTransports(t, 'an image taken as raw by probing: one line of warning', [], async (t) => {
  const image = rawImage(t)
  const mountpoint = mountpointFor(t)
  const { code, err, out } = vdiskfs(['mount', image, mountpoint])
  t.same([code, out], [0, ''])
  t.match(err, /^vdiskfs: [^\n]*disk\.img[^\n]*raw[^\n]*--format raw[^\n]*\n$/)
  vdiskfsMust(['umount', mountpoint])
  t.equal(vdiskfs(['mount', '--format=raw', image, mountpoint]).err, '')
})

await overTransports(t, 'what fails leaves nothing: no mount, no lock, no entry, no log, no process', [], async (t) => {
  const image = rawImage(t)
  const file = join(temporaryFolder(t), 'file')
  writeFileSync(file, 'no folder')
  const folder = temporaryFolder(t)
  const before = readdirSync(registryFolder())
  const cases: [string, string[], RegExp][] = [
    ['a missing image', ['/nowhere/none.vhd', folder], /none\.vhd.*no such file/],
    ['an image that is a folder', [folder, temporaryFolder(t)], /directory|folder/],
    ['a missing mount point', [image, '/nowhere/mnt'], /\/nowhere\/mnt does not exist/],
    ['a mount point that is a file', [image, file], /file is not a directory/],
    ['an unknown format', ['--format', 'nonsense', image, folder], /nonsense/],
    ['a missing backing folder', ['--backing-dir', '/nowhere/b', image, folder], /\/nowhere\/b/],
  ]
  for (const [what, args, pattern] of cases) {
    const { code, out, err } = vdiskfs(['mount', ...args])
    t.ok(code === 1 || code === 2, `${what}: exit code ${code}`)
    t.equal(out, '')
    t.match(err, /^vdiskfs: [^\n]+\n$/, what)
    t.match(err, pattern)
  }
  // Others may mount meanwhile; what they make belongs to an entry, or goes away soon.
  await until('no log is left without a mount', () => {
    const used = listed().map((entry) => entry.log)
    const logs = readdirSync(registryFolder()).filter((name) => name.endsWith('.log') && !before.includes(name))
    return logs.every((name) => used.includes(join(registryFolder(), name)))
  })
  t.notOk(listed().some((entry) => entry.mountpoint === folder || entry.image === image))
  t.notOk(isMounted(folder))
  t.notOk(execFileSync('ps', ['-eo', 'args'], { encoding: 'utf8' }).includes(folder))
  must('qemu-io', ['-f', 'raw', '-c', 'write 0 512', image])
})

await overTransports(t, 'a mount point that is taken', [], async (t) => {
  const mount = mountImage(t, rawImage(t), ['--format=raw'])
  const { code, err } = vdiskfs(['mount', '--format=raw', rawImage(t), mount.mountpoint])
  t.equal(code, 1)
  t.match(err, new RegExp(`${mount.mountpoint} is in use: it shows ${mount.image} already`))
  t.ok(existsSync(mount.raw))
})

await overTransports(t, 'an image that is mounted for writing is not mounted again', [], async (t) => {
  const mount = mountImage(t, rawImage(t), ['--format=raw'])
  const again = tryMount(t, mount.image, ['--format=raw'])
  t.equal(again.code, 1)
  t.match(again.err, /in use|lock/i)
  t.notOk(isMounted(again.mountpoint))
})

await overTransports(t, 'a mount must not hide its own image', [], async (t) => {
  const image = rawImage(t)
  const folder = join(image, '..')
  mkdirSync(join(folder, 'below'))
  symlinkSync(folder, join(folder, 'below', 'link'))
  for (const mountpoint of [folder, join(folder, 'below')]) guard(t, mountpoint)
  for (const mountpoint of [folder, join(folder, 'below', 'link')]) {
    const { code, err } = vdiskfs(['mount', '--format=raw', image, mountpoint])
    t.not(code, 0)
    t.match(err, /disk\.img, which would be hidden/)
  }
  vdiskfsMust(['mount', '--format=raw', image, join(folder, 'below')])
  vdiskfsMust(['umount', join(folder, 'below')])
})

await overTransports(t, 'names with blanks, commas, quotes, newlines and more', [], async (t) => {
  const image = rawImage(t, 'a, b=c "d" \\e\nf ü %s.img')
  const mountpoint = join(mountpointFor(t), 'm, n\\o ü')
  mkdirSync(mountpoint)
  guard(t, mountpoint)
  vdiskfsMust(['mount', '--format=raw', image, mountpoint])
  t.equal(statSync(join(mountpoint, 'disk.raw')).size, 16 * MiB)
  t.match(listedAt(mountpoint), { image, mountpoint, state: 'mounted' })
  vdiskfsMust(['umount', mountpoint])
  t.notOk(listed().some((entry) => entry.image === image))
})

await overTransports(t, 'relative paths, and a mount point reached by a link', [], async (t) => {
  const image = rawImage(t, '1e3')
  const mountpoint = mountpointFor(t)
  const folder = join(image, '..')
  symlinkSync(mountpoint, join(folder, '0x10'))
  vdiskfsMust(['mount', '--format=raw', '1e3', '0x10'], { cwd: folder })
  t.match(listedAt(mountpoint), { image, state: 'mounted' })
  vdiskfsMust(['umount', '0x10'], { cwd: folder })
  t.notOk(isMounted(mountpoint))
})

await overTransports(t, 'list: a name cannot break its line, or do something to a terminal', [], async (t) => {
  const image = join(temporaryFolder(t), 'a\nb\x1b[31m.img')
  writeFileSync(image, Buffer.alloc(MiB))
  const { mountpoint } = mountImage(t, image, ['--format=raw'])
  const lines = vdiskfsMust(['list', mountpoint]).split('\n')
  t.equal(lines.length, 3, 'a header, a mount, nothing')
  t.match(lines[1], '/a\\u000ab\\u001b[31m.img  raw ')
  t.equal(listedAt(mountpoint)?.image, image, 'JSON has it as it is')
})
