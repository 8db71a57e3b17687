/** What people do with a mounted disk: partitions, loop devices, file systems, fstrim; judged by other programs. */

import { randomBytes } from 'node:crypto'
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import t from 'tap'
import { formats } from '../../lib/formats/registry.js'
import { attachLoop, mountDevice, mountImage } from '../support/mounts.js'
import { must, run, vdiskfsMust } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'
import { overTransports } from '../support/transports.js'

const MiB = 1 << 20

// Many programs are started here, one after the other, and some of them wait for two seconds.
t.setTimeout(400_000)
/** qemu-img's names, where they are others. */
const QEMU: Readonly<Record<string, string>> = { vhd: 'vpc' }

/** Formats that can be made here and written to. */
const writable = formats.map((format) => format.name).filter((name) => name === 'raw' || name in QEMU)

/** The disk as qemu-img reads it. */
function asRaw(image: string, format: string, folder: string): string {
  const raw = join(folder, 'judge.raw')
  must('qemu-img', ['convert', '-f', QEMU[format] ?? format, '-O', 'raw', image, raw])
  return raw
}

for (const format of writable) {
  await overTransports(
    t,
    `${format}: a partition table on disk.raw, and partitions under a loop device`,
    [],
    async (t) => {
      const folder = temporaryFolder(t)
      const image = join(folder, `disk.${format}`)
      vdiskfsMust(['create', '-f', format, image, '64M'])
      const mount = mountImage(t, image, ['--format', format])
      must('sfdisk', ['-q', mount.raw], { input: 'label: gpt\nsize=16M\nsize=16M\n' })
      t.match(must('fdisk', ['-l', mount.raw]), /Disklabel type: gpt/)
      const loop = attachLoop(t, mount.raw, ['--partscan'])
      const name = basename(loop)
      const parts = () => readdirSync(`/sys/block/${name}`).filter((entry) => entry.startsWith(`${name}p`))
      // A kernel may come without a reader of such tables; then it is told what the table says.
      if (parts().length === 0) must('partx', ['--add', loop])
      t.same(parts().sort(), [`${name}p1`, `${name}p2`])
      must('losetup', ['--detach', loop])
      mount.umount()
      t.match(must('fdisk', ['-l', asRaw(image, format, folder)]), /Disklabel type: gpt/)
    },
  )

  await overTransports(t, `${format}: ext4 through a loop device`, [], async (t) => {
    const folder = temporaryFolder(t)
    const image = join(folder, `disk.${format}`)
    vdiskfsMust(['create', '-f', format, image, '256M'])
    const mount = mountImage(t, image, ['--format', format])
    const loop = attachLoop(t, mount.raw)
    must('mkfs.ext4', ['-q', loop])
    const fs = mountDevice(t, loop)
    const source = join(folder, 'source')
    mkdirSync(source)
    for (let i = 0; i < 20; i++) writeFileSync(join(source, `file ${i}`), randomBytes(10_000 * i))
    cpSync(source, join(fs, 'copy'), { recursive: true })
    writeFileSync(join(fs, 'big'), randomBytes(64 * MiB))
    must('umount', [fs])
    must('losetup', ['--detach', loop])
    mount.umount()

    const raw = asRaw(image, format, folder)
    t.equal(run('e2fsck', ['-fn', raw]).code, 0, 'e2fsck has nothing to say')
    const again = mountDevice(t, raw, ['-o', 'loop,ro'])
    must('diff', ['-r', source, join(again, 'copy')])
    must('umount', [again])
  })

  await overTransports(t, `${format}: fstrim gives space back to the host`, ['fallocate'], async (t) => {
    const folder = temporaryFolder(t)
    const image = join(folder, `disk.${format}`)
    vdiskfsMust(['create', '-f', format, image, '256M'])
    const mount = mountImage(t, image, ['--format', format])
    const loop = attachLoop(t, mount.raw)
    must('mkfs.ext4', ['-q', loop])
    const fs = mountDevice(t, loop)
    writeFileSync(join(fs, 'big'), randomBytes(64 * MiB))
    must('sync', ['-f', fs])
    const full = statSync(image).blocks
    rmSync(join(fs, 'big'))
    must('sync', ['-f', fs])
    must('fstrim', [fs])
    must('sync', ['-f', fs])
    const freed = (full - statSync(image).blocks) / 2048
    t.ok(freed > 40, `fstrim gave ${freed} MiB of 64 back to the host`)
    must('umount', [fs])
    must('losetup', ['--detach', loop])
    mount.umount()
    t.equal(run('e2fsck', ['-fn', asRaw(image, format, folder)]).code, 0, 'e2fsck has nothing to say')
  })

  await overTransports(t, `${format}: plain dd and cp keep the size; another size is refused`, [], async (t) => {
    const folder = temporaryFolder(t)
    const image = join(folder, `disk.${format}`)
    vdiskfsMust(['create', '-q', '-f', format, image, '16M'])
    const source = join(folder, 'source')
    writeFileSync(source, randomBytes(MiB))
    const mount = mountImage(t, image, ['--format', format])
    const { size } = statSync(mount.raw)
    must('dd', [`if=${source}`, `of=${mount.raw}`, 'bs=64k', 'status=none'])
    t.equal(statSync(mount.raw).size, size)
    must('cp', [source, mount.raw])
    t.equal(statSync(mount.raw).size, size)
    t.not(run('truncate', ['-s', '12345', mount.raw]).code, 0)
    must('dd', [
      `if=${source}`,
      `of=${mount.raw}`,
      'bs=1M',
      'seek=5',
      'oflag=direct',
      'conv=notrunc,fsync',
      'status=none',
    ])
    const over = run('dd', [`if=${source}`, `of=${mount.raw}`, 'bs=1M', `seek=${size / MiB}`, 'conv=notrunc'])
    t.match(over.err, /No space left|File too large/)
    mount.umount()
    const raw = readFileSync(asRaw(image, format, folder))
    const data = readFileSync(source)
    t.ok(raw.subarray(0, MiB).equals(data))
    t.ok(raw.subarray(5 * MiB, 6 * MiB).equals(data))
  })
}
