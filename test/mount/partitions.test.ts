/** `mount --partitions`: each partition as a file, and the same bytes through it and through disk.raw. */

import {
  closeSync,
  constants,
  openSync,
  readdirSync,
  readSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { isMounted, listedAt, mountImage, mountpointFor, needsMounts } from '../support/mounts.js'
import { must, run, vdiskfs } from '../support/run.js'
import { atEnd, type TestCase, temporaryFolder } from '../support/temp.js'

const MiB = 1 << 20

t.setTimeout(400_000)

/** A raw image with a partition table. */
function partitioned(t: TestCase, script: string): string {
  const image = join(temporaryFolder(t), 'disk.img')
  writeFileSync(image, '')
  truncateSync(image, 64 * MiB)
  must('sfdisk', ['-q', image], { input: script })
  return image
}

const GPT = 'label: gpt\nsize=16M, name=first\nsize=8M\n'
const RAW = ['--format', 'raw', '--partitions'] as const

function opened(t: TestCase, path: string, flags: number = constants.O_RDWR): number {
  const fd = openSync(path, flags)
  atEnd(t, () => closeSync(fd))
  return fd
}

function byteAt(fd: number, offset: number): number {
  const buffer = Buffer.alloc(4096)
  readSync(fd, buffer, 0, 4096, offset)
  return buffer[0]!
}

const write = (fd: number, value: number, offset: number) => writeSync(fd, Buffer.alloc(4096, value), 0, 4096, offset)

t.test('files of the right names and sizes', needsMounts, async (t) => {
  const script = 'label: dos\nsize=8M\nsize=4M\nsize=30M, type=5\nsize=1M\nsize=5M\nsize=6M\n'
  const mount = mountImage(t, partitioned(t, script), RAW)
  const folder = join(mount.mountpoint, 'partitions')
  t.same(readdirSync(mount.mountpoint).sort(), ['disk.raw', 'partitions'])
  t.same(readdirSync(folder).sort(), ['1.raw', '2.raw', '4.raw', '5.raw', '6.raw'])
  t.same(
    readdirSync(folder)
      .sort()
      .map((name) => statSync(join(folder, name)).size / MiB),
    [8, 4, 1, 5, 6],
  )
  t.equal(statSync(mount.mountpoint).nlink, 3)
  t.equal(statSync(folder).nlink, 2)
  t.match(listedAt(mount.mountpoint), {
    options: { partitions: true },
    partitions: [{ number: 1, start: MiB, size: 8 * MiB, type: '83' }, {}, {}, {}, {}],
  })
  t.throws(() => writeFileSync(join(folder, '3.raw'), ''))
})

t.test('what is written through one is read through the other at once', needsMounts, async (t) => {
  const image = partitioned(t, GPT)
  const mount = mountImage(t, image, RAW)
  const two = join(mount.mountpoint, 'partitions/2.raw')
  const disk = opened(t, mount.raw)
  const part = opened(t, two)
  const start = 17 * MiB
  // Each is read first, so that a page cache would have it.
  for (const [round, offset] of [0, 4096, 8 * MiB - 4096].entries()) {
    t.same([byteAt(disk, start + offset), byteAt(part, offset)], [0, 0])
    write(part, 7 + round, offset)
    t.equal(byteAt(disk, start + offset), 7 + round, 'partition → disk')
    write(disk, 100 + round, start + offset)
    t.equal(byteAt(part, offset), 100 + round, 'disk → partition')
  }
  const direct = opened(t, two, constants.O_RDWR | constants.O_DIRECT)
  write(disk, 42, start)
  t.equal(byteAt(direct, 0), 42)
  // Programs that open and close see it, too; and so does one that asks for much at a time.
  must('dd', [`if=/dev/zero`, `of=${mount.raw}`, 'bs=1M', `seek=17`, 'count=8', 'conv=notrunc', 'status=none'])
  t.equal(run('cmp', ['-n', String(8 * MiB), two, '/dev/zero']).code, 0)
  write(part, 9, 0)
  must('sync', [mount.raw])
  t.equal(byteAt(opened(t, image, constants.O_RDONLY), start), 9)
})

for (const transport of ['kernel', 'fuse-native'])
  t.test(`what O_DSYNC wrote is there after a kill: ${transport}`, needsMounts, async (t) => {
    const image = join(temporaryFolder(t), 'disk.qcow2')
    must('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', partitioned(t, GPT), image])
    const mount = mountImage(t, image, ['--partitions', '--transport', transport])
    const { pid } = listedAt(mount.mountpoint)!
    const fd = openSync(mount.raw, constants.O_WRONLY | constants.O_DSYNC)
    write(fd, 7, 40 * MiB)
    // Nothing comes in between that closes it, in a child process too: that would commit.
    process.kill(pid, 'SIGKILL')
    t.throws(() => closeSync(fd), 'the server is gone')
    const map = JSON.parse(must('qemu-img', ['map', '--output=json', '--force-share', image])) as {
      start: number
      data: boolean
    }[]
    t.match(
      map.find(({ start }) => start === 40 * MiB),
      { data: true },
    )
  })

t.test('a partition ends where it ends', needsMounts, async (t) => {
  const mount = mountImage(t, partitioned(t, GPT), RAW)
  const one = opened(t, join(mount.mountpoint, 'partitions/1.raw'))
  const disk = opened(t, mount.raw)
  write(disk, 5, 17 * MiB)
  const buffer = Buffer.alloc(8192)
  t.equal(readSync(one, buffer, 0, 8192, 16 * MiB - 4096), 4096)
  t.throws(() => write(one, 1, 16 * MiB), { code: 'ENOSPC' })
  t.equal(byteAt(disk, 17 * MiB), 5, 'the next one is as it was')
  write(one, 3, MiB)
  must('fallocate', ['--punch-hole', '-o', String(MiB), '-l', '4096', join(mount.mountpoint, 'partitions/1.raw')])
  t.equal(byteAt(disk, 2 * MiB), 0, 'punched in its own place')
})

t.test('file systems in partitions', needsMounts, async (t) => {
  const image = partitioned(t, GPT)
  const mount = mountImage(t, image, RAW)
  must('mkfs.ext4', ['-q', join(mount.mountpoint, 'partitions/1.raw')])
  must('e2fsck', ['-fn', join(mount.mountpoint, 'partitions/1.raw')])
  mount.umount()
  must('e2fsck', ['-fn', `${image}?offset=${MiB}`])
})

t.test('read-only', needsMounts, async (t) => {
  const mount = mountImage(t, partitioned(t, GPT), ['-r', ...RAW])
  const one = join(mount.mountpoint, 'partitions/1.raw')
  t.equal(statSync(one).mode & 0o777, 0o400)
  t.throws(() => openSync(one, 'r+'), { code: 'EROFS' })
})

function warned(t: Test, image: string) {
  const mountpoint = mountpointFor(t)
  const { code, err } = vdiskfs(['mount', ...RAW, image, mountpoint])
  t.equal(code, 0, 'mounted all the same')
  t.ok(isMounted(mountpoint))
  return { err, names: readdirSync(join(mountpoint, 'partitions')), mountpoint }
}

t.test('a broken table is a warning, not a failure', needsMounts, async (t) => {
  const image = partitioned(t, GPT)
  const fd = opened(t, image)
  writeSync(fd, Buffer.alloc(8), 0, 8, 512)
  const half = warned(t, image)
  t.match(half.err, /^vdiskfs: disk\.img: the primary GPT is broken [^\n]*its backup at the end of the disk is used\n$/)
  t.same(half.names, ['1.raw', '2.raw'])
  must('umount', [half.mountpoint])
  writeSync(fd, Buffer.alloc(512), 0, 512, 64 * MiB - 512)
  const broken = warned(t, image)
  t.match(broken.err, /^vdiskfs: disk\.img: the GPT is broken [^\n]*no partitions are shown\n$/)
  t.same(broken.names, [])
})

t.test('no table is a warning, too', needsMounts, async (t) => {
  const image = join(temporaryFolder(t), 'disk.img')
  writeFileSync(image, '')
  truncateSync(image, MiB)
  const { err, names } = warned(t, image)
  t.equal(err, 'vdiskfs: disk.img: there is no partition table on this disk\n')
  t.same(names, [])
})
