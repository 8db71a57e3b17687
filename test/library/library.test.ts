/** The library as a program that depends on the package uses it: packed, unpacked into its node_modules, typed. */

import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { must, ROOT, run } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

t.setTimeout(300_000)

const PROGRAM = `
import { strict as assert } from 'node:assert'
import {
  check, commit, compare, convert, createImage, type Disk, formats, info, type MapEntry, openImage, rebase, resize, VdiskError,
} from 'vdiskfs'

const MiB: number = 1024 * 1024

// Formats.
assert(formats.some(({ name, aliases }) => name === 'vhd' && aliases.includes('vpc')))

// Making, writing, reading.
const size: number = createImage('base.vhd', { format: 'vhd', size: 8 * MiB, options: { block_size: '512K' } })
assert.equal(size, 8 * MiB)
const disk: Disk = openImage('base.vhd')
assert.deepEqual([disk.format, disk.size, disk.sectorSize, disk.readOnly], ['vhd', 8 * MiB, 512, false])
disk.write(Buffer.from('hello'), MiB)
disk.zero(MiB + 4, 1)
disk.flush()
assert.equal(disk.read(MiB, 6).toString('latin1'), 'hell\\0\\0')
const part = new Uint8Array(3)
disk.readInto(part, MiB + 1)
assert.deepEqual([...part], [...Buffer.from('ell')])

// What is where: one entry for each run.
const entries: MapEntry[] = [...disk]
assert.deepEqual(entries.map(({ start, length, zero }) => [start, length, zero]), [
  [0, MiB, true], [MiB, MiB / 2, false], [1.5 * MiB, 6.5 * MiB, true],
])
const later: MapEntry[] = []
for await (const entry of disk) later.push(entry)
assert.deepEqual(later, entries)
assert.equal([...disk.map(MiB, 10)][0]!.length, 10)

// Errors have a code, and one line that names the file.
assert.throws(() => disk.read(8 * MiB, 1), (error) => error instanceof VdiskError && error.code === 'RANGE')
assert.throws(() => openImage('base.vhd'), (error) => error instanceof VdiskError && error.code === 'IN_USE')
disk.close()
disk.close()
assert.throws(() => disk.read(0, 1), /closed/)
assert.throws(() => openImage('none.vhd', { readOnly: true }), { code: 'NOT_FOUND', message: /none\\.vhd/ })

// Chains.
createImage('child.vhd', { format: 'vhd', backing: 'base.vhd' })
{
  using child = openImage('child.vhd', { format: 'vhd', backingDirs: ['.'], cacheSize: 2 * MiB })
  child.write(new Uint8Array(MiB).fill(7), 4 * MiB)
  assert.deepEqual(child.layers.map(({ path, format }) => [path.split('/').at(-1), format]), [['child.vhd', 'vhd'], ['base.vhd', 'vhd']])
}
const reader: Disk = openImage('child.vhd', { readOnly: true })
assert.throws(() => reader.write(part, 0), { code: 'READ_ONLY' })
reader.close()

// The tools.
let reported = 0
await convert('child.vhd', 'flat.vhdx', { format: 'vhdx', options: ['block_size=1M'], onProgress: ({ copied }) => (reported = copied) })
assert(reported >= MiB)
assert.equal(compare('child.vhd', 'flat.vhdx').difference, undefined)
const aborting = new AbortController()
aborting.abort()
await assert.rejects(convert('child.vhd', 'never.raw', { signal: aborting.signal }), /interrupted/)
commit('child.vhd')
assert.equal(compare('base.vhd', 'flat.vhdx').difference, undefined)
rebase('child.vhd', { backing: 'base.vhd', unsafe: true })
assert.deepEqual(resize('flat.vhdx', { size: 16 * MiB }), { before: 8 * MiB, after: 16 * MiB })
assert.equal(info('flat.vhdx')['virtual-size'], 16 * MiB)
assert.deepEqual(check('base.vhd').findings, [])

// An encrypted image.
createImage('secret.qcow2', { format: 'qcow2', size: MiB, options: { 'encrypt.format': 'luks', 'encrypt.iter-time': 10 }, secret: 'geheim' })
assert.throws(() => openImage('secret.qcow2', { secret: 'falsch' }), { code: 'ACCESS' })
{
  using secret = openImage('secret.qcow2', { secret: 'geheim' })
  secret.write(Buffer.from('hidden'), 0)
}
resize('secret.qcow2', { size: 2 * MiB, secret: 'geheim' })
createImage('over.qcow2', { format: 'qcow2', backing: 'secret.qcow2' })
rebase('over.qcow2', { backing: undefined, secret: 'geheim' })
console.log('all is well')
`

/** A folder in which the package is installed as npm would do it, with the packages that it needs. */
function dependant(t: TestCase): string {
  const folder = temporaryFolder(t)
  const packed = join(folder, 'packed')
  const modules = join(folder, 'node_modules')
  mkdirSync(packed)
  mkdirSync(join(modules, 'vdiskfs'), { recursive: true })
  const pack = ['pack', '--ignore-scripts', '--pack-destination', packed, '--loglevel=error']
  must('npm', pack, { cwd: ROOT })
  const tarball = join(packed, readdirSync(packed)[0]!)
  must('tar', ['xzf', tarball, '--strip-components=1', '-C', join(modules, 'vdiskfs')])
  for (const name of readdirSync(join(ROOT, 'node_modules')))
    if (name !== 'vdiskfs' && !name.startsWith('.')) symlinkSync(join(ROOT, 'node_modules', name), join(modules, name))
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  return folder
}

t.test('a program in TypeScript', async (t) => {
  const folder = dependant(t)
  writeFileSync(join(folder, 'program.ts'), PROGRAM)
  const options = ['--target', 'es2022', '--lib', 'es2023,esnext.disposable', '--module', 'nodenext', '--strict']
  const compiled = run('npx', ['--prefix', ROOT, 'tsc', ...options, '--types', 'node', 'program.ts'], { cwd: folder })
  t.equal(compiled.code, 0, compiled.out)
  const { code, out, err } = run(process.execPath, ['program.js'], { cwd: folder })
  t.same([code, out, err], [0, 'all is well\n', ''])
  t.notOk(readdirSync(folder).includes('never.raw'))
})

t.test('the examples of the README', async (t) => {
  const folder = dependant(t)
  const readme = readFileSync(join(ROOT, 'README.md'), 'utf8')
  const section = readme.slice(readme.indexOf('## As a library'))
  const examples = [...section.matchAll(/```js\n(.*?)```/gs)].map(([, code]) => code!)
  t.ok(examples.length > 0)
  execFileSync(process.execPath, [join(ROOT, 'bin', 'vdiskfs.js'), 'create', '-q', '-f', 'vhdx', 'disk.vhdx', '64M'], {
    cwd: folder,
  })
  examples.forEach((code, i) => {
    writeFileSync(join(folder, `example${i}.js`), code)
    const { code: exit, err } = run(process.execPath, [`example${i}.js`], { cwd: folder })
    t.same([exit, err], [0, ''], `example ${i + 1}`)
  })
})
