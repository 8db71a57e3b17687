import t, { type Test } from 'tap'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { openStorages } from '../../../lib/image/open.js'
import { FaultStorage } from '../../../lib/storage/fault.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import {
  At,
  bytesAt,
  contextOf,
  entry,
  HeaderAt,
  header,
  hex,
  MiB,
  type Parts,
  put,
  sealed,
  u32,
  u64,
  WINDOWS_ITEMS,
  WINDOWS_METADATA,
  WINDOWS_REGIONS,
  windowsImage,
} from './bytes.js'

t.test('the image of Windows', async (t) => {
  const { layout, size, parent } = vhdx.open(contextOf(windowsImage()))
  t.equal(size, 2 ** 30)
  t.equal(parent, undefined)
  t.match(layout, {
    creator: 'Microsoft Windows 10.0.15063.0',
    blockSize: 32 * MiB,
    sectorSize: 512,
    physicalSectorSize: 4096,
    diskId: 'd38d4f63-596a-467e-b103-506dab1b3208',
    differencing: false,
    leaveAllocated: false,
    log: 'empty',
    tableOffset: 3 * MiB,
  })
  t.ok(vhdx.probe({ path: '', size: 0, head: new Uint8Array(Buffer.from('vhdxfile')), tail: new Uint8Array(0) }))
  t.notOk(vhdx.probe({ path: '', size: 0, head: new Uint8Array(Buffer.from('vhdxfil')), tail: new Uint8Array(0) }))
})

const refused = (t: Test, what: string, parts: Parts, message: RegExp, code = 'CORRUPT') =>
  t.throws(() => vhdx.open(contextOf(windowsImage(parts))), { code, message }, what)

t.test('headers that cannot be gone by', async (t) => {
  refused(
    t,
    'version',
    { header2: header([[HeaderAt.version, hex('0200')]]) },
    /version is 2: expected 1/,
    'UNSUPPORTED',
  )
  const version1 = [HeaderAt.logVersion, hex('0100')] as const
  const inUse = [HeaderAt.logGuid, hex('11'.repeat(16))] as const
  refused(t, 'log version', { header2: header([version1, inUse]) }, /log version is 1: expected 0/, 'UNSUPPORTED')
  refused(t, 'log offset', { header2: header([[72, u64(MiB + 4096)]]) }, /log offset is 1052672/)
  refused(t, 'log length', { header2: header([[68, u32(4096)]]) }, /log length is 4096/)
  const junk = MemoryStorage.create({ contents: new Uint8Array(5000), path: 'junk.vhdx' })
  t.throws(() => vhdx.open(contextOf(junk)), { code: 'FORMAT', message: /^junk.vhdx: not a VHDX/ })
})

/** Byte offset of an entry of the region table: GUID, offset at 16, length at 24, required at 28. */
const region = (i: number) => 16 + 32 * i

t.test('region tables', async (t) => {
  const broken = put(WINDOWS_REGIONS.slice(), 5000, hex('01'))
  const warnings: string[] = []
  const { layout } = vhdx.open(contextOf(windowsImage({ regions1: broken }), true, warnings))
  t.equal(layout.tableOffset, 3 * MiB, 'the second copy serves')
  t.match(warnings, [/first copy of its region table is damaged: its checksum is 0xc66b8cae: expected 0x/])
  refused(t, 'both are broken', { regions1: broken, regions2: broken }, /VHDX region tables: the first: .*the second:/)
  const table = (...changes: [at: number, bytes: Uint8Array][]) => {
    const copy = WINDOWS_REGIONS.slice()
    for (const [at, bytes] of changes) copy.set(bytes, at)
    return { regions1: sealed(copy) }
  }
  const third = (required: number, place = 4, guid = 'aa') =>
    table(
      [8, u32(3)],
      [region(2), hex(guid.repeat(16))],
      [region(2) + 16, u64(place * MiB)],
      [region(2) + 24, u32(MiB)],
      [region(2) + 28, u32(required)],
    )
  refused(
    t,
    'required and unknown',
    third(1),
    /region aaaaaaaa-.* is required, and this program does not know it/,
    'UNSUPPORTED',
  )
  t.match(
    vhdx.open(contextOf(windowsImage(third(0)))).layout.areas.at(-1),
    { start: 4 * MiB, end: 5 * MiB, name: /^region aaaaaaaa-/ },
    'what is not required keeps its place',
  )
  refused(
    t,
    'over the table',
    third(0, 3),
    /lies over the block allocation table|block allocation table .* lies over the region/,
  )
  refused(t, 'over the log', table([region(1) + 16, u64(MiB)]), /lies over the/)
  refused(t, 'in the header section', table([region(1) + 16, u64(0)]), /expected multiples of 1 MiB/)
  refused(t, 'crooked', table([region(0) + 16, u64(3 * MiB + 512)]), /expected multiples of 1 MiB/)
  refused(t, 'twice', table([region(1), WINDOWS_REGIONS.slice(16, 32)]), /is there twice/)
  const { regions1: many } = table([8, u32(2048)])
  refused(t, 'too many', { regions1: many, regions2: many }, /it has 2048 entries/)
  refused(t, 'no metadata region', table([8, u32(1)]), /it has no metadata region/)
})

/** Byte offset of an entry of the metadata table: id, offset at 16, length at 20, flags at 24. */
const item = (i: number) => 32 + 32 * i

t.test('metadata', async (t) => {
  const table = (at: number, bytes: Uint8Array) => ({ metadata: put(WINDOWS_METADATA.slice(), at, bytes) })
  const items = (at: number, bytes: Uint8Array) => ({ items: put(WINDOWS_ITEMS.slice(), at, bytes) })
  refused(t, 'signature', table(0, hex('00')), /it does not begin with 'metadata'/)
  refused(t, 'count', table(10, hex('0008')), /it has 2048 entries/)
  refused(t, 'unknown and required', table(item(4), hex('ff')), /item beca12ff-.* is required/, 'UNSUPPORTED')
  refused(t, 'missing', table(10, hex('0400')), /the virtual disk id is missing/)
  refused(t, 'twice', table(item(4), WINDOWS_METADATA.slice(item(3), item(3) + 16)), /is there twice/)
  refused(t, 'in the table', table(item(0) + 16, u32(65528)), /the file parameters is at 65528/)
  refused(t, 'outside', table(item(0) + 16, u32(MiB - 4)), /the file parameters is at 1048572/)
  refused(t, 'over another', table(item(1) + 16, u32(65540)), /lies over item/)
  refused(t, 'length', table(item(1) + 20, u32(4)), /the virtual disk size is 4 bytes: expected 8/)
  refused(t, 'block size', items(0, u32(3 * MiB)), /block size is 3145728: expected a power of two/)
  refused(t, 'small blocks', items(0, u32(MiB / 2)), /block size is 524288/)
  refused(t, 'large blocks', items(0, u32(512 * MiB)), /block size is 536870912/)
  refused(t, 'logical sectors', items(16, u32(1024)), /logical sector size is 1024/)
  refused(t, 'physical sectors', items(20, u32(0)), /physical sector size is 0/)
  refused(t, 'odd size', items(8, u64(1000)), /virtual disk size is 1000: expected a multiple of 512/)
  refused(t, 'too large', items(8, u64(64 * 2 ** 40 + 512)), /virtual disk size is 70368744178176/)
  refused(t, 'far too large', items(8, u64(2n ** 63n)), /expected a number below 2\^53/)
  refused(
    t,
    'more than its table holds',
    { items: put(put(WINDOWS_ITEMS.slice(), 0, u32(MiB)), 8, u64(2 ** 40)) },
    /it is 1048576 bytes: the disk needs 83/,
  )
  refused(t, 'a parent without a locator', items(4, u32(2)), /the parent locator is missing/)
})

t.test("a user's metadata means nothing here, and may have the id of something else", async (t) => {
  const metadata = put(WINDOWS_METADATA.slice(), 10, hex('0600'))
  put(metadata, item(5), WINDOWS_METADATA.slice(item(1), item(1) + 16))
  put(metadata, item(5) + 16, u32(0))
  put(metadata, item(5) + 20, u32(0))
  put(metadata, item(5) + 24, u32(1))
  t.equal(vhdx.open(contextOf(windowsImage({ metadata }))).size, 2 ** 30)
})

t.test('a file that was cut short', async (t) => {
  const short = windowsImage()
  short.truncate(3 * MiB + 100)
  t.throws(() => vhdx.open(contextOf(short)), {
    code: 'CORRUPT',
    message: /it ends at 3145984, and the file at 3145828/,
  })
})

t.test('every state of a block', async (t) => {
  const data = new Uint8Array(MiB).fill(7)
  const bat = [0, 1, 2, 3, 5, 6].map((state) => entry(state, state === 6 ? 4 : 0))
  // UNDEFINED and UNMAPPED may keep a place, where old data are; ZERO and NOT_PRESENT may have anything there.
  for (const i of [0, 1, 2, 3, 4]) bat[i] = bat[i]! | (4n << 20n)
  const storage = windowsImage({ bat, size: 36 * MiB })
  storage.write(data, 0, MiB, 4 * MiB)
  const image = openStorages([storage], { readOnly: true })
  const at = (block: number) => {
    const bytes = new Uint8Array(512)
    image.read(bytes, 0, 512, block * 32 * MiB)
    return bytes[0]
  }
  t.same([0, 1, 2, 3, 4, 5, 6].map(at), [0, 0, 0, 0, 0, 7, 0])
  t.same(image.map(0, 2 ** 30), { start: 0, length: 160 * MiB, depth: 0, present: false, zero: true, data: false })
  image.close()
})

t.test('entries that cannot be right are refused when they are needed, and not before', async (t) => {
  for (const [what, bad, message] of [
    ['reserved state', entry(4, 0), /block 1: its state is 4/],
    ['partially present without a parent', entry(7, 4), /block 1: it is partially present, and the disk has no parent/],
    ['over the headers', entry(6, 0), /block 1 is at byte 0: it would lie over the header section/],
    ['over the log', entry(6, 1), /block 1 is at byte 1048576: it would lie over the log at bytes 1048576 to 2097152/],
    ['over the table', entry(6, 3), /it would lie over the block allocation table/],
    [
      'behind the end',
      entry(6, 5),
      /block 1 is at byte 5242880: its 33554432 bytes would end at 38797312, and the file/,
    ],
    ['far behind the end', entry(6, 2 ** 43), /block 1 is at byte 9223372036854776000: /],
  ] as const) {
    const image = openStorages([windowsImage({ bat: [entry(6, 4), bad], size: 36 * MiB })])
    const bytes = new Uint8Array(512)
    image.read(bytes, 0, 512, 0)
    t.throws(() => image.read(bytes, 0, 512, 32 * MiB), { code: 'CORRUPT', message }, what)
    image.close()
  }
})

t.test('blocks that lie over each other are found before anything is written', async (t) => {
  for (const bat of [
    [entry(6, 4), entry(6, 4)],
    [entry(6, 4), entry(6, 35)],
    [entry(6, 4), entry(0, 0), entry(6, 100)],
  ]) {
    const storage = windowsImage({ bat, size: 80 * MiB })
    const before = bytesAt(storage, 0, 4 * MiB)
    const image = openStorages([storage])
    t.throws(() => image.write(new Uint8Array(512), 0, 512, 0), {
      code: 'CORRUPT',
      message: /^test.vhdx: block [12] is at/,
    })
    image.close()
    t.same(Buffer.compare(bytesAt(storage, 0, 4 * MiB), before), 0, 'nothing was changed')
  }
})

t.test('a disk of 64 TiB in blocks of 1 MiB opens as a small one does', async (t) => {
  const costs = [64 * 2 ** 40, 2 ** 24].map((size) => {
    const inner = MemoryStorage.create({ maxSize: 2 ** 30 })
    vhdx.create({
      storage: inner,
      path: '/x.vhdx',
      size,
      options: {
        subformat: 'dynamic',
        block_size: MiB,
        log_size: MiB,
        logical_sector_size: 0,
        block_state_zero: false,
      },
      backing: undefined,
    })
    const storage = new FaultStorage(inner)
    const image = openStorages([storage])
    const bytes = new Uint8Array(4096)
    image.read(bytes, 0, 4096, size - 4096)
    image.write(bytes.fill(5), 0, 4096, size - 4096)
    image.flush()
    image.read(bytes, 0, 4096, size - 4096)
    t.equal(bytes[100], 5)
    image.close()
    return { reads: storage.count('read'), writes: storage.count('write'), allocated: inner.allocated() <= 3 * MiB }
  })
  t.same(costs[0], costs[1])
})

t.test('a log of another version that is empty', async (t) => {
  const storage = windowsImage({ header2: header([[HeaderAt.logVersion, hex('0100')]]) })
  const image = openStorages([storage])
  image.write(hex('07'), 0, 1, 5)
  image.flush()
  // From here on it is a log of version 0.
  for (const at of [At.header1, At.header2]) t.same(bytesAt(storage, at + HeaderAt.logVersion, 2), hex('0000'))
  image.abandon()
  const again = openStorages([storage])
  const found = new Uint8Array(1)
  again.read(found, 0, 1, 5)
  t.same(found, hex('07'))
  again.close()
})
