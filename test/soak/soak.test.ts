import { execFileSync } from 'node:child_process'
import { closeSync, fsyncSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { attachLoop, listed, mountDevice, mountImage, needsMounts } from '../support/mounts.js'
import { must, start, startVdiskfs, vdiskfsMust } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'
import { type End, endUnderLoad, kills } from './kills.js'
import { load } from './load.js'
import { manyMounts } from './many.js'

const MiB = 2 ** 20
const MINUTE = 60

t.setTimeout(900_000)

t.test('load is verified, and nothing grows', needsMounts, async (t) => {
  const { rounds, samples } = await load(t, 'qcow2', MINUTE)
  t.ok(rounds > 0, `${rounds} rounds`)
  for (const own of samples) {
    const settled = own[Math.floor(own.length / 2)]!
    const last = own.at(-1)!
    t.equal(last.threads, settled.threads, 'threads')
    t.ok(last.descriptors <= settled.descriptors + 2, `${last.descriptors} descriptors`)
    t.ok(last.rssMiB < settled.rssMiB + 64, `${settled.rssMiB}, then ${last.rssMiB} MiB`)
  }
})

for (const format of ['raw', 'vhd', 'vhdx', 'qcow2', 'parallels'])
  t.test(`servers of ${format} are killed`, needsMounts, async (t) => {
    const { flushed } = await kills(t, format, 1)
    t.ok(flushed > 0, `${flushed} flushed writes`)
  })

/** How a mount ends while it is written to; of a power-off, everybody gets a SIGTERM at once. */
const ENDS: readonly (readonly [string, string, End])[] = [
  ['SIGTERM', 'vhdx', ({ pid }) => process.kill(pid, 'SIGTERM')],
  ['a power-off', 'parallels', ({ pid }, writer) => [pid, writer].map((who) => process.kill(who, 'SIGTERM'))],
]

for (const [name, format, end] of ENDS)
  t.test(`${name} under load: ${format} is closed well, and nothing flushed is lost`, needsMounts, async (t) => {
    const flushed = await endUnderLoad(t, format, end)
    t.ok(flushed > 0, `${flushed} flushed writes`)
  })

t.test('umount under load says who writes, and the load goes on', needsMounts, async (t) => {
  const flushed = await endUnderLoad(t, 'qcow2', async ({ mountpoint }, writer) => {
    const umount = startVdiskfs(t, ['umount', mountpoint])
    t.match(await umount.ended, { code: 1 })
    t.match(umount.err(), `is busy: node (pid ${writer}) has disk.raw open`)
    process.kill(writer, 'SIGKILL')
  })
  t.ok(flushed > 0, `${flushed} flushed writes`)
})

t.test('a full disk under a mount: the write fails, and what was flushed stays', needsMounts, async (t) => {
  const folder = temporaryFolder(t)
  const file = join(folder, 'host')
  writeFileSync(file, '')
  truncateSync(file, 40 * MiB)
  must('mkfs.ext4', ['-q', '-m', '0', file])
  const host = mountDevice(t, attachLoop(t, file))
  for (const format of ['vhd', 'vhdx', 'qcow2', 'parallels', 'raw']) {
    const image = join(host, `disk.${format}`)
    vdiskfsMust(['create', '-q', '-f', format, image, '200M'])
    const mount = mountImage(t, image, ['--format', format])
    const fd = openSync(mount.raw, 'r+')
    const bytes = Buffer.alloc(MiB, 0x11)
    let safe = 0
    let failure = ''
    try {
      for (; safe < 200; safe++) {
        // What fails in the middle is told as a write of less.
        for (let at = 0; at < MiB; ) at += writeSync(fd, bytes, at, MiB - at, safe * MiB + at)
        fsyncSync(fd)
      }
    } catch (error) {
      failure = (error as NodeJS.ErrnoException).code ?? String(error)
    }
    t.equal(failure, 'ENOSPC', `${format}: ${safe} MiB were written`)
    // What was written before that is not lost by it: there is room for what says where it is.
    fsyncSync(fd)
    t.ok(safe > 5, `${format}: ${safe} MiB`)
    closeSync(fd)
    mount.umount()
    const again = mountImage(t, image, ['--format', format])
    const found = readFileSync(again.raw).subarray(0, safe * MiB)
    t.ok(
      found.every((byte) => byte === 0x11),
      `${format}: what was flushed is there`,
    )
    again.umount()
    rmSync(image)
  }
})

/** scripts/soak makes fifty. */
const MOUNTS = 12

t.test('many mounts at once', needsMounts, async (t) => {
  await manyMounts(t, MOUNTS)
})

t.test('a suspended reader, a killed dd, and SIGTERM under load', needsMounts, async (t) => {
  const image = join(temporaryFolder(t), 'disk.vhdx')
  vdiskfsMust(['create', '-q', '-f', 'vhdx', image, '300M'])
  const mount = mountImage(t, image)
  const dd = (args: readonly string[]) => start(t, 'dd', [...args, 'bs=1M', 'status=none'])
  const reader = dd([`if=${mount.raw}`, 'of=/dev/null', 'iflag=direct'])
  process.kill(reader.pid, 'SIGSTOP')
  const killed = dd(['if=/dev/zero', `of=${mount.raw}`, 'conv=notrunc', 'count=250'])
  await sleep(100)
  process.kill(killed.pid, 'SIGKILL')
  t.match(await killed.ended, { signal: 'SIGKILL' })
  // Others are served meanwhile.
  writeFileSync(mount.raw, Buffer.alloc(4096, 0x55), { flag: 'r+', flush: true })
  process.kill(reader.pid, 'SIGCONT')
  t.match(await reader.ended, { code: 0 })
  process.kill(mount.pid, 'SIGTERM')
  for (let tries = 0; listed().some(({ pid }) => pid === mount.pid) && tries < 100; tries++) await sleep(50)
  execFileSync('qemu-img', ['check', '-q', image])
  t.equal(execFileSync('qemu-io', ['-r', '-c', 'read -P 0x55 0 4k', image]).includes('4 KiB'), true)
})
