/**
 * The disk under an image fails while it is mounted: an fsync says so, and from then on nothing is written, because the
 * host may have dropped what it could not write. Mounted again, everything that was flushed is there.
 */

import { closeSync, constants, fsyncSync, openSync, readFileSync, readSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { checkImage } from '../../lib/image/check.js'
import { createImage } from '../../lib/image/create.js'
import { openImage } from '../../lib/image/open.js'
import { TRANSPORT_NAMES } from '../../lib/mount/transports.js'
import { FailingDisk } from '../support/failing-disk.js'
import { listed, mountImage, type TestMount } from '../support/mounts.js'
import { must, until, vdiskfs } from '../support/run.js'
import { currentTransport, overTransports } from '../support/transports.js'

const MiB = 2 ** 20
const SECTOR = 512
const [FLUSHED, LOST, LATER, AGAIN] = [0x11, 0x22, 0x33, 0x44]
/** Where each of them goes: blocks of their own, in every format. */
const AT = { flushed: 0, lost: 40 * MiB, later: 80 * MiB }

/** All formats with an order of writes of their own, and what QEMU calls them. */
const QEMU_NAMES: Readonly<Record<string, string>> = {
  raw: 'raw',
  vhd: 'vpc',
  vhdx: 'vhdx',
  qcow2: 'qcow2',
  parallels: 'parallels',
}

/** Writes 1 MiB and flushes it. @returns undefined, or the error's code */
function put(raw: string, byte: number, offset: number): string | undefined {
  const fd = openSync(raw, 'r+')
  try {
    for (let done = 0; done < MiB; ) done += writeSync(fd, Buffer.alloc(MiB, byte), done, MiB - done, offset + done)
    fsyncSync(fd)
    return undefined
  } catch (error) {
    return (error as NodeJS.ErrnoException).code
  } finally {
    try {
      closeSync(fd)
    } catch {
      // Closing writes what the kernel still has, and tells of the same failure.
    }
  }
}

/** The bytes that sectors hold, each once; -1 for a sector of several. */
function values(bytes: Buffer): number[] {
  const found = new Set<number>()
  for (let at = 0; at < bytes.length; at += SECTOR) {
    const sector = bytes.subarray(at, at + SECTOR)
    found.add(sector.every((byte) => byte === sector[0]) ? sector[0]! : -1)
  }
  return [...found]
}

/** What 1 MiB of a mount holds, past the kernel's cache. */
function valuesOf({ raw }: TestMount, offset: number): number[] {
  const fd = openSync(raw, constants.O_RDONLY | constants.O_DIRECT)
  const bytes = Buffer.alloc(MiB)
  for (let done = 0; done < MiB; ) done += readSync(fd, bytes, done, MiB - done, offset + done)
  closeSync(fd)
  return values(bytes)
}

interface Case {
  readonly format: string
  readonly path: string
  readonly mount: TestMount
}

const REASON = /disk\.\w+: a sync failed \((EIO|ENOSPC)\), so nothing is written until the image is opened again/

/** The disk has failed. */
function isReadOnly(t: Test, { format, mount }: Case): void {
  t.match(put(mount.raw, LOST, AT.lost), /^(EIO|ENOSPC)$/, `${format}: the fsync says that it failed`)
  t.equal(put(mount.raw, LATER, AT.later), 'EROFS', `${format}: no more is written`)
  t.equal(put(mount.raw, LATER, AT.flushed), 'EROFS', `${format}: nor in place`)
  t.same(valuesOf(mount, AT.flushed), [FLUSHED], `${format}: reads go on`)
}

async function isTold(t: Test, cases: readonly Case[]): Promise<void> {
  const entries = () => listed().filter(({ mountpoint }) => cases.some(({ mount }) => mount.mountpoint === mountpoint))
  await until('the list says so', () => entries().every((entry) => entry['write-error'] !== undefined))
  for (const entry of entries()) {
    t.match(entry, { state: 'mounted', 'write-error': REASON }, entry.format)
    t.match(readFileSync(entry.log!, 'utf8'), REASON, `${entry.format}: in the log`)
  }
  t.match(vdiskfs(['list', cases[0]!.mount.mountpoint]).out, new RegExp(` ro .* mounted: .*${REASON.source}`))
  for (const { format, mount } of cases) {
    const { code, err } = vdiskfs(['umount', mount.mountpoint])
    t.equal(code, 1)
    t.match(err, REASON, `${format}: nobody takes it for a clean end`)
  }
}

/** The disk works again, and the image is opened again. */
function isWhole(t: Test, { format, path }: Case): void {
  const image = openImage(path, { format, warn: () => {} })
  const bytes = Buffer.alloc(MiB)
  const read = (offset: number) => {
    image.read(bytes, 0, MiB, offset)
    return values(bytes)
  }
  t.same(read(AT.flushed), [FLUSHED], `${format}: what was flushed is there`)
  for (const value of read(AT.lost)) t.ok([0, LOST].includes(value), `${format}: it is old or new: ${value}`)
  t.same(read(AT.later), [0], `${format}: nothing was written later`)
  image.write(Buffer.alloc(MiB, AGAIN), 0, MiB, AT.lost)
  image.close()
  t.equal(checkImage(path, { format }).corruptions, 0)
  must('qemu-io', ['-r', '-f', QEMU_NAMES[format]!, '-c', `read -P ${AGAIN} ${AT.lost} 1M`, path])
}

await overTransports(t, 'the disk under an image fails', [], async (t) => {
  const disk = new FailingDisk(t)
  // What the formats do does not depend on the transport.
  const formats = currentTransport() === TRANSPORT_NAMES[0] ? Object.keys(QEMU_NAMES) : ['qcow2']
  const cases = formats.map((format) => {
    const path = join(disk.folder, `disk.${format}`)
    createImage(path, { format, size: 128 * MiB })
    const mount = mountImage(t, path, ['--format', format])
    t.equal(put(mount.raw, FLUSHED, AT.flushed), undefined)
    return { format, path, mount }
  })
  disk.fail()
  for (const one of cases) isReadOnly(t, one)
  await isTold(t, cases)
  disk.heal()
  for (const one of cases) isWhole(t, one)
})
