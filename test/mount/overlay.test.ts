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
  rmSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createImage } from '../../lib/image/create.js'
import { openImage } from '../../lib/image/open.js'
import { openOverlay } from '../../lib/image/overlay.js'
import { listedAt, mountImage, needsMounts, tryMount } from '../support/mounts.js'
import { must, vdiskfs, vdiskfsMust } from '../support/run.js'
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

t.test('two make one overlay: it stays that of the one that has it open', async (t) => {
  const folder = temporaryFolder(t)
  const base = filled(join(folder, 'base.qcow2'), 'qcow2', 0x61)
  const path = join(folder, 'overlay.qcow2')
  let winner: ReturnType<typeof openOverlay> | undefined
  // Looked at when the overlay was made, and is going to be opened.
  const options = {
    get threads(): number {
      if (existsSync(path) && !winner) winner = openOverlay(base, path)
      return 1
    },
  }
  t.throws(() => openOverlay(base, path, options), { code: 'IN_USE' })
  t.ok(existsSync(path), 'it is not taken away')
  winner!.write(Buffer.from('kept'), 0, 4, 0)
  winner!.close()
  const again = openOverlay(base, path)
  const bytes = Buffer.alloc(4)
  again.read(bytes, 0, 4, 0)
  again.close()
  t.equal(bytes.toString(), 'kept')
})

/** What is written to its overlay. */
function writeOver(base: string, overlay: string, format?: string): void {
  const image = openOverlay(base, overlay, { format })
  image.write(Buffer.from('over'), 0, 4, 0)
  image.close()
}

t.test('an overlay whose image is another one now is refused, and goes on when that is said', async (t) => {
  const folder = temporaryFolder(t)
  const at = (name: string) => join(folder, name)
  const changes: [name: string, change: (base: string) => void, found: RegExp][] = [
    ['written', (base) => must('qemu-io', ['-c', 'write -q -P 8 0 64k', base]), /has 8388608 bytes, written 20\d\d-/],
    ['smaller', (base) => vdiskfsMust(['resize', '-q', '--shrink', base, '1M']), /has 1048576 bytes.*expected 8388608/],
    ['larger', (base) => vdiskfsMust(['resize', '-q', base, '16M']), /has 16777216 bytes.*expected 8388608/],
    [
      'replaced',
      (base) => {
        rmSync(base)
        filled(base, 'qcow2', 0x7a)
      },
      /has 8388608 bytes/,
    ],
  ]
  for (const [name, change, found] of changes) {
    const [base, overlay] = [filled(at(`${name}.qcow2`), 'qcow2', 0x61), at(`${name}-overlay.qcow2`)]
    utimesSync(base, 1e9, 1e9)
    writeOver(base, overlay)
    must('qemu-img', ['check', '-q', overlay])
    const before = readFileSync(overlay)
    change(base)
    for (const readOnly of [false, true])
      t.throws(() => openOverlay(base, overlay, { readOnly }), { code: 'USAGE', message: found }, name)
    t.throws(() => openOverlay(base, overlay), { message: /vdiskfs rebase -u -F qcow2 -b \S+ \S+overlay\.qcow2$/ })
    t.ok(readFileSync(overlay).equals(before), 'not a byte was changed')
    vdiskfsMust(['rebase', '-q', '-u', '-F', 'qcow2', '-b', base, overlay])
    openOverlay(base, overlay).close()
    vdiskfsMust(['commit', '-q', overlay])
    openOverlay(base, overlay).close()
    must('qemu-io', ['-c', 'read -P 0x6f 0 1', base])
  }
})

t.test('an overlay that other programs have changed is still the overlay', async (t) => {
  const folder = temporaryFolder(t)
  const [base, overlay] = [filled(join(folder, 'base.raw'), 'raw', 0x61), join(folder, 'overlay.qcow2')]
  writeOver(base, overlay, 'raw')
  must('qemu-io', ['-c', 'write -q -P 8 1M 64k', overlay])
  must('qemu-img', ['resize', '-q', overlay, '16M'])
  must('qemu-img', ['rebase', '-u', '-F', 'raw', '-b', base, overlay])
  openOverlay(base, overlay, { format: 'raw' }).close()
  writeFileSync(base, 'x', { flag: 'r+' })
  t.throws(() => openOverlay(base, overlay, { format: 'raw' }), { code: 'USAGE', message: /expected 8388608 bytes/ })
})

t.test('an overlay by another program, whose image was written since, is told', async (t) => {
  const folder = temporaryFolder(t)
  const [base, overlay] = [filled(join(folder, 'base.raw'), 'raw', 0x61), join(folder, 'overlay.qcow2')]
  must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', overlay])
  const warnings: string[] = []
  const warn = (text: string) => void warnings.push(text)
  openOverlay(base, overlay, { warn }).close()
  t.same(warnings, [])
  utimesSync(overlay, 1e9, 1e9)
  openOverlay(base, overlay, { warn }).close()
  t.match(warnings, [/written after its overlay/])
})

t.test('an overlay over an image that is taken for another format is refused', async (t) => {
  const folder = temporaryFolder(t)
  const [base, overlay] = [filled(join(folder, 'base.qcow2'), 'qcow2', 0x61), join(folder, 'overlay.qcow2')]
  openOverlay(base, overlay).close()
  t.throws(() => openOverlay(base, overlay, { format: 'raw' }), { code: 'USAGE', message: /is qcow2, .*says raw/ })
  openOverlay(base, overlay, { format: 'qcow2' }).close()
})
