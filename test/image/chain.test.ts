import {
  appendFileSync,
  cpSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import t from 'tap'
import { checkImage } from '../../lib/image/check.js'
import { createImage } from '../../lib/image/create.js'
import type { Image } from '../../lib/image/image.js'
import { imageInfo } from '../../lib/image/info.js'
import { openImage } from '../../lib/image/open.js'
import { openOverlay } from '../../lib/image/overlay.js'
import { must } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

const MiB = 2 ** 20

function create(path: string, size: number | undefined, backing?: string): void {
  createImage(path, { format: 'vhd', size, backing, backingFormat: backing && 'vhd', options: ['block_size=64K'] })
}

function write(path: string, offset: number, text: string): void {
  const image = openImage(path, { backingDirs: ['/'] })
  image.write(Buffer.from(text), 0, text.length, offset)
  image.close()
}

function text(image: Image, offset: number, length: number): string {
  const bytes = Buffer.alloc(length)
  image.read(bytes, 0, length, offset)
  return bytes.toString('latin1').replaceAll('\0', '.')
}

/** Descriptors of this process. */
const descriptors = () => readdirSync('/proc/self/fd').length

/** Levels that have something of their own. */
const MARKED = [0, 1, 77, 100, 199, 200]

t.test('two hundred levels', async (t) => {
  const folder = temporaryFolder(t)
  const at = (level: number) => join(folder, `level${level}.vhd`)
  create(at(0), MiB)
  for (let level = 0; level <= 200; level++) {
    if (level > 0) create(at(level), undefined, at(level - 1))
    if (MARKED.includes(level)) write(at(level), 600 * level, `level ${level}!`)
  }
  const before = descriptors()
  const image = openImage(at(200))
  t.equal(image.layers.length, 201)
  for (const level of MARKED) t.equal(text(image, 600 * level, 10), `level ${level}!`.padEnd(10, '.'))
  t.equal(image.map(0, 1).depth, 200)
  image.write(Buffer.from('new'), 0, 3, 600 * 100 + 1)
  t.equal(text(image, 600 * 100, 10), 'lnewl 100!')
  image.close()
  t.equal(descriptors(), before, 'all of them are closed')
  const again = openImage(at(200), { readOnly: true })
  t.equal(text(again, 600 * 100, 10), 'lnewl 100!')
  again.close()
  const below = openImage(at(199), { readOnly: true })
  t.equal(text(below, 600 * 100, 10), 'level 100!')
  below.close()
})

t.test('parents that are shorter and longer than their children', async (t) => {
  const folder = temporaryFolder(t)
  const [a, b, c] = ['a', 'b', 'c'].map((name) => join(folder, `${name}.vhd`)) as [string, string, string]
  create(a, MiB)
  create(b, MiB / 2, a)
  create(c, MiB, b)
  write(a, MiB / 2 - 4, 'aaaaaaaa')
  const image = openImage(c, { readOnly: true })
  t.equal(text(image, MiB / 2 - 5, 10), '.aaaa.....', 'what the middle one does not have, nobody has')
  image.close()
})

t.test('a chain that leads back into itself', async (t) => {
  const folder = temporaryFolder(t)
  const [a, b, c] = ['a', 'b', 'c'].map((name) => join(folder, `${name}.vhd`)) as [string, string, string]
  create(a, MiB)
  create(b, undefined, a)
  create(c, undefined, b)
  const before = descriptors()
  const loop = { code: 'CORRUPT', message: /a\.vhd.*loop/ }
  unlinkSync(a)
  linkSync(c, a)
  t.throws(() => openImage(c), loop, 'c, b, c')
  unlinkSync(a)
  symlinkSync('b.vhd', a)
  t.throws(() => openImage(b, { readOnly: true }), loop, 'b, b')
  t.equal(descriptors(), before)
})

t.test('a parent that is missing is named, with the places where it was looked for', async (t) => {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhd'), join(folder, 'child.vhd')]
  create(parent, MiB)
  create(child, undefined, parent)
  unlinkSync(parent)
  const before = descriptors()
  t.throws(() => openImage(child), {
    code: 'NOT_FOUND',
    message: new RegExp(`^${child}: its parent '.*parent.vhd' cannot be opened: looked for ${parent}$`),
  })
  t.equal(descriptors(), before)
})

t.test('another image in the place of the parent', async (t) => {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhd'), join(folder, 'child.vhd')]
  create(parent, MiB)
  create(child, undefined, parent)
  unlinkSync(parent)
  create(parent, MiB)
  t.throws(() => openImage(child), { code: 'CORRUPT', message: /unique id/ })
  unlinkSync(parent)
  createImage(parent, { format: 'raw', size: MiB })
  t.throws(() => openImage(child), { code: 'FORMAT', message: /not a VHD: no footer/ })
})

t.test('a parent in another folder', async (t) => {
  const top = temporaryFolder(t)
  for (const name of ['parents', 'children']) mkdirSync(join(top, name))
  const [parent, child] = [join(top, 'parents', 'parent.vhd'), join(top, 'children', 'child.vhd')]
  create(parent, MiB)
  write(parent, 0, 'parent')
  create(child, undefined, parent)
  t.throws(() => openImage(child), { code: 'GATE', message: /parent\.vhd.*--backing-dir/ })
  const image = openImage(child, { backingDirs: [join(top, 'parents')] })
  t.equal(text(image, 0, 6), 'parent')
  image.close()
  // Both moved, beside each other: the child finds it there.
  mkdirSync(join(top, 'moved'))
  for (const path of [parent, child]) renameSync(path, join(top, 'moved', basename(path)))
  const moved = openImage(join(top, 'moved', 'child.vhd'))
  t.equal(text(moved, 0, 6), 'parent')
  t.same(
    moved.layers.map(({ path }) => path),
    [join(top, 'moved', 'child.vhd'), join(top, 'moved', 'parent.vhd')],
  )
  moved.close()
})

t.test('every file of a chain is locked, the parents for reading', async (t) => {
  const folder = temporaryFolder(t)
  const [parent, child, sister] = ['parent', 'child', 'sister'].map((name) => join(folder, `${name}.vhd`)) as [
    string,
    string,
    string,
  ]
  create(parent, MiB)
  create(child, undefined, parent)
  create(sister, undefined, parent)
  const image = openImage(child)
  t.throws(() => openImage(child), { code: 'IN_USE' })
  t.throws(() => openImage(child, { readOnly: true }), { code: 'IN_USE' })
  t.throws(() => openImage(parent), { code: 'IN_USE' })
  openImage(parent, { readOnly: true }).close()
  openImage(sister).close()
  openImage(child, { readOnly: true, lock: false }).close()
  image.close()
  openImage(parent).close()
})

t.test('creating over a parent', async (t) => {
  const folder = temporaryFolder(t)
  const at = (name: string) => join(folder, name)
  create(at('parent.vhd'), MiB)
  t.throws(() => create(at('parent.vhd'), MiB), { code: 'EXISTS' })
  t.throws(() => create(at('child.vhd'), undefined, at('nothing.vhd')), { code: 'NOT_FOUND' })
  t.throws(() => createImage(at('raw'), { format: 'raw', backing: at('parent.vhd') }), { code: 'USAGE' })
  t.throws(() => createImage(at('raw'), { format: 'raw' }), { code: 'USAGE', message: /size/ })
  t.throws(() => createImage(at('bad.vhd'), { format: 'vhd', size: MiB, options: ['block_size=5000'] }), {
    code: 'USAGE',
  })
  t.same(readdirSync(folder), ['parent.vhd'], 'nothing is left of what failed')
  create(at('child.vhd'), undefined, at('parent.vhd'))
  unlinkSync(at('parent.vhd'))
  t.throws(() => create(at('grandchild.vhd'), undefined, at('child.vhd')), { code: 'NOT_FOUND' }, 'a broken chain')
})

t.test('what a file is, its content says; raw is what is left', async (t) => {
  const folder = temporaryFolder(t)
  const at = (name: string) => join(folder, name)
  create(at('disk.raw'), MiB)
  const warnings: string[] = []
  const warn = (message: string) => warnings.push(message)
  const vhd = openImage(at('disk.raw'), { warn })
  t.equal(vhd.format, 'vhd')
  vhd.close()
  t.same(warnings, [])
  must('truncate', ['-s', '1M', at('disk.vhd')])
  const raw = openImage(at('disk.vhd'), { warn })
  t.equal(raw.format, 'raw')
  t.match(warnings, [/disk\.vhd: no format was recognised/])
  // A guest that writes a footer into its disk does not change what it is.
  raw.write(Buffer.from('conectix'), 0, 8, MiB - 512)
  t.equal(raw.format, 'raw')
  raw.close()
  const given = openImage(at('disk.vhd'), { format: 'raw' })
  t.equal(given.size, MiB)
  given.close()
  t.throws(() => openImage(at('disk.raw'), { format: 'nonsense' }), { code: 'USAGE', message: /nonsense.*raw/ })
})

t.test('an image that was copied while its parent was not', async (t) => {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhd'), join(folder, 'child.vhd')]
  create(parent, MiB)
  write(parent, 0, 'parent')
  create(child, undefined, parent)
  mkdirSync(join(folder, 'copy'))
  cpSync(child, join(folder, 'copy', 'child.vhd'))
  const image = openImage(join(folder, 'copy', 'child.vhd'), { backingDirs: [folder] })
  t.equal(text(image, 0, 6), 'parent', 'by the absolute name')
  image.close()
})

t.test('a fixed VHD whose guest made it look like an image with a parent is not opened as one', async (t) => {
  const folder = temporaryFolder(t)
  const [disk, child, other, inside] = ['disk.vhd', 'child.vhd', 'other.raw', 'in.qcow2'].map((n) =>
    join(folder, n),
  ) as [string, string, string, string]
  createImage(disk, { format: 'vhd', size: MiB, options: ['subformat=fixed'] })
  create(child, undefined, disk)
  writeFileSync(other, Buffer.alloc(MiB, 'secret of another guest'))
  must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', other, '-F', 'raw', inside])
  const guest = openImage(disk)
  const bytes = readFileSync(inside)
  guest.write(bytes, 0, bytes.length, 0)
  guest.close()
  const before = readFileSync(disk)
  const both = { code: 'FORMAT', message: /disk\.vhd.*--format qcow2 or --format vhd/ }
  t.throws(() => openImage(disk), both)
  t.throws(() => imageInfo(disk), both)
  t.throws(() => checkImage(disk, { repair: 'all' }), both)
  t.throws(() => createImage(join(folder, 'new.qcow2'), { format: 'qcow2', backing: disk }), both)
  t.throws(() => openOverlay(disk, join(folder, 'over.qcow2')), both)
  t.ok(readFileSync(disk).equals(before), 'nothing was changed')
  const named = openImage(disk, { readOnly: true, format: 'vhd' })
  t.equal(text(named, 0, 3), 'QFI')
  named.close()
  const above = openImage(child, { readOnly: true })
  t.equal(text(above, 0, 3), 'QFI', 'the parent of a VHD is a VHD, whatever it begins with')
  above.close()
})

t.test('an overlay whose last sector was made to look like the footer of a VHD stays an overlay', async (t) => {
  const folder = temporaryFolder(t)
  const [below, over, fixed] = ['below.raw', 'over.qcow2', 'fixed.vhd'].map((n) => join(folder, n)) as [
    string,
    string,
    string,
  ]
  writeFileSync(below, Buffer.alloc(MiB))
  openOverlay(below, over, { format: 'raw' }).close()
  createImage(fixed, { format: 'vhd', size: 64 * 1024, options: ['subformat=fixed'] })
  appendFileSync(over, readFileSync(fixed).subarray(-512))
  openOverlay(below, over, { format: 'raw' }).close()
  t.throws(() => openImage(over), { code: 'FORMAT', message: /--format qcow2 or --format vhd/ })
})
