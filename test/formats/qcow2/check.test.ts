import { statSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Finding } from '../../../lib/formats/driver.js'
import { checkImage as checkStorage } from '../../../lib/formats/qcow2/check.js'
import { type CheckReport, checkImage } from '../../../lib/image/check.js'
import { openImage, openStorages } from '../../../lib/image/open.js'
import { createSnapshot, deleteSnapshot, listSnapshots } from '../../../lib/image/snapshots.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { Device } from '../../support/device.js'
import { must, run } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { asQemuReads } from './images.js'
import { Bytes, change, create, differences, GiB, inMemory, io, KiB, MiB, qemuCheck, toFile } from './tools.js'

const COPIED = 1n << 63n

function codeOf({ leaks, leaksFixed, corruptions, corruptionsFixed }: CheckReport): number {
  if (corruptions > corruptionsFixed) return 2
  return leaks > leaksFixed ? 3 : 0
}

/** Both find the same numbers. */
function same(t: Test, path: string, name: string): void {
  const { totals, leaks, corruptions } = checkImage(path)
  const theirs = qemuCheck(path)
  t.match(
    { ...totals, leaks, corruptions },
    {
      imageEnd: theirs['image-end-offset'],
      clusters: theirs['total-clusters'],
      allocated: theirs['allocated-clusters'] ?? 0,
      fragmented: theirs['fragmented-clusters'] ?? 0,
      compressed: theirs['compressed-clusters'] ?? 0,
      leaks: theirs.leaks ?? 0,
      corruptions: theirs.corruptions ?? 0,
    },
    name,
  )
}

t.test('sound images: the totals are those of QEMU', async (t) => {
  const folder = temporaryFolder(t)
  for (const options of [
    'cluster_size=64k',
    'cluster_size=512',
    'cluster_size=2M',
    'extended_l2=on',
    'compat=0.10',
    'refcount_bits=1',
    'refcount_bits=2',
    'refcount_bits=8',
    'refcount_bits=32',
    'refcount_bits=64',
    'preallocation=metadata',
    `data_file=${join(folder, 'data')}`,
  ]) {
    const path = join(folder, 'image.qcow2')
    create(path, '32M', options)
    io(path, 'write 0 1M', 'write 5001k 300k', 'write -z 10M 1M', 'write 6M 64k', 'discard 128k 64k')
    t.same(checkImage(path).findings, [], options)
    same(t, path, options)
    if (options.startsWith('data_file') || options === 'refcount_bits=1') continue
    must('qemu-img', ['snapshot', '-c', 'one', path])
    io(path, 'write 32k 200k', 'write 20M 64k')
    if (!options.startsWith('compat')) must('qemu-img', ['bitmap', '--add', path, 'b'])
    io(path, 'write 8M 64k')
    t.same(checkImage(path).findings, [], `${options}, with a snapshot`)
    same(t, path, `${options}, with a snapshot`)
  }
  const raw = join(folder, 'raw')
  must('qemu-img', ['create', '-q', '-f', 'raw', raw, '4M'])
  must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 0 3M', raw])
  const compressed = join(folder, 'compressed.qcow2')
  must('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', raw, compressed])
  t.equal(checkImage(compressed).totals!.compressed, 48)
  same(t, compressed, 'compressed')
})

/** An image of 8 MiB: 1 MiB of data from 0 on, 64 KiB at 4 MiB. Clusters of 64 KiB, 16-bit refcounts. */
function image(t: Test, options = 'cluster_size=64k'): string {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M', options)
  io(path, 'write -P 1 0 1M', 'write -P 2 4M 64k')
  return path
}

interface Damage {
  readonly name: string
  readonly how: (bytes: Bytes) => void
  /** What is found, and the exit code of QEMU for it. */
  readonly what: readonly string[]
  readonly code: number
  /** QEMU's, where it gives up. */
  readonly theirs?: number
  /** Parts of the disk that are as before when it is mended. */
  readonly kept: readonly string[]
}

const FIRST = 'read -P 1 64k 960k'
const ALL = ['read -P 1 0 1M', 'read -P 2 4M 64k']

const DAMAGES: readonly Damage[] = [
  {
    name: 'a data cluster counted as free',
    how: (b) => b.set16(b.refcountOf(b.u64(b.l2)), 0),
    what: ['refcount', 'copied'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'an L2 table counted as free',
    how: (b) => b.set16(b.refcountOf(b.l2), 0),
    what: ['refcount', 'copied'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'the header counted as free',
    how: (b) => b.set16(b.refcounts, 0),
    what: ['refcount'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'a refcount block counted as free',
    how: (b) => b.set16(b.refcountOf(b.refcounts), 0),
    what: ['refcount'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'a leaked cluster',
    how: (b) => b.set64(b.l2 + 8 * 64, 0),
    what: ['leak'],
    code: 3,
    kept: ['read -P 1 0 1M', 'read -P 0 4M 64k'],
  },
  {
    name: 'a cluster whose refcount is too large',
    how: (b) => b.set16(b.refcountOf(b.u64(b.l2)), 7),
    what: ['copied', 'leak'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'two clusters of the disk in one of the file',
    how: (b) => b.set64(b.l2 + 8 * 100, BigInt(b.u64(b.l2)) | COPIED),
    what: ['refcount'],
    code: 2,
    kept: [...ALL, 'read -P 1 6400k 64k'],
  },
  {
    name: 'COPIED is missing',
    how: (b) => b.set64(b.l2, b.u64(b.l2)).set64(b.l1, b.l2),
    what: [],
    // QEMU counts as an error what makes a writer copy a cluster, and harms nothing.
    code: 0,
    theirs: 2,
    kept: ALL,
  },
  {
    name: 'data that is not at a cluster',
    how: (b) => b.set64(b.l2, BigInt(b.u64(b.l2) + 512) | COPIED),
    what: ['l2-entry', 'leak'],
    code: 2,
    kept: [FIRST, 'read -P 0 0 64k'],
  },
  {
    name: 'data behind the end of the file',
    how: (b) => b.set64(b.l2, BigInt(2 ** 40) | COPIED),
    what: ['l2-entry', 'leak'],
    code: 2,
    kept: [FIRST, 'read -P 0 0 64k'],
  },
  {
    name: 'data at a place beyond 2^55',
    how: (b) => b.set64(b.l2, (1n << 55n) | COPIED),
    what: ['l2-entry', 'leak'],
    code: 2,
    kept: [FIRST],
  },
  {
    name: 'a preallocated cluster of zeros that is not at a cluster',
    how: (b) => b.set64(b.l2, BigInt(b.u64(b.l2) + 512) | COPIED | 1n),
    what: ['l2-entry', 'leak'],
    code: 2,
    kept: [FIRST, 'read -P 0 0 64k'],
  },
  {
    name: 'a compressed cluster behind the end of the file',
    how: (b) => b.set64(b.l2, (1n << 62n) | BigInt(2 ** 40)),
    what: ['l2-entry', 'leak'],
    code: 2,
    kept: [FIRST],
  },
  {
    name: 'a compressed cluster with COPIED',
    how: (b) => b.set64(b.l2, (1n << 62n) | COPIED | BigInt(b.u64(b.l2))),
    what: ['copied'],
    code: 2,
    kept: [FIRST],
  },
  {
    name: 'reserved bits in an L2 entry',
    how: (b) => b.set64(b.l2, BigInt(b.u64(b.l2)) | COPIED | (1n << 57n) | 4n),
    what: ['l2-reserved'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'an L2 table that is not at a cluster',
    how: (b) => b.set64(b.l1, BigInt(b.l2 + 512) | COPIED),
    what: ['l1-entry', 'leak'],
    code: 2,
    kept: ['read -P 0 0 2M', 'read -P 0 3M 5M'],
  },
  {
    name: 'an L2 table behind the end of the file',
    how: (b) => b.set64(b.l1, BigInt(2 ** 40) | COPIED),
    what: ['l1-entry', 'leak'],
    code: 2,
    kept: ['read -P 0 0 2M', 'read -P 0 3M 5M'],
  },
  {
    name: 'reserved bits in an L1 entry',
    how: (b) => b.set64(b.l1, BigInt(b.l2) | COPIED | (1n << 60n)),
    what: ['l1-reserved'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'data in the cluster of the L2 table',
    how: (b) => b.set64(b.l2, BigInt(b.l2) | COPIED),
    what: ['leak', 'overlap'],
    code: 2,
    kept: [FIRST],
  },
  {
    name: 'data in the cluster of the header',
    how: (b) => b.set64(b.l1 + 0, BigInt(b.l2) | COPIED).set64(b.l2 + 8, COPIED | 65536n),
    what: ['leak', 'overlap'],
    code: 2,
    kept: ['read -P 1 0 64k', 'read -P 1 128k 896k'],
  },
  {
    name: 'a refcount block that is not at a cluster',
    how: (b) => b.set64(b.refcountTable, b.refcounts + 512),
    what: ['refcount-table'],
    code: 2,
    theirs: 1,
    kept: ALL,
  },
  {
    name: 'a refcount block behind the end of the file',
    how: (b) => b.set64(b.refcountTable, 2 ** 40),
    what: ['refcount-table'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'a refcount block that is used twice',
    how: (b) => b.set64(b.refcountTable + 8, b.refcounts),
    what: ['overlap'],
    code: 2,
    kept: ALL,
  },
  {
    name: 'a refcount block that is gone',
    how: (b) => b.set64(b.refcountTable, 0),
    what: [],
    code: 2,
    kept: ALL,
  },
]

t.test('COPIED flags that are missing: a warning, mended with leaks, as QEMU does', async (t) => {
  const path = image(t)
  const missing = (b: Bytes) => b.set64(b.l2, b.u64(b.l2)).set64(b.l1, b.l2)
  change(path, missing)
  const expected = ['cluster', 'L2 table'].map((kind) => ({
    severity: 'warning',
    what: 'copied',
    message: new RegExp(`^COPIED is not set for the ${kind} of the disk's byte 0, .* copied before it is written$`),
  }))
  t.match(checkImage(path).findings, expected)
  t.equal(qemuCheck(path).code, 2)
  const mended = checkImage(path, { repair: 'leaks' })
  t.ok(mended.findings.every(({ repaired }) => repaired))
  t.same(checkImage(path).findings, [])
  t.equal(qemuCheck(path).code, 0)

  // With a fault that stays, nobody knows how often a cluster is used.
  change(path, (b) => missing(b).set16(b.refcountOf(b.u64(b.l2 + 8)), 0))
  t.ok(checkImage(path, { repair: 'leaks' }).findings.every(({ repaired }) => !repaired))
})

/** What was found, each kind as often as it was, but not how often a refcount differs. */
const kinds = (findings: readonly Finding[]) =>
  findings.filter(({ severity }) => severity !== 'warning').map((f) => f.what)

/** Whether mending gives up what an entry referred to, which is then a leak. */
const givesUp = (what: readonly string[]) => what.includes('leak') && what.some((kind) => kind.endsWith('-entry'))

for (const { name, how, what, code, theirs = code, kept } of DAMAGES)
  t.test(`damage: ${name}`, async (t) => {
    const path = image(t)
    change(path, how)
    const found = checkImage(path)
    const all = kinds(found.findings)
    for (const kind of new Set(what))
      t.ok(
        all.filter((k) => k === kind).length >= what.filter((k) => k === kind).length,
        `${kind} among ${all.join(', ')}`,
      )
    t.equal(codeOf(found), code)
    t.equal(qemuCheck(path).code, theirs, 'QEMU thinks the same')
    t.ok(found.findings.every(({ repaired }) => !repaired))

    const mended = checkImage(path, { repair: 'all' })
    const given = givesUp(what)
    t.equal(codeOf(mended), given ? 3 : 0, 'all was mended')
    t.equal(
      mended.findings.some(({ message }) => message.endsWith('is lost: its clusters are kept, as leaks')),
      given,
    )
    if (given) {
      t.equal(mended.leaksFixed, 0)
      t.equal(qemuCheck(path).code, 3)
      t.equal(codeOf(checkImage(path, { repair: 'leaks' })), 0)
    }
    t.equal(qemuCheck(path).code, 0, 'QEMU finds no more')
    t.same(checkImage(path).findings, [])
    t.same(differences(path, ...kept), [])
    const disk = openImage(path)
    disk.write(new Uint8Array(MiB).fill(5), 0, MiB, 2 * MiB)
    disk.close()
    t.same(differences(path, 'read -P 5 2M 1M', ...kept), [])
    t.equal(qemuCheck(path).code, 0)
  })

t.test('on a device, which cannot grow, all of that is mended between the rest', async (t) => {
  for (const { name, how, kept, what } of DAMAGES) {
    const path = image(t)
    change(path, how)
    const device = new Device(inMemory(path), 8 * MiB)
    const left: string[] = []
    const found = ({ severity, repaired, message }: Finding) => {
      if (severity !== 'warning' && !repaired) left.push(message)
    }
    const kinds: string[] = []
    checkStorage(device, {
      repair: 'all',
      found: (finding) => (finding.severity === 'leak' && givesUp(what) ? kinds.push('kept') : found(finding)),
    })
    t.equal(kinds.length > 0, givesUp(what), name)
    if (givesUp(what)) checkStorage(device, { repair: 'leaks', found })
    checkStorage(device, { repair: 'none', found })
    t.same(left, [], name)
    toFile(device, path)
    t.equal(qemuCheck(path).code, 0, name)
    t.same(differences(path, ...kept), [], name)
    same(t, path, name)
  }
})

t.test('a device with many refcount blocks, whose table is gone: they are put where there is room', async (t) => {
  for (const options of ['cluster_size=512,refcount_bits=64', 'cluster_size=512,compat=0.10']) {
    const path = image(t, options)
    change(path, (b) => b.bytes.fill(0xee, b.refcountTable, b.refcountTable + 512))
    const device = new Device(inMemory(path), 2 * MiB)
    checkStorage(device, { repair: 'all', found: () => {} })
    toFile(device, path)
    t.match(qemuCheck(path), { code: 0 }, options)
    t.same(differences(path, ...ALL), [])
  }
})

t.test('on a device where something is lost that may refer to what looks unused, nothing is put there', async (t) => {
  for (const more of [
    (b: Bytes) => b.set64(b.refcountTable, 0),
    (b: Bytes) => {
      for (const entry of [1, 2, 3]) b.set64(b.l2 + 8 * entry, BigInt(b.l1) | COPIED)
      return b.set64(b.refcountTable, 0)
    },
  ]) {
    const path = image(t)
    createSnapshot(path, 'one')
    io(path, 'write -P 3 0 1M')
    const kept = asQemuReads(path, 'one')
    const snapshotL1 = new Bytes(path).u64(new Bytes(path).snapshots)
    change(path, (b) => more(b).set64(b.snapshots, 2 ** 40))
    const device = new Device(inMemory(path), 8 * MiB)
    t.throws(() => checkStorage(device, { repair: 'all', found: () => {} }), { code: 'NO_SPACE', message: /for sure/ })
    toFile(device, path)
    change(path, (b) => b.set64(b.snapshots, snapshotL1))
    t.ok(asQemuReads(path, 'one').equals(kept), 'where its table is known again, the snapshot is as it was')
  }
})

t.test('a refcount block in the cluster of data: the data is not touched', async (t) => {
  const path = image(t)
  change(path, (b) => b.set64(b.l2, BigInt(b.refcounts) | COPIED).set16(b.refcountOf(b.l1), 0))
  const block = read(path, 64 * KiB)
  t.equal(codeOf(checkImage(path)), 2)
  t.equal(codeOf(checkImage(path, { repair: 'all' })), 0)
  t.equal(qemuCheck(path).code, 0)
  t.ok(read(path, 64 * KiB).equals(block))
  t.same(differences(path, FIRST), [])
})

/** The disk's first bytes. */
function read(path: string, length: number): Buffer {
  const disk = openImage(path, { readOnly: true })
  const bytes = Buffer.alloc(length)
  disk.read(bytes, 0, length, 0)
  disk.close()
  return bytes
}

t.test('hostile: every entry says the cluster of the L1 table', async (t) => {
  const path = image(t)
  change(path, (b) => {
    for (let i = 0; i < 8192; i++) b.set64(b.l2 + 8 * i, COPIED | BigInt(b.l1))
  })
  const size = statSync(path).size
  const found = checkImage(path, { repair: 'all' })
  t.equal(codeOf(found), 2)
  t.ok(statSync(path).size < size + 70 * MiB, 'not all of them are given room')
})

t.test('leaks alone: freed, and nothing else is changed', async (t) => {
  const path = image(t)
  change(path, (b) => b.set64(b.l2 + 8 * 64, 0).set16(b.refcountOf(b.u64(b.l2)), 0))
  const size = statSync(path).size
  const found = checkImage(path, { repair: 'leaks' })
  t.match(found, { leaks: 1, leaksFixed: 1, corruptions: 2, corruptionsFixed: 0 })
  t.equal(codeOf(found), 2)
  t.match(qemuCheck(path), { code: 2, corruptions: 2 })
  t.equal(statSync(path).size, size)
  t.match(run('qemu-img', ['check', '-q', path]), { code: 2 })
})

t.test('what looks unused because a table is broken is not freed as a leak', async (t) => {
  const path = image(t)
  change(path, (b) => b.set64(b.l1, BigInt(b.l2 + 512) | COPIED))
  const found = checkImage(path, { repair: 'leaks' })
  t.equal(found.leaksFixed, 0)
  change(path, (b) => b.set64(b.l1, BigInt(b.l2 - 512) | COPIED))
  t.same(differences(path, ...ALL), [], 'the table could be found again')
  t.equal(qemuCheck(path).code, 0)
})

t.test('what was given up is not freed: it is there when its entry is right again', async (t) => {
  for (const wrong of [
    (b: Bytes) => b.set64(b.l1, BigInt(b.l2 + 512) | COPIED),
    (b: Bytes) => b.set64(b.l1, BigInt(2 ** 40) | COPIED),
    (b: Bytes) => b.set64(b.l2, BigInt(b.u64(b.l2) + 512) | COPIED),
  ]) {
    const path = image(t)
    const { l1, l2, bytes } = new Bytes(path)
    const before = [l1, l2].map((at) => [at, bytes.readBigUInt64BE(at)] as const)
    change(path, wrong)
    checkImage(path, { repair: 'all' })
    change(path, (b) => {
      for (const [at, entry] of before) b.set64(at, entry)
    })
    t.same(differences(path, ...ALL), [])
    t.equal(qemuCheck(path).code, 0)
  }
})

t.test('a snapshot table that was given up: what the snapshots had is not freed', async (t) => {
  const path = image(t)
  createSnapshot(path, 'one')
  io(path, 'write -P 3 0 1M')
  const kept = asQemuReads(path, 'one')
  const { snapshots } = new Bytes(path)
  change(path, (b) => b.set32(b.snapshots + 36, 2 ** 31 + 24))
  t.equal(codeOf(checkImage(path, { repair: 'all' })), 3)
  t.same(listSnapshots(path), [])
  change(path, (b) =>
    b
      .set64(64, snapshots)
      .set32(60, 1)
      .set32(snapshots + 36, 24),
  )
  t.ok(asQemuReads(path, 'one').equals(kept))
  t.equal(codeOf(checkImage(path, { repair: 'all' })), 0)
})

t.test('a refcount table that is nowhere is made anew', async (t) => {
  for (const fields of [0, 2 ** 40, 65536 + 512]) {
    const path = image(t)
    change(path, (b) => b.set64(48, fields))
    const found = checkImage(path)
    t.match(kinds(found.findings), ['refcount-table'])
    t.equal(codeOf(checkImage(path, { repair: 'all' })), 0)
    t.equal(qemuCheck(path).code, 0)
    t.same(differences(path, ...ALL), [])
  }
})

t.test('refcounts of every width are made anew', async (t) => {
  for (const bits of [1, 2, 4, 8, 16, 32, 64]) {
    const path = image(t, `refcount_bits=${bits},cluster_size=4k`)
    change(path, (b) => b.set64(b.refcountTable, 0))
    t.equal(codeOf(checkImage(path)), 2)
    t.equal(codeOf(checkImage(path, { repair: 'all' })), 0)
    t.equal(qemuCheck(path).code, 0, `${bits} bits`)
    t.same(differences(path, ...ALL), [])
  }
})

t.test('a cluster that more refer to than its refcount can say is left to people', async (t) => {
  const path = image(t, 'refcount_bits=1')
  change(path, (b) => b.set64(b.l2 + 8, BigInt(b.u64(b.l2))))
  const found = checkImage(path, { repair: 'all' })
  t.match(
    found.findings.find(({ what }) => what === 'refcount'),
    { found: 1, expected: 2, repairable: false, repaired: false },
  )
})

t.test('subclusters', async (t) => {
  const path = image(t, 'extended_l2=on,cluster_size=64k')
  // Both data and zeros; data without a place.
  change(path, (b) => b.set64(b.l2 + 8, 0x1_ffff_ffffn).set64(b.l2 + 16 * 100 + 8, 1))
  const found = checkImage(path)
  t.same(kinds(found.findings), ['subclusters', 'l2-entry'])
  t.equal(codeOf(checkImage(path, { repair: 'all' })), 0)
  t.equal(qemuCheck(path).code, 0)
  t.same(differences(path, ...ALL, 'read -P 0 6400k 64k'), [])
})

t.test('subclusters of data that are not allocated, with a data file', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M', `extended_l2=on,cluster_size=64k,data_file=${path}.data`)
  io(path, 'write -P 1 0 1M', 'write -P 2 4M 64k')
  change(path, (b) => b.set64(b.l2 + 16 * 100 + 8, 1))
  const found = checkImage(path)
  t.same(kinds(found.findings), ['l2-entry'])
  t.equal(codeOf(checkImage(path, { repair: 'all' })), 0)
  t.same(checkImage(path).findings, [])
  t.equal(qemuCheck(path).code, 0)
  t.same(differences(path, ...ALL, 'read -P 0 6400k 64k'), [])
  const disk = openImage(path, { readOnly: true })
  disk.read(new Uint8Array(64 * KiB), 0, 64 * KiB, 6400 * KiB)
  disk.close()
})

t.test('the dirty and the corrupt bit', async (t) => {
  const path = image(t)
  change(path, (b) => b.set64(72, 3).set16(b.refcountOf(b.u64(b.l2)), 0))
  t.same(
    checkImage(path).findings.map(({ what, severity }) => `${severity} ${what}`),
    ['corruption refcount', 'corruption copied', 'warning corrupt-bit', 'warning dirty-bit'],
  )
  t.equal(codeOf(checkImage(path, { repair: 'all' })), 0)
  change(path, (b) => t.equal(b.u64(72), 0))
  t.equal(qemuCheck(path).code, 0)
})

t.test('snapshots: a version 3 entry that lacks the size of the disk', async (t) => {
  const path = image(t)
  must('qemu-img', ['snapshot', '-c', 'one', path])
  // An entry as version 2 has it, with no extra data: 40 bytes, the id '1', the name 'one'.
  change(path, (b) => {
    const entry = b.snapshots
    const strings = b.bytes.subarray(entry + 40 + b.bytes.readUInt32BE(entry + 36), entry + 80).subarray(0, 4)
    Buffer.from(strings).copy(b.bytes, entry + 40)
    b.set32(entry + 36, 0)
  })
  t.same(kinds(checkImage(path).findings), ['snapshot-extra'])
  t.equal(qemuCheck(path).code, 2)
  t.equal(codeOf(checkImage(path, { repair: 'all' })), 0)
  t.equal(qemuCheck(path).code, 0)
  t.match(must('qemu-img', ['snapshot', '-l', path]), /1\s+one/)
})

t.test('snapshots: tables that cannot be', async (t) => {
  for (const [how, what, left] of [
    [(b: Bytes) => b.set64(b.snapshots, 2 ** 40), 'l1-range', 0],
    [(b: Bytes) => b.set64(b.snapshots, b.u64(b.snapshots) + 512), 'l1-range', 0],
    [(b: Bytes) => b.set32(b.snapshots + 8, 2 ** 30), 'l1-range', 0],
    [(b: Bytes) => b.set64(64, 2 ** 40), 'snapshot-table', 0],
    [(b: Bytes) => b.set64(64, b.snapshots + 8), 'snapshot-table', 0],
    [(b: Bytes) => b.set32(60, 65537), 'snapshot-table', 1],
    [(b: Bytes) => b.set32(60, 65536), 'snapshot-table', 1],
    [(b: Bytes) => b.set32(b.snapshots + 36, 2 ** 31), 'snapshot-table', 0],
  ] as const) {
    const path = image(t)
    must('qemu-img', ['snapshot', '-c', 'one', path])
    change(path, how)
    const found = checkImage(path, { repair: 'leaks' })
    t.match(kinds(found.findings)[0], what)
    t.equal(codeOf(found), 2)
    t.equal(found.leaksFixed, 0, 'what the snapshot may refer to is not freed')
    // One that can be named is deleted by hand; what cannot be read is given up.
    if (what === 'l1-range') deleteSnapshot(path, 'one')
    else {
      const kept = checkImage(path, { repair: 'all' })
      t.match(kept, { leaksFixed: 0, corruptions: kept.corruptionsFixed })
      t.equal(codeOf(checkImage(path, { repair: 'leaks' })), 0)
    }
    t.equal(qemuCheck(path).code, 0)
    t.same(checkImage(path).findings, [])
    t.same(listSnapshots(path).length, left)
    t.same(differences(path, ...ALL), [])
  }
})

t.test('snapshots: those before one that cannot be read are kept', async (t) => {
  const path = image(t)
  createSnapshot(path, 'one')
  createSnapshot(path, 'two')
  change(path, (b) => b.set32(b.snapshots + Math.ceil((40 + 24 + 1 + 3) / 8) * 8 + 36, 2 ** 31))
  t.throws(() => createSnapshot(path, 'three'), { code: 'CORRUPT' })
  t.equal(codeOf(checkImage(path, { repair: 'all' })), 3)
  t.equal(codeOf(checkImage(path, { repair: 'leaks' })), 0)
  t.equal(qemuCheck(path).code, 0)
  t.match(listSnapshots(path), [{ name: 'one' }])
})

t.test('bitmaps: their clusters count, and what is wrong with them is told', async (t) => {
  const path = image(t)
  must('qemu-img', ['bitmap', '--add', '-g', '4k', path, 'b'])
  io(path, 'write 5M 64k')
  const directoryOf = (b: Bytes) => b.u64(b.bytes.indexOf(Buffer.from('2385287500000018', 'hex')) + 8 + 16)
  const table = (b: Bytes) => b.u64(directoryOf(b))
  t.same(checkImage(path).findings, [])
  for (const [how, what, code] of [
    [(b: Bytes) => b.set64(table(b), b.u64(table(b)) + 512), ['bitmap-entry'], 2],
    [(b: Bytes) => b.set64(table(b), b.l2), ['overlap'], 2],
    [(b: Bytes) => b.set64(directoryOf(b), 2 ** 40), ['bitmap-table'], 2],
    [(b: Bytes) => b.set64(88, 0), ['bitmaps'], 3],
    [(b: Bytes) => b.set32(directoryOf(b) + 12, 3), ['bitmap-in-use'], 0],
    [(b: Bytes) => (b.bytes[directoryOf(b) + 16] = 9), ['bitmap'], 0],
  ] as const) {
    const copy = join(temporaryFolder(t), 'copy.qcow2')
    toFile(inMemory(path), copy)
    change(copy, how)
    const found = checkImage(copy)
    t.ok(
      what.every((kind) => found.findings.some((finding) => finding.what === kind)),
      what.join(),
    )
    t.equal(codeOf(found), code, what.join())
    if (code !== 2 || what[0] === 'overlap') continue
    const { leaks, leaksFixed } = checkImage(copy, { repair: 'all' })
    if (what[0] === 'bitmap-table') t.match([leaks > 0, leaksFixed], [true, 0])
    t.equal(codeOf(checkImage(copy, { repair: 'leaks' })), 0)
    t.equal(qemuCheck(copy).code, 0)
  }
})

t.test('hostile: what the header claims costs neither memory nor time', async (t) => {
  const storage = MemoryStorage.create({ path: 'hostile.qcow2', maxSize: 64 * MiB })
  storage.truncate(MiB)
  const header = Buffer.alloc(104)
  header.writeUInt32BE(0x514649fb, 0)
  header.writeUInt32BE(3, 4)
  header.writeUInt32BE(9, 20)
  header.writeBigUInt64BE(2n ** 36n, 24)
  header.writeUInt32BE(4 * MiB, 36)
  header.writeBigUInt64BE(512n, 40)
  header.writeBigUInt64BE(1024n, 48)
  header.writeUInt32BE(16384, 56)
  header.writeUInt32BE(65536, 60)
  header.writeBigUInt64BE(1536n, 64)
  header.writeUInt32BE(4, 96)
  header.writeUInt32BE(104, 100)
  storage.write(header, 0, header.length, 0)
  const found: Finding[] = []
  checkStorage(storage, { repair: 'all', found: (finding) => found.push(finding) })
  t.ok(found.length > 0 && found.length < 10000)
})

t.test('crashes while an image is mended: the next repair mends it', async (t) => {
  const folder = temporaryFolder(t)
  for (const [options, how] of [
    ['cluster_size=4k', (b: Bytes) => b.set64(b.refcountTable, 0).set64(b.l2, BigInt(b.l1) | COPIED)],
    ['cluster_size=4k', (b: Bytes) => b.set16(b.refcountOf(b.u64(b.l2)), 0).set64(b.l2 + 8, b.u64(b.l2 + 8))],
    ['cluster_size=4k,compat=0.10', (b: Bytes) => b.set64(b.refcountTable, 0).set64(b.l2, b.u64(b.l2))],
  ] as const) {
    const path = join(folder, 'image.qcow2')
    create(path, '1M', options)
    io(path, 'write -P 1 0 128k', 'write -P 2 600k 64k')
    change(path, how)
    for (const device of [false, true]) mendInTurns(t, `${options}, device: ${device}`, inMemory(path), device)
  }
})

function mendInTurns(t: Test, name: string, memory: MemoryStorage, device: boolean): void {
  const recorder = new Recorder()
  checkStorage(recorder.record(device ? new Device(memory, 4 * MiB) : memory), { repair: 'all', found: () => {} })
  const random = randomFrom(5)
  const unmended: string[] = []
  for (let i = 0; i < 3 * recorder.length; i++) {
    const moment = i <= recorder.length ? i : Math.floor(random() * (recorder.length + 1))
    const [crashed] =
      i <= recorder.length ? recorder.prefix(moment) : recorder.crash(moment, Math.floor(random() * 2 ** 31), 512)
    const left: string[] = []
    const found = ({ severity, repaired, message }: Finding) => {
      if (severity !== 'warning' && !repaired) left.push(message)
    }
    const again = device ? new Device(crashed!) : crashed!
    checkStorage(again, { repair: 'all', found })
    checkStorage(again, { repair: 'none', found })
    const disk = openStorages([crashed!], { readOnly: true })
    const bytes = new Uint8Array(64 * KiB)
    disk.read(bytes, 0, bytes.length, 600 * KiB)
    if (bytes.some((byte) => byte !== 2)) left.push('data is gone')
    disk.close()
    if (left.length > 0) unmended.push(`${moment}: ${left.join('; ')}`)
  }
  t.ok(recorder.length > 5)
  t.same(unmended, [], name)
}

t.test('the file is a little over 1 GiB long: counting takes memory for what is used only', async (t) => {
  const path = image(t)
  const file = inMemory(path)
  file.truncate(GiB)
  t.same(kindsOf(file), [])
})

function kindsOf(storage: MemoryStorage): string[] {
  const found: string[] = []
  checkStorage(storage, { repair: 'none', found: ({ what }) => found.push(what) })
  return found
}
