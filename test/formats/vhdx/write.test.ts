import t, { type Test } from 'tap'
import { parseOptions } from '../../../lib/formats/options.js'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { describeLog } from '../../../lib/formats/vhdx/log-facts.js'
import type { Image } from '../../../lib/image/image.js'
import { openStorages } from '../../../lib/image/open.js'
import { FaultStorage } from '../../../lib/storage/fault.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { Device } from '../../support/device.js'
import {
  At,
  bytesAt,
  contextOf,
  entry,
  HeaderAt,
  header,
  hex,
  MiB,
  put,
  u32,
  u64At,
  WINDOWS_HEADER,
  WINDOWS_ITEMS,
  windowsImage,
} from './bytes.js'

/** Where our new images have things: log, metadata, table, blocks. */
const OUR_BAT = 3 * MiB

function newImage(size: number, options: readonly string[] = ['block_size=1M']): MemoryStorage {
  const storage = MemoryStorage.create({ path: 'new.vhdx' })
  const values = parseOptions('vhdx', vhdx.createOptions, options)
  vhdx.create({ storage, path: '/images/new.vhdx', size, options: values, backing: undefined })
  return storage
}

const fill = (image: Image, offset: number, length: number, value: number) =>
  image.write(new Uint8Array(length).fill(value), 0, length, offset)

t.test('what is written changes the headers as the specification says', async (t) => {
  const storage = windowsImage()
  const image = openStorages([storage])
  const headers = () => bytesAt(storage, At.header1, 2 * 65536)
  const untouched = headers()
  image.read(new Uint8Array(512), 0, 512, 0)
  image.flush()
  t.equal(Buffer.compare(headers(), untouched), 0, 'reading changes nothing')
  fill(image, 0, 512, 1)
  for (const at of [At.header1, At.header2]) {
    t.notSame(bytesAt(storage, at + HeaderAt.fileWriteGuid, 16), WINDOWS_HEADER.slice(16, 32), 'FileWriteGuid')
    t.notSame(bytesAt(storage, at + HeaderAt.dataWriteGuid, 16), WINDOWS_HEADER.slice(32, 48), 'DataWriteGuid')
    t.same(bytesAt(storage, at + HeaderAt.logGuid, 16), new Uint8Array(16), 'LogGuid: nothing is logged yet')
  }
  t.same([u64At(storage, At.header1 + 8), u64At(storage, At.header2 + 8)], [20n, 21n])
  image.flush()
  const log = describeLog(storage)
  t.same(bytesAt(storage, At.header1 + HeaderAt.logGuid, 16), bytesAt(storage, At.header2 + HeaderAt.logGuid, 16))
  t.match(log.entries, [{ at: 0, length: 8192, tail: 0, active: true, changes: [{ offset: At.bat, length: 4096 }] }])
  image.close()
  t.equal(describeLog(storage).logGuid, '00000000-0000-0000-0000-000000000000', 'the log is empty at the end')
})

t.test('blocks: at multiples of 1 MiB, by their states, with the file cut behind the last', async (t) => {
  const storage = newImage(10 * MiB)
  const image = openStorages([storage])
  fill(image, 3 * MiB + 5000, 100, 1)
  fill(image, 0, 512, 2)
  t.equal(u64At(storage, OUR_BAT), 0n, 'nothing is in the table before a flush')
  image.flush()
  t.same(
    [0, 3, 1].map((block) => u64At(storage, OUR_BAT + 8 * block)),
    [entry(6, 5), entry(6, 4), 0n],
  )
  image.zero(3 * MiB, MiB, true)
  image.zero(0, 1000, true)
  image.zero(7 * MiB, 3 * MiB, true)
  t.same(bytesAt(storage, 4 * MiB + 5000, 100), new Uint8Array(100), 'its space is given back at once')
  image.flush()
  t.equal(u64At(storage, OUR_BAT + 24), 2n, 'ZERO, with no place')
  t.equal(u64At(storage, OUR_BAT), entry(6, 5), 'a part of a block')
  t.equal(u64At(storage, OUR_BAT + 56), 0n, 'what was zeros already')
  fill(image, 9 * MiB, 4096, 3)
  image.flush()
  t.equal(u64At(storage, OUR_BAT + 72), entry(6, 4), 'and is used again')
  image.zero(0, MiB, true)
  image.close()
  t.equal(storage.size(), 5 * MiB, 'the end is cut off')
})

t.test('zeros are written without allocation', async (t) => {
  const storage = newImage(10 * MiB)
  const image = openStorages([storage])
  image.zero(0, 10 * MiB, false)
  image.flush()
  image.close()
  t.equal(storage.size(), 4 * MiB)
})

t.test('a fixed disk keeps its blocks and its length', async (t) => {
  const storage = newImage(5 * MiB, ['subformat=fixed', 'block_size=2M'])
  t.equal(storage.size(), 4 * MiB + 6 * MiB)
  t.equal(u64At(storage, 2 * MiB + 65536) >> 32n, 1n, 'LeaveBlocksAllocated')
  t.same(
    [0, 1, 2].map((block) => u64At(storage, OUR_BAT + 8 * block)),
    [entry(6, 4), entry(6, 6), entry(6, 8)],
  )
  const image = openStorages([storage])
  fill(image, 0, 5 * MiB, 9)
  image.zero(0, 4 * MiB, true)
  image.close()
  t.equal(storage.size(), 10 * MiB)
  t.same(
    [0, 1, 2].map((block) => u64At(storage, OUR_BAT + 8 * block)),
    [entry(6, 4), entry(6, 6), entry(6, 8)],
  )
  t.same(bytesAt(storage, 4 * MiB, 4096), new Uint8Array(4096))
  t.same(bytesAt(storage, 8 * MiB, 1)[0], 9)
})

t.test('a fixed disk with a parent would be one that grows: the flag is ignored then', async (t) => {
  const items = put(WINDOWS_ITEMS.slice(), 4, u32(1))
  const { layout } = vhdx.open(contextOf(windowsImage({ items })))
  t.ok(layout.leaveAllocated)
})

t.test('space between blocks is found when writing begins', async (t) => {
  // 64 MiB are free in front of the only block; the block behind the end of the disk is nobody's.
  const storage = windowsImage({ bat: [entry(6, 68)], size: 140 * MiB })
  storage.write(new Uint8Array(100).fill(8), 0, 100, 4 * MiB)
  const image = openStorages([storage])
  fill(image, 32 * MiB, 512, 1)
  fill(image, 64 * MiB, 512, 2)
  fill(image, 96 * MiB, 512, 3)
  image.close()
  t.same(
    [1, 2, 3].map((block) => u64At(storage, At.bat + 8 * block)),
    [entry(6, 4), entry(6, 36), entry(6, 100)],
  )
  t.same(bytesAt(storage, 4 * MiB + 512, 100), new Uint8Array(100), 'what was there is gone')
  t.equal(storage.size(), 132 * MiB)
})

/** A disk of a block and a half, of which the half has ones, in a file that ends where they do. */
function cutShort(): MemoryStorage {
  const storage = newImage(12 * MiB, ['block_size=8M'])
  const image = openStorages([storage])
  fill(image, 8 * MiB, 4 * MiB, 1)
  image.close()
  t.equal(u64At(storage, OUR_BAT + 8), entry(6, 4))
  storage.truncate(8 * MiB)
  return storage
}

t.test('a file that ends inside of its last block: new blocks come behind all of its space', async (t) => {
  const storage = cutShort()
  const image = openStorages([storage])
  fill(image, 0, 8 * MiB, 2)
  image.close()
  t.same([u64At(storage, OUR_BAT), u64At(storage, OUR_BAT + 8)], [entry(6, 12), entry(6, 4)])
  expectHalves(t, storage, 2, 1)
})

t.test('the first change of the file is that of a header', async (t) => {
  const recorder = new Recorder()
  const image = openStorages([recorder.record(cutShort())])
  fill(image, 0, 512, 2)
  const [first, then] = recorder.describe()
  t.match(first, /write {"offset":(65536|131072),"length":4096}/)
  t.match(then, /sync/)
  image.abandon()
})

t.test('the space of a block that the file ends inside of is whole when it is used again', async (t) => {
  const storage = cutShort()
  const image = openStorages([storage])
  image.zero(8 * MiB, 4 * MiB, true)
  image.flush()
  fill(image, 0, 512, 2)
  image.flush()
  t.equal(u64At(storage, OUR_BAT), entry(6, 4))
  fill(image, 512, 8 * MiB - 512, 2)
  image.close()
  expectHalves(t, storage, 2, 0)
})

t.test('a device that ends inside of the last block takes what the guest has, through crashes too', async (t) => {
  const memory = cutShort()
  const recorder = new Recorder()
  const device = recorder.record(new Device(memory))
  const image = openStorages([device])
  fill(image, 8 * MiB, 4 * MiB, 3)
  image.zero(8 * MiB, MiB, true)
  image.flush()
  // It would be given to another block, or come back without its end.
  image.zero(8 * MiB, 4 * MiB, true)
  image.flush()
  t.equal(u64At(memory, OUR_BAT + 8), entry(6, 4), 'its block keeps its space')
  t.throws(() => fill(image, 0, 512, 2), { code: 'NO_SPACE' })
  fill(image, 8 * MiB, 4 * MiB, 1)
  expectReplays(t, recorder)
  image.close()
  expectHalves(t, memory, 0, 1)
})

t.test('a device with room for a block more, and not for the rest of the last one', async (t) => {
  const memory = newImage(20 * MiB, ['block_size=8M'])
  const image = openStorages([memory])
  fill(image, 0, 512, 2)
  fill(image, 16 * MiB, 4 * MiB, 1)
  image.close()
  memory.truncate(16 * MiB)
  const recorder = new Recorder()
  const device = openStorages([recorder.record(new Device(memory))])
  device.zero(0, 8 * MiB, true)
  device.flush()
  fill(device, 8 * MiB, 8 * MiB, 3)
  device.flush()
  expectReplays(t, recorder)
  device.close()
  t.same([u64At(memory, OUR_BAT + 8), u64At(memory, OUR_BAT + 16)], [entry(6, 4), entry(6, 12)])
})

/** That every state that a crash leaves opens on a device of that size, where a log is replayed. */
function expectReplays(t: Test, recorder: Recorder): void {
  for (let moment = 0; moment <= recorder.length; moment++) {
    const device = new Device(recorder.prefix(moment)[0]!)
    try {
      openStorages([device]).close()
    } catch (error) {
      return void t.fail(`${moment}: ${error}`)
    }
  }
  t.pass(`${recorder.length} states`)
}

/** That the blocks of such a disk have these bytes. */
function expectHalves(t: Test, storage: MemoryStorage, first: number, second: number): void {
  const image = openStorages([storage])
  const bytes = new Uint8Array(12 * MiB)
  image.read(bytes, 0, bytes.length, 0)
  t.equal(
    bytes.findIndex((byte, i) => byte !== (i < 8 * MiB ? first : second)),
    -1,
  )
  image.close()
}

t.test('a block that keeps a place without data is not given away while it does', async (t) => {
  const storage = windowsImage({ bat: [entry(3, 4), entry(1, 36)], size: 68 * MiB })
  storage.write(new Uint8Array(512).fill(8), 0, 512, 4 * MiB)
  const image = openStorages([storage])
  fill(image, 512, 512, 1)
  const bytes = new Uint8Array(1024)
  image.read(bytes, 0, 1024, 0)
  t.same([bytes[0], bytes[512]], [0, 1], 'old data do not show')
  image.close()
  t.same(
    [0, 1].map((block) => u64At(storage, At.bat + 8 * block)),
    [entry(6, 68), entry(1, 36)],
  )
})

t.test('an optional region that nobody knows is kept', async (t) => {
  const storage = windowsImage({ bat: [entry(6, 4)], size: 36 * MiB })
  const regions = bytesAt(storage, At.regions1, 65536)
  put(regions, 8, u32(3))
  put(regions, 80, hex('aa'.repeat(16)))
  put(regions, 96, u32(36 * MiB))
  put(regions, 104, u32(MiB))
  const sealed = header([], regions)
  storage.truncate(37 * MiB)
  for (const at of [At.regions1, At.regions2]) storage.write(sealed, 0, 65536, at)
  storage.write(new Uint8Array(MiB).fill(0x5a), 0, MiB, 36 * MiB)
  const image = openStorages([storage])
  fill(image, 32 * MiB, 512, 1)
  image.close()
  t.equal(u64At(storage, At.bat + 8), entry(6, 37))
  t.equal(
    bytesAt(storage, 36 * MiB, MiB).every((byte) => byte === 0x5a),
    true,
  )
})

t.test('syncs of a commit, however many blocks were allocated', async (t) => {
  const inner = newImage(600 * 1024 * MiB, ['block_size=1M'])
  const storage = new FaultStorage(inner)
  const image = openStorages([storage])
  let block = 0
  const syncsOf = (blocks: number) => {
    for (let i = 0; i < blocks; i++) fill(image, 513 * MiB * block++, 512, 1)
    const before = storage.count('sync')
    image.flush()
    return storage.count('sync') - before
  }
  t.equal(syncsOf(1), 3, 'the first: data, log, header')
  t.equal(syncsOf(1), 2, 'data, log')
  t.equal(syncsOf(100), 2)
  t.equal(syncsOf(200), 3, 'where the last entry leaves too little room one more')
  t.equal(syncsOf(0), 1, 'what is in the log comes into place')
  t.equal(syncsOf(0), 0)
  // 600 pages of the table, and the log holds 253: two commits come before the flush.
  const before = storage.count('sync')
  t.ok(syncsOf(600) <= 3)
  t.ok(storage.count('sync') - before <= 3 * 5, `${storage.count('sync') - before} syncs for 600 pages`)
  image.close()
  const again = openStorages([inner], { readOnly: true })
  const bytes = new Uint8Array(512)
  for (let i = 0; i < block; i++) {
    again.read(bytes, 0, 512, 513 * MiB * i)
    if (bytes[0] !== 1) t.fail(`block ${i}`)
  }
  again.close()
})

t.test('the log goes round, and what it holds at any time is a whole sequence', async (t) => {
  const storage = newImage(100 * 1024 * MiB, ['block_size=1M'])
  const image = openStorages([storage])
  const places = new Set<number>()
  let wrapped = 0
  for (let round = 0; round < 60; round++) {
    for (let i = 0; i < 1 + ((round * 7) % 40); i++) {
      const offset = ((i * 577 + round * 13) % 1000) * 100 * MiB
      if (round % 3 === 2) image.zero(offset, MiB, true)
      else fill(image, offset, 512, round)
    }
    image.flush()
    const active = describeLog(storage).entries.filter((e) => e.active)
    if (active.length !== 1 || active[0]!.tail !== active[0]!.at) t.fail(`round ${round}: ${JSON.stringify(active)}`)
    places.add(active[0]!.at)
    if (active[0]!.at + active[0]!.length > MiB) wrapped++
    t.ok(vhdx.open(contextOf(storage)).storage, 'it is to be replayed')
  }
  t.ok(places.size > 15, `${places.size} places`)
  t.ok(wrapped > 0, 'an entry wrapped around')
  image.close()
})

t.test('what an image may be', async (t) => {
  const usage = (size: number, options: readonly string[], message: RegExp) =>
    t.throws(() => newImage(size, options), { code: 'USAGE', message })
  usage(64 * 2 ** 40 + 1, [], /a VHDX of 70368744177665 bytes: expected 1 byte to 64 TiB/)
  usage(0, [], /a VHDX of 0 bytes/)
  usage(MiB, ['block_size=3M'], /block_size=3145728: expected a power of two/)
  usage(MiB, ['block_size=512K'], /block_size=524288/)
  usage(MiB, ['block_size=512M'], /at most 268435456/)
  usage(MiB, ['log_size=1500K'], /log_size=1536000: expected a multiple of 1M/)
  usage(MiB, ['logical_sector_size=1K'], /logical_sector_size=1024: expected 512 or 4096/)
  const blockSizeOf = (size: number) => {
    const { layout } = vhdx.open(contextOf(newImage(size, [])))
    return layout.blockSize / MiB
  }
  // As qemu-img chooses them.
  t.same([2 ** 30, 2 ** 30 + 512, 200 * 2 ** 30, 40 * 2 ** 40].map(blockSizeOf), [8, 16, 32, 64])
  t.equal(vhdx.open(contextOf(newImage(1000, []))).size, 1024, 'whole sectors')
  t.equal(vhdx.open(contextOf(newImage(1000, ['logical_sector_size=4K']))).size, 4096)
  const zero = newImage(5 * 1024 * MiB, ['block_size=1M', 'block_state_zero=on'])
  t.same(
    [0, 4095, 4096, 4097, 5120, 5121].map((i) => u64At(zero, OUR_BAT + 8 * i)),
    [2n, 2n, 0n, 2n, 2n, 0n],
  )
  const log = newImage(MiB, ['log_size=3M'])
  t.match(vhdx.open(contextOf(log)).layout, { header: { logLength: 3 * MiB, logOffset: MiB }, tableOffset: 5 * MiB })
  const facts = vhdx.facts(vhdx.open(contextOf(zero)).layout, zero)
  t.match(facts, { subformat: 'dynamic', creator: 'vdiskfs', log: 'empty', blocks: { zero: 5120, 'not-present': 0 } })
})

t.test('on a device, room that blocks are put into is made zeros as it is needed', async (t) => {
  const device = new Device(newImage(256 * MiB), 128 * MiB)
  let cleared = 0
  const { punch } = device
  device.punch = (offset, length) => {
    cleared += length
    punch.call(device, offset, length)
  }
  const disk = Buffer.alloc(256 * MiB)
  const image = openStorages([device], { format: 'vhdx' })
  const write = (offset: number) => {
    const bytes = Buffer.alloc(700, 1 + (offset % 251))
    disk.set(bytes, offset)
    image.write(bytes, 0, bytes.length, offset)
  }
  const content = () => {
    const bytes = Buffer.alloc(disk.length)
    image.read(bytes, 0, bytes.length, 0)
    return bytes
  }
  write(200 * MiB + 300)
  t.ok(cleared <= 20 * MiB, `the first write makes ${cleared} bytes zeros`)
  for (let block = 0; block < 90; block++) write(2 * block * MiB + 300)
  t.ok(content().equals(disk), 'around what is written are zeros')
  t.throws(
    () => {
      for (let block = 0; block < 90; block++) image.write(disk, 0, 512, (2 * block + 1) * MiB)
    },
    { code: 'NO_SPACE' },
  )
  t.ok(device.size() - cleared < 10 * MiB, 'all of it is used')
  image.close()
})
