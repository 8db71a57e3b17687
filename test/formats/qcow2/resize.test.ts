import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { parseOptions } from '../../../lib/formats/options.js'
import { checkImage as checkStorage } from '../../../lib/formats/qcow2/check.js'
import { qcow2 } from '../../../lib/formats/qcow2/format.js'
import { addBitmap } from '../../../lib/image/bitmaps.js'
import { checkImage } from '../../../lib/image/check.js'
import { layersOver, openImage, openStorages } from '../../../lib/image/open.js'
import { resizeImage, resizeLayer } from '../../../lib/image/resize.js'
import { createSnapshot } from '../../../lib/image/snapshots.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { Device } from '../../support/device.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { qemuCreate, qemuIo, secret } from './luks-images.js'
import {
  change,
  contextOf,
  create,
  differences,
  GiB,
  inMemory,
  io,
  KiB,
  layoutOf,
  MiB,
  qemuCheck,
  qemuInfo,
  toFile,
} from './tools.js'

const NONE = { below: () => 0, zeroBehind: () => {} }

/** Of this size, in order, and with these contents, for QEMU too. */
function expect(t: Test, path: string, size: number, ...reads: string[]): void {
  t.equal(qemuInfo(path)['virtual-size'], size)
  t.equal(qemuCheck(path).code, 0)
  t.same(checkImage(path).findings, [])
  t.same(differences(path, ...reads), [])
}

function write(path: string, offset: number, length: number, value: number): void {
  const disk = openImage(path)
  disk.write(new Uint8Array(length).fill(value), 0, length, offset)
  disk.close()
}

for (const options of ['cluster_size=64k', 'cluster_size=512', 'cluster_size=2M', 'extended_l2=on', 'compat=0.10'])
  t.test(`larger, smaller, larger: ${options}`, async (t) => {
    const path = join(temporaryFolder(t), 'image.qcow2')
    create(path, '3000k', options)
    io(path, 'write -P 1 0 3000k')
    t.same(resizeImage(path, { size: 37 * MiB, relative: true }), { before: 3000 * KiB, after: 3000 * KiB + 37 * MiB })
    expect(t, path, 3000 * KiB + 37 * MiB, 'read -P 1 0 3000k', 'read -P 0 3000k 37M')
    write(path, 30 * MiB, MiB, 2)
    resizeImage(path, { size: 2 * GiB })
    write(path, 2 * GiB - 4096, 4096, 3)
    expect(t, path, 2 * GiB, 'read -P 1 0 3000k', 'read -P 2 30M 1M', `read -P 3 ${2 * GiB - 4096} 4096`)
    t.throws(() => resizeImage(path, { size: MiB }), { code: 'USAGE', message: /--shrink/ })
    resizeImage(path, { size: 30 * MiB + 1024, shrink: true })
    expect(t, path, 30 * MiB + 1024, 'read -P 1 0 3000k', 'read -P 2 30M 1k')
    if (options !== 'cluster_size=2M') t.ok(statSync(path).size < 9 * MiB, 'the end of the file is cut off')
    resizeImage(path, { size: 40 * MiB })
    expect(
      t,
      path,
      40 * MiB,
      'read -P 1 0 3000k',
      'read -P 2 30M 1k',
      `read -P 0 ${30 * MiB + 1024} 1M`,
      'read -P 0 32M 8M',
    )
    must('qemu-img', ['resize', '-q', path, '50M'])
    expect(t, path, 50 * MiB, 'read -P 2 30M 1k')
    resizeImage(path, { size: 512, shrink: true })
    expect(t, path, 512, 'read -P 1 0 512')
  })

t.test('a backing file that is larger does not show in what is new', async (t) => {
  for (const options of ['cluster_size=64k', 'cluster_size=512', 'extended_l2=on', 'compat=0.10']) {
    const folder = temporaryFolder(t)
    const [base, path] = [join(folder, 'base.qcow2'), join(folder, 'image.qcow2')]
    create(base, '20M')
    io(base, 'write -P 9 0 20M')
    for (const written of [false, true]) {
      create(path, '10241k', options, '-b', base, '-F', 'qcow2')
      if (written) io(path, 'write -P 8 10240k 1k')
      resizeImage(path, { size: 30 * MiB })
      expect(
        t,
        path,
        30 * MiB,
        'read -P 9 0 10M',
        `read -P ${written ? 8 : 9} 10M 1k`,
        'read -P 0 10241k 9M',
        'read -P 0 19M 11M',
      )
      io(path, 'write -P 7 15M 100k')
      write(path, 18 * MiB, 100, 6)
      expect(t, path, 30 * MiB, 'read -P 7 15M 100k', `read -P 6 18M 100`, `read -P 0 ${18 * MiB + 100} 400`)
    }
  }
})

t.test('a snapshot keeps its size, and what the disk loses', async (t) => {
  for (const options of ['cluster_size=64k', 'cluster_size=4k']) {
    const path = join(temporaryFolder(t), 'image.qcow2')
    create(path, '10M', options)
    io(path, 'write -P 1 0 10M')
    createSnapshot(path, 'one')
    resizeImage(path, { size: 5 * MiB + 512, shrink: true })
    expect(t, path, 5 * MiB + 512, `read -P 1 0 ${5 * MiB + 512}`)
    resizeImage(path, { size: 20 * MiB })
    expect(t, path, 20 * MiB, `read -P 1 0 ${5 * MiB + 512}`, `read -P 0 ${5 * MiB + 512} 10M`)
    must('qemu-img', ['snapshot', '-a', 'one', path])
    expect(t, path, 10 * MiB, 'read -P 1 0 10M')
  }
  const old = join(temporaryFolder(t), 'image.qcow2')
  create(old, '10M', 'compat=0.10')
  must('qemu-img', ['snapshot', '-c', 'one', old])
  t.throws(() => resizeImage(old, { size: 20 * MiB }), { code: 'UNSUPPORTED', message: /version 2 with snapshots/ })
})

t.test('what a compressed last cluster holds behind the end', async (t) => {
  const folder = temporaryFolder(t)
  const [raw, path] = [join(folder, 'raw'), join(folder, 'image.qcow2')]
  writeFileSync(raw, Buffer.alloc(200 * KiB, 5))
  must('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', raw, path])
  resizeImage(path, { size: 150 * KiB, shrink: true })
  resizeImage(path, { size: MiB })
  expect(t, path, MiB, 'read -P 5 0 150k', 'read -P 0 150k 874k')
})

t.test('an encrypted image whose last cluster is cut: zeros with the key, or nothing is changed', async (t) => {
  for (const format of ['aes', 'luks']) {
    const path = join(temporaryFolder(t), 'image.qcow2')
    qemuCreate(path, '150k', [`encrypt.format=${format}`])
    qemuIo(path, 'write -P 5 0 150k')
    addBitmap(path, 'b', undefined)
    const before = readFileSync(path)
    t.throws(() => resizeImage(path, { size: MiB }), { code: 'ACCESS', message: /--secret/ })
    t.ok(readFileSync(path).equals(before))
    resizeImage(path, { size: MiB, secret })
    qemuIo(path, 'read -P 5 0 150k', 'read -P 0 150k 874k')
    t.equal(checkImage(path).corruptions, 0)
  }
})

t.test('a data file has the size of the disk', async (t) => {
  for (const raw of ['on', 'off']) {
    const folder = temporaryFolder(t)
    const [data, path] = [join(folder, 'data'), join(folder, 'image.qcow2')]
    create(path, '3000k', `data_file=${data},data_file_raw=${raw}`)
    io(path, 'write -P 1 0 3000k')
    // What is behind the end of the disk is nobody's.
    truncateSync(data, 3100 * KiB)
    resizeImage(path, { size: 10 * MiB })
    t.equal(statSync(data).size, 10 * MiB)
    expect(t, path, 10 * MiB, 'read -P 1 0 3000k', 'read -P 0 3000k 7000k')
    io(path, 'write -P 2 9M 1M')
    t.ok(
      readFileSync(data)
        .subarray(9 * MiB)
        .every((byte) => byte === 2),
    )
    resizeImage(path, { size: 2 * MiB, shrink: true })
    t.equal(statSync(data).size, 2 * MiB)
    expect(t, path, 2 * MiB, 'read -P 1 0 2M')
  }
})

t.test('a data file that is a block device keeps its size', async (t) => {
  for (const raw of ['on', 'off']) {
    const folder = temporaryFolder(t)
    const [data, path] = [join(folder, 'data'), join(folder, 'image.qcow2')]
    create(path, '3000k', `data_file=${data},data_file_raw=${raw}`)
    io(path, 'write -P 1 0 3000k')
    const storage = inMemory(path)
    const device = new Device(MemoryStorage.create({ path: '/dev/x', contents: readFileSync(data) }), 8 * MiB)
    const resize = (size: number) => {
      const openFile = () => ({ index: 1, storage: device })
      const { layout } = qcow2.open({ ...contextOf(storage, false), openFile })
      qcow2.resize!(layout, [storage, device], size, NONE)
      toFile(storage, path)
      toFile(device, data)
    }
    const before = readFileSync(path)
    t.throws(() => resize(9 * MiB), { code: 'NO_SPACE', message: /^.dev.x: .* of 8388608 bytes: expected 9437184/ })
    t.ok(readFileSync(path).equals(before))
    resize(5 * MiB)
    t.equal(readFileSync(data).length, 8 * MiB)
    t.ok(readFileSync(data)[6 * MiB] === 0x5a, 'behind the disk nothing is changed')
    expect(t, path, 5 * MiB, 'read -P 1 0 3000k', 'read -P 0 3000k 2120k')
    resize(MiB)
    expect(t, path, MiB, 'read -P 1 0 1M')
    resize(2 * MiB)
    expect(t, path, 2 * MiB, 'read -P 1 0 1M', 'read -P 0 1M 1M')
    t.equal(readFileSync(data).length, 8 * MiB)
  }
})

t.test('what lies behind the end of the disk in the L1 table does not become a part of it', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '1M', 'cluster_size=4k')
  io(path, 'write -P 1 0 1M')
  // The state of a machine: a second entry, whose table has the same clusters.
  const end = readFileSync(path).length
  writeFileSync(path, Buffer.concat([readFileSync(path), Buffer.alloc(8192)]))
  change(path, (b) => {
    b.set32(36, 2)
      .set64(b.l1 + 8, BigInt(end) | (1n << 63n))
      .set64(end, BigInt(end + 4096) | (1n << 63n))
    b.set16(b.refcountOf(end), 1).set16(b.refcountOf(end + 4096), 1)
    b.bytes.fill(7, end + 4096)
  })
  t.equal(qemuCheck(path).code, 0)
  resizeImage(path, { size: 8 * MiB })
  expect(t, path, 8 * MiB, 'read -P 1 0 1M', 'read -P 0 1M 7M')
})

t.test('sizes that there cannot be', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '1M', 'cluster_size=512')
  t.throws(() => resizeImage(path, { size: 129 * GiB }), { code: 'USAGE', message: /too large/ })
  t.equal(resizeImage(path, { size: 2 * MiB + 1 }).after, 2 * MiB + 512)
  t.equal(qemuInfo(path)['virtual-size'], 2 * MiB + 512, 'whole sectors')
})

t.test('crashes while the size changes: the old size or the new one, and all its data', async (t) => {
  for (const [options, after] of [
    ['cluster_size=4k', 5 * MiB],
    ['cluster_size=512', 5 * MiB],
    ['cluster_size=4k,compat=0.10', 5 * MiB],
    ['cluster_size=4k', 700 * KiB],
    ['cluster_size=512', 700 * KiB],
  ] as const) {
    const path = join(temporaryFolder(t), 'image.qcow2')
    create(path, '1025k', options)
    io(path, 'write -P 7 0 1025k')
    const memory = inMemory(path)
    const recorder = new Recorder()
    const recording = recorder.record(memory)
    qcow2.resize!(layoutOf(recording), [recording], after, NONE)
    toFile(memory, path)
    t.equal(qemuCheck(path).code, 0)
    const random = randomFrom(3)
    const sizes = new Set<number>()
    const wrong: string[] = []
    const expected = Buffer.alloc(5 * MiB)
    expected.fill(7, 0, 1025 * KiB)
    for (let i = 0; i < 3 * recorder.length; i++) {
      const moment = i <= recorder.length ? i : Math.floor(random() * (recorder.length + 1))
      const [crashed] =
        i <= recorder.length ? recorder.prefix(moment) : recorder.crash(moment, Math.floor(random() * 2 ** 31), 512)
      checkStorage(crashed!, {
        repair: 'none',
        found: ({ what, message }) => {
          if (what === 'refcount' || /COPIED is set/.test(message)) wrong.push(`${moment}: ${message}`)
        },
      })
      // Opening mends.
      const disk = openStorages([crashed!], { readOnly: i % 2 === 0 })
      sizes.add(disk.size)
      const bytes = new Uint8Array(disk.size)
      disk.read(bytes, 0, bytes.length, 0)
      disk.close()
      if (!expected.subarray(0, bytes.length).equals(bytes)) wrong.push(`${moment}: other data`)
    }
    t.same(wrong, [], options)
    t.same(sizes, new Set([1025 * KiB, after]), options)
  }
})

t.test('a device that ends inside of the last cluster: the disk does not grow over what is not there', async (t) => {
  const memory = MemoryStorage.create({ path: 'image' })
  const options = parseOptions('qcow2', qcow2.createOptions, [])
  qcow2.create({ storage: memory, path: '/image', size: 68 * KiB, options, backing: undefined })
  const disk = openStorages([memory])
  disk.write(Uint8Array.of(1), 0, 1, 0)
  disk.write(new Uint8Array(4 * KiB).fill(1), 0, 4 * KiB, 64 * KiB)
  // Room for a new table.
  disk.zero(0, 64 * KiB, true)
  const { offset } = disk.map(64 * KiB, 1)
  disk.finish()
  memory.truncate(offset! + 8 * KiB)
  const device = new Device(memory)
  const resize = (size: number) => {
    const [layer] = layersOver([device])
    resizeLayer(layer!, size, () => [])
  }
  t.throws(() => resize(80 * KiB), { code: 'NO_SPACE', message: /last cluster/ })
  t.equal(layersOver([device])[0]!.opened.size, 68 * KiB)
  resize(72 * KiB)
  const larger = openStorages([device])
  larger.write(new Uint8Array(4 * KiB).fill(2), 0, 4 * KiB, 68 * KiB)
  larger.flush()
  larger.finish()
})
