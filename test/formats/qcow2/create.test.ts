/** New images, judged by qemu-img. */

import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { convert } from '../../../lib/image/convert/convert.js'
import { createImage } from '../../../lib/image/create.js'
import { openImage } from '../../../lib/image/open.js'
import { mountDevice, needsMounts } from '../../support/mounts.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { asQemuReads, KiB, MiB, qemuCheck, readAll } from './images.js'

const GiB = 1024 * MiB
const info = (path: string) => JSON.parse(must('qemu-img', ['info', '--output=json', path]))

t.test('options', async (t) => {
  const folder = temporaryFolder(t)
  const cases: [string[], number, object][] = [
    [[], 10 * GiB, { 'cluster-size': 65536, 'format-specific': { data: { compat: '1.1', 'refcount-bits': 16 } } }],
    [['compat=0.10'], MiB, { 'format-specific': { data: { compat: '0.10' } } }],
    [['compat=v2'], MiB, { 'format-specific': { data: { compat: '0.10' } } }],
    [['compat=v3', 'cluster_size=512'], 100 * MiB, { 'cluster-size': 512 }],
    [['cluster_size=2M'], 64 * GiB, { 'cluster-size': 2 * MiB }],
    [['lazy_refcounts=on'], MiB, { 'format-specific': { data: { 'lazy-refcounts': true } } }],
    [['refcount_bits=1'], MiB, { 'format-specific': { data: { 'refcount-bits': 1 } } }],
    [['refcount_bits=64', 'cluster_size=4K'], GiB, { 'format-specific': { data: { 'refcount-bits': 64 } } }],
    [['extended_l2=on'], MiB, { 'format-specific': { data: { 'extended-l2': true } } }],
    [['compression_type=zstd'], MiB, { 'format-specific': { data: { 'compression-type': 'zstd' } } }],
    [[], 0, {}],
    [[], 1000, {}],
  ]
  for (const [i, [options, size, expected]] of cases.entries()) {
    const path = join(folder, `${i}.qcow2`)
    createImage(path, { format: 'qcow2', size, options })
    t.match(info(path), { 'virtual-size': Math.ceil(size / 512) * 512, ...expected }, options.join(' '))
    qemuCheck(path)
  }
})

t.test('preallocation', async (t) => {
  const folder = temporaryFolder(t)
  for (const kind of ['metadata', 'falloc', 'full'])
    for (const more of [
      [],
      ['cluster_size=512'],
      ['extended_l2=on', 'refcount_bits=1'],
      ['refcount_bits=64', 'cluster_size=8K'],
    ]) {
      const path = join(folder, `${kind}-${more.join('-')}.qcow2`)
      createImage(path, { format: 'qcow2', size: 3 * MiB + 512, options: [`preallocation=${kind}`, ...more] })
      qemuCheck(path)
      const map = JSON.parse(must('qemu-img', ['map', '--output=json', path]))
      t.ok(
        map.every(({ offset }: { offset?: number }) => offset !== undefined),
        'every cluster has its place',
      )
      t.ok(readAll(path).every((byte) => byte === 0))
      const used = 512 * statSync(path).blocks
      t.ok(
        kind === 'metadata' ? used < 2 * MiB : used > 3 * MiB,
        `${kind} ${more.join(' ')}: ${used} bytes on the host`,
      )
      const { size } = statSync(path)
      const image = openImage(path)
      image.write(Buffer.alloc(MiB, 7), 0, MiB, MiB)
      image.close()
      qemuCheck(path)
      t.equal(statSync(path).size, size, 'nothing is allocated any more')
    }
})

t.test('what does not go together', async (t) => {
  const folder = temporaryFolder(t)
  const base = join(folder, 'base.qcow2')
  createImage(base, { format: 'qcow2', size: MiB })
  const cases: [string[], number, RegExp][] = [
    [['cluster_size=3000'], MiB, /power of two/],
    [['cluster_size=256'], MiB, /at least 512/],
    [['cluster_size=4M'], MiB, /at most/],
    [['refcount_bits=3'], MiB, /power of two/],
    [['compat=0.10', 'refcount_bits=8'], MiB, /refcount_bits other than 16 needs compat=1.1/],
    [['compat=0.10', 'lazy_refcounts=on'], MiB, /lazy_refcounts needs/],
    [['compat=0.10', 'extended_l2=on'], MiB, /extended_l2 needs/],
    [['compat=0.10', 'compression_type=zstd'], MiB, /compression_type needs/],
    [['extended_l2=on', 'cluster_size=8K'], MiB, /at least 16K/],
    [['data_file_raw=on'], MiB, /needs data_file/],
    [['cluster_size=512'], 200 * GiB, /too large for clusters of 512 bytes/],
  ]
  for (const [options, size, message] of cases) {
    const path = join(folder, 'i.qcow2')
    t.throws(() => createImage(path, { format: 'qcow2', size, options }), { code: 'USAGE', message }, options.join(' '))
    t.notOk(existsSync(path), 'nothing is left behind')
  }
  const over = { format: 'qcow2', size: MiB, backing: base, options: ['preallocation=metadata'] }
  t.throws(() => createImage(join(folder, 'i.qcow2'), over), { code: 'USAGE', message: /backing file/ })
  createImage(join(folder, 'i.qcow2'), { ...over, options: ['preallocation=metadata', 'extended_l2=on'] })
  qemuCheck(join(folder, 'i.qcow2'))
})

t.test('a chain can be moved', async (t) => {
  const folder = temporaryFolder(t)
  const old = join(folder, 'old')
  mkdirSync(join(old, 'deep'), { recursive: true })
  const base = join(old, 'deep', 'base.vhd')
  createImage(base, { format: 'vhd', size: 2 * MiB })
  const disk = openImage(base)
  disk.write(Buffer.alloc(MiB, 9), 0, MiB, 0)
  disk.close()
  createImage(join(old, 'a:b.qcow2'), { format: 'qcow2', backing: base })
  createImage(join(old, 'top.qcow2'), { format: 'qcow2', backing: join(old, 'a:b.qcow2'), size: 3 * MiB })
  t.match(info(join(old, 'top.qcow2')), { 'backing-filename': './a:b.qcow2', 'backing-filename-format': 'qcow2' })
  t.match(info(join(old, 'a:b.qcow2')), { 'backing-filename': 'deep/base.vhd', 'backing-filename-format': 'vpc' })
  renameSync(old, join(folder, 'new'))
  const bytes = readAll(join(folder, 'new', 'top.qcow2'))
  t.equal(bytes.length, 3 * MiB)
  t.ok(bytes.subarray(0, MiB).every((byte) => byte === 9))
  t.ok(asQemuReads(join(folder, 'new', 'top.qcow2')).equals(bytes))
  createImage(join(folder, 'apart.qcow2'), { format: 'qcow2', backing: join(folder, 'new', 'top.qcow2') })
  t.equal(info(join(folder, 'apart.qcow2'))['backing-filename'], 'new/top.qcow2')
  mkdirSync(join(folder, 'side'))
  createImage(join(folder, 'side', 'up.qcow2'), { format: 'qcow2', backing: join(folder, 'apart.qcow2') })
  t.equal(info(join(folder, 'side', 'up.qcow2'))['backing-filename'], join(folder, 'apart.qcow2'))
})

t.test('preallocation of a raw data file', async (t) => {
  const folder = temporaryFolder(t)
  for (const kind of ['off', 'metadata', 'falloc', 'full']) {
    const data = join(folder, `${kind}.raw`)
    const options = [`data_file=${data}`, 'data_file_raw=on', `preallocation=${kind}`]
    createImage(join(folder, `${kind}.qcow2`), { format: 'qcow2', size: 3 * MiB, options })
    qemuCheck(join(folder, `${kind}.qcow2`))
    const { size, blocks } = statSync(data)
    t.equal(size, 3 * MiB)
    t.equal(512 * blocks >= size, kind === 'falloc' || kind === 'full', kind)
  }
})

t.test('what fails leaves no data file that it made, and one that was there', needsMounts, async (t) => {
  const folder = mountDevice(t, 'tmpfs', ['-t', 'tmpfs', '-o', 'size=4M'])
  const image = join(folder, 'image.qcow2')
  const data = join(folder, 'data')
  const fails = (code: string) => {
    const options = [`data_file=${data}`, 'preallocation=full']
    t.throws(() => createImage(image, { format: 'qcow2', size: 16 * MiB, options }), { code })
    t.notOk(existsSync(image))
  }
  fails('NO_SPACE')
  t.notOk(existsSync(data))
  writeFileSync(data, 'something else')
  fails('EXISTS')
  t.equal(readFileSync(data, 'utf8'), 'something else')
  rmSync(data)
  const source = join(temporaryFolder(t), 'source.raw')
  writeFileSync(source, Buffer.alloc(8 * MiB, 1))
  await t.rejects(convert(source, image, { format: 'qcow2', options: [`data_file=${data}`] }), { code: 'NO_SPACE' })
  const full = { format: 'qcow2', options: [`data_file=${data}`, 'preallocation=full'] }
  await t.rejects(convert(source, image, full), { code: 'NO_SPACE' })
  t.same(readdirSync(folder), [])
})

t.test('data files', async (t) => {
  const folder = temporaryFolder(t)
  for (const raw of ['on', 'off']) {
    const path = join(folder, `${raw}.qcow2`)
    const data = join(folder, `${raw}.bin`)
    const options = [`data_file=${data}`, `data_file_raw=${raw}`]
    createImage(path, { format: 'qcow2', size: MiB, options })
    t.match(info(path)['format-specific'].data, { 'data-file': data, 'data-file-raw': raw === 'on' })
    qemuCheck(path)
    const image = openImage(path)
    image.write(Buffer.alloc(300 * KiB, 8), 0, 300 * KiB, 100)
    image.close()
    qemuCheck(path)
    if (raw === 'on') t.ok(readFileSync(data).equals(asQemuReads(path)))
    t.throws(
      () => createImage(`${path}2`, { format: 'qcow2', size: MiB, options }),
      { code: 'EXISTS' },
      'never over one',
    )
  }
})
