/** What of written data is in the host's cache, and what is on its way to the disk before anybody syncs. */

import { closeSync, constants, fsyncSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { hasUncachedWrites } from '../../lib/native/files.js'
import { ioctl } from '../../lib/native/libc.js'
import { mountedFileSystem } from '../storage/host.js'
import { mountImage, needsMounts } from '../support/mounts.js'
import { must, until, vdiskfsMust } from '../support/run.js'
import { atEnd, temporaryFolder } from '../support/temp.js'

const MiB = 2 ** 20

/** Bytes of a file that are in the host's cache. */
const cached = (path: string) => Number(must('fincore', ['--bytes', '--noheadings', '--output', 'RES', path]))

const FS_IOC_FIEMAP = 0xc020660b
const FIEMAP_EXTENT_DELALLOC = 4
/** Of struct fiemap: its extents begin at 32, have 56 bytes each, and their flags at 40. */
const EXTENTS = 64

/**
 * True where nothing of a file waits for its place on the disk: ext4 chooses it when data is written out. Asked here and not
 * of filefrag(8): a program that is started closes its copies of our descriptors, which is a FLUSH for the mount.
 */
function placed(fd: number): boolean {
  const map = Buffer.alloc(32 + EXTENTS * 56)
  map.writeBigUInt64LE(BigInt(64 * MiB), 8)
  map.writeUInt32LE(EXTENTS, 24)
  ioctl(fd, FS_IOC_FIEMAP, map)
  const count = map.readUInt32LE(20)
  const flags = Array.from({ length: count }, (_, i) => map.readUInt32LE(32 + i * 56 + 40))
  return count > 0 && flags.every((flag) => (flag & FIEMAP_EXTENT_DELALLOC) === 0)
}

const canPass = !needsMounts.skip && hasUncachedWrites() ? {} : { skip: 'needs root, /dev/fuse and Linux 6.16' }

/** A new folder on an ext4 of its own. */
const folderOnExt4 = (t: Test) => mountedFileSystem((undo) => atEnd(t, undo), temporaryFolder(t), 'ext4', '512M')

for (const format of ['raw', 'vhd', 'vhdx', 'qcow2', 'parallels'])
  t.test(
    `${format}: new data of a program that opened with O_DIRECT does not stay in the cache`,
    canPass,
    async (t) => {
      const image = join(folderOnExt4(t), `disk.${format}`)
      vdiskfsMust(['create', '-q', '-f', format, image, '64M'])
      const { raw, umount } = mountImage(t, image, ['--format', format])
      const data = Buffer.alloc(MiB, 0xa5)
      const write = (flags: number, from: number) => {
        const fd = openSync(raw, constants.O_RDWR | flags)
        for (let i = from; i < from + 16; i++) writeSync(fd, data, 0, MiB, i * MiB)
        fsyncSync(fd)
        closeSync(fd)
        return cached(image)
      }
      const direct = write(constants.O_DIRECT, 0)
      // Pages of metadata are there, and those that the kernel was busy with when their data was on the disk.
      t.ok(direct < 12 * MiB, `O_DIRECT: ${direct} of ${16 * MiB} bytes`)
      const through = write(0, 16) - direct
      t.ok(through > 15 * MiB, `otherwise: ${through} bytes`)
      umount()
      must('sh', [
        '-c',
        `head -c 32M /dev/zero | tr '\\0' '\\245' > ${image}.expected && truncate -s 64M ${image}.expected`,
      ])
      vdiskfsMust(['compare', '--format', format, image, `${image}.expected`])
    },
  )

t.test('where syncs come often, data is on its way before the next one', needsMounts, async (t) => {
  const image = join(folderOnExt4(t), 'disk.raw')
  vdiskfsMust(['create', '-q', '-f', 'raw', image, '64M'])
  const { raw } = mountImage(t, image, ['--format', 'raw'])
  const data = Buffer.alloc(65536, 0x5a)
  const fd = openSync(raw, constants.O_RDWR)
  const file = openSync(image, constants.O_RDONLY)
  const write = (from: number, count: number) => {
    for (let i = from; i < from + count; i++) writeSync(fd, data, 0, data.length, i * data.length)
  }
  write(0, 16)
  t.notOk(placed(file), 'the first data waits for the first sync')
  fsyncSync(fd)
  write(16, 32)
  await until('it is written out', () => placed(file))
  closeSync(file)
  closeSync(fd)
})
