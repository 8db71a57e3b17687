import { copyFileSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { checkImage as checkStorage } from '../../../lib/formats/qcow2/check.js'
import { qcow2 } from '../../../lib/formats/qcow2/format.js'
import { createSnapshot as createIn, listSnapshots as listIn } from '../../../lib/formats/qcow2/snapshot-tools.js'
import { addBitmap, listBitmaps } from '../../../lib/image/bitmaps.js'
import { checkImage } from '../../../lib/image/check.js'
import { openImage, openStorages } from '../../../lib/image/open.js'
import { resizeImage } from '../../../lib/image/resize.js'
import { applySnapshot, createSnapshot, deleteSnapshot, listSnapshots } from '../../../lib/image/snapshots.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { Device } from '../../support/device.js'
import { attachLoop, needsMounts } from '../../support/mounts.js'
import { must, run, vdiskfs, vdiskfsMust } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import {
  Bytes,
  change,
  create,
  differences,
  inMemory,
  io,
  KiB,
  layoutOf,
  MiB,
  qemuCheck,
  qemuInfo,
  toFile,
} from './tools.js'

const tools = qcow2.snapshotTools!

for (const options of [
  'cluster_size=64k',
  'cluster_size=512',
  'cluster_size=2M',
  'compat=0.10',
  'extended_l2=on',
  'refcount_bits=4',
  'refcount_bits=64,cluster_size=4k',
])
  t.test(`made, applied and deleted, in turns with QEMU: ${options}`, async (t) => {
    const path = join(temporaryFolder(t), 'image.qcow2')
    create(path, '32M', options)
    const sound = (what: string) => {
      t.equal(qemuCheck(path).code, 0, what)
      t.same(checkImage(path).findings, [], what)
    }
    const first = ['read -P 1 0 1M', 'read -P 2 20M 100k', 'read -P 0 21M 11M']
    io(path, 'write -P 1 0 1M', 'write -P 2 20M 100k')
    t.equal(createSnapshot(path, 'one'), '1')
    sound('one made')
    t.same(differences(path, ...first), [])
    const disk = openImage(path)
    disk.write(new Uint8Array(300 * KiB).fill(3), 0, 300 * KiB, 64 * KiB)
    disk.close()
    io(path, 'write -P 4 20M 300k', 'write -z 512k 64k')
    const second = ['read -P 1 0 64k', 'read -P 3 64k 300k', 'read -P 4 20M 300k', 'read -P 0 512k 64k']
    must('qemu-img', ['snapshot', '-c', 'two', path])
    io(path, 'write -P 5 0 2M')
    sound('two made')
    t.same(
      listSnapshots(path).map(({ id, name, vmStateSize }) => [id, name, vmStateSize]),
      [
        ['1', 'one', 0],
        ['2', 'two', 0],
      ],
    )
    t.same(
      qemuInfo(path).snapshots.map((s: { id: string; name: string }) => [s.id, s.name]),
      [
        ['1', 'one'],
        ['2', 'two'],
      ],
    )
    applySnapshot(path, 'one')
    sound('one applied')
    t.same(differences(path, ...first), [])
    applySnapshot(path, '2')
    sound('two applied')
    t.same(differences(path, ...second), [])
    must('qemu-img', ['snapshot', '-a', 'one', path])
    t.same(differences(path, ...first), [], 'QEMU applies ours')
    applySnapshot(path, 'two')
    deleteSnapshot(path, 'one')
    sound('one deleted')
    t.same(differences(path, ...second), [])
    deleteSnapshot(path, 'two')
    sound('two deleted')
    t.same(differences(path, ...second), [])
    t.same(listSnapshots(path), [])
    t.equal(qemuInfo(path).snapshots, undefined)
    io(path, 'write -P 6 0 4M')
    sound('written after')
  })

t.test('a disk that had another size gets it back', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M')
  io(path, 'write -P 1 7M 1M')
  createSnapshot(path, 'small')
  must('qemu-img', ['resize', '-q', path, '4G'])
  io(path, 'write -P 2 3G 1M')
  createSnapshot(path, 'large')
  applySnapshot(path, 'small')
  t.equal(qemuInfo(path)['virtual-size'], 8 * MiB)
  t.equal(qemuCheck(path).code, 0)
  t.same(differences(path, 'read -P 1 7M 1M'), [])
  applySnapshot(path, 'large')
  t.equal(qemuInfo(path)['virtual-size'], 4096 * MiB)
  t.same(differences(path, 'read -P 1 7M 1M', 'read -P 0 8M 1M', 'read -P 2 3G 1M'), [])
  t.same(
    listSnapshots(path).map(({ diskSize }) => diskSize),
    [8 * MiB, 4096 * MiB],
  )
  t.equal(qemuCheck(path).code, 0)
})

t.test('clusters with refcounts that are too large: leaks do not become errors', async (t) => {
  for (const options of ['cluster_size=64k', 'cluster_size=4k,compat=0.10', 'refcount_bits=2']) {
    const folder = temporaryFolder(t)
    const [killed, path] = [join(folder, 'killed.qcow2'), join(folder, 'image.qcow2')]
    create(killed, '1M', options)
    io(killed, 'write -P 1 0 128k')
    createSnapshot(killed, 'one')
    const disk = openImage(killed)
    disk.write(new Uint8Array(64 * KiB).fill(2), 0, 64 * KiB, 0)
    disk.flush()
    // As a writer leaves it that is killed here: what it counts down at its end has the refcount 2.
    copyFileSync(killed, path)
    disk.close()
    t.match(qemuCheck(path), { code: 3 }, options)
    applySnapshot(path, 'one')
    t.match(qemuCheck(path), { code: 3 }, `${options}, applied`)
    deleteSnapshot(path, 'one')
    t.match(qemuCheck(path), { code: 3 }, `${options}, deleted`)
    t.same(differences(path, 'read -P 1 0 128k'), [])
    io(path, 'write -P 3 4k 64k')
    t.same(differences(path, 'read -P 1 0 4k', 'read -P 3 4k 64k', 'read -P 1 68k 60k'), [])
    t.equal(qemuCheck(path).code, 3)
    checkImage(path, { repair: 'leaks' })
    t.equal(qemuCheck(path).code, 0)
  }
})

t.test('a flag of a leaked cluster stays cleared, and one that is set is cleared, by every change', async (t) => {
  const folder = temporaryFolder(t)
  for (const [flag, code] of [
    [0n, 3],
    [1n << 63n, 2],
  ] as const)
    for (const act of [
      (path: string) => addBitmap(path, 'b', undefined),
      (path: string) => resizeImage(path, { size: 2 * MiB }),
      (path: string) => createSnapshot(path, 'one'),
    ]) {
      const path = join(folder, 'image.qcow2')
      create(path, '1M')
      io(path, 'write -P 1 0 64k', 'write -P 2 64k 64k')
      change(path, (b) => {
        const data = b.u64(b.l2)
        b.set64(b.l2, BigInt(data) | flag).set16(b.refcountOf(data), 2)
      })
      t.equal(qemuCheck(path).code, code, 'before')
      act(path)
      t.match(qemuCheck(path), { code: 3, leaks: 1 })
      t.same(differences(path, 'read -P 1 0 64k', 'read -P 2 64k 64k'), [])
    }
})

t.test(
  'refcounts behind the end of the file, which a crashed writer left: what is put there has its own',
  async (t) => {
    const folder = temporaryFolder(t)
    for (const options of ['cluster_size=64k', 'cluster_size=4k,compat=0.10'])
      for (const act of [
        (path: string) => createSnapshot(path, 'one'),
        (path: string) => resizeImage(path, { size: 2 * MiB }),
        (path: string) => void (options.includes('compat') || addBitmap(path, 'b', undefined)),
      ]) {
        const path = join(folder, 'image.qcow2')
        create(path, '1M', options)
        io(path, 'write -P 1 0 128k')
        change(path, (b) => {
          const end = Math.ceil(b.bytes.length / b.cluster) * b.cluster
          for (let n = 0; n < 20; n++) b.set16(b.refcountOf(end + n * b.cluster), 1 + (n % 3))
        })
        t.equal(qemuCheck(path).code, 0, 'before')
        act(path)
        t.equal(qemuCheck(path).code, 0, options)
        t.same(checkImage(path).findings, [])
        t.same(differences(path, 'read -P 1 0 128k'), [])
      }
  },
)

t.test('an image on a block device, which keeps its size', needsMounts, async (t) => {
  const file = join(temporaryFolder(t), 'file')
  writeFileSync(file, '')
  truncateSync(file, 4 * MiB)
  const device = attachLoop(t, file)
  create(device, '1M')
  io(device, 'write -P 1 0 256k')
  addBitmap(device, 'b', undefined)
  createSnapshot(device, 'one')
  io(device, 'write -P 2 0 64k')
  resizeImage(device, { size: 2 * MiB })
  t.equal(qemuCheck(device).code, 0)
  t.same(differences(device, 'read -P 2 0 64k', 'read -P 1 64k 192k', 'read -P 0 256k 1792k'), [])
  t.match(listBitmaps(device), [{ name: 'b', flags: ['auto'] }])
  applySnapshot(device, 'one')
  deleteSnapshot(device, 'one')
  t.equal(qemuCheck(device).code, 0)
  t.same(differences(device, 'read -P 1 0 256k', 'read -P 0 256k 768k'), [])
  t.same(checkImage(device).findings, [])
})

/** Writes clusters of 512 bytes, of which 64 have one refcount block, until the file has but one less than so many. @returns bytes */
function fill(path: string, clusters: number): number {
  let length = 512 * (Math.floor((clusters * 31) / 32) - 16)
  io(path, `write -P 1 0 ${length}`)
  for (; statSync(path).size < 512 * (clusters - 1); length += 512) io(path, `write -P 1 ${length} 512`)
  return length
}

t.test('on a device whose refcounts have to be more, they are put where there is room', async (t) => {
  // One refcount block more, and a larger refcount table.
  for (const clusters of [128, 4096]) {
    const path = join(temporaryFolder(t), 'image.qcow2')
    create(path, '2M', 'cluster_size=512,refcount_bits=64')
    const length = fill(path, clusters)
    const memory = inMemory(path)
    const recorder = new Recorder()
    const device = recorder.record(new Device(memory, 3 * MiB))
    const before = contents(memory)
    tools.create(layoutOf(device), [device], 'one')
    for (let i = 0; i <= 2 * recorder.length; i++) {
      const crash = i > recorder.length
      const [crashed] = crash ? recorder.crash(i - recorder.length, i, 512) : recorder.prefix(i)
      const found = ({ severity, message }: { severity: string; message: string }) => {
        if (severity === 'corruption') t.fail(`${i}: ${message}`)
      }
      checkStorage(crashed!, { repair: 'none', found })
      if (!contents(crashed!).equals(before)) t.fail(`${i}: other data`)
    }
    toFile(memory, path)
    t.equal(qemuCheck(path).code, 0)
    t.same(differences(path, `read -P 1 0 ${length}`), [])
    t.equal(new Bytes(path).refcountTableClusters > 1, clusters > 128)
  }
})

t.test('the state of a machine, behind the end of the disk, stays with its snapshot', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '1G', 'cluster_size=64k')
  io(path, 'write -P 1 0 64k')
  must('qemu-img', ['snapshot', '-c', 'running', path])
  // An entry of the snapshot's L1 table behind those of the disk, which has 2, with an L2 table of its own and a cluster.
  const end = readFileSync(path).length
  const l2 = Math.ceil(end / 65536) * 65536
  writeFileSync(path, Buffer.concat([readFileSync(path), Buffer.alloc(l2 + 2 * 65536 - end)]))
  change(path, (b) => {
    const l1 = b.u64(b.snapshots)
    b.set64(l1 + 16, l2)
      .set64(l2, l2 + 65536)
      .set16(b.refcountOf(l2), 1)
      .set16(b.refcountOf(l2 + 65536), 1)
      .set32(b.snapshots + 8, 3)
      .set32(b.snapshots + 32, 65536)
      .set64(b.snapshots + 40, 65536)
    b.bytes.fill(0x77, l2 + 65536)
  })
  t.equal(qemuCheck(path).code, 0)
  t.match(listSnapshots(path), [{ name: 'running', vmStateSize: 65536 }])
  t.match(vdiskfsMust(['snapshot', 'list', path]), /running {2}64 KiB/)
  createSnapshot(path, 'other')
  applySnapshot(path, 'running')
  deleteSnapshot(path, 'other')
  t.equal(qemuCheck(path).code, 0)
  change(path, (b) => {
    const state = b.u64(b.u64(b.u64(b.snapshots) + 16))
    t.ok(b.bytes.subarray(state, state + 65536).every((byte) => byte === 0x77))
  })
  deleteSnapshot(path, 'running')
  t.match(qemuCheck(path), { code: 0, 'allocated-clusters': 1 })
})

t.test('what a snapshot says of itself', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '1M')
  const memory = inMemory(path)
  createIn(memory, 'ümläut', Date.UTC(2031, 4, 6, 7, 8, 9, 250))
  toFile(memory, path)
  t.match(qemuInfo(path).snapshots, [
    { id: '1', name: 'ümläut', 'date-sec': 1935817689, 'date-nsec': 250000000, 'vm-state-size': 0, 'vm-clock-sec': 0 },
  ])
  // A machine that ran for 200 days and two milliseconds: more nanoseconds than a number holds exactly.
  change(path, (b) => b.set64(b.snapshots + 24, 200n * 86400n * 10n ** 9n + 2_000_001n))
  t.match(listSnapshots(path), [
    { clockSeconds: 17280000, clockNanoseconds: 2000001, diskSize: MiB, icount: undefined },
  ])
  t.match(vdiskfsMust(['snapshot', 'list', path]), /2031-05-06 07:08:09 {2}4800:00:00.002/)
  t.match(JSON.parse(vdiskfsMust(['snapshot', 'list', '--json', path])), [
    { id: '1', name: 'ümläut', date: '2031-05-06T07:08:09.250Z', 'vm-state-size': 0, 'vm-clock-sec': 17280000 },
  ])
})

t.test('refused', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'image.qcow2')
  create(path, '1M')
  createSnapshot(path, 'one')
  t.throws(() => createSnapshot(path, 'one'), { code: 'EXISTS' })
  t.throws(() => createSnapshot(path, ''), { code: 'USAGE' })
  t.throws(() => createSnapshot(path, 'x'.repeat(256)), { code: 'USAGE' })
  t.throws(() => applySnapshot(path, 'two'), { code: 'NOT_FOUND', message: /no snapshot 'two'; it has: one/ })
  t.throws(() => deleteSnapshot(path, 'two'), { code: 'NOT_FOUND' })
  const disk = openImage(path)
  t.throws(() => createSnapshot(path, 'two'), { code: 'IN_USE' })
  t.throws(() => listSnapshots(path), { code: 'IN_USE' })
  disk.close()
  t.match(vdiskfs(['snapshot', 'apply', path]), { code: 2, err: /NAME is missing/ })
  t.match(vdiskfs(['snapshot', 'burn', path, 'one']), { code: 2, err: /expected list, create, apply, delete/ })

  const single = join(folder, 'single.qcow2')
  create(single, '1M', 'refcount_bits=1')
  io(single, 'write 0 64k')
  t.throws(() => createSnapshot(single, 'one'), { code: 'UNSUPPORTED', message: /refcounts can be 1 at most/ })
  t.equal(qemuCheck(single).code, 0)
  const external = join(folder, 'external.qcow2')
  create(external, '1M', `data_file=${join(folder, 'data')}`)
  t.throws(() => createSnapshot(external, 'one'), { code: 'UNSUPPORTED' })
  const raw = join(folder, 'disk.raw')
  must('qemu-img', ['create', '-q', '-f', 'raw', raw, '1M'])
  t.throws(() => listSnapshots(raw, { format: 'raw' }), { code: 'UNSUPPORTED' })
  change(path, (b) => b.set16(b.refcounts, 0))
  t.throws(() => deleteSnapshot(path, 'one'), { code: 'CORRUPT', message: /not changed before they are mended/ })
  t.equal(run('qemu-img', ['snapshot', '-l', path]).code, 0)
})

/** What the disk holds. */
function contents(storage: MemoryStorage): Buffer {
  const disk = openStorages([storage], { readOnly: true })
  const bytes = Buffer.alloc(disk.size)
  disk.read(bytes, 0, bytes.length, 0)
  disk.close()
  return bytes
}

for (const [action, act] of [
  ['create', (storage: MemoryStorage) => tools.create(layoutOf(storage), [storage], 'new')],
  ['apply', (storage: MemoryStorage) => tools.apply(layoutOf(storage), [storage], 'one')],
  ['delete', (storage: MemoryStorage) => tools.delete(layoutOf(storage), [storage], 'one')],
] as const)
  t.test(`crashes in ${action}: what was, or what is to be`, async (t) => {
    for (const options of ['cluster_size=4k', 'cluster_size=4k,compat=0.10', 'cluster_size=512,refcount_bits=64']) {
      const path = join(temporaryFolder(t), 'image.qcow2')
      create(path, '512k', options)
      io(path, 'write -P 1 0 128k')
      must('qemu-img', ['snapshot', '-c', 'one', path])
      io(path, 'write -P 2 64k 128k')
      const memory = inMemory(path)
      const before = contents(memory)
      const names = listIn(memory).map(({ name }) => name)
      const recorder = new Recorder()
      act(recorder.record(memory) as unknown as MemoryStorage)
      const after = contents(memory)
      const namesAfter = listIn(memory).map(({ name }) => name)
      toFile(memory, path)
      t.equal(qemuCheck(path).code, 0)
      const random = randomFrom(7)
      const wrong: string[] = []
      const seen = new Set<string>()
      for (let i = 0; i < 4 * recorder.length; i++) {
        const moment = i <= recorder.length ? i : Math.floor(random() * (recorder.length + 1))
        const [crashed] =
          i <= recorder.length ? recorder.prefix(moment) : recorder.crash(moment, Math.floor(random() * 2 ** 31), 512)
        const now = contents(crashed!)
        const there = listIn(crashed!).map(({ name }) => name)
        const isOld = now.equals(before) && there.join() === names.join()
        const isNew = now.equals(after) && there.join() === namesAfter.join()
        if (!isOld && !isNew) wrong.push(`${moment}: neither old nor new`)
        seen.add(isNew && !isOld ? 'new' : 'old')
        // Nothing that is in use counts as free, nor as somebody's own that is shared.
        checkStorage(crashed!, {
          repair: 'none',
          found: ({ what, message }) => {
            if (what === 'refcount' || /COPIED is set/.test(message)) wrong.push(`${moment}: ${message}`)
          },
        })
        // Whoever writes next mends what is left, and everything is still there.
        let left = 0
        checkStorage(crashed!, {
          repair: 'all',
          found: ({ repaired, severity }) => (left += repaired || severity === 'warning' ? 0 : 1),
        })
        checkStorage(crashed!, { repair: 'none', found: () => left++ })
        if (left > 0) wrong.push(`${moment}: ${left} faults are left`)
        if (!contents(crashed!).equals(now)) wrong.push(`${moment}: the repair changed the disk`)
      }
      t.same(wrong, [], options)
      if (!before.equals(after) || names.join() !== namesAfter.join()) t.same([...seen].sort(), ['new', 'old'])
    }
  })

t.test('a crash in version 3 before the end is mended by QEMU, and by opening', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'image.qcow2')
  create(path, '512k', 'cluster_size=4k')
  io(path, 'write -P 1 0 128k')
  const memory = inMemory(path)
  const recorder = new Recorder()
  const recording = recorder.record(memory)
  tools.create(layoutOf(recording), [recording], 'new')
  for (let moment = 0; moment <= recorder.length; moment++) {
    const [crashed] = recorder.prefix(moment)
    const copy = join(folder, 'crashed.qcow2')
    toFile(crashed!, copy)
    must('qemu-io', ['-f', 'qcow2', '-c', 'write -P 3 0 4k', copy])
    t.ok([0, 3].includes(qemuCheck(copy).code), `QEMU writes after moment ${moment}`)
    const own = join(folder, 'own.qcow2')
    toFile(crashed!, own)
    const disk = openImage(own)
    disk.write(new Uint8Array(4 * KiB).fill(3), 0, 4 * KiB, 0)
    disk.close()
    t.same(differences(own, 'read -P 3 0 4k', 'read -P 1 4k 124k'), [])
    t.ok([0, 3].includes(qemuCheck(own).code), `written after moment ${moment}`)
  }
})

t.test('65,536 snapshots of a table that lies in a hole', async (t) => {
  const storage = MemoryStorage.create({ path: 'hostile.qcow2', maxSize: 16 * MiB })
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '1M')
  const bytes = readFileSync(path)
  bytes.writeUInt32BE(65536, 60)
  bytes.writeBigUInt64BE(BigInt(MiB), 64)
  storage.write(bytes, 0, bytes.length, 0)
  storage.truncate(8 * MiB)
  t.throws(() => listIn(storage), { code: 'CORRUPT', message: /entry 0 of the snapshot table has no id/ })
  // As many as there can be, each of the least size: an id, and no L1 table.
  const entry = Buffer.alloc(48)
  entry.writeUInt16BE(1, 12)
  entry.write('x', 40)
  storage.write(Buffer.alloc(65536 * 48, entry), 0, 65536 * 48, MiB)
  t.equal(listIn(storage).length, 65536)
  t.throws(() => createIn(storage, 'more'), { code: /NO_SPACE|CORRUPT/ })
})

t.test('a word that is the ID of one snapshot and the name of another', (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '1M')
  for (const name of ['alpha', '1']) must('qemu-img', ['snapshot', '-c', name, path])
  for (const change of [deleteSnapshot, applySnapshot])
    t.throws(() => change(path, '1'), {
      code: 'USAGE',
      message: "'1' could be any of its snapshots ID 1 'alpha', ID 2 '1'",
    })
  deleteSnapshot(path, '2')
  t.same(
    listSnapshots(path).map(({ name }) => name),
    ['alpha'],
  )
  t.end()
})

t.test('one of two snapshots of the same ID', (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '1M')
  for (const name of ['one', 'two']) must('qemu-img', ['snapshot', '-c', name, path])
  const bytes = readFileSync(path)
  bytes[bytes.indexOf('2two')] = '1'.charCodeAt(0)
  writeFileSync(path, bytes)
  deleteSnapshot(path, 'two')
  t.equal(qemuCheck(path).code, 0)
  t.same(
    listSnapshots(path).map(({ name }) => name),
    ['one'],
  )
  t.end()
})

t.test('a disk of 0 bytes', (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '0')
  createSnapshot(path, 'empty')
  t.throws(() => addBitmap(path, 'b', undefined), { code: 'USAGE', message: /a disk of 0 bytes can have no bitmap/ })
  t.equal(qemuCheck(path).code, 0)
  resizeImage(path, { size: MiB })
  io(path, 'write -P 1 0 64k')
  applySnapshot(path, 'empty')
  t.equal(qemuCheck(path).code, 0)
  t.equal(qemuInfo(path)['virtual-size'], 0)
  t.end()
})
