/** What commit and rebase must know besides an image and its parent: links, snapshots inside, other children. */

import { cpSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { commitImage } from '../../lib/image/commit.js'
import { createImage } from '../../lib/image/create.js'
import { chainInfo } from '../../lib/image/info.js'
import { openImage } from '../../lib/image/open.js'
import { rebaseImage } from '../../lib/image/rebase.js'
import { createSnapshot } from '../../lib/image/snapshots.js'
import { must, vdiskfs } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

t.setTimeout(300_000)

const MiB = 1024 * 1024
const FORMATS = ['qcow2', 'vhd', 'vhdx'] as const

/** An image that begins with a MiB of one byte. */
function filled(path: string, format: string, byte: number, backing?: string): string {
  createImage(path, { format, ...(backing === undefined ? { size: 4 * MiB } : { backing }) })
  const image = openImage(path, { format })
  image.write(new Uint8Array(MiB).fill(byte), 0, MiB, 0)
  image.close()
  return path
}

function firstByte(path: string, options: { snapshot?: string; backingDirs?: string[]; format?: string } = {}): number {
  const image = openImage(path, { ...options, readOnly: true })
  const bytes = Buffer.alloc(1)
  image.read(bytes, 0, 1, 0)
  image.close()
  return bytes[0]!
}

for (const format of FORMATS) {
  t.test(`${format}: rebase through a link to the image names the parent from where the image is`, async (t) => {
    const folder = temporaryFolder(t)
    const at = (...names: string[]) => join(folder, ...names)
    for (const name of ['work', 'store']) mkdirSync(at(name))
    const old = filled(at('store', `old.${format}`), format, 1)
    // Another image of the new parent's name, where the name would lead to if the link counted.
    filled(at('store', `base.${format}`), format, 9)
    const base = filled(at('work', `base.${format}`), format, 1)
    createImage(at('store', `child.${format}`), { format, backing: old })
    symlinkSync(at('store', `child.${format}`), at('work', `child.${format}`))
    const backingDirs = [at('work')]
    for (const unsafe of [false, true]) {
      rebaseImage(at('work', `child.${format}`), { backing: base, backingDirs, unsafe })
      const paths = chainInfo(at('store', `child.${format}`), { backingDirs }).map(({ filename }) => filename)
      t.equal(paths[1], base)
      t.equal(firstByte(at('store', `child.${format}`), { backingDirs }), 1)
    }
    const child = at('store', `child.${format}`)
    const grandchild = at('store', `grand.${format}`)
    createImage(grandchild, { format, backing: child, backingDirs })
    for (const path of [child, at('work', `child.${format}`)])
      t.throws(() => rebaseImage(path, { backing: grandchild, backingDirs: [at('work'), at('store')] }), {
        code: 'USAGE',
        message: /made over it/,
      })
  })

  t.test(`${format}: commit into the parent of others`, async (t) => {
    const folder = temporaryFolder(t)
    const base = filled(join(folder, `base.${format}`), format, 1)
    const child = join(folder, `child.${format}`)
    createImage(child, { format, backing: base })
    const image = openImage(child)
    image.write(new Uint8Array(MiB).fill(5), 0, MiB, 0)
    image.close()
    const sibling = join(folder, `sibling.${format}`)
    createImage(sibling, { format, backing: base })
    const before = [base, child].map((path) => readFileSync(path))
    t.throws(() => commitImage(child), { code: 'USAGE', message: new RegExp(`${sibling} is made over it.*--force`) })
    const { code, err } = vdiskfs(['commit', child])
    t.same([code, err.includes(sibling)], [2, true])
    t.ok(
      [base, child].every((path, i) => readFileSync(path).equals(before[i]!)),
      'not a byte was changed',
    )
    commitImage(child, { force: true })
    t.equal(firstByte(base), 5)
    t.equal(firstByte(child), 5)
  })
}

t.test('commit of one of two QCOW2 images over a raw one', async (t) => {
  const folder = temporaryFolder(t)
  const base = filled(join(folder, 'base.raw'), 'raw', 1)
  const [child, sibling] = ['child', 'sibling'].map((name) => join(folder, `${name}.qcow2`)) as [string, string]
  for (const path of [child, sibling]) createImage(path, { format: 'qcow2', backing: base, backingFormat: 'raw' })
  t.throws(() => commitImage(child), { code: 'USAGE', message: /sibling\.qcow2 is made over it/ })
  t.equal(vdiskfs(['commit', '-q', '--force', child]).code, 0)
})

t.test('a new image in a folder that is given through a link names its parent from where it is', async (t) => {
  const folder = temporaryFolder(t)
  const at = (...names: string[]) => join(folder, ...names)
  for (const name of ['work', 'store']) mkdirSync(at(name))
  symlinkSync(at('store'), at('work', 'link'))
  mkdirSync(at('work', 'link', 'sub'))
  const base = filled(at('work', 'base.vhd'), 'vhd', 1)
  createImage(at('work', 'link', 'sub', 'child.vhd'), { format: 'vhd', backing: base })
  // Where the name would lead to if the link counted.
  cpSync(base, at('base.vhd'), { preserveTimestamps: true })
  const [, parent] = chainInfo(at('store', 'sub', 'child.vhd'), { backingDirs: [folder] })
  t.equal(parent?.filename, base)
})

t.test('snapshots inside an image keep it from changing what they read through', async (t) => {
  const folder = temporaryFolder(t)
  const base = filled(join(folder, 'base.qcow2'), 'qcow2', 1)
  const other = filled(join(folder, 'other.qcow2'), 'qcow2', 9)
  const child = join(folder, 'child.qcow2')
  createImage(child, { format: 'qcow2', backing: base })
  createSnapshot(child, 'first')
  createSnapshot(child, 'second')
  must('qemu-io', ['-c', 'write -q -P 5 0 64k', child])
  const before = [base, child].map((path) => readFileSync(path))
  const refused = { code: 'USAGE', message: /child\.qcow2: .*'first', 'second'.*--force/ }
  t.throws(() => commitImage(child), refused)
  t.throws(() => commitImage(child, { keep: true }), refused)
  for (const backing of [other, undefined]) t.throws(() => rebaseImage(child, { backing }), refused)
  for (const argv of [['commit'], ['rebase', '-b', ''], ['rebase', '-b', other]])
    t.equal(vdiskfs([...argv, child]).code, 2)
  t.ok(
    [base, child].every((path, i) => readFileSync(path).equals(before[i]!)),
    'not a byte was changed',
  )
  t.equal(firstByte(child, { snapshot: 'first' }), 1)
  rebaseImage(child, { backing: base, unsafe: true })
  t.equal(vdiskfs(['rebase', '-q', '--force', '-b', other, child]).code, 0)
  t.equal(firstByte(child), 5)
  const alone = filled(join(folder, 'alone.qcow2'), 'qcow2', 1)
  createSnapshot(alone, 'first')
  t.throws(() => rebaseImage(alone, { backing: base }), { code: 'USAGE', message: /alone\.qcow2: .*'first'/ })
  rebaseImage(alone, { backing: undefined })
  rebaseImage(child, { backing: base, force: true })
  commitImage(child, { force: true })
  t.equal(firstByte(base), 5)
})
