// What `scripts/fuzz --repairs` found, one test each: a repair that did not come to an end, or took data with it that could
// be read. Field names are those of test/fuzz/anatomy/.
import t, { type Test as Tap } from 'tap'
import type { Finding, Repair } from '../../lib/formats/driver.js'
import { findFormat } from '../../lib/formats/registry.js'
import { openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { check as checkStorage } from '../crash/scenario.js'
import { damage, imageOf } from '../fuzz/damage.js'
import { PagedStorage, Pages } from '../fuzz/pages.js'
import { contents } from '../metadata/fixtures/metadata.js'
import { create, secret } from '../model/variants.js'

const SMALL = 'qcow2 cluster_size=4K compat=0.10'
const SUBCLUSTERS = 'qcow2 cluster_size=32K extended_l2=on over '
const LUKS = ['encrypt.format=luks', 'encrypt.iter-time=1', 'encrypt.cipher-alg=aes-128', 'cluster_size=4K']
/** What the clusters of SMALL are, in bytes: the header, the refcounts' two, the L1 table, the first L2 table, data. */
const L1_AT = 3 * 4096
const SHOWN = 200_000

/** What check finds in an image, and mends. */
const check = (format: string, bytes: Pages, repair: Repair): Finding[] =>
  checkStorage(findFormat(format), new PagedStorage(bytes, 'image', repair === 'none'), repair)

function openFiles(files: readonly Pages[], readOnly = true) {
  const storages = files.map((pages, i) => new PagedStorage(pages, i === 0 ? 'image' : 'parent', readOnly || i > 0))
  return openStorages(storages, { readOnly, secret })
}

/** The beginning of the disk. */
function read(...files: readonly Pages[]): Buffer {
  const image = openFiles(files)
  const bytes = Buffer.alloc(Math.min(image.size, SHOWN))
  image.read(bytes, 0, bytes.length, 0)
  image.close()
  return bytes
}

const all = (bytes: Pages) => Buffer.from(bytes.get(0, bytes.size))
const wrong = (findings: Finding[]) => findings.filter(({ severity }) => severity === 'corruption')

/** Repairs; then a second repair finds nothing that it mends, but leaks of what the first gave up, and their flags. */
function repair(t: Pick<Tap, 'same'>, format: string, ...files: readonly Pages[]): Finding[] {
  const findings = check(format, files[0]!, 'all')
  const gaveUp = findings.some(({ message }) => message.endsWith('its clusters are kept, as leaks'))
  t.same(
    check(format, files[0]!, 'all').filter(
      ({ repaired, severity }) => repaired && !(gaveUp && severity !== 'corruption'),
    ),
    [],
    'nothing is left to be mended',
  )
  return findings
}

/** A QCOW2 image with a snapshot or a bitmap. */
function tooled(variant: string, what: 'snapshot' | 'bitmap'): Pages {
  const bytes = imageOf(variant)[0]!
  const { snapshotTools, bitmaps, open } = findFormat('qcow2')
  const storage = new PagedStorage(bytes, 'image', false)
  const { layout } = open({ storage, path: '/image', readOnly: false, warn: () => {} })
  if (what === 'snapshot') snapshotTools!.create(layout, [storage], 'first')
  else bitmaps!.add(layout, [storage], 'changes', undefined)
  return bytes
}

function luks(): Pages {
  const storage = MemoryStorage.create({ path: 'image', maxSize: 2 ** 28 })
  create(findFormat('qcow2'), storage, 300 * 1024, LUKS)
  const image = openStorages([storage], { secret })
  const bytes = Buffer.alloc(100_000, 'some data ')
  image.write(bytes, 0, bytes.length, 0)
  image.close()
  return Pages.of(contents(storage))
}

const word = (value: number | bigint) => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt.asUintN(64, BigInt(value)))
  return bytes
}
const wordAt = (bytes: Pages, at: number) => Number(Buffer.from(bytes.get(at, 8)).readBigUInt64BE())
const SNAPSHOTS_OFFSET = 64

/** The header extension with the place of the LUKS header: type, length, offset, length of that. */
const cryptExtensionAt = (bytes: Pages) => Buffer.from(bytes.get(0, 4096)).indexOf(Buffer.from('0537be77', 'hex'))

t.test('qcow2: an active L1 table that is not in the file: nothing is written, wherever that would be', async (t) => {
  const bytes = imageOf(SMALL)[0]!
  damage(bytes, 'qcow2', { l1Size: 28789 })
  const before = all(bytes)
  const findings = repair(t, 'qcow2', bytes)
  t.ok(findings.some(({ what, repairable }) => what === 'l1-range' && !repairable))
  t.ok(all(bytes).equals(before))
})

t.test('qcow2: a LUKS header that is said to be where the active L1 table is', async (t) => {
  const bytes = luks()
  bytes.put(cryptExtensionAt(bytes) + 8, word(wordAt(bytes, 40)))
  const before = all(bytes)
  check('qcow2', bytes, 'all')
  t.ok(all(bytes).equals(before))
})

t.test('qcow2: flags go with refcounts that stay, as a snapshot cannot be read', async (t) => {
  const bytes = tooled('qcow2', 'snapshot')
  bytes.put(wordAt(bytes, SNAPSHOTS_OFFSET), word(2 ** 40))
  const before = read(bytes)
  const findings = repair(t, 'qcow2', bytes)
  t.ok(findings.some(({ what, repaired }) => what === 'l1-range' && !repaired))
  t.ok(findings.some(({ what, repaired }) => what === 'leak' && !repaired))
  t.notOk(check('qcow2', bytes, 'none').some(({ what }) => what === 'copied'))
  t.ok(read(bytes).equals(before))
})

t.test('qcow2: refcounts that are made anew keep what a snapshot that cannot be read may have', async (t) => {
  const bytes = tooled('qcow2', 'snapshot')
  bytes.put(wordAt(bytes, SNAPSHOTS_OFFSET), word(2 ** 40))
  // Two blocks: one of them is nowhere.
  damage(bytes, 'qcow2', { 'refcount table[1]': 2 ** 50 })
  const findings = repair(t, 'qcow2', bytes)
  t.ok(findings.some(({ what, repaired }) => what === 'refcount-table' && repaired))
  t.ok(
    check('qcow2', bytes, 'none').some(({ what }) => what === 'leak'),
    'its clusters are not free',
  )
})

t.test('qcow2: the L1 table of a snapshot lies in a cluster of data', async (t) => {
  const bytes = tooled(SMALL, 'snapshot')
  const before = read(bytes)
  // Behind the L2 table.
  const data = wordAt(bytes, wordAt(bytes, L1_AT) % 2 ** 56) % 2 ** 56
  bytes.put(wordAt(bytes, SNAPSHOTS_OFFSET), word(data))
  repair(t, 'qcow2', bytes)
  t.ok(read(bytes).equals(before))
})

t.test('qcow2: a table of bitmaps that is the L1 table', async (t) => {
  const bytes = tooled('qcow2 cluster_size=512', 'bitmap')
  const before = read(bytes)
  damage(bytes, 'qcow2', { tableOffset: wordAt(bytes, 40) })
  const findings = repair(t, 'qcow2', bytes)
  t.ok(wrong(findings).every(({ repaired }) => repaired))
  t.ok(read(bytes).equals(before))
})

t.test('qcow2: the bitmaps are a cluster of data', async (t) => {
  const bytes = tooled(SMALL.replace(' compat=0.10', '').replace('=4K', '=512'), 'bitmap')
  const before = read(bytes)
  const data = wordAt(bytes, wordAt(bytes, wordAt(bytes, 40)) % 2 ** 56) % 2 ** 56
  damage(bytes, 'qcow2', { tableOffset: data })
  repair(t, 'qcow2', bytes)
  t.ok(read(bytes).equals(before))
})

t.test('qcow2: compressed data in the cluster of a table', async (t) => {
  const bytes = imageOf(SMALL)[0]!
  // One sector, in the middle of the L2 table's cluster, where it says nothing.
  const table = wordAt(bytes, L1_AT) % 2 ** 56
  const entry = table + 8 * 40
  bytes.put(entry, word((1n << 62n) | BigInt(table + 3072)))
  const findings = repair(t, 'qcow2', bytes)
  t.ok(findings.some(({ what, repaired }) => what === 'overlap' && repaired))
  const now = Buffer.from(bytes.get(entry, 8)).readBigUInt64BE()
  t.equal(now >> 61n, 2n, 'it is compressed')
  t.equal(now & 511n, BigInt(table + 3072) & 511n)
  t.not(now & ((1n << 58n) - 1n), BigInt(table + 3072))
})

t.test('qcow2: data of LUKS is encrypted by its place, and is not moved', async (t) => {
  const bytes = luks()
  const table = wordAt(bytes, wordAt(bytes, 40)) % 2 ** 56
  bytes.put(table + 8, word((1n << 63n) | BigInt(wordAt(bytes, 40))))
  const before = all(bytes)
  check('qcow2', bytes, 'all')
  t.ok(all(bytes).equals(before))
})

t.test('qcow2: a LUKS header that goes on behind the end of the file', async (t) => {
  const bytes = luks()
  const header = wordAt(bytes, cryptExtensionAt(bytes) + 8)
  const length = wordAt(bytes, cryptExtensionAt(bytes) + 16)
  bytes.truncate(header + 1300)
  // So that new ones are made: not where there is room for more keys.
  damage(bytes, 'qcow2', { 'refcount table[0]': 2 ** 50 })
  const findings = check('qcow2', bytes, 'all')
  // Its room is in the file now, and is counted.
  repair(t, 'qcow2', bytes)
  t.ok(findings.some(({ what }) => what === 'crypt-range'))
  t.ok(wordAt(bytes, 48) >= header + length, `the refcount table is at byte ${wordAt(bytes, 48)}`)
})

t.test('qcow2: a LUKS header that is said to have more bytes than one can', async (t) => {
  const bytes = luks()
  bytes.put(cryptExtensionAt(bytes) + 16, word(2 ** 40))
  const findings = repair(t, 'qcow2', bytes)
  t.ok(findings.some(({ what, repaired }) => what === 'crypt-range' && !repaired))
})

t.test('qcow2: subclusters of data without a cluster: the others still show the parent', async (t) => {
  const [bytes, parent] = imageOf(SUBCLUSTERS) as [Pages, Pages]
  // The sixth cluster was not written to; its last subcluster is said to be.
  damage(bytes, 'qcow2', { 'L2[11]': 2 ** 31 })
  const cluster = 5 * 32768
  const image = openFiles([bytes, parent])
  const before = Buffer.alloc(31 * 1024)
  image.read(before, 0, before.length, cluster)
  image.close()
  t.ok(before.some((byte) => byte !== 0))
  t.ok(wrong(repair(t, 'qcow2', bytes)).length > 0)
  const after = read(bytes, parent)
  t.same(after.subarray(cluster, cluster + before.length), before)
})

t.test('qcow2: a compressed cluster with subclusters, which QEMU does not have', async (t) => {
  const bytes = imageOf(SUBCLUSTERS)[0]!
  const data = wordAt(bytes, wordAt(bytes, wordAt(bytes, 40)) % 2 ** 56) % 2 ** 56
  damage(bytes, 'qcow2', { 'L2[0]': (1n << 62n) | BigInt(data), 'L2[1]': 7 })
  t.ok(check('qcow2', bytes, 'none').some(({ what }) => what === 'subclusters'))
  repair(t, 'qcow2', bytes)
  t.equal(wordAt(bytes, (wordAt(bytes, wordAt(bytes, 40)) % 2 ** 56) + 8), 0)
})

t.test('qcow2: data of version 2 that are nowhere read as zeros, and not as what a parent had', async (t) => {
  const [bytes, parent] = imageOf('qcow2 cluster_size=1K compat=0.10 over extended_l2=on') as [Pages, Pages]
  const shown = openFiles([parent])
  const old = Buffer.alloc(SHOWN)
  shown.read(old, 0, old.length, 0)
  shown.close()
  // Behind what was written to the image.
  const guest = old.findIndex((byte, i) => byte !== 0 && i > 110_000)
  const table = wordAt(bytes, wordAt(bytes, 40)) % 2 ** 56
  const index = Math.floor(guest / 1024)
  t.ok(index < 128, 'in the first table')
  bytes.put(table + 8 * index, word((1n << 63n) | (2n ** 40n)))
  repair(t, 'qcow2', bytes)
  t.ok(
    read(bytes, parent)
      .subarray(index * 1024, (index + 1) * 1024)
      .every((byte) => byte === 0),
  )
})

t.test('qcow2: an L1 entry that is nothing but the flag COPIED', async (t) => {
  const bytes = imageOf('qcow2 cluster_size=512')[0]!
  // Of a part of the disk that was not written to.
  const entry = wordAt(bytes, 40) + 8 * 6
  bytes.put(entry, word(1n << 63n))
  t.ok(check('qcow2', bytes, 'none').some(({ what }) => what === 'l1-entry'))
  const before = read(bytes)
  repair(t, 'qcow2', bytes)
  t.equal(wordAt(bytes, entry), 0)
  t.ok(read(bytes).equals(before))
})

t.test('qcow2: a mark that stays is not called mended', async (t) => {
  const bytes = imageOf('qcow2')[0]!
  // The dirty bit; and a disk that needs more entries of the L1 table.
  damage(bytes, 'qcow2', { incompatible: 1, size: 2 ** 45 })
  t.match(
    check('qcow2', bytes, 'all').find(({ what }) => what === 'dirty-bit'),
    { repaired: false },
  )
})

t.test('parallels: a cluster in the wrong place goes on behind the end of the file', async (t) => {
  const bytes = imageOf('parallels cluster_size=64K')[0]!
  const sectors = bytes.size / 512
  bytes.put(bytes.size - 512, Buffer.alloc(512, 7))
  // The older kind, whose entries count in sectors: two clusters of which only the first sector is in the file.
  bytes.put(0, Buffer.from('WithoutFreeSpace'))
  const clusters = [0, 1, 2, 3, 4].map((i) => (i < 2 ? sectors - 1 : 0))
  for (const [i, entry] of clusters.entries()) damage(bytes, 'parallels', { [`BAT[${i}]`]: entry })
  const before = read(bytes)
  t.ok(before.subarray(0, 512).some((byte) => byte !== 0))
  repair(t, 'parallels', bytes)
  t.ok(read(bytes).equals(before))
})

t.test('vhd: a block whose bits are clear is read once, and not once for every sector', async (t) => {
  const storage = MemoryStorage.create({ path: 'image', maxSize: 2 ** 28 })
  create(findFormat('vhd'), storage, 4 * 2 ** 20, ['block_size=2M'])
  const image = openStorages([storage])
  const data = Buffer.alloc(2 ** 21, 1)
  image.write(data, 0, data.length, 0)
  image.close()
  const bytes = Pages.of(contents(storage))
  const first = Buffer.from(bytes.get(1536, 4)).readUInt32BE() * 512
  bytes.put(first, Buffer.alloc(512))
  let count = 0
  class Counting extends PagedStorage {
    override read(buffer: Uint8Array, at: number, length: number, offset: number): number {
      count += length
      return super.read(buffer, at, length, offset)
    }
  }
  const findings: Finding[] = []
  findFormat('vhd').check!({
    storage: new Counting(bytes, 'image', true),
    path: '/image',
    readOnly: true,
    repair: 'none',
    found: (finding) => findings.push(finding),
    warn: () => {},
  })
  t.match(
    findings.find(({ what }) => what === 'bitmap'),
    { message: /4096 sectors hold data/ },
  )
  t.ok(count < 3 * bytes.size, `${count} bytes were read`)
})

t.test('qcow2: what is said to be behind the end of the file does not become what a repair puts there', async (t) => {
  const bytes = imageOf(SMALL)[0]!
  const table = wordAt(bytes, L1_AT) % 2 ** 56
  bytes.truncate(Math.ceil(bytes.size / 4096) * 4096)
  // One cluster of data that is the table's, which is copied; and another behind the end, where the copy goes.
  bytes.put(table + 8 * 50, word((1n << 63n) | BigInt(table)))
  bytes.put(table + 8 * 60, word((1n << 63n) | BigInt(bytes.size)))
  const findings = repair(t, 'qcow2', bytes)
  t.ok(findings.some(({ what, repaired }) => what === 'overlap' && repaired))
  t.ok(findings.some(({ what, guest }) => what === 'l2-entry' && guest === 60 * 4096))
  const image = openFiles([bytes])
  const data = Buffer.alloc(4096, 1)
  image.read(data, 0, data.length, 60 * 4096)
  image.close()
  t.ok(data.every((byte) => byte === 0))
})
