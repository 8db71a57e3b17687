/** info, map and create, beside qemu-img: the same keys, the same facts. */

import {
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { CLI, must, run, vdiskfs, vdiskfsMust } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

const MiB = 1 << 20

/** 8 MiB with a hole, 64 KiB of data at 1 MiB and at 5 MiB. */
function sparse(path: string): string {
  writeFileSync(path, '')
  truncateSync(path, 8 * MiB)
  const fd = openSync(path, 'r+')
  for (const at of [MiB, 5 * MiB]) writeSync(fd, Buffer.alloc(65536, 0x5a), 0, 65536, at)
  closeSync(fd)
  return path
}

type Run = { start: number; length: number; zero: boolean; data: boolean; offset?: number }
const facts = ({ start, length, zero, data, offset }: Run) => ({ start, length, zero, data, offset })

t.test('map --json of a raw file is what qemu-img says', async (t) => {
  const image = sparse(join(temporaryFolder(t), 'i.raw'))
  const ours = JSON.parse(vdiskfsMust(['map', '--json', image])) as Run[]
  const theirs = JSON.parse(must('qemu-img', ['map', '-f', 'raw', '--output=json', image])) as Run[]
  t.same(ours.map(facts), theirs.map(facts))
  t.same(Object.keys(ours[0]!).sort(), ['data', 'depth', 'length', 'offset', 'present', 'start', 'zero'])
  t.equal(vdiskfsMust(['map', '--output=json', image]), vdiskfsMust(['map', '--json', image]))
})

t.test('map for people is what qemu-img prints', async (t) => {
  const image = sparse(join(temporaryFolder(t), 'i.raw'))
  t.equal(vdiskfsMust(['map', '-f', 'raw', image]), must('qemu-img', ['map', '-f', 'raw', image]))
})

t.test('map of a part', async (t) => {
  const image = sparse(join(temporaryFolder(t), 'i.raw'))
  const part = JSON.parse(vdiskfsMust(['map', '--json', '-s', '5M', '-l', '64K', image])) as Run[]
  t.same(part.map(facts), [{ start: 5 * MiB, length: 65536, zero: false, data: true, offset: 5 * MiB }])
  t.same(JSON.parse(vdiskfsMust(['map', '--json', '-s', '8M', image])), [], 'behind the end there is nothing')
})

t.test('info has the keys and figures of qemu-img', async (t) => {
  const image = sparse(join(temporaryFolder(t), 'i.raw'))
  const ours = JSON.parse(vdiskfsMust(['info', '--json', image]))
  const theirs = JSON.parse(must('qemu-img', ['info', '-f', 'raw', '--output=json', image]))
  for (const key of ['virtual-size', 'filename', 'format', 'actual-size']) t.equal(ours[key], theirs[key], key)
  const text = vdiskfsMust(['info', image])
  t.match(text, `image: ${image}\nfile format: raw\nvirtual size: 8 MiB (8388608 bytes)\ndisk size: 128 KiB\n`)
  t.same(JSON.parse(vdiskfsMust(['info', '--chain', '--json', image])), [ours], 'a chain is an array')
})

t.test('create makes what it was asked for, and says so', async (t) => {
  const folder = temporaryFolder(t)
  const image = join(folder, '1e3')
  t.equal(
    vdiskfsMust(['create', '-f', 'raw', '1e3', '3M'], { cwd: folder }),
    'created 1e3: raw, 3 MiB (3145728 bytes)\n',
  )
  t.equal(statSync(image).size, 3 * MiB)
  t.equal(vdiskfsMust(['create', '-q', '-f', 'raw', join(folder, 'q'), '512']), '')
  t.equal(statSync(join(folder, 'q')).size, 512)
})

t.test('create never touches what is there, and leaves nothing behind where it fails', async (t) => {
  const folder = temporaryFolder(t)
  const there = join(folder, 'there')
  writeFileSync(there, 'precious')
  const again = vdiskfs(['create', '-f', 'raw', there, '1M'])
  t.equal(again.code, 1)
  t.match(again.err, /there.*exists/)
  t.equal(readFileSync(there, 'utf8'), 'precious')
  for (const words of [['12Q'], [], ['1M', '-o', 'nonsense=1']]) {
    const made = join(folder, 'new')
    t.equal(vdiskfs(['create', '-f', 'raw', made, ...words]).code, 2, words.join(' '))
    t.notOk(existsSync(made))
  }
})

t.test('a reader that goes away ends it quietly', async (t) => {
  const image = join(temporaryFolder(t), 'i.raw')
  const fd = openSync(image, 'w')
  // More runs than a pipe holds lines.
  for (let i = 0; i < 4000; i++) writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, i * 8192)
  closeSync(fd)
  t.ok(vdiskfsMust(['map', '--json', image]).length > 200_000)
  const script = `"$1" "$2" map --json "$3" | head -n 1; echo "\${PIPESTATUS[0]}"`
  const { out, err } = run('bash', ['-c', script, 'bash', process.execPath, CLI, image])
  t.match(out, /^\[\{"start":0,.*\n0\n$/)
  t.equal(err, '')
})
