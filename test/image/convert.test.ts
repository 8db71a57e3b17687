/** Conversions: what QEMU finds in the result, what is left when they do not succeed, what they never touch. */

import { createHash } from 'node:crypto'
import {
  chownSync,
  closeSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { compareImages } from '../../lib/image/compare.js'
import { type ConvertOptions, convert } from '../../lib/image/convert/convert.js'
import { eachRun } from '../../lib/image/convert/zeros.js'
import { createImage } from '../../lib/image/create.js'
import { openImage } from '../../lib/image/open.js'
import { CLI, must, run, startVdiskfs, until, vdiskfs } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

// A busy machine is no fault of the program.
t.setTimeout(300_000)

const KiB = 1024
const MiB = KiB * KiB
const QEMU: Readonly<Record<string, string>> = {
  vhd: 'vpc',
  vhdx: 'vhdx',
  parallels: 'parallels',
  qcow2: 'qcow2',
  raw: 'raw',
}

/** Bytes that are the same every time and never zero. */
function noise(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let at = 0; at < length; at += 32)
    createHash('sha256')
      .update(`${seed} ${at}`)
      .digest()
      .copy(bytes, at, 0, Math.min(32, length - at))
  return bytes.map((byte) => byte || 1) as Buffer
}

/** A raw disk with data here and there, zeros that are written, and holes. */
function rawDisk(folder: string, size = 37 * MiB + 512): string {
  const path = join(folder, 'disk.raw')
  const fd = openSync(path, 'wx')
  for (const [at, length] of [
    [0, 300_000],
    [5 * MiB - 7, 4 * MiB],
    [12 * MiB + 1, 4000],
    [20 * MiB, 4096],
    [20 * MiB + 8192, 1],
    [size - 9, 9],
  ] as const)
    writeSync(fd, noise(length, at), 0, length, at)
  writeSync(fd, Buffer.alloc(3 * MiB), 0, 3 * MiB, 25 * MiB)
  closeSync(fd)
  truncateSync(path, size)
  return path
}

function same(t: Test, raw: string, image: string, format: string): void {
  const { code, out, err } = run('qemu-img', ['compare', '-f', 'raw', '-F', QEMU[format]!, raw, image])
  t.same([code, out + err], [0, 'Images are identical.\n'], `${format}, for QEMU`)
}

for (const threads of [1, 3])
  t.test(`from raw into every format and back, by ${threads} threads`, async (t) => {
    const folder = temporaryFolder(t)
    const raw = rawDisk(folder)
    for (const format of ['vhd', 'vhdx', 'parallels', 'qcow2', 'raw']) {
      const image = join(folder, `x.${format}`)
      const back = join(folder, `back.${format}`)
      await convert(raw, image, { format, threads, options: format === 'vhdx' ? ['block_size=1M'] : [] })
      same(t, raw, image, format)
      await convert(image, back, { threads })
      same(t, raw, back, 'raw')
      t.ok(statSync(back).blocks * 512 < 6 * MiB, 'zeros take no space')
    }
    t.same(readdirSync(folder).length, 11, 'nothing else was made')
  })

t.test('a chain becomes one image', async (t) => {
  const folder = temporaryFolder(t)
  const [parent, child, target] = [join(folder, 'p.vhd'), join(folder, 'c.vhd'), join(folder, 't.vhdx')]
  const model = Buffer.alloc(8 * MiB)
  createImage(parent, { format: 'vhd', size: model.length })
  const write = (path: string, at: number, bytes: Buffer) => {
    const image = openImage(path)
    image.write(bytes, 0, bytes.length, at)
    image.close()
    bytes.copy(model, at)
  }
  write(parent, MiB, noise(3 * MiB, 1))
  createImage(child, { format: 'vhd', backing: parent })
  write(child, 2 * MiB + 512, noise(700, 2))
  write(child, 3 * MiB, Buffer.alloc(100_000))
  await convert(child, target, { format: 'vhdx' })
  const raw = join(folder, 'model')
  writeFileSync(raw, model)
  same(t, raw, target, 'vhdx')

  const own = join(folder, 'own.vhd')
  await convert(child, own, { format: 'vhd', backing: parent })
  t.ok(statSync(own).blocks * 512 < MiB, 'with -B the layer of its own alone is copied')
  t.equal(compareImages(child, own).difference, undefined)
})

t.test('sparse sizes', async (t) => {
  const runs: [number, number, boolean][] = []
  const data = Buffer.alloc(4096)
  data[1024] = 1
  eachRun(data, 4000, 512, 1024, (...found) => runs.push(found))
  t.same(
    runs,
    [
      [0, 512, true],
      [512, 1024, false],
      [1536, 2464, true],
    ],
    'granules lie where the disk has them',
  )
  const folder = temporaryFolder(t)
  const raw = rawDisk(folder)
  const target = join(folder, 'full')
  await convert(raw, target, { sparse: 0 })
  t.ok(statSync(target).blocks * 512 >= 37 * MiB, '0: all is written')
  same(t, raw, target, 'raw')
  await t.rejects(convert(raw, join(folder, 'odd'), { sparse: 1000 }), { code: 'USAGE' })
})

t.test('into an image that exists', async (t) => {
  const folder = temporaryFolder(t)
  const raw = rawDisk(folder)
  const target = join(folder, 't.vhd')
  createImage(target, { format: 'vhd', size: 40 * MiB })
  const image = openImage(target)
  image.write(Buffer.alloc(40 * MiB, 9), 0, 40 * MiB, 0)
  image.close()
  await convert(raw, target, { format: 'vhd', existing: true })
  t.same(compareImages(raw, target).difference, { what: 'content', offset: statSync(raw).size }, 'what is behind stays')
  await t.rejects(convert(target, raw, { format: 'raw', existing: true }), { code: 'USAGE', message: /40 MiB/ })
})

/** What a failed conversion must leave: the folder as it was. */
async function fails(t: Test, source: string, target: string, options: ConvertOptions, code: string, message = /./) {
  const folder = join(target, '..')
  const before = readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))] as const)
  await t.rejects(convert(source, target, options), { code, message })
  t.same(
    readdirSync(folder),
    before.map(([name]) => name),
    'no file more, no file less',
  )
  for (const [name, bytes] of before) t.ok(readFileSync(join(folder, name)).equals(bytes), `${name} is as it was`)
}

t.test('what fails leaves nothing, and what was there', async (t) => {
  const folder = temporaryFolder(t)
  const raw = rawDisk(folder, 6 * MiB)
  const broken = join(folder, 'broken.vhd')
  await convert(raw, broken, { format: 'vhd' })
  const bytes = readFileSync(broken)
  bytes.writeUInt32BE(0xfffffff0, 0x600 + 4 * 2)
  writeFileSync(broken, bytes)
  const target = join(folder, 'target')
  for (const threads of [1, 2]) {
    await fails(t, broken, target, { threads }, 'CORRUPT')
    const controller = new AbortController()
    const aborting = { signal: controller.signal, threads, onProgress: () => controller.abort() }
    await fails(t, raw, target, aborting, 'IO', /interrupted/)
  }
  await fails(t, broken, target, { format: 'qcow2', options: [`data_file=${join(folder, 'data')}`] }, 'CORRUPT')
  await fails(t, raw, target, { format: 'vhd', options: ['no_such=1'] }, 'USAGE')
  writeFileSync(target, 'something else')
  await fails(t, broken, target, {}, 'CORRUPT')
  await fails(t, raw, raw, { format: 'vhd' }, 'USAGE', /what is read/)
  linkSync(raw, join(folder, 'link'))
  await fails(t, raw, join(folder, 'link'), {}, 'USAGE', /what is read/)
  const used = openImage(target, { format: 'raw' })
  await fails(t, raw, target, {}, 'IN_USE')
  used.close()
  await convert(raw, target)
  same(t, raw, target, 'raw')
})

t.test('the command: signals, progress', async (t) => {
  const folder = temporaryFolder(t)
  const source = join(folder, 'large.raw')
  // Holes that are read, so that it takes a while and no space.
  writeFileSync(source, 'x')
  truncateSync(source, 64 * 1024 * MiB)
  const target = join(folder, 'target.vhd')
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    const args = ['convert', '-O', 'vhd', '-S', '0', '-o', 'subformat=fixed', source, target]
    const converting = startVdiskfs(t, args)
    await until('it has begun', () => readdirSync(folder).length > 1)
    converting.child.kill(signal)
    t.same(await converting.ended, { code: signal === 'SIGINT' ? 130 : 143, signal: null })
    t.same(readdirSync(folder), ['large.raw'], 'nothing is left')
  }
  const small = rawDisk(folder)
  const quiet = vdiskfs(['convert', small, target])
  t.same([quiet.code, quiet.out, quiet.err], [0, '', ''], 'nothing is said on a pipe')
})

t.test('compare, beside qemu-img', async (t) => {
  const folder = temporaryFolder(t)
  const raw = rawDisk(folder, 6 * MiB)
  const [larger, other, image] = [join(folder, 'larger'), join(folder, 'other'), join(folder, 'x.vhd')]
  must('cp', [raw, larger])
  truncateSync(larger, 7 * MiB)
  must('cp', [raw, other])
  await convert(raw, image, { format: 'vhd' })
  const fd = openSync(other, 'r+')
  writeSync(fd, Buffer.from([1]), 0, 1, 3 * MiB + 5)
  closeSync(fd)
  for (const [a, b, ...options] of [
    [raw, image],
    [raw, larger],
    [larger, raw],
    [raw, other],
    [raw, larger, '-s'],
    [raw, raw, '-s'],
    [raw, join(folder, 'none')],
  ] as [string, string, ...string[]][]) {
    const ours = vdiskfs(['compare', ...options, a, b])
    const theirs = run('qemu-img', ['compare', ...options, a, b])
    t.equal(ours.code, theirs.code, `${options} ${a} ${b}: ${ours.out}${ours.err}`)
  }
  t.same(compareImages(raw, other).difference, { what: 'content', offset: 3 * MiB + 5 })
  t.equal(vdiskfs(['compare', '-q', raw, other]).out, '')
})

t.test('the old target: its owner and permissions stay, of a link the file that it leads to', async (t) => {
  const folder = temporaryFolder(t)
  const source = rawDisk(folder)
  const old = join(folder, 'private', 'n'.repeat(250))
  mkdirSync(join(folder, 'private'))
  writeFileSync(old, 'old', { mode: 0o640 })
  if (process.getuid!() === 0) chownSync(old, 1, 2)
  const link = join(folder, 'link')
  symlinkSync(old, link)
  const before = statSync(old)
  await convert(source, link, { format: 'raw' })
  t.equal(readlinkSync(link), old)
  const { mode, uid, gid, ino } = statSync(old)
  t.same({ mode, uid, gid }, { mode: before.mode, uid: before.uid, gid: before.gid })
  t.not(ino, before.ino, 'another file')
  t.ok(readFileSync(old).equals(readFileSync(source)))
  t.same(readdirSync(join(folder, 'private')), ['n'.repeat(250)])
})

t.test('a new image whose data is elsewhere', async (t) => {
  const folder = temporaryFolder(t)
  mkdirSync(join(folder, 'data'))
  const source = rawDisk(folder)
  const target = join(temporaryFolder(t), 'disk.qcow2')
  const dataFile = join(folder, 'data', 'disk.data')
  await convert(source, target, { format: 'qcow2', options: [`data_file=${dataFile}`] })
  must('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', source, target])
  rmSync(target)
  rmSync(dataFile)
  const failing = { format: 'qcow2', options: [`data_file=${dataFile}`], compress: true }
  await t.rejects(convert(source, target, failing), { code: 'USAGE' }, 'data in a file of its own cannot be compressed')
  t.notOk(existsSync(target))
  t.notOk(existsSync(dataFile), 'what was made is gone')
})

t.test('only what its parent does not hold goes into an image that is there, and is over that parent', async (t) => {
  const folder = temporaryFolder(t)
  const at = (name: string) => join(folder, name)
  const base = rawDisk(folder)
  for (const name of ['from', 'over', 'alone']) {
    const backing = name === 'alone' ? {} : { backing: base, backingFormat: 'raw' }
    createImage(at(name), { format: 'qcow2', size: statSync(base).size, ...backing })
  }
  must('qemu-io', ['-c', 'write -P 9 1M 64k', at('from')])
  const settings: ConvertOptions = { format: 'qcow2', existing: true, backing: base }
  await t.rejects(convert(at('from'), at('alone'), settings), { code: 'USAGE', message: /has no parent: expected/ })
  await convert(at('from'), at('over'), settings)
  must('qemu-img', ['compare', at('from'), at('over')])
  await t.rejects(convert(at('from'), at('over'), { ...settings, options: ['cluster_size=4k'] }), { code: 'USAGE' })
  await t.rejects(convert(base, at('x'), { threads: 0 }), { code: 'USAGE', message: /0 threads/ })
})

t.test('somebody who looked at the progress bar goes away: the copy goes on', (t) => {
  const folder = temporaryFolder(t)
  const source = rawDisk(folder)
  const command = `"$0" "$1" convert -p -c -O qcow2 "$2" "$3" 2>&1; echo $? >"$4"`
  const target = join(folder, 'disk.qcow2')
  const code = join(folder, 'code')
  const script = `(${command}) | head -c 1 >/dev/null`
  must('sh', ['-c', script, process.execPath, CLI, source, target, code])
  t.equal(readFileSync(code, 'utf8'), '0\n')
  must('qemu-img', ['compare', source, target])
  t.end()
})

t.test('facts that cannot be printed', (t) => {
  const source = rawDisk(temporaryFolder(t))
  const { code, err } = run('sh', ['-c', '"$0" "$1" map "$2" >/dev/full', process.execPath, CLI, source])
  t.equal(code, 1)
  t.equal(err, 'vdiskfs: cannot write standard output: no space left on the device\n')
  t.end()
})

t.test('-m and -W: any number of threads, and any order, make the same image', async (t) => {
  const folder = temporaryFolder(t)
  const raw = rawDisk(folder)
  const disk = readFileSync(raw)
  for (const words of [['-m', '1'], ['-m', '4'], ['-W'], ['-m', '7', '-W']])
    for (const format of ['raw', 'qcow2', 'vhdx']) {
      const target = join(folder, `target.${format}`)
      const { code, err } = vdiskfs(['convert', '-f', 'raw', '-O', format, ...words, raw, target])
      t.same([code, err], [0, ''], `${format} ${words.join(' ')}`)
      const flat = join(folder, 'flat')
      must('qemu-img', ['convert', '-f', format, '-O', 'raw', target, flat])
      t.ok(readFileSync(flat).subarray(0, disk.length).equals(disk))
    }
  for (const count of ['0', '65', 'x'])
    t.match(vdiskfs(['convert', '-m', count, raw, join(folder, 'none')]), { code: 2, err: /--threads \w+: expected/ })
})
