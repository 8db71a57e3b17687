import { mkdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { openImage } from '../../lib/image/open.js'
import { createImage } from '../../lib/image/public.js'
import { must } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

const MiB = 2 ** 20
const GiB = 2 ** 30

/** The size of the disk as other programs see it. */
const others = (path: string) => ({
  qemu: (JSON.parse(must('qemu-img', ['info', '-f', 'vpc', '--output=json', path])) as Record<string, unknown>)[
    'virtual-size'
  ],
  libvhdi: Number(
    /Media size.*?\((\d+) bytes\)|Media size\s*:\s*(\d+) bytes/
      .exec(must('vhdiinfo', [path]))
      ?.slice(1)
      .find(Boolean),
  ),
})

const sizeOf = (path: string) => {
  const image = openImage(path, { readOnly: true })
  const { size } = image
  image.close()
  return size
}

t.test('every reader sees the size that was asked for, to the byte', async (t) => {
  const folder = temporaryFolder(t)
  const sizes = [512, 10 * MiB, 10 * MiB + 512, 64 * MiB, GiB + 7 * 512, 127 * GiB, 127.5 * GiB, 200 * GiB, 2040 * GiB]
  for (const size of sizes)
    for (const subformat of ['dynamic', 'fixed']) {
      const path = join(folder, `${subformat}-${size}.vhd`)
      t.equal(
        createImage(path, { format: 'vhd', size, options: [`subformat=${subformat}`] }),
        size,
        `${subformat} ${size}`,
      )
      t.same(others(path), { qemu: size, libvhdi: size }, `${subformat} ${size}: others`)
    }
  t.ok(statSync(join(folder, `dynamic-${2040 * GiB}.vhd`)).size < 5 * MiB)
})

t.test('what is no multiple of 512 is rounded up', async (t) => {
  const path = join(temporaryFolder(t), 'a.vhd')
  t.equal(createImage(path, { format: 'vhd', size: 10 * MiB + 1 }), 10 * MiB + 512)
  t.same(others(path), { qemu: 10 * MiB + 512, libvhdi: 10 * MiB + 512 })
})

t.test('force_size=off: a size that the geometry says, too', async (t) => {
  const path = join(temporaryFolder(t), 'a.vhd')
  const size = 302 * 4 * 17 * 512
  t.equal(createImage(path, { format: 'vhd', size: 10 * MiB, options: ['force_size=off'] }), size)
  t.same(others(path), { qemu: size, libvhdi: size })
})

t.test('force_size=off: the geometry that QEMU writes, also where that of the number itself says less', async (t) => {
  const folder = temporaryFolder(t)
  const [path, theirs] = [join(folder, 'a.vhd'), join(folder, 'q.vhd')]
  must('qemu-img', ['create', '-q', '-f', 'vpc', theirs, '35642880'])
  t.equal(createImage(path, { format: 'vhd', size: 35642880, options: ['force_size=off'] }), 35642880)
  const geometry = (file: string) => readFileSync(file).toString('hex', 56, 60)
  t.equal(geometry(path), geometry(theirs))
})

t.test('block sizes', async (t) => {
  const folder = temporaryFolder(t)
  for (const option of ['4096', '512K', '2M', '256M']) {
    const path = join(folder, `${option}.vhd`)
    createImage(path, { format: 'vhd', size: 5 * MiB, options: [`block_size=${option}`] })
    t.equal(sizeOf(path), 5 * MiB, option)
    const header = readFileSync(path).subarray(512, 1536)
    t.equal(header.readUInt32BE(28), Math.ceil((5 * MiB) / header.readUInt32BE(32)), `${option}: entries`)
  }
})

t.test('the bytes of a new dynamic image', async (t) => {
  const path = join(temporaryFolder(t), 'a.vhd')
  const before = Math.floor(Date.now() / 1000) - 946684800
  createImage(path, { format: 'vhd', size: 10 * MiB })
  const file = readFileSync(path)
  t.equal(file.length, 0x800 + 512)
  t.same(file.subarray(0x800), file.subarray(0, 512), 'the footer and its copy')
  const id = file.toString('hex', 68, 84)
  const stamp = file.readUInt32BE(24)
  t.ok(stamp >= before && stamp <= before + 60, 'time stamp')
  t.match(id, /^.{12}4.{3}[89ab]/, 'a random unique id')
  // All but the time, the checksum and the unique id is as Windows writes it for this size.
  t.equal(
    file.toString('hex', 0, 24) + file.toString('hex', 28, 64),
    '636f6e65637469780000000200010000000000000000020077696e20000a00005769326b0000000000a000000000000000a00000012d041100000003',
  )
  t.equal(
    file.toString('hex', 512, 552),
    '6378737061727365ffffffffffffffff0000000000000600000100000000000500200000fffff472',
  )
  t.ok(
    file.subarray(0x600, 0x800).every((byte) => byte === 0xff),
    'the table is padded to a sector',
  )
  const other = join(temporaryFolder(t), 'b.vhd')
  createImage(other, { format: 'vhd', size: 10 * MiB })
  t.not(readFileSync(other).toString('hex', 68, 84), id)
})

t.test('a differencing image names its parent', async (t) => {
  const folder = temporaryFolder(t)
  const parent = join(folder, 'pärent.vhd')
  const child = join(folder, 'child.vhd')
  createImage(parent, { format: 'vhd', size: 10 * MiB })
  t.equal(createImage(child, { format: 'vhd', backing: parent }), 10 * MiB, "the size is the parent's")
  const file = readFileSync(child)
  t.equal(file.readUInt32BE(60), 4, 'disk type')
  t.equal(file.toString('hex', 512 + 40, 512 + 56), readFileSync(parent).toString('hex', 68, 84), 'parent unique id')
  t.equal(file.readUInt32BE(512 + 56), Math.floor(statSync(parent).mtimeMs / 1000) - 946684800, 'parent time stamp')
  t.equal(
    file
      .subarray(512 + 64, 512 + 64 + 20)
      .swap16()
      .toString('utf16le'),
    'pärent.vhd',
  )
  const locators = [0, 1].map((i) => {
    const at = 512 + 576 + 24 * i
    const [space, length, offset] = [
      file.readUInt32BE(at + 4),
      file.readUInt32BE(at + 8),
      Number(file.readBigUInt64BE(at + 16)),
    ]
    t.equal(space, Math.ceil(length / 512), 'platform data space')
    t.equal(offset % 512, 0)
    return [file.toString('latin1', at, at + 4), file.toString('utf16le', offset, offset + length)]
  })
  t.same(locators, [
    ['W2ku', parent.replaceAll('/', '\\')],
    ['W2ru', '.\\pärent.vhd'],
  ])
  const info = must('vhdiinfo', [child])
  t.match(info, /Disk type\s*: Differential/)
  t.match(info, /Parent filename\s*: pärent\.vhd/)
  t.match(info, /Media size\s*: 10 MiB/)
})

t.test('what cannot be made is refused, and nothing stays behind', async (t) => {
  const folder = temporaryFolder(t)
  const parent = join(folder, 'p.vhd')
  const other = join(folder, 'p.img')
  createImage(parent, { format: 'vhd', size: MiB })
  createImage(other, { format: 'raw', size: MiB })
  const path = join(folder, 'x.vhd')
  const unnamable = join(folder, 'n\x01p.vhd')
  createImage(unnamable, { format: 'vhd', size: MiB })
  const cases: [what: string, Parameters<typeof createImage>[1], RegExp][] = [
    ['no bytes', { format: 'vhd', size: 0 }, /a VHD of 0 bytes: expected 512 bytes to 2040 GiB/],
    ['too many', { format: 'vhd', size: 2040 * GiB + 1 }, /a VHD of 2190433320961 bytes/],
    [
      'a block size',
      { format: 'vhd', size: MiB, options: ['block_size=3M'] },
      /block_size=3145728: expected a power of two/,
    ],
    ['a small block size', { format: 'vhd', size: MiB, options: ['block_size=512'] }, /at least 4096/],
    [
      'blocks that never fit',
      { format: 'vhd', size: 2040 * GiB, options: ['block_size=4096'] },
      /would need a file of 24\d+ bytes/,
    ],
    ['a fixed child', { format: 'vhd', backing: parent, options: ['subformat=fixed'] }, /a fixed VHD has no parent/],
    ['a raw parent', { format: 'vhd', backing: other }, /the parent of a VHD is a VHD, and .*p\.img is raw/],
    ['a parent that it cannot name', { format: 'vhd', backing: unnamable }, /cannot name the parent .*control char/],
  ]
  for (const [what, request, message] of cases) {
    t.throws(() => createImage(path, request), { code: 'USAGE', message }, what)
    t.throws(() => statSync(path), { code: 'ENOENT' }, what)
  }
})

t.test('a child and its parent in a folder whose name a VHD cannot say', async (t) => {
  const folder = join(temporaryFolder(t), 'n\x01')
  mkdirSync(folder)
  const [parent, child] = [join(folder, 'p.vhd'), join(folder, 'c.vhd')]
  createImage(parent, { format: 'vhd', size: MiB })
  createImage(child, { format: 'vhd', backing: parent })
  t.equal(sizeOf(child), MiB)
})
