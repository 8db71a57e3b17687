/** Images that QEMU made, changed here at random: QEMU finds them in order, and reads what they should hold. */

import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createImage } from '../../../lib/image/create.js'
import { Image } from '../../../lib/image/image.js'
import { openImage, openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { Device } from '../../support/device.js'
import { attachLoop, needsMounts } from '../../support/mounts.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { asQemuReads, change, KiB, MiB, patch, qemuCheck, qemuCreate, qemuIo, readAll, scribble } from './images.js'

const KINDS = [
  'cluster_size=64k',
  'cluster_size=512',
  'cluster_size=2M',
  'compat=0.10,cluster_size=4k',
  ...[1, 2, 4, 8, 32, 64].map((bits) => `cluster_size=1k,refcount_bits=${bits}`),
  'extended_l2=on,cluster_size=16k',
  'extended_l2=on,cluster_size=128k',
  'lazy_refcounts=on,cluster_size=8k',
  'preallocation=metadata,cluster_size=4k',
  'preallocation=metadata,extended_l2=on,cluster_size=16k',
]

for (const options of KINDS)
  t.test(`an image of qemu-img, ${options}`, async (t) => {
    const size = 5 * MiB + 512
    const path = qemuCreate(temporaryFolder(t), 'i.qcow2', size, options)
    qemuIo(path, 'write -P 7 0 1M', 'write -P 8 2000k 300k', 'write -z 512k 128k', 'discard 128k 256k')
    const model = asQemuReads(path)
    t.ok(readAll(path).equals(model), 'read')
    const random = randomFrom(5)
    for (let life = 0; life < 3; life++) {
      scribble(path, model, 60, random)
      qemuCheck(path)
      t.ok(readAll(path).equals(model), 'what is read here')
      t.ok(asQemuReads(path).equals(model), 'what QEMU reads')
    }
    qemuIo(path, 'write -P 9 100k 2M', 'write -z 3M 1M')
    qemuCheck(path)
  })

for (const options of [
  'cluster_size=64k',
  'cluster_size=1k',
  'compat=0.10,cluster_size=4k',
  'extended_l2=on,cluster_size=16k',
])
  t.test(`snapshots share what is written, ${options}`, async (t) => {
    const size = 4 * MiB
    const path = qemuCreate(temporaryFolder(t), 'i.qcow2', size, options)
    qemuIo(path, 'write -P 1 0 4M')
    const states: Buffer[] = []
    const model = asQemuReads(path)
    const random = randomFrom(6)
    for (const name of ['one', 'two']) {
      must('qemu-img', ['snapshot', '-c', name, path])
      states.push(Buffer.from(model))
      scribble(path, model, 50, random)
      qemuCheck(path)
    }
    t.ok(asQemuReads(path).equals(model), 'the newest state')
    for (const [i, name] of ['one', 'two'].entries()) {
      t.ok(asQemuReads(path, name).equals(states[i]!), `snapshot ${name} is as it was`)
      t.ok(readAll(path, { snapshot: name }).equals(states[i]!), 'by its name')
      t.ok(readAll(path, { snapshot: String(i + 1) }).equals(states[i]!), 'by its id')
    }
    for (const name of ['one', 'two']) must('qemu-img', ['snapshot', '-d', name, path])
    qemuCheck(path)
    t.ok(readAll(path).equals(model), 'when they are gone')
  })

t.test('compressed clusters are replaced, and what they shared is counted down', async (t) => {
  for (const type of ['zlib', 'zstd']) {
    const folder = temporaryFolder(t)
    const source = qemuCreate(folder, 's.qcow2', 4 * MiB, 'cluster_size=16k')
    qemuIo(source, 'write -P 3 0 3M', 'write -P 0 1M 64k')
    const path = join(folder, 'c.qcow2')
    const options = `cluster_size=16k,compression_type=${type}`
    must('qemu-img', ['convert', '-c', '-f', 'qcow2', '-O', 'qcow2', '-o', options, source, path])
    const model = asQemuReads(path)
    t.ok(readAll(path).equals(model), 'read')
    const before = readFileSync(path)
    const random = randomFrom(7)
    for (let life = 0; life < 3; life++) {
      scribble(path, model, 25, random)
      qemuCheck(path)
      t.ok(asQemuReads(path).equals(model))
    }
    t.notOk(readFileSync(path).equals(before))
  }
})

t.test('overlays: of a longer and of a shorter backing file', async (t) => {
  for (const options of ['cluster_size=64k', 'extended_l2=on,cluster_size=32k', 'compat=0.10,cluster_size=2k'])
    for (const below of [3 * MiB + 512, 6 * MiB]) {
      const folder = temporaryFolder(t)
      const base = qemuCreate(folder, 'base.qcow2', below, 'cluster_size=8k')
      qemuIo(base, `write -P 5 0 ${below}`)
      const path = qemuCreate(folder, 'top.qcow2', 4 * MiB, options, ['-b', 'base.qcow2', '-F', 'qcow2'])
      const model = asQemuReads(path)
      const before = readFileSync(base)
      t.ok(readAll(path).equals(model))
      scribble(path, model, 80, randomFrom(8))
      qemuCheck(path)
      t.ok(asQemuReads(path).equals(model), `${options} over ${below}`)
      t.ok(readFileSync(base).equals(before), 'the backing file is left alone')
    }
})

t.test('external data files, raw and not', async (t) => {
  for (const raw of ['off', 'on'])
    for (const more of ['', ',extended_l2=on']) {
      const folder = temporaryFolder(t)
      const data = join(folder, 'data.bin')
      const path = qemuCreate(folder, 'i.qcow2', 3 * MiB, `data_file=${data},data_file_raw=${raw}${more}`)
      const model = Buffer.alloc(3 * MiB)
      scribble(path, model, 80, randomFrom(9))
      qemuCheck(path)
      t.ok(asQemuReads(path).equals(model), `raw ${raw}${more}`)
      t.ok(readAll(path).equals(model))
      if (raw === 'on') t.ok(readFileSync(data).equals(model), 'the data file is the disk')
    }
})

t.test('zeros take no space, and freed clusters are used again', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', 32 * MiB)
  const model = Buffer.alloc(32 * MiB)
  const image = openImage(path)
  const data = Buffer.alloc(16 * MiB, 1)
  image.write(data, 0, data.length, 0)
  image.flush()
  const full = image.allocated()
  image.zero(0, 16 * MiB, true)
  image.flush()
  t.ok(image.allocated() < full - 15 * MiB, 'punched')
  const { size } = statSync(path)
  image.write(data, 0, 8 * MiB, 20 * MiB)
  model.fill(1, 20 * MiB, 28 * MiB)
  image.flush()
  t.equal(statSync(path).size, size, 'used again')
  image.close()
  qemuCheck(path)
  t.ok(statSync(path).size < 18 * MiB, 'the end is cut off as far as it is free')
  t.ok(asQemuReads(path).equals(model))
  // Gaps that an earlier session has left are found.
  const again = openImage(path)
  again.write(data, 0, 7 * MiB, 0)
  model.fill(1, 0, 7 * MiB)
  again.close()
  qemuCheck(path)
  t.ok(statSync(path).size < 18 * MiB)
  t.ok(asQemuReads(path).equals(model))
})

t.test('the refcount table grows', async (t) => {
  const folder = temporaryFolder(t)
  for (const [options, size] of [
    ['cluster_size=512,refcount_bits=64', 6 * MiB],
    ['cluster_size=512', 24 * MiB],
    ['cluster_size=1k,refcount_bits=32', 40 * MiB],
  ] as const) {
    const path = qemuCreate(folder, `${options}.qcow2`, size, options)
    const before = readFileSync(path).readUInt32BE(56)
    const image = openImage(path)
    const data = Buffer.alloc(size, 0x5a)
    for (let at = 0; at < size; at += 3 * MiB) {
      const n = Math.min(3 * MiB, size - at)
      image.write(data, 0, n, at)
      if (at % (6 * MiB) === 0) image.flush()
    }
    image.close()
    t.ok(readFileSync(path).readUInt32BE(56) > before, 'it has')
    qemuCheck(path)
    t.ok(asQemuReads(path).equals(data))
  }
})

t.test('a file that ends inside of its last cluster', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB)
  qemuIo(path, 'write -P 4 0 64k')
  const { size } = statSync(path)
  must('truncate', ['-s', String(size - 60_000), path])
  const model = Buffer.alloc(MiB)
  model.fill(4, 0, 65536 - 60_000)
  t.ok(readAll(path).equals(model), 'what is not there reads as zeros')
  scribble(path, model, 30, randomFrom(3))
  qemuCheck(path)
  t.ok(asQemuReads(path).equals(model))
})

t.test('a device that ends inside of the last cluster: nothing else is put there', async (t) => {
  const folder = temporaryFolder(t)
  const path = qemuCreate(folder, 'i.qcow2', 1024 * MiB)
  qemuIo(path, 'write -P 4 0 64k')
  const contents = readFileSync(path)
  const memory = MemoryStorage.create({ contents: contents.subarray(0, contents.length - 60_000) })
  const disk = openStorages([new Device(memory)])
  disk.zero(0, 65536, true)
  disk.flush()
  // The table of another part of the disk would come there, and no commit could write it.
  t.throws(() => disk.write(Buffer.alloc(10, 5), 0, 10, 1023 * MiB), { code: 'NO_SPACE' })
  disk.write(Buffer.alloc(1000, 7), 0, 1000, 0)
  disk.flush()
  const found = Buffer.alloc(1024)
  disk.read(found, 0, 1024, 0)
  t.ok(found.equals(Buffer.concat([Buffer.alloc(1000, 7), Buffer.alloc(24)])))
  disk.close()
  const bytes = new Uint8Array(memory.size())
  memory.read(bytes, 0, bytes.length, 0)
  writeFileSync(path, bytes)
  qemuCheck(path)
})

t.test('autoclear bits that are not known go with the first write, and not before', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB)
  const autoclear = () => [...readFileSync(path).subarray(88, 96)]
  patch(path, 88, [0x80, 0, 0, 0, 0, 0, 0, 0x04])
  openImage(path).close()
  t.same(autoclear(), [0x80, 0, 0, 0, 0, 0, 0, 0x04])
  const image = openImage(path)
  image.write(Uint8Array.of(1), 0, 1, 0)
  t.same(autoclear(), [0, 0, 0, 0, 0, 0, 0, 0], 'cleared at once')
  image.close()
  qemuCheck(path)
})

t.test('lazy refcounts: the dirty bit while it is written, and no more', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB, 'lazy_refcounts=on')
  const dirty = () => readFileSync(path)[79]
  const image = openImage(path)
  t.equal(dirty(), 0)
  image.write(Uint8Array.of(1), 0, 1, 0)
  t.equal(dirty(), 1)
  image.close()
  t.equal(dirty(), 0)
  qemuCheck(path)
  patch(path, 79, [1])
  const warnings: string[] = []
  openImage(path, { warn: (text) => warnings.push(text) }).close()
  t.match(warnings, [/left in use/])
  t.equal(dirty(), 0, 'an image that was left so is mended')
})

t.test('refcounts that call a table free stop the first write', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB)
  // The block is the third cluster, the L1 table the fourth.
  patch(path, 2 * 65536 + 2 * 3, [0, 0])
  const image = openImage(path)
  const before = readFileSync(path)
  t.throws(() => image.write(Uint8Array.of(1), 0, 1, 0), { code: 'CORRUPT', message: /L1 table free/ })
  image.close()
  t.ok(readFileSync(path).equals(before))
})

t.test('many small holes are freed and forgotten by nobody', async (t) => {
  const path = join(temporaryFolder(t), 'i.qcow2')
  const size = 48 * MiB
  createImage(path, { format: 'qcow2', size, options: ['cluster_size=512'] })
  const model = Buffer.alloc(size, 6)
  const image = openImage(path)
  image.write(model, 0, size, 0)
  // More ranges than the list of freed space can hold.
  for (let at = 0; at < size; at += 1024) {
    image.zero(at, 512, true)
    model.fill(0, at, at + 512)
  }
  image.close()
  qemuCheck(path)
  t.ok(readAll(path).equals(model))
})

t.test('threads allocate, free and copy side by side', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', 4 * MiB, 'cluster_size=2k')
  qemuIo(path, 'write -P 1 0 4M')
  must('qemu-img', ['snapshot', '-c', 's', path])
  const model = asQemuReads(path)
  const image = openImage(path, { threads: 2 })
  const other = Image.attach(image.handle(), 1)
  const random = randomFrom(11)
  for (let i = 0; i < 300; i++) change(i % 2 === 0 ? image : other, model, random)
  image.close()
  qemuCheck(path)
  t.ok(asQemuReads(path).equals(model))
  t.ok(readAll(path, { snapshot: 's' }).every((byte) => byte === 1))
})

t.test('a cache that is much smaller than the tables', async (t) => {
  const path = qemuCreate(temporaryFolder(t), 'i.qcow2', 64 * MiB, 'cluster_size=512')
  const model = Buffer.alloc(64 * MiB)
  const random = randomFrom(12)
  const image = openImage(path, { cacheSize: MiB })
  for (let i = 0; i < 400; i++) {
    const offset = Math.floor(random() * (model.length - 9 * KiB))
    const data = Buffer.alloc(9 * KiB, i + 1)
    image.write(data, 0, data.length, offset)
    data.copy(model, offset)
  }
  image.close()
  qemuCheck(path)
  t.ok(asQemuReads(path).equals(model))
})

t.test('entries that refer to tables stop writing, and mark the image', async (t) => {
  const l1 = 3 * 65536
  const l2 = 4 * 65536
  for (const [what, offset, bytes] of [
    ['data in the L1 table', l2, [0x80, 0, 0, 0, 0, 3, 0, 0]],
    ['data in the refcount table', l2, [0x80, 0, 0, 0, 0, 1, 0, 0]],
    ['the refcount table as an L2 table', l1, [0x80, 0, 0, 0, 0, 1, 0, 0]],
  ] as const) {
    const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB)
    qemuIo(path, 'write -P 1 0 128k')
    patch(path, offset, bytes)
    const before = readFileSync(path)
    const image = openImage(path)
    t.throws(() => image.write(Uint8Array.of(1), 0, 1, 0), { code: 'CORRUPT', message: /--repair all/ }, what)
    image.close()
    before[79] = 2
    t.ok(readFileSync(path).equals(before), 'nothing but the corrupt bit')
    t.throws(() => openImage(path), { message: /marked corrupt/ })
  }
})

t.test('what refers to tables is never freed with them', async (t) => {
  for (const [what, host] of [
    ['the L1 table', 3],
    ['the refcount block', 2],
  ] as const)
    for (const flag of [0x80, 0]) {
      const path = qemuCreate(temporaryFolder(t), 'i.qcow2', MiB)
      qemuIo(path, 'write -P 1 0 128k')
      patch(path, 4 * 65536, [flag, 0, 0, 0, 0, host, 0, 0])
      const image = openImage(path)
      image.zero(0, 65536, true)
      image.write(Buffer.alloc(MiB / 2, 3), 0, MiB / 2, MiB / 2)
      image.close()
      const bytes = readAll(path)
      t.ok(
        bytes.subarray(65536, 131072).every((byte) => byte === 1),
        what,
      )
      t.ok(bytes.subarray(MiB / 2).every((byte) => byte === 3))
      const there = readFileSync(path).subarray(host * 65536, host * 65536 + 8)
      t.ok(
        there.some((byte) => byte !== 0),
        'it is still there',
      )
    }
})

t.test('zeros of subclusters are bits, over a backing file too', async (t) => {
  const folder = temporaryFolder(t)
  const base = qemuCreate(folder, 'base.qcow2', 4 * MiB)
  qemuIo(base, 'write -P 5 0 4M')
  const path = qemuCreate(folder, 'top.qcow2', 4 * MiB, 'extended_l2=on,cluster_size=128k', ['-b', base, '-F', 'qcow2'])
  qemuIo(path, 'write -P 6 256k 64k')
  must('qemu-img', ['snapshot', '-c', 's', path])
  const before = asQemuReads(path)
  const model = Buffer.from(before)
  const image = openImage(path)
  const zero = (offset: number, length: number) => {
    image.zero(offset, length, false)
    model.fill(0, offset, offset + length)
  }
  zero(8 * KiB, 4 * KiB)
  zero(120 * KiB, 32 * KiB)
  zero(260 * KiB, 100 * KiB)
  zero(4 * MiB - 12 * KiB, 12 * KiB)
  image.flush()
  const data = image.map(8 * KiB, 4 * KiB)
  t.match(data, { zero: true, data: false })
  image.close()
  qemuCheck(path)
  t.ok(asQemuReads(path).equals(model))
  t.ok(asQemuReads(path, 's').equals(before), 'the snapshot keeps what it had')
  t.ok(statSync(path).size <= 1.2 * MiB, 'nothing is allocated for zeros')
})

t.test('on a block device all of it can be written, and not more', needsMounts, async (t) => {
  const folder = temporaryFolder(t)
  for (const [options, size] of [
    ['cluster_size=512', 4 * MiB],
    ['cluster_size=512,refcount_bits=64', 4 * MiB],
    ['cluster_size=4k,compat=0.10', 20 * MiB],
    ['cluster_size=64k', 20 * MiB],
  ] as const) {
    const file = join(folder, 'file')
    // What lies there is old.
    writeFileSync(file, Buffer.alloc(size, 0x5a))
    const device = attachLoop(t, file)
    must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, device, String(2 * size)])
    const piece = Buffer.alloc(64 * KiB, 7)
    let written = 0
    const first = openImage(device, { format: 'qcow2' })
    for (; written < 0.6 * size; written += piece.length) first.write(piece, 0, piece.length, written)
    first.close()
    qemuCheck(device)
    // A new session finds nothing free before all that.
    const image = openImage(device, { format: 'qcow2' })
    t.throws(
      () => {
        for (; written < 2 * size; written += piece.length) image.write(piece, 0, piece.length, written)
      },
      { code: 'NO_SPACE' },
      options,
    )
    t.ok(written > 0.9 * size, `${options}: ${written} bytes of ${size}`)
    // What was freed is room again.
    image.zero(MiB, MiB, true)
    image.flush()
    image.write(piece, 0, piece.length, 2 * size - piece.length)
    image.close()
    qemuCheck(device)
    qemuIo(
      device,
      'read -P 7 0 1M',
      'read -P 0 1M 1M',
      `read -P 7 2M ${written - 2 * MiB}`,
      `read -P 7 ${2 * size - piece.length} ${piece.length}`,
    )
    must('losetup', ['--detach', device])
    truncateSync(file, 0)
  }
})
