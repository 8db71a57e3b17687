// What test/fuzz found, one test each. Field names are those of test/fuzz/anatomy/.
import t from 'tap'
import type { Finding, Repair } from '../../lib/formats/driver.js'
import { findFormat } from '../../lib/formats/registry.js'
import { openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { printable, VdiskError } from '../../lib/util/errors.js'
import { check as checkStorage } from '../crash/scenario.js'
import { type Damage, damage, imageOf } from '../fuzz/damage.js'
import { PagedStorage, type Pages } from '../fuzz/pages.js'
import { secret } from '../model/variants.js'

function damaged(variant: string, fields: Damage): Pages {
  const [bytes] = imageOf(variant)
  damage(bytes!, variant.split(' ')[0]!, fields)
  return bytes!
}

/** What check finds in an image, and mends. */
const check = (format: string, bytes: Pages, repair: Repair): Finding[] =>
  checkStorage(findFormat(format), new PagedStorage(bytes, 'image', repair === 'none'), repair)

const open = (bytes: Pages, readOnly = true) =>
  openStorages([new PagedStorage(bytes, 'image', readOnly)], { readOnly, secret })

t.test('vhd: a header that lies over the footer', async (t) => {
  const bytes = imageOf('vhd block_size=64K')[0]!
  const at = bytes.size - 1024
  bytes.put(at, bytes.get(512, 512))
  damage(bytes, 'vhd', { dataOffset: at })
  // Its second half is the footer, and its checksum says so.
  damage(bytes, 'vhd', {})
  t.throws(() => open(bytes), { code: 'CORRUPT' })
  t.match(check('vhd', bytes, 'none')[0]?.message, /Data Offset/)
})

t.test('vhd: a file that ends in the middle of a sector, right behind the table', async (t) => {
  const bytes = imageOf('vhd block_size=64K')[0]!
  const footer = bytes.get(0, 512)
  const table = 1536
  // 5 entries, and the footer follows them at once: rounded up to sectors, the table ends behind it.
  bytes.truncate(table + 5 * 4)
  bytes.put(bytes.size, footer)
  t.doesNotThrow(() => check('vhd', bytes, 'none'))
})

t.test('a message is one line that does nothing to a terminal', async (t) => {
  const bytes = imageOf('vhd block_size=64K')[0]!
  bytes.put(512, Buffer.from('\x1b[31mred\n'))
  try {
    open(bytes)
    t.fail('it opened')
  } catch (error) {
    t.ok(error instanceof VdiskError)
    t.match((error as Error).message, /\\u001b\[31mred/)
    // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what is looked for
    t.notMatch((error as Error).message, /[\u0000-\u001f]/)
  }
  t.equal(printable('a\r\n  b\u202ec\u009bd'), 'a b\\u202ec\\u009bd')
})

const PARALLELS = 'parallels cluster_size=64K'

t.test('parallels: an extension at a place that no number can say', async (t) => {
  const bytes = damaged(PARALLELS, { extension: 2n ** 64n - 1n })
  bytes.truncate(bytes.size + 65536)
  t.ok(check('parallels', bytes, 'leaks').some(({ what, repaired }) => what === 'leak' && !repaired))
  t.same(bytes.get(56, 8), new Uint8Array(8).fill(255), 'which a repair of leaks leaves as it is')
})

t.test('parallels: a data area that would begin behind the last sector that the field can say', async (t) => {
  const bytes = damaged(PARALLELS, { dataStart: 2 ** 32 - 1 })
  const found = check('parallels', bytes, 'all').find(({ what }) => what === 'data-offset')
  t.equal(found?.repaired, false)
})

t.test('parallels: a disk that is much larger than its BAT is one hole behind it', async (t) => {
  const bytes = damaged('parallels cluster_size=4K', { sectors: 2 ** 34 })
  const image = open(bytes)
  t.equal(image.size, 2 ** 43)
  const behind = image.map(2 ** 20, image.size - 2 ** 20)
  t.match(behind, { zero: true, length: image.size - 2 ** 20 })
  t.equal(image.seek(2 ** 20, true), -1)
  image.close()
})

t.test(
  'parallels: an entry behind the end is not taken for the cluster that the repair has just made there',
  async (t) => {
    const bytes = imageOf(PARALLELS)[0]!
    const end = bytes.size / 65536
    damage(bytes, 'parallels', { 'BAT[1]': 1, 'BAT[2]': end })
    check('parallels', bytes, 'all')
    t.same(
      check('parallels', bytes, 'none').filter(({ severity }) => severity === 'corruption'),
      [],
    )
  },
)

t.test('parallels: clusters of a terabyte are copied without their holes', async (t) => {
  const bytes = damaged('parallels cluster_size=4K', { tracks: 2 ** 31 })
  const before = bytes.held
  check('parallels', bytes, 'all')
  t.ok(bytes.held < 8 * before + 2 ** 20, `${bytes.held} bytes`)
})

t.test('a file that has become shorter than the disk', async (t) => {
  const storage = MemoryStorage.create({ contents: new Uint8Array(8192).fill(1) })
  const image = openStorages([storage], { format: 'raw' })
  storage.truncate(4096)
  t.match(image.map(4096, 4096), { length: 4096, zero: true, data: false })
  t.equal(image.seek(4096, true), -1)
  t.equal(image.seek(4096, false), 4096)
  image.close()
})

t.test('qcow2: an encrypted disk that ends inside of a sector', async (t) => {
  const bytes = damaged('qcow2 encrypt.format=aes cluster_size=4K', { size: 1 })
  t.throws(() => open(bytes, false), /its disk has 1 bytes: expected whole sectors/)
})

t.test('qcow2: a snapshot of a cluster whose refcount is at its limit already', async (t) => {
  const bytes = imageOf('qcow2')[0]!
  const { snapshotTools, open: openFormat } = findFormat('qcow2')
  // The first cluster of data: behind header, refcount table and block, L1 and L2 table.
  for (let i = 1; i < 8; i++) damage(bytes, 'qcow2', { [`refcounts[${i}]`]: 65535 })
  const storage = new PagedStorage(bytes, 'image', false)
  const { layout } = openFormat({ storage, path: '/image', readOnly: false, warn: () => {} })
  snapshotTools!.create(layout, [storage], 'first')
  t.same(
    check('qcow2', bytes, 'none').filter(({ severity }) => severity === 'corruption'),
    [],
  )
})

t.test('a name that is as long as it can be', async (t) => {
  for (const character of ['x', '\0']) t.ok(new VdiskError('CORRUPT', character.repeat(100_000)).message.length < 6000)
})

t.test('qcow2: a bitmap with flags that nobody knows, the highest bit among them', async (t) => {
  const bytes = imageOf('qcow2')[0]!
  const { bitmaps, open: openFormat } = findFormat('qcow2')
  const storage = new PagedStorage(bytes, 'image', false)
  const { layout } = openFormat({ storage, path: '/image', readOnly: false, warn: () => {} })
  bitmaps!.add(layout, [storage], 'changes', undefined)
  damage(bytes, 'qcow2', { flags: 2 ** 32 - 2 })
  // Refused, or not: but by a message.
  try {
    const image = open(bytes, false)
    image.write(new Uint8Array(512), 0, 512, 0)
    image.close()
    t.pass('it is written')
  } catch (error) {
    t.ok(error instanceof VdiskError, String(error))
  }
})

t.test('qcow2: a refcount block that is the refcount table', async (t) => {
  const bytes = imageOf('qcow2 cluster_size=4K compat=0.10')[0]!
  const [table, block] = [4096, 8192]
  // Its first block counts 8 MiB: nothing is free there, so that the second is needed.
  bytes.truncate(2 ** 23)
  bytes.put(
    block,
    Buffer.alloc(4096).map((_, i) => i % 2),
  )
  damage(bytes, 'qcow2', { 'refcount table[1]': table })
  const before = bytes.get(table, 4096)
  const image = open(bytes, false)
  const data = new Uint8Array(4096).fill(1)
  // Both fail for what is wrong, and not the second for what the first has done.
  for (let i = 0; i < 2; i++) t.throws(() => image.write(data, 0, data.length, 200 * 1024), { code: 'CORRUPT' })
  t.same(bytes.get(table, 4096), before)
})
