/** Mounts that leave their image alone: `--overlay`, `--temporary`. */

import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createImage } from '../../lib/image/create.js'
import { openImage } from '../../lib/image/open.js'
import { openOverlay } from '../../lib/image/overlay.js'
import { listedAt, mountImage, needsMounts, tryMount } from '../support/mounts.js'
import { must, vdiskfs } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

// A busy machine is no fault of the program.
t.setTimeout(300_000)

const MiB = 1024 * 1024

function filled(path: string, format: string, byte: number, backing?: string): string {
  createImage(path, { format, ...(backing === undefined ? { size: 8 * MiB } : { backing }) })
  const image = openImage(path, { format })
  image.write(new Uint8Array(MiB).fill(byte), 0, MiB, backing === undefined ? MiB : 3 * MiB)
  image.close()
  return path
}

function put(raw: string, offset: number, text: string): void {
  const fd = openSync(raw, 'r+')
  writeSync(fd, text, offset)
  fsyncSync(fd)
  closeSync(fd)
}

function get(raw: string, offset: number, length: number): string {
  const fd = openSync(raw, 'r')
  const bytes = Buffer.alloc(length)
  readSync(fd, bytes, 0, length, offset)
  closeSync(fd)
  return bytes.toString('latin1')
}

/** Images to lay something over: alone, with a parent, raw. */
function images(t: TestCase): string[] {
  const folder = temporaryFolder(t)
  const base = filled(join(folder, 'base.vhd'), 'vhd', 0x61)
  return [
    filled(join(folder, 'child.vhd'), 'vhd', 0x62, base),
    filled(join(folder, 'disk.vhdx'), 'vhdx', 0x61),
    filled(join(folder, 'disk.raw'), 'raw', 0x61),
    filled(join(folder, 'disk.qcow2'), 'qcow2', 0x61),
  ]
}

t.test('an overlay takes what is written, and is found again', needsMounts, async (t) => {
  for (const image of images(t)) {
    const before = readFileSync(image)
    const overlay = join(temporaryFolder(t), 'overlay.qcow2')
    const options = ['--overlay', overlay, ...(image.endsWith('.raw') ? ['--format', 'raw'] : [])]
    const first = mountImage(t, image, options)
    t.equal(get(first.raw, MiB, 4), 'aaaa', 'what the image has')
    put(first.raw, MiB + 1, 'bc')
    put(first.raw, 7 * MiB + 5, 'new')
    t.throws(() => openImage(image, { format: image.split('.').at(-1) }), { code: 'IN_USE' }, 'the image is locked')
    openImage(image, { readOnly: true, format: image.split('.').at(-1) }).close()
    const { options: shown, format } = listedAt(first.mountpoint)!
    t.match(shown, { overlay })
    t.equal(format, image.split('.').at(-1))
    first.umount()
    const again = mountImage(t, image, options)
    t.same([get(again.raw, MiB, 4), get(again.raw, 7 * MiB + 5, 3)], ['abca', 'new'])
    again.umount()
    const seen = mountImage(t, image, ['-r', ...options])
    t.equal(get(seen.raw, MiB, 4), 'abca')
    seen.umount()
    t.ok(readFileSync(image).equals(before), 'the image is as it was')
    must('qemu-img', ['check', '-q', overlay])
  }
})

t.test('an overlay of something else is refused, and not changed', async (t) => {
  const folder = temporaryFolder(t)
  const [a, b] = [filled(join(folder, 'a.vhd'), 'vhd', 1), filled(join(folder, 'b.vhd'), 'vhd', 2)]
  const overlay = join(folder, 'deep', 'a.qcow2')
  mkdirSync(join(folder, 'deep'))
  openOverlay(a, overlay).close()
  const before = readFileSync(overlay)
  t.throws(() => openOverlay(b, overlay), { code: 'USAGE', message: /overlay of \.?.*a\.vhd, and not of .*b\.vhd/ })
  const alone = join(folder, 'alone.qcow2')
  createImage(alone, { format: 'qcow2', size: 8 * MiB })
  t.throws(() => openOverlay(a, alone), { code: 'USAGE', message: /image of its own/ })
  t.throws(() => openOverlay(a, b), { code: 'USAGE', message: /no overlay: its format is vhd/ })
  t.throws(() => openOverlay(a, a), { code: 'USAGE', message: /its own overlay/ })
  t.throws(() => openOverlay(a, join(folder, 'none.qcow2'), { readOnly: true }), { code: 'NOT_FOUND' })
  t.throws(() => openOverlay(a, undefined, { snapshot: 'x' }), { code: 'USAGE', message: /snapshot/ })
  t.throws(() => openOverlay(join(folder, 'none.vhd'), join(folder, 'new.qcow2')), { code: 'NOT_FOUND' })
  t.ok(readFileSync(overlay).equals(before))
  t.same(readdirSync(folder).sort(), ['a.vhd', 'alone.qcow2', 'b.vhd', 'deep'], 'nothing was made')
})

t.test('what is temporary leaves nothing', needsMounts, async (t) => {
  for (const image of images(t)) {
    const before = readFileSync(image)
    const hidden = temporaryFolder(t)
    const mountpoint = join(temporaryFolder(t), 'mnt')
    mkdirSync(mountpoint)
    const { code, err } = vdiskfs(['mount', '--temporary', '--format', image.split('.').at(-1)!, image, mountpoint], {
      env: { TMPDIR: hidden },
    })
    t.equal(code, 0, err)
    t.match(err, `unnamed file in ${hidden}`)
    const raw = join(mountpoint, 'disk.raw')
    t.same(readdirSync(hidden), [], 'it has no name')
    put(raw, MiB + 1, 'bc')
    t.equal(get(raw, MiB, 4), 'abca')
    t.equal(vdiskfs(['umount', mountpoint]).code, 0)
    t.ok(readFileSync(image).equals(before), 'the image is as it was')
    t.same(readdirSync(hidden), [])
  }
  const both = tryMount(t, 'x', ['--temporary', '--overlay', 'y'])
  t.equal(both.code, 2)
  t.notOk(existsSync('y'))
})
