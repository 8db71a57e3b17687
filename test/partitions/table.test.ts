/** Partition tables: as other programs make them, and broken in every way that comes to mind. */

import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import t from 'tap'
import { readPartitionTable } from '../../lib/partitions/table.js'
import { VdiskError } from '../../lib/util/errors.js'
import { must } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

const MiB = 1 << 20

/** A disk of bytes; reading beyond its end throws, as an image does. */
function diskOf(bytes: Uint8Array) {
  return {
    size: bytes.length,
    read(buffer: Uint8Array, at: number, length: number, offset: number) {
      if (offset < 0 || offset + length > bytes.length) throw new VdiskError('RANGE', `byte ${offset} of the test disk`)
      buffer.set(bytes.subarray(offset, offset + length), at)
    },
  }
}

const tableOf = (bytes: Uint8Array, sectorSize?: number) => readPartitionTable(diskOf(bytes), sectorSize)

interface SfdiskTable {
  readonly label: string
  readonly partitions: readonly {
    node: string
    start: number
    size: number
    type: string
    name?: string
    uuid?: string
  }[]
}

/** A disk that sfdisk made a table on, and what sfdisk then says of it. */
function partitioned(t: TestCase, script: string, size = 64 * MiB): { bytes: Buffer; judge: SfdiskTable } {
  const path = join(temporaryFolder(t), 'disk')
  writeFileSync(path, '')
  truncateSync(path, size)
  must('sfdisk', ['-q', path], { input: script })
  const { partitiontable } = JSON.parse(must('sfdisk', ['--json', path])) as { partitiontable: SfdiskTable }
  return { bytes: readFileSync(path), judge: partitiontable }
}

/** What sfdisk says, in our terms; extended partitions left out. */
function expected({ partitions }: SfdiskTable) {
  return partitions
    .filter(({ type }) => !['5', 'f', '85'].includes(type))
    .map(({ node, start, size, type, name, uuid }) => ({
      number: Number(/\d+$/.exec(node)![0]),
      start: start * 512,
      size: size * 512,
      type,
      ...(uuid === undefined ? {} : { name: name ?? '', uuid }),
    }))
}

const GPT = 'label: gpt\nsize=16M, name=first\nsize=8M, type=U, name="zwölf €"\nsize=1M\n'

t.test('GPT, as sfdisk makes it', async (t) => {
  const { bytes, judge } = partitioned(t, GPT)
  const table = tableOf(bytes)
  t.match(table, { label: 'gpt', sectorSize: 512, warnings: [] })
  t.same(table.partitions, expected(judge))
  // Not by the judge alone:
  t.match(table.partitions, [
    { number: 1, start: MiB, size: 16 * MiB, name: 'first', type: '0FC63DAF-8483-4772-8E79-3D69D8477DE4' },
    { number: 2, start: 17 * MiB, size: 8 * MiB, name: 'zwölf €', type: 'C12A7328-F81F-11D2-BA4B-00A0C93EC93B' },
    { number: 3, start: 25 * MiB, size: MiB, name: '' },
  ])
})

t.test('GPT with numbers left out', async (t) => {
  const { bytes, judge } = partitioned(t, 'label: gpt\n3: size=4M\n128: size=4M\n')
  t.same(tableOf(bytes).partitions, expected(judge))
  t.same(
    tableOf(bytes).partitions.map(({ number }) => number),
    [3, 128],
  )
})

t.test('MBR with logical partitions', async (t) => {
  const script = 'label: dos\nsize=8M\nsize=4M, type=82\nsize=30M, type=5\nsize=1M, type=c\nsize=5M\nsize=6M\nsize=7M\n'
  const { bytes, judge } = partitioned(t, script)
  const table = tableOf(bytes)
  t.match(table, { label: 'dos', sectorSize: 512, warnings: [] })
  t.same(table.partitions, expected(judge))
  t.same(
    table.partitions.map(({ number, size, type }) => [number, size / MiB, type]),
    [
      [1, 8, '83'],
      [2, 4, '82'],
      [4, 1, 'c'],
      [5, 5, '83'],
      [6, 6, '83'],
      [7, 7, '83'],
    ],
  )
})

t.test('sectors of 4096 bytes', async (t) => {
  const made = (commands: string) => {
    const path = join(temporaryFolder(t), 'disk')
    writeFileSync(path, '')
    truncateSync(path, 64 * MiB)
    must('fdisk', ['-b', '4096', path], { input: commands })
    return readFileSync(path)
  }
  t.match(tableOf(made('g\nn\n1\n\n+8M\nn\n2\n\n+4M\nw\n')), {
    label: 'gpt',
    sectorSize: 4096,
    warnings: [],
    partitions: [
      { number: 1, start: MiB, size: 8 * MiB },
      { number: 2, start: 9 * MiB, size: 4 * MiB },
    ],
  })
  const mbr = made('o\nn\np\n1\n\n+8M\nn\ne\n2\n\n\nn\n\n+4M\nw\n')
  t.match(tableOf(mbr, 4096), {
    label: 'dos',
    warnings: [],
    partitions: [
      { number: 1, start: MiB, size: 8 * MiB },
      { number: 5, start: 10 * MiB, size: 4 * MiB },
    ],
  })
})

t.test('no table: an empty disk, a tiny one, a file system on the whole disk', async (t) => {
  const none = { label: 'none', partitions: [], warnings: [] }
  t.match(tableOf(new Uint8Array(MiB)), none)
  t.match(tableOf(new Uint8Array(100)), none)
  t.match(tableOf(new Uint8Array(0)), none)
  // A FAT boot sector: jump, name, and code where a table would be, ended by the same signature.
  const fat = new Uint8Array(MiB).fill(0x8b, 0x3e, 510)
  fat.set([0xeb, 0x3c, 0x90], 0)
  fat.set([0x55, 0xaa], 510)
  t.match(tableOf(fat), none)
})

/** One corruption of the GPT that sfdisk made, and what is to be said about it. */
const BROKEN_PRIMARY: Readonly<Record<string, { change(bytes: Buffer): unknown; says: RegExp }>> = {
  signature: { change: (b) => b.write('EFI PARX', 512), says: /at byte 512: no 'EFI PART'/ },
  'header CRC': { change: (b) => b.writeUInt8(b.readUInt8(512 + 56) ^ 1, 512 + 56), says: /CRC of the header is 0x/ },
  revision: { change: (b) => b.writeUInt32LE(0x20000, 512 + 8), says: /revision 0x20000, expected 0x10000/ },
  'header size': { change: (b) => b.writeUInt32LE(513, 512 + 12), says: /header size 513, expected 92 to 512/ },
  'entries CRC': { change: (b) => b.writeUInt8(b.readUInt8(1024 + 32) ^ 1, 1024 + 32), says: /CRC of the entries is/ },
}

for (const [name, { change, says }] of Object.entries(BROKEN_PRIMARY))
  t.test(`GPT with a broken primary (${name}): the backup is used`, async (t) => {
    const { bytes, judge } = partitioned(t, GPT)
    change(bytes)
    const { label, partitions, warnings } = tableOf(bytes)
    t.equal(label, 'gpt')
    t.same(partitions, expected(judge))
    t.equal(warnings.length, 1)
    t.match(warnings[0], says)
    t.match(warnings[0], /its backup at the end of the disk is used/)
  })

t.test('GPT with a broken backup: a warning', async (t) => {
  const { bytes, judge } = partitioned(t, GPT)
  bytes.fill(0, bytes.length - 512)
  const { partitions, warnings } = tableOf(bytes)
  t.same(partitions, expected(judge))
  t.same(warnings, [`the backup GPT is broken (at byte ${bytes.length - 512}: no 'EFI PART'); the primary one is used`])
})

t.test('GPT broken at both ends: nothing, and both reasons', async (t) => {
  const { bytes } = partitioned(t, GPT)
  bytes.writeUInt8(bytes.readUInt8(512 + 20) ^ 1, 512 + 56)
  bytes.fill(0, bytes.length - 512)
  const { label, partitions, warnings } = tableOf(bytes)
  t.equal(label, 'unknown')
  t.same(partitions, [])
  t.equal(warnings.length, 1)
  t.match(warnings[0], /GPT is broken \(at byte 512: the CRC.*its backup too \(at byte \d+: no 'EFI PART'/)
})

t.test('a GPT disk that was cut short: what is left of the partitions', async (t) => {
  const { bytes, judge } = partitioned(t, GPT)
  const { partitions, warnings } = tableOf(bytes.subarray(0, 20 * MiB))
  t.match(partitions, [
    { number: 1, size: 16 * MiB },
    { number: 2, size: 3 * MiB },
  ])
  t.equal(partitions.length, 2)
  t.match(warnings, [
    /the backup GPT is broken \(at byte \d+: not in the disk\)/,
    /^partition 2 ends 5242880 bytes behind the end of the disk: cut off there$/,
    /^partition 3 begins at byte 26214400, behind the end of the disk \(20971520 bytes\): left out$/,
  ])
  t.equal(judge.partitions.length, 3)
})

t.test('a hybrid MBR beside a GPT: the GPT counts', async (t) => {
  const { bytes, judge } = partitioned(t, GPT)
  // Second entry: active, type 0c, from LBA 2048 on, 32768 sectors.
  bytes.set([0x80, 0, 0, 0, 0x0c, 0, 0, 0, 0x00, 0x08, 0, 0, 0x00, 0x80, 0, 0], 446 + 16)
  t.same(tableOf(bytes), { label: 'gpt', sectorSize: 512, warnings: [], partitions: expected(judge) })
})

/** An MBR entry, byte by byte. */
function entry(type: number, lba: number, sectors: number): number[] {
  const u32 = (value: number) => [value & 255, (value >> 8) & 255, (value >> 16) & 255, value >>> 24]
  return [0, 0, 0, 0, type, 0, 0, 0, ...u32(lba), ...u32(sectors)]
}

/** A disk of 1 MiB with boot records at the given sectors. */
function chained(records: Readonly<Record<number, readonly number[]>>): Uint8Array {
  const bytes = new Uint8Array(MiB)
  for (const [sector, entries] of Object.entries(records)) {
    bytes.set(entries, Number(sector) * 512 + 446)
    bytes.set([0x55, 0xaa], Number(sector) * 512 + 510)
  }
  return bytes
}

t.test('chains of logical partitions that are broken: what came before is there', async (t) => {
  const extended = entry(0x0f, 64, 1024)
  const logical = entry(0x83, 8, 16)
  const first = [{ number: 5, start: (64 + 8) * 512, size: 16 * 512, type: '83' }]
  const seen = (records: Readonly<Record<number, readonly number[]>>) => {
    const { label, partitions, warnings } = tableOf(chained(records))
    t.equal(label, 'dos')
    return { partitions, warnings }
  }
  const loop = seen({
    0: extended,
    64: [...logical, ...entry(0x05, 128, 64)],
    192: [...logical, ...entry(0x05, 0, 64)],
  })
  t.same(
    loop.partitions.map(({ number, start }) => [number, start / 512]),
    [
      [5, 72],
      [6, 200],
    ],
  )
  t.match(loop.warnings, [/at byte 32768, comes back to itself/])
  const itself = seen({ 0: extended, 64: [...logical, ...entry(0x05, 0, 64)] })
  t.match(itself, { partitions: first, warnings: [/comes back to itself/] })
  const out = seen({ 0: extended, 64: [...logical, ...entry(0x05, 1024, 64)] })
  t.match(out, { partitions: first, warnings: [/at byte 557056, leaves the extended partition/] })
  const nothing = seen({ 0: extended, 64: [...logical, ...entry(0x05, 128, 64)] })
  t.match(nothing, { partitions: first, warnings: [/no boot record: signature 0000, expected aa55/] })
  const empty = seen({ 0: extended })
  t.match(empty, { partitions: [], warnings: [/no boot record/] })
})

t.test('an extended partition without an end to its chain', async (t) => {
  const records: Record<number, readonly number[]> = { 0: entry(0x05, 1, 2000) }
  for (let sector = 1; sector < 1500; sector++) records[sector] = [...entry(0x83, 1, 1), ...entry(0x05, sector, 1)]
  const { partitions, warnings } = tableOf(chained(records))
  t.equal(partitions.length, 256)
  t.match(warnings, [/has more than 256 links/])
})

t.test('MBR partitions that do not lie in the disk', async (t) => {
  const { partitions, warnings } = tableOf(
    chained({ 0: [...entry(0x83, 2000, 100), ...entry(0x83, 5000, 1), ...entry(0x83, 0xffffffff, 0xffffffff)] }),
  )
  t.same(partitions, [{ number: 1, start: 2000 * 512, size: 48 * 512, type: '83' }])
  t.match(warnings, [/partition 1 ends 26624 bytes behind/, /partition 2 begins/, /partition 3 begins/])
})

t.test('a disk that cannot be read', async (t) => {
  const bad = {
    size: MiB,
    read() {
      throw new VdiskError('IO', 'x.vhd: could not read')
    },
  }
  t.match(readPartitionTable(bad), { label: 'unknown', partitions: [], warnings: [/x\.vhd: could not read/] })
})

t.test('every byte of a GPT changed, CRCs made right again: nothing is thrown, nothing lies outside', async (t) => {
  const disk = partitioned(t, 'label: gpt\nsize=1M\nsize=1M\n', 4 * MiB).bytes
  const good = Buffer.from(disk.subarray(0, 4096))
  for (let at = 440; at < 1024 + 256; at++)
    for (const value of [0x00, 0x01, 0x7f, 0xff]) {
      disk.set(good)
      disk[at] = value
      disk.writeUInt32LE(crc32(disk.subarray(1024, 1024 + 128 * 128)), 512 + 88)
      disk.writeUInt32LE(0, 512 + 16)
      disk.writeUInt32LE(crc32(disk.subarray(512, 512 + 92)), 512 + 16)
      for (const { start, size } of tableOf(disk).partitions)
        if (!(start >= 0 && size > 0 && start + size <= disk.length)) t.fail(`byte ${at} = ${value}`)
    }
})
