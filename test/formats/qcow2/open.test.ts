/** Opening: what QEMU makes is read; what cannot be, or must not be believed, is refused in one line. */

import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { imageInfo } from '../../../lib/image/info.js'
import { openImage } from '../../../lib/image/open.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { asQemuReads, KiB, MiB, patch, qemuCreate, qemuIo, readAll } from './images.js'

const open = (path: string, warnings: string[] = []) =>
  openImage(path, { readOnly: true, warn: (text) => warnings.push(text) }).close()

t.test('fields that cannot be', async (t) => {
  const folder = temporaryFolder(t)
  const cases: [string, number, number[], RegExp][] = [
    ['crypt method 3', 32, [0, 0, 0, 3], /crypt_method is 3/],
    ['an L1 table of 4 GiB', 36, [0x20, 0, 0, 0], /536870912 entries/],
    ['an L1 table that is too short', 36, [0, 0, 0, 0], /0 entries: a disk of 67108864 bytes needs 1/],
    ['an L1 table between clusters', 40, [0, 0, 0, 0, 0, 3, 0, 1], /L1 table is said to be at byte 196609/],
    ['a refcount table in the header', 48, [0, 0, 0, 0, 0, 0, 0, 0], /refcount table is said to be at byte 0/],
    ['a refcount table of 4 GiB', 56, [0, 1, 0, 0], /refcount table has 65536 clusters/],
    ['no refcount table', 56, [0, 0, 0, 0], /refcount table has 0 clusters/],
    ['65537 snapshots', 60, [0, 1, 0, 1], /65537 snapshots/],
    ['snapshots nowhere', 60, [0, 0, 0, 1], /table of snapshots is said to be at byte 0/],
    ['zstd without its bit', 104, [1], /compression type is 1/],
    ['the bit without zstd', 79, [8], /compression type is 0/],
    ['a raw data file and no data file', 95, [2], /has no data file/],
  ]
  const path = join(folder, 'i.qcow2')
  for (const [what, offset, bytes, message] of cases) {
    qemuCreate(folder, 'i.qcow2', 64 * MiB)
    patch(path, offset, bytes)
    t.throws(() => open(path), { code: 'CORRUPT', message, path }, what)
  }
})

t.test('features that are not known are named as the image names them', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB)
  patch(path, 72, [0, 0, 0, 1, 0, 0, 0, 0x20])
  const table = readFileSync(path).indexOf(Buffer.from([0x68, 0x03, 0xf8, 0x57]))
  const name = Buffer.alloc(48)
  name[1] = 5
  name.write('frobnication', 2)
  patch(path, table + 8, name)
  t.throws(() => open(path), { code: 'UNSUPPORTED', message: /'frobnication' \(bit 5\), number 32/ })
})

t.test('the corrupt bit', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB)
  patch(path, 79, [2])
  const warnings: string[] = []
  open(path, warnings)
  t.match(warnings, [/marked corrupt/])
  t.throws(() => openImage(path), { code: 'CORRUPT', message: /not opened for writing: it is marked corrupt/ })
  t.equal(imageInfo(path)['format-specific']?.data.corrupt, true)
})

t.test('65,536 snapshots that are said and not there', async (t) => {
  const folder = temporaryFolder(t)
  const path = qemuCreate(folder, 'i.qcow2', MiB)
  qemuIo(path, 'write -P 1 0 1M')
  patch(path, 60, [0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0])
  t.ok(
    readAll(path).every((byte) => byte === 1),
    'nobody asks for them',
  )
  t.throws(() => openImage(path, { snapshot: 'x' }), { code: /CORRUPT|NOT_FOUND/ })
  t.equal(imageInfo(path)['virtual-size'], MiB)
})

t.test('snapshots: of another size, and none', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', 2 * MiB)
  qemuIo(path, 'write -P 1 0 2M')
  must('qemu-img', ['snapshot', '-c', 'small', path])
  must('qemu-img', ['resize', '-q', path, '5M'])
  qemuIo(path, 'write -P 2 0 5M')
  t.equal(readAll(path).length, 5 * MiB)
  const small = readAll(path, { snapshot: 'small' })
  t.equal(small.length, 2 * MiB)
  t.ok(small.every((byte) => byte === 1))
  t.throws(() => openImage(path, { snapshot: 'large' }), { code: 'NOT_FOUND', message: /no snapshot 'large'/ })
  t.throws(() => openImage(path, { snapshot: 'small', readOnly: false }), { code: 'USAGE' })
})

t.test('names of backing files', async (t) => {
  const folder = temporaryFolder(t)
  const unsafe = (name: string, format = 'raw') => {
    qemuCreate(folder, 'i.qcow2', MiB, '', ['-u', '-b', name, '-F', format])
    return join(folder, 'i.qcow2')
  }
  for (const name of ['json:{"driver":"null-co"}', 'nbd://localhost/x', 'ssh:somewhere'])
    t.throws(
      () => open(unsafe(name)),
      { code: 'UNSUPPORTED', message: /backing file .* is given with '[a-z]+:'/ },
      name,
    )
  t.throws(() => open(unsafe('missing.raw')), { code: 'NOT_FOUND', message: /missing\.raw/ })
  writeFileSync(join(folder, 'base'), Buffer.alloc(MiB, 5))
  for (const [name, format] of [
    ['base', 'raw'],
    ['file:base', 'raw'],
    ['./base', 'file'],
    [join(folder, 'base'), 'raw'],
  ] as const)
    t.ok(
      readAll(unsafe(name, format)).every((byte) => byte === 5),
      `${name} ${format}`,
    )
  t.throws(() => open(unsafe('base', 'qcow2')), { code: 'FORMAT', message: /base/ }, 'a format that it is not')
  t.throws(() => open(unsafe('base', 'vmdk')), { message: /vmdk/ })
})

t.test('a backing file whose format is not said', async (t) => {
  const folder = temporaryFolder(t)
  writeFileSync(join(folder, 'base'), Buffer.alloc(MiB, 5))
  const path = qemuCreate(folder, 'i.qcow2', MiB, '', ['-u', '-b', 'base', '-F', 'raw'])
  // The extension becomes one that nobody knows.
  patch(path, readFileSync(path).indexOf(Buffer.from([0xe2, 0x79, 0x2a, 0xca])), [1, 2, 3, 4])
  const warnings: string[] = []
  open(path, warnings)
  t.match(warnings, [/does not say what format its backing file 'base' has: taken for raw/])
})

t.test('data files', async (t) => {
  const folder = temporaryFolder(t)
  const path = qemuCreate(folder, 'i.qcow2', MiB, `data_file=${join(folder, 'data.bin')}`)
  qemuIo(path, 'write -P 6 100k 100k')
  const theirs = asQemuReads(path)
  t.ok(readAll(path).equals(theirs))
  const moved = join(folder, 'elsewhere')
  mkdirSync(moved)
  for (const name of ['i.qcow2', 'data.bin']) renameSync(join(folder, name), join(moved, name))
  t.ok(readAll(join(moved, 'i.qcow2')).equals(theirs), 'moved together with the image')
  renameSync(join(moved, 'data.bin'), join(folder, 'other.bin'))
  t.throws(() => open(join(moved, 'i.qcow2')), { code: 'NOT_FOUND', message: /data\.bin/ })
})

t.test('tables that say what cannot be', async (t) => {
  const folder = temporaryFolder(t)
  const make = () => {
    const path = qemuCreate(folder, 'i.qcow2', MiB)
    qemuIo(path, 'write -P 1 0 64k')
    return path
  }
  const l1 = 3 * 65536
  const l2 = 4 * 65536
  for (const [what, offset, bytes, message] of [
    ['an L2 table between clusters', l1 + 6, [2, 0], /L1 entry at byte 196608 says byte 262656/],
    ['an L2 table behind the end', l1 + 2, [0xff, 0xff], /L1 entry/],
    ['data between clusters', l2 + 6, [2, 0], /L2 entry of cluster 0 of the disk says byte/],
    ['data beyond what a number can say', l2 + 1, [0xff], /L2 entry/],
  ] as const) {
    const path = make()
    patch(path, offset, bytes)
    t.throws(() => readAll(path), { code: 'CORRUPT', message }, what)
  }
  const path = make()
  patch(path, l2 + 2, [0x00, 0x01])
  t.ok(
    readAll(path).every((byte) => byte === 0),
    'data behind the end of the file reads as zeros',
  )
})

t.test('subclusters that are both allocated and zeros', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB, 'extended_l2=on')
  qemuIo(path, 'write -P 1 0 2k')
  t.ok(
    readAll(path)
      .subarray(0, 2 * KiB)
      .every((byte) => byte === 1),
  )
  patch(path, 4 * 65536 + 8, [0, 0, 0, 1])
  t.throws(() => readAll(path), { code: 'CORRUPT', message: /both allocated and zeros/ })
})

t.test('facts are those of qemu-img', async (t) => {
  const folder = temporaryFolder(t)
  for (const options of ['compat=0.10', 'lazy_refcounts=on,refcount_bits=8', 'extended_l2=on,compression_type=zstd']) {
    const path = qemuCreate(folder, 'i.qcow2', MiB, options)
    const theirs = JSON.parse(must('qemu-img', ['info', '--output=json', path]))
    const ours = imageInfo(path)
    t.equal(ours['virtual-size'], theirs['virtual-size'])
    t.match(ours['format-specific']?.data, theirs['format-specific'].data, options)
    t.equal(ours['format-specific']?.data['cluster-size'], theirs['cluster-size'])
  }
})
