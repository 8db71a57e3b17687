/** Committing into the parent, and putting an image over another one: content, and what every failure leaves. */

import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { formats } from '../../lib/formats/registry.js'
import { checkImage } from '../../lib/image/check.js'
import { commitImage } from '../../lib/image/commit.js'
import { createImage } from '../../lib/image/create.js'
import { openImage } from '../../lib/image/open.js'
import { rebaseImage } from '../../lib/image/rebase.js'
import { resizeImage } from '../../lib/image/resize.js'
import { FileStorage } from '../../lib/storage/file-storage.js'
import { bundleXml, guid, NIL } from '../formats/parallels/bundles.js'
import { must, vdiskfs } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

// A busy machine is no fault of the program.
t.setTimeout(300_000)

const KiB = 1024
const MiB = 1024 * KiB
const secret = Buffer.from('geheim')
const SIZE = 12 * MiB + 512
const OPTIONS: Readonly<Record<string, readonly string[]>> = {
  vhd: ['block_size=512K'],
  vhdx: ['block_size=1M'],
  qcow2: ['cluster_size=4K'],
}
const FORMATS = Object.keys(OPTIONS).filter((name) => formats.some((format) => format.name === name))
const QEMU: Readonly<Record<string, string>> = { vhd: 'vpc', vhdx: 'vhdx', qcow2: 'qcow2' }

/** A bundle of one plain part, all threes. */
function plainBundle(folder: string, size: number): void {
  const id = guid(1)
  mkdirSync(folder)
  writeFileSync(join(folder, 'disk.hds'), Buffer.alloc(size, 3))
  const storage = { start: 0, end: size / 512, images: [[id, 'Plain', 'disk.hds']] as const }
  const xml = bundleXml({ sectors: size / 512, storages: [storage], shots: [[id, NIL]], topGuid: id })
  writeFileSync(join(folder, 'DiskDescriptor.xml'), xml)
}

function content(path: string): Buffer {
  const warnings: string[] = []
  const image = openImage(path, { readOnly: true, warn: (text) => warnings.push(text) })
  const bytes = Buffer.alloc(image.size)
  image.read(bytes, 0, image.size, 0)
  image.close()
  if (warnings.length > 0) throw new Error(warnings.join())
  return bytes
}

const same = (a: Buffer, b: Buffer) => Buffer.compare(a, b) === 0

type Change = readonly [offset: number, length: number, byte: number]

/** Writes, or (byte 0) zeroes, ranges of a disk. */
function change(path: string, changes: readonly Change[]): void {
  const image = openImage(path)
  for (const [offset, length, byte] of changes)
    if (byte === 0) image.zero(offset, length, true)
    else image.write(new Uint8Array(length).fill(byte), 0, length, offset)
  image.close()
}

const BASE: readonly Change[] = [
  [0, 3 * MiB, 1],
  [5 * MiB + 300, 2 * MiB, 2],
  [SIZE - 700, 700, 3],
]
const CHILD: readonly Change[] = [
  [MiB - 77, 400_000, 4],
  [5 * MiB, 2 * MiB, 0],
  [9 * MiB, MiB, 5],
]

/** A parent and a child that was written to. */
function family(t: Test, format: string): { folder: string; base: string; child: string } {
  const folder = temporaryFolder(t)
  const [base, child] = [join(folder, `base.${format}`), join(folder, `child.${format}`)]
  createImage(base, { format, size: SIZE, options: OPTIONS[format]! })
  change(base, BASE)
  // Its time is what a child knows of it, and a commit changes that.
  utimesSync(base, 1e9, 1e9)
  createImage(child, { format, backing: base, options: OPTIONS[format]! })
  change(child, CHILD)
  return { folder, base, child }
}

for (const format of FORMATS) {
  t.test(`${format}: commit`, async (t) => {
    const { folder, base, child } = family(t, format)
    const before = content(child)
    const size = statSync(child).blocks
    commitImage(child, { keep: true })
    t.ok(same(content(base), before), 'the parent shows what the child did')
    t.ok(statSync(child).blocks >= size, 'which was kept')
    t.ok(same(content(child), before))
    change(child, [[4 * MiB, 100, 9]])
    before.fill(9, 4 * MiB, 4 * MiB + 100)
    const { written } = commitImage(child)
    t.ok(written > MiB && written < 8 * MiB, `${written} bytes written`)
    t.ok(same(content(base), before))
    t.ok(same(content(child), before))
    t.ok(statSync(child).size < 6 * MiB && statSync(child).blocks < size, 'the child is empty')
    for (const path of [base, child]) t.same(checkImage(path).findings, [], `check finds nothing in ${path}`)
    const raw = join(folder, 'raw')
    must('qemu-img', ['convert', '-f', QEMU[format]!, '-O', 'raw', base, raw])
    t.ok(same(readFileSync(raw), before), 'as QEMU reads it')
    change(child, [[0, 5000, 8]])
    before.fill(8, 0, 5000)
    t.ok(same(content(child), before), 'the child can be used again')
    t.equal(vdiskfs(['commit', child]).code, 0)
    t.ok(same(content(base), before))
    t.throws(() => commitImage(base), { code: 'USAGE', message: /no parent/ })
  })

  t.test(`${format}: the parent of a larger child grows`, async (t) => {
    const { base, child } = family(t, format)
    resizeImage(child, { size: 20 * MiB })
    change(child, [[18 * MiB, 5000, 7]])
    const before = content(child)
    commitImage(child)
    t.ok(same(content(base), before))
    t.ok(same(content(child), before))
  })

  t.test(`${format}: wherever a commit fails, the child shows what it did`, async (t) => {
    const { folder, base, child } = family(t, format)
    resizeImage(child, { size: 13 * MiB })
    const before = content(child)
    const saved = join(folder, 'saved')
    mkdirSync(saved)
    for (const path of [base, child]) cpSync(path, join(saved, path.slice(folder.length)))
    let failed = 0
    for (let n = 1; ; n++) {
      if (n > 300) throw new Error('it does not end')
      for (const path of [base, child]) copyFileSync(join(saved, path.slice(folder.length)), path)
      if (!failing(n, () => commitImage(child))) break
      failed++
      const found = openImage(child, { readOnly: true })
      const bytes = Buffer.alloc(found.size)
      found.read(bytes, 0, bytes.length, 0)
      found.close()
      t.ok(same(bytes, before), `after ${n} writes`)
    }
    t.ok(failed > 8, `${failed} failures`)
    t.ok(same(content(base), before))
  })

  t.test(`${format}: rebase`, async (t) => {
    const { folder, base, child } = family(t, format)
    const other = join(folder, `other.${format}`)
    createImage(other, { format, size: 8 * MiB, options: OPTIONS[format]! })
    change(other, [
      [MiB, 5 * MiB, 6],
      [0, 4096, 1],
    ])
    const before = content(child)
    rebaseImage(child, { backing: other })
    t.ok(same(content(child), before), 'it shows what it did')
    t.same(checkImage(child).findings, [])
    const info = JSON.parse(vdiskfs(['info', '--chain', '--json', child]).out) as { filename: string }[]
    t.same(
      info.map(({ filename }) => filename),
      [child, other],
    )
    const copy = join(folder, 'deep', `other.${format}`)
    mkdirSync(join(folder, 'deep'))
    copyFileSync(other, copy)
    t.equal(vdiskfs(['rebase', '-u', '-b', copy, ...(format === 'qcow2' ? ['-F', format] : []), child]).code, 0)
    t.ok(same(content(child), before), 'another place of the same parent')
    rebaseImage(child, { backing: base })
    t.ok(same(content(child), before))
    createImage(join(folder, `grandchild.${format}`), { format, backing: child, options: OPTIONS[format]! })
    t.throws(() => rebaseImage(child, { backing: join(folder, `grandchild.${format}`) }), { message: /made over it/ })
    t.throws(() => rebaseImage(base, { backing: join(folder, 'none') }), { code: 'NOT_FOUND' })
  })

  t.test(`${format}: rebase of an image that has children`, async (t) => {
    const { folder, base, child } = family(t, format)
    const other = join(folder, `other.${format}`)
    createImage(other, { format, size: SIZE, options: OPTIONS[format]! })
    change(other, [[2 * MiB, 5 * MiB, 6]])
    const grandchild = join(folder, `grandchild.${format}`)
    createImage(grandchild, { format, backing: child, options: OPTIONS[format]! })
    change(grandchild, [[7 * MiB, MiB, 7]])
    const before = content(grandchild)
    const { mtime } = statSync(child)
    for (const backing of [other, base]) {
      rebaseImage(child, { backing })
      // All that a VHD has to tell by is this.
      utimesSync(child, mtime, mtime)
      t.ok(same(content(grandchild), before), 'they show what they did')
    }
    commitImage(grandchild)
    t.ok(same(content(child), before))
  })

  t.test(`${format}: a parent that it cannot have is refused before anything is written`, async (t) => {
    const { folder, child } = family(t, format)
    const before = readFileSync(child)
    for (const [backing, backingFormat, message] of foreign(folder, format)) {
      t.throws(() => rebaseImage(child, { backing, backingFormat }), { code: 'USAGE', message })
      t.ok(same(readFileSync(child), before), 'not a byte was changed')
    }
  })

  t.test(`${format}: rebase to nothing`, async (t) => {
    const { child, base } = family(t, format)
    const before = content(child)
    if (format !== 'qcow2') {
      t.throws(() => rebaseImage(child, { backing: undefined }), { code: 'USAGE', message: /has a parent/ })
      t.ok(same(content(child), before))
      return
    }
    t.equal(vdiskfs(['rebase', '-b', '', child]).code, 0)
    writeFileSync(base, '')
    t.ok(same(content(child), before))
    must('qemu-img', ['check', '-q', child])
  })
}

/** Images that none of this format can be over. */
function foreign(folder: string, format: string): [path: string, format: string, message: RegExp][] {
  const made: [path: string, format: string, message: RegExp][] = []
  if (format === 'qcow2') {
    // 1023 bytes is what a name may have.
    const deep = join(folder, ...new Array<string>(5).fill('x'.repeat(250)))
    mkdirSync(deep, { recursive: true })
    made.push([join(deep, 'base.qcow2'), 'qcow2', /the backing file's name has \d+ bytes/])
  } else made.push([join(folder, 'foreign.qcow2'), 'qcow2', /and .* is qcow2$/])
  if (format === 'vhdx') made.push([join(folder, '4k.vhdx'), 'vhdx', /sectors are 512 bytes, and those of .* 4096$/])
  const options = { qcow2: [], vhdx: ['logical_sector_size=4096'] } as Readonly<Record<string, readonly string[]>>
  for (const [path, name] of made) createImage(path, { format: name, size: 4 * MiB, options: options[name]! })
  return made
}

t.test('a parent that grows, and whose file ends inside of its last block', async (t) => {
  const folder = temporaryFolder(t)
  const [base, child] = [join(folder, 'base.vhdx'), join(folder, 'child.vhdx')]
  const options = 'subformat=fixed,block_size=8M,block_state_zero=off'
  must('qemu-img', ['create', '-q', '-f', 'vhdx', '-o', options, base, '12M'])
  change(base, [[0, 12 * MiB, 1]])
  createImage(child, { format: 'vhdx', backing: base, size: 20 * MiB })
  change(child, [[15 * MiB, 5 * MiB, 2]])
  const expected = Buffer.alloc(20 * MiB)
  expected.fill(1, 0, 12 * MiB).fill(2, 15 * MiB)
  commitImage(child)
  for (const path of [base, child]) {
    t.ok(same(content(path), expected))
    t.same(checkImage(path).findings, [])
  }
  const raw = join(folder, 'raw')
  must('qemu-img', ['convert', '-f', 'vhdx', '-O', 'raw', base, raw])
  t.ok(same(readFileSync(raw), expected), 'as QEMU reads it')
})

/** Blocks of the child that hold next to nothing: `holes` digs the zeros out of its file. */
const SPARSE: Readonly<Record<string, string>> = {
  vhd: 'block_size=16M',
  vhdx: 'block_size=16M',
  qcow2: 'cluster_size=2M',
}

for (const format of FORMATS)
  for (const holes of [false, true])
    t.test(`${format}: zeros of a child ${holes ? 'that its file has holes for' : 'that were written'}`, async (t) => {
      const folder = temporaryFolder(t)
      const [base, child] = [join(folder, `base.${format}`), join(folder, `child.${format}`)]
      createImage(base, { format, size: 16 * MiB, options: OPTIONS[format]! })
      change(base, [
        [MiB + 300, MiB, 1],
        [5 * MiB - 4096, 20_000, 2],
      ])
      createImage(child, { format, backing: base, options: [SPARSE[format]!] })
      const image = openImage(child)
      image.write(new Uint8Array(12 * MiB), 0, 12 * MiB, MiB)
      image.write(new Uint8Array(5000).fill(3), 0, 5000, 7 * MiB + 100)
      image.write(new Uint8Array(700).fill(4), 0, 700, 13 * MiB - 700)
      image.close()
      if (holes) must('fallocate', ['--dig-holes', child])
      const before = content(child)
      const expected = Buffer.alloc(16 * MiB)
      expected.fill(3, 7 * MiB + 100, 7 * MiB + 5100).fill(4, 13 * MiB - 700, 13 * MiB)
      t.ok(same(before, expected))
      const { written } = commitImage(child)
      t.ok(written >= 5700 && written <= 4 * 64 * KiB, `${written} bytes written`)
      t.ok(same(content(base), expected), 'the parent shows what the child did')
      t.ok(same(content(child), expected))
      t.same(checkImage(base).findings, [])
      const space = 512 * statSync(base).blocks
      t.ok(space < 2.5 * MiB + 2 * 64 * KiB, `${space} bytes of the parent's file are taken`)
      const raw = join(folder, 'raw')
      must('qemu-img', ['convert', '-f', QEMU[format]!, '-O', 'raw', base, raw])
      t.ok(same(readFileSync(raw), expected), 'as QEMU reads it')
    })

t.test('a QCOW2 overlay is committed into images of other formats', async (t) => {
  for (const format of ['vhd', 'raw']) {
    const folder = temporaryFolder(t)
    const [base, child] = [join(folder, `base.${format}`), join(folder, 'child.qcow2')]
    createImage(base, { format, size: SIZE })
    const image = openImage(base, { format })
    image.write(new Uint8Array(MiB).fill(1), 0, MiB, 5 * MiB)
    image.close()
    createImage(child, { format: 'qcow2', backing: base, backingFormat: format })
    resizeImage(child, { size: 20 * MiB })
    change(child, [...CHILD, [19 * MiB, 700, 6]])
    const before = content(child)
    commitImage(child)
    t.ok(same(content(child), before))
    const raw = join(folder, 'raw')
    must('qemu-img', ['convert', '-f', QEMU[format] ?? format, '-O', 'raw', base, raw])
    t.ok(same(readFileSync(raw), before), format)
  }
})

t.test('a key that is missing is found out before anything is changed', async (t) => {
  for (const [name, parentKeyed, childKeyed, size] of [
    ['the key of a parent whose last cluster has a rest', true, false, 150 * KiB],
    ['the key of a parent without one', true, false, 128 * KiB],
    ['the key of the child', false, true, 150 * KiB],
  ] as const) {
    const folder = temporaryFolder(t)
    const [base, child] = [join(folder, 'base.qcow2'), join(folder, 'child.qcow2')]
    const options = (keyed: boolean) => (keyed ? ['encrypt.format=luks', 'encrypt.iter-time=1'] : [])
    createImage(base, { format: 'qcow2', size, options: options(parentKeyed), secret })
    write(base, 0, size, 1)
    createImage(child, { format: 'qcow2', backing: base, options: options(childKeyed), secret })
    resizeImage(child, { size: MiB })
    write(child, 200 * KiB, 1000, 2)
    const before = [base, child].map((path) => readFileSync(path))
    t.throws(() => commitImage(child), { code: 'ACCESS', message: /--secret/ }, name)
    t.ok(same(readFileSync(base), before[0]!), 'the parent is as it was')
    t.ok(same(readFileSync(child), before[1]!), 'and so is the child')
    commitImage(child, { secret })
    const expected = Buffer.alloc(MiB)
    expected.fill(1, 0, size).fill(2, 200 * KiB, 200 * KiB + 1000)
    const image = openImage(base, { readOnly: true, secret })
    const bytes = Buffer.alloc(image.size)
    image.read(bytes, 0, bytes.length, 0)
    image.close()
    t.ok(same(bytes, expected), 'with the key it is committed')
  }

  function write(path: string, offset: number, length: number, byte: number): void {
    const image = openImage(path, { secret })
    image.write(new Uint8Array(length).fill(byte), 0, length, offset)
    image.close()
  }
})

t.test('a QCOW2 image of its own gets a parent', async (t) => {
  const folder = temporaryFolder(t)
  const [base, alone] = [join(folder, 'base.qcow2'), join(folder, 'alone.qcow2')]
  for (const path of [base, alone]) createImage(path, { format: 'qcow2', size: SIZE })
  change(base, BASE)
  change(alone, CHILD)
  const before = content(alone)
  rebaseImage(alone, { backing: base })
  t.ok(same(content(alone), before), 'it shows what it did')
  must('qemu-img', ['check', '-q', alone])
  const info = JSON.parse(must('qemu-img', ['info', '--output=json', alone])) as Record<string, string>
  t.same([info['backing-filename'], info['backing-filename-format']], ['base.qcow2', 'qcow2'])
})

t.test('rebase of an image without parents', async (t) => {
  const raw = join(temporaryFolder(t), 'raw')
  writeFileSync(raw, Buffer.alloc(4096, 1))
  t.throws(() => rebaseImage(raw, { backing: raw }), { code: 'UNSUPPORTED' })
  t.equal(vdiskfs(['rebase', raw]).code, 2)
  t.ok(existsSync(raw))
})

/** Lets the n-th change of any file fail. @returns whether there were so many */
function failing(n: number, work: () => void): boolean {
  const kinds = ['write', 'truncate', 'punch', 'zero'] as const
  const prototype = FileStorage.prototype as unknown as Record<string, (...args: unknown[]) => unknown>
  const originals = kinds.map((kind) => [kind, prototype[kind]!] as const)
  let count = 0
  for (const [kind, original] of originals)
    prototype[kind] = function (this: FileStorage, ...args: unknown[]) {
      // All that follows fails too, as after a crash.
      if (++count >= n) throw new Error('EIO')
      return original.apply(this, args)
    }
  try {
    work()
    return false
  } catch (error) {
    if (count < n) throw error
    return true
  } finally {
    for (const [kind, original] of originals) prototype[kind] = original
  }
}

t.test('a backing file that is only beside the image is read, and said, and nothing else', (t) => {
  const folder = temporaryFolder(t)
  const at = (...names: string[]) => join(folder, ...names)
  mkdirSync(at('gone'))
  createImage(at('gone', 'base.qcow2'), { format: 'qcow2', size: MiB })
  createImage(at('over.qcow2'), { format: 'qcow2', backing: at('gone', 'base.qcow2') })
  must('qemu-io', ['-c', 'write -P 7 0 64k', at('over.qcow2')])
  // Another image of the same name.
  createImage(at('base.qcow2'), { format: 'qcow2', size: MiB })
  must('qemu-io', ['-c', 'write -P 5 64k 64k', at('base.qcow2')])
  const other = readFileSync(at('base.qcow2'))
  rmSync(at('gone'), { recursive: true })
  const warnings: string[] = []
  const image = openImage(at('over.qcow2'), { readOnly: true, warn: (text) => warnings.push(text) })
  const bytes = Buffer.alloc(1)
  image.read(bytes, 0, 1, 64 * KiB)
  image.close()
  t.equal(bytes[0], 5)
  t.match(warnings, [/parent '.*gone\/base\.qcow2' is not there: taken for .*\/base\.qcow2, .*rebase -u -b/])
  t.throws(() => commitImage(at('over.qcow2')), { code: 'NOT_FOUND', message: /gone\/base\.qcow2/ })
  t.throws(() => rebaseImage(at('over.qcow2'), { backing: undefined }), { code: 'NOT_FOUND' })
  t.ok(readFileSync(at('base.qcow2')).equals(other))
  rebaseImage(at('over.qcow2'), { backing: at('base.qcow2'), unsafe: true })
  commitImage(at('over.qcow2'))
  must('qemu-io', ['-r', '-c', 'read -P 7 0 64k', '-c', 'read -P 5 64k 64k', at('base.qcow2')])
  t.end()
})

t.test('a bundle as a parent', (t) => {
  const folder = temporaryFolder(t)
  const at = (...names: string[]) => join(folder, ...names)
  plainBundle(at('disk.hdd'), MiB)
  createImage(at('over.qcow2'), { format: 'qcow2', backing: at('disk.hdd') })
  t.equal(
    content(at('over.qcow2')).every((byte) => byte === 3),
    true,
  )
  createImage(at('alone.qcow2'), { format: 'qcow2', size: MiB })
  rebaseImage(at('alone.qcow2'), { backing: at('disk.hdd') })
  t.equal(
    content(at('alone.qcow2')).every((byte) => byte === 0),
    true,
  )
  t.end()
})
