import { existsSync, mkdirSync, readFileSync, renameSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { checkImage } from '../../lib/image/check.js'
import { createImage } from '../../lib/image/create.js'
import type { Image } from '../../lib/image/image.js'
import { openImage, openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import type { Storage, StorageHandle } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'
import { Device } from '../support/device.js'
import { must } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'
import {
  bytesOf,
  corpusImage,
  dynamicImage,
  FooterAt,
  footerWith,
  HeaderAt,
  headerWith,
  needsCorpus,
  shortImage,
  WINDOWS_FOOTER,
} from './vhd-images.js'

const KiB = 1024
const MiB = KiB * KiB
const TABLE = 0x600
const NONE = 0xffffffff

/** The content of the disk, by QEMU. */
function byQemu(folder: string, image: string): Buffer {
  const raw = join(folder, 'by-qemu.raw')
  must('qemu-img', ['convert', '-f', 'vpc', '-O', 'raw', image, raw])
  return readFileSync(raw)
}

function content(image: Image): Buffer {
  const buffer = Buffer.alloc(image.size)
  image.read(buffer, 0, image.size, 0)
  return buffer
}

const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0

/** The table of an image that was made here, or by Windows. */
function table(file: Buffer, entries = file.readUInt32BE(512 + 28)): number[] {
  return Array.from({ length: entries }, (_, i) => file.readUInt32BE(TABLE + 4 * i))
}

/** A model of the disk beside an image, both changed together, at random but always in the same way. */
class Model {
  readonly bytes: Buffer
  #seed: number

  constructor(size: number, seed: number) {
    this.bytes = Buffer.alloc(size)
    this.#seed = seed
  }

  random(below: number): number {
    this.#seed = (Math.imul(this.#seed, 1103515245) + 12345) & 0x7fffffff
    return (this.#seed >>> 4) % below
  }

  change(image: Image, largest: number): void {
    const offset = this.random(image.size)
    const length = Math.min(image.size - offset, 1 + this.random(this.random(5) === 0 ? largest : 3000))
    const kind = this.random(8)
    if (kind === 0) {
      image.zero(offset, length, this.random(2) === 0)
      this.bytes.fill(0, offset, offset + length)
    } else {
      const data = Buffer.alloc(length, 1 + this.random(255))
      image.write(data, 0, length, offset)
      data.copy(this.bytes, offset)
    }
    if (kind === 1) image.flush()
  }
}

t.test('random changes of dynamic and fixed images, as QEMU reads them', async (t) => {
  const folder = temporaryFolder(t)
  const cases: [options: string[], seed: number][] = [
    [[], 1],
    [['subformat=fixed'], 2],
    [['block_size=512K'], 3],
    [['block_size=4096'], 4],
    [['block_size=8M'], 6],
  ]
  for (const [options, seed] of cases) {
    const path = join(folder, `${seed}.vhd`)
    const size = 20 * MiB + 512
    createImage(path, { format: 'vhd', size, options })
    const model = new Model(size, seed)
    for (let session = 0; session < 3; session++) {
      const image = openImage(path, { cacheSize: session === 1 ? MiB : 32 * MiB })
      for (let i = 0; i < 60; i++) model.change(image, size / 8)
      t.ok(same(content(image), model.bytes), `${options}: while open`)
      image.close()
    }
    t.ok(same(byQemu(folder, path), model.bytes), `${options}: by QEMU`)
    t.equal(statSync(path).size % 512, 0, `${options}: file size`)
  }
})

t.test('random changes of a chain of differencing images', async (t) => {
  const folder = temporaryFolder(t)
  const size = 10 * MiB
  const model = new Model(size, 7)
  let parent: string | undefined
  for (const [name, block] of Object.entries({ a: '512K', b: '2M', c: '4096', d: '8M' })) {
    const path = join(folder, `${name}.vhd`)
    createImage(path, { format: 'vhd', size, backing: parent, options: [`block_size=${block}`] })
    for (let session = 0; session < 2; session++) {
      const image = openImage(path, { cacheSize: session === 1 ? MiB : 32 * MiB })
      t.ok(same(content(image), model.bytes), `${name}: as it was closed`)
      for (let i = 0; i < 50; i++) model.change(image, size / 8)
      t.ok(same(content(image), model.bytes), `${name}: while open`)
      image.close()
    }
    parent = path
  }
})

t.test('blocks of one sector', async (t) => {
  const change = (entries: number) => (view: DataView) => {
    view.setUint32(HeaderAt.entries, entries)
    view.setUint32(HeaderAt.blockSize, 512)
  }
  const size = 128 * 512
  const footer = footerWith((view) => view.setBigUint64(FooterAt.currentSize, BigInt(size)))
  const storage = dynamicImage({ footer, header: headerWith(change(128)) })
  const model = new Model(size, 8)
  for (let session = 0; session < 4; session++) {
    const view = MemoryStorage.attach(storage.handle() as StorageHandle & { kind: 'memory' })
    const image = openStorages([view])
    t.ok(same(content(image), model.bytes))
    for (let i = 0; i < 60; i++) model.change(image, 8192)
    t.ok(same(content(image), model.bytes))
    image.close()
  }
  t.ok(storage.size() <= 0x2000 + 128 * 1024 + 512, `${storage.size()} bytes: blocks lie end to end`)
})

t.test('a new block of a dynamic disk: all bits set, zeros where nothing was written, footer behind it', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'a.vhd')
  createImage(path, { format: 'vhd', size: 10 * MiB })
  const footer = readFileSync(path).subarray(0, 512)
  const image = openImage(path)
  image.write(Buffer.from([1, 2, 3]), 0, 3, 2 * MiB + 4096 + 5)
  image.close()
  const file = readFileSync(path)
  const [entry] = table(file).filter((e) => e !== NONE)
  t.same(table(file), [NONE, entry, NONE, NONE, NONE])
  const start = entry! * 512
  t.equal((start + 512) % 4096, 0, 'data begins at a page')
  t.ok(file.subarray(start, start + 512).every((byte) => byte === 0xff))
  const data = Buffer.alloc(2 * MiB)
  data.set([1, 2, 3], 4096 + 5)
  t.ok(same(file.subarray(start + 512, start + 512 + 2 * MiB), data))
  t.equal(file.length, start + 512 + 2 * MiB + 512, 'the file ends behind the block')
  t.ok(same(file.subarray(-512), footer), 'with the footer')
  t.ok(same(file.subarray(0, 512), footer), 'and the copy is untouched')
})

t.test('a block whose bits another program set one by one gets those of what is written', async (t) => {
  const data = new Uint8Array(2 * MiB)
  data.fill(5, 0, 4096)
  const storage = dynamicImage({
    table: [7],
    more: [
      [0xe00, bytesOf('ff', 512)],
      [0x1000, data],
    ],
    end: 0x1000 + 2 * MiB,
  })
  const bitmap = () => {
    const bits = new Uint8Array(512)
    storage.read(bits, 0, 512, 0xe00)
    return Buffer.from(bits).toString('hex').replace(/0+$/, '')
  }
  const image = openStorages([storage])
  image.write(Buffer.alloc(512, 6), 0, 512, 512)
  image.flush()
  t.equal(bitmap(), 'ff', 'overwriting changes no bits')
  image.write(Buffer.alloc(700, 6), 0, 700, 512 * 20)
  image.flush()
  t.equal(bitmap(), 'ff000c', 'two sectors were written, 20 and 21')
  const back = content(image)
  t.ok(back.subarray(512 * 20, 512 * 20 + 700).every((b) => b === 6))
  t.ok(back.subarray(512 * 20 + 700, 512 * 22).every((b) => b === 0))
  image.close()
})

t.test('differencing: the bits of written sectors, and no others', async (t) => {
  const folder = temporaryFolder(t)
  const parent = join(folder, 'parent.vhd')
  const path = join(folder, 'child.vhd')
  createImage(parent, { format: 'vhd', size: 10 * MiB })
  const below = openImage(parent)
  below.write(Buffer.alloc(4 * MiB, 9), 0, 4 * MiB, 0)
  below.close()
  const parentBytes = readFileSync(parent)
  createImage(path, { format: 'vhd', backing: parent })

  const bits = () => {
    const file = readFileSync(path)
    const start = table(file)[0]! * 512
    return file.toString('hex', start, start + 512).replace(/0+$/, '')
  }
  const write = (offset: number, length: number) => {
    const image = openImage(path)
    image.write(Buffer.alloc(length, 7), 0, length, offset)
    image.close()
    return bits()
  }
  t.equal(write(512 * 9, 512), '004', 'a sector of a new block: bit 9')
  t.equal(write(512 * 10 + 100, 10), '006', 'part of a sector: that sector')
  t.equal(write(512 * 15 + 500, 24), '00618', 'across two sectors: both')
  t.equal(write(512 * 10, 512), '00618', 'overwriting sets nothing')
  t.equal(
    write(2 * MiB - 512, 1024),
    `006180${'0'.repeat(1024 - 7)}1`,
    'the last of the block; the rest goes to the next',
  )
  const image = openImage(path, { readOnly: true })
  const expected = Buffer.alloc(10 * MiB)
  expected.fill(9, 0, 4 * MiB)
  for (const [offset, length] of [
    [512 * 9, 512],
    [512 * 10, 512],
    [512 * 15 + 500, 24],
    [2 * MiB - 512, 1024],
  ] as const)
    expected.fill(7, offset, offset + length)
  t.ok(same(content(image), expected), "the rest is the parent's")
  t.match(image.map(0, 2 * MiB), { start: 0, length: 512 * 9, depth: 1 })
  t.match(image.map(512 * 9, 2 * MiB), { length: 1024, depth: 0 })
  t.match(image.map(512 * 11, 2 * MiB - 512 * 11), { length: 512 * 4, depth: 1 })
  image.close()
  t.ok(same(readFileSync(parent), parentBytes), 'the parent is untouched')
})

t.test(
  'differencing: a write that fills sectors from the parent sets their bits in one go, in any bitmap sector',
  async (t) => {
    const folder = temporaryFolder(t)
    const parent = join(folder, 'parent.vhd')
    const path = join(folder, 'child.vhd')
    createImage(parent, { format: 'vhd', size: 16 * MiB })
    createImage(path, { format: 'vhd', backing: parent, options: ['block_size=16M'] })
    const image = openImage(path)
    image.write(Buffer.alloc(512, 1), 0, 512, 0)
    image.write(Buffer.alloc(3 * MiB, 2), 0, 3 * MiB, 5 * MiB)
    image.close()
    const file = readFileSync(path)
    const start = table(file)[0]! * 512
    const expected = Buffer.alloc(4096)
    expected[0] = 0x80
    expected.fill(0xff, (5 * MiB) / 4096, (8 * MiB) / 4096)
    t.ok(same(file.subarray(start, start + 4096), expected))
  },
)

t.test('zeroing frees whole blocks, punches them and uses them again', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'a.vhd')
  createImage(path, { format: 'vhd', size: 20 * MiB + 512 })
  let image = openImage(path)
  image.write(Buffer.alloc(image.size, 3), 0, image.size, 0)
  image.close()
  const full = statSync(path)
  const before = table(readFileSync(path))
  t.ok(before.every((entry) => entry !== NONE))

  image = openImage(path)
  image.zero(4 * MiB, 4 * MiB, true)
  image.zero(20 * MiB, 512, true)
  image.flush()
  t.equal(image.map(4 * MiB, MiB).present, false)
  const punched = statSync(path)
  t.ok(full.blocks - punched.blocks >= (4 * MiB - 64 * KiB) / 512, 'the host has its space back')
  image.write(Buffer.alloc(512, 4), 0, 512, 6 * MiB)
  image.close()
  const after = table(readFileSync(path))
  t.equal(after[2], NONE)
  t.equal(after[10], NONE, 'a block of which the disk has only the first sector')
  t.ok([before[2], before[3], before[10]].includes(after[3]), 'a freed block was used again')
  const expected = Buffer.alloc(20 * MiB + 512, 3)
  expected
    .fill(0, 4 * MiB, 8 * MiB)
    .fill(4, 6 * MiB, 6 * MiB + 512)
    .fill(0, 20 * MiB)
  t.ok(same(byQemu(folder, path), expected))
})

t.test('nothing of a footer that was moved is seen', async (t) => {
  const path = join(temporaryFolder(t), 'a.vhd')
  const size = 300 * MiB
  createImage(path, { format: 'vhd', size })
  const image = openImage(path)
  const sizes = new Set<number>()
  for (let at = 0; at < size; at += 2 * MiB) {
    image.write(Buffer.of(1), 0, 1, at)
    sizes.add(statSync(path).size)
  }
  const block = Buffer.alloc(2 * MiB)
  const expected = Buffer.alloc(2 * MiB)
  expected[0] = 1
  let wrong = 0
  for (let at = 0; at < size; at += 2 * MiB) {
    image.read(block, 0, block.length, at)
    if (!same(block, expected)) wrong++
  }
  image.close()
  t.equal(wrong, 0, 'blocks that hold something else')
  t.ok(sizes.size >= 3 && sizes.size <= 6, `the file grew in ${sizes.size} steps`)
})

t.test('a block that comes to lie where another one was has bits of its own', async (t) => {
  const folder = temporaryFolder(t)
  const parent = join(folder, 'parent.vhd')
  const path = join(folder, 'child.vhd')
  createImage(parent, { format: 'vhd', size: 10 * MiB })
  createImage(path, { format: 'vhd', backing: parent })
  const image = openImage(path)
  for (const sector of [0, 2, 4]) image.write(Buffer.alloc(512, 1), 0, 512, sector * 512)
  image.flush()
  image.zero(0, 2 * MiB, true)
  image.flush()
  for (const sector of [1, 3]) image.write(Buffer.alloc(512, 2), 0, 512, 2 * MiB + sector * 512)
  image.flush()
  const back = content(image)
  const read = (at: number) => [0, 1, 2, 3, 4].map((sector) => back[at + sector * 512])
  t.same(read(0), [0, 0, 0, 0, 0])
  t.same(read(2 * MiB), [0, 2, 0, 2, 0])
  image.close()
  const file = readFileSync(path)
  const [first, second] = table(file)
  t.equal(first, NONE)
  t.equal(file.toString('hex', second! * 512, second! * 512 + 2), '5000')
})

t.test('freed blocks at the end make the file shorter', async (t) => {
  const path = join(temporaryFolder(t), 'a.vhd')
  createImage(path, { format: 'vhd', size: 20 * MiB })
  const empty = statSync(path).size
  let image = openImage(path)
  image.write(Buffer.alloc(image.size, 3), 0, image.size, 0)
  image.close()
  image = openImage(path)
  image.zero(2 * MiB, 18 * MiB, true)
  image.close()
  t.ok(statSync(path).size < 3 * MiB)
  image = openImage(path)
  image.zero(0, 20 * MiB, true)
  image.close()
  t.equal(statSync(path).size, empty)
})

t.test('a last block that is not there whole is freed, and the footer is not', async (t) => {
  const { storage, disk } = shortImage()
  const path = join(temporaryFolder(t), 'x.vhd')
  const bytes = Buffer.alloc(storage.size())
  storage.read(bytes, 0, bytes.length, 0)
  writeFileSync(path, bytes)
  let image = openImage(path)
  image.zero(4 * 4096, 2048, true)
  image.flush()
  image.flush()
  t.equal(readFileSync(path).toString('latin1', bytes.length - 512, bytes.length - 504), 'conectix')
  image.write(Buffer.alloc(3 * 4096, 5), 0, 3 * 4096, 4096)
  image.close()
  disk.fill(0, 4 * 4096).fill(5, 4096, 4 * 4096)
  image = openImage(path)
  t.ok(same(content(image), disk), 'no two blocks lie over each other')
  image.close()
  t.ok(same(byQemu(temporaryFolder(t), path), disk), 'as QEMU reads it')
  t.same(checkImage(path).findings, [])
})

t.test('a block of a differencing disk is freed only where the parent reads as zeros', async (t) => {
  const folder = temporaryFolder(t)
  const parent = join(folder, 'parent.vhd')
  const path = join(folder, 'child.vhd')
  createImage(parent, { format: 'vhd', size: 10 * MiB })
  const below = openImage(parent)
  below.write(Buffer.alloc(512, 9), 0, 512, 3 * MiB)
  below.close()
  createImage(path, { format: 'vhd', backing: parent })
  const image = openImage(path)
  image.write(Buffer.alloc(6 * MiB, 7), 0, 6 * MiB, 0)
  image.zero(0, 6 * MiB, true)
  t.ok(content(image).every((byte) => byte === 0))
  image.close()
  const [first, second, third] = table(readFileSync(path))
  t.equal(first, NONE)
  t.not(second, NONE, 'the parent has data there')
  t.equal(third, NONE)
})

t.test('space that nothing refers to is found when writing begins', async (t) => {
  const path = join(temporaryFolder(t), 'a.vhd')
  createImage(path, { format: 'vhd', size: 20 * MiB })
  let image = openImage(path)
  for (const block of [0, 1, 2, 3]) image.write(Buffer.alloc(2 * MiB, 1 + block), 0, 2 * MiB, block * 2 * MiB)
  image.close()
  // As after a crash: two blocks that were never published, and a longer tail with rubbish in it.
  const file = readFileSync(path)
  const entries = table(file)
  file.writeUInt32BE(NONE, TABLE + 4)
  file.writeUInt32BE(NONE, TABLE + 8)
  const tail = Buffer.alloc(4 * MiB, 0xee)
  writeFileSync(path, Buffer.concat([file.subarray(0, -512), tail, file.subarray(-512)]))
  image = openImage(path)
  for (const block of [5, 6, 7]) image.write(Buffer.of(9), 0, 1, block * 2 * MiB)
  const back = content(image)
  image.close()
  const now = table(readFileSync(path))
  t.same(new Set([now[5], now[6]]), new Set([entries[1], entries[2]]), 'the gap')
  t.ok(now[7]! * 512 < file.length + 4096, 'then the tail')
  for (const block of [5, 6, 7]) {
    t.equal(back[block * 2 * MiB], 9)
    t.ok(
      back.subarray(block * 2 * MiB + 1, (block + 1) * 2 * MiB).every((byte) => byte === 0),
      `block ${block}: no rubbish`,
    )
  }
  t.ok(statSync(path).size < file.length + 3 * MiB, 'and the file ends behind its last block')
})

t.test('a table with faults is not written to', async (t) => {
  const end = 0x1000 + 3 * MiB
  const cases: [what: string, table: number[], message: RegExp][] = [
    ['two entries for one block', [7, 7], /two blocks .* lie over each other/],
    ['two blocks that overlap', [7, 1007], /two blocks .* lie over each other/],
    ['a block behind the end', [0x100000], /block 0 is at byte 536870912/],
    ['a block over the table', [3], /block 0 is at byte 1536: it would lie over the block allocation table/],
  ]
  for (const [what, entries, message] of cases) {
    const image = openStorages([dynamicImage({ table: entries, end })])
    for (let i = 0; i < 2; i++)
      t.throws(() => image.write(Buffer.of(1), 0, 1, 8 * MiB), { code: 'CORRUPT', message }, what)
    image.close()
  }
})

t.test('a footer of 511 bytes becomes one of 512 when the file grows', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'a.vhd')
  createImage(path, { format: 'vhd', size: 10 * MiB })
  truncateSync(path, statSync(path).size - 1)
  let image = openImage(path)
  image.write(Buffer.alloc(512, 8), 0, 512, 0)
  image.close()
  const file = readFileSync(path)
  t.ok(same(file.subarray(-512), file.subarray(0, 512)))
  t.equal(file.length % 512, 0)
  image = openImage(path, { readOnly: true })
  t.equal(content(image)[0], 8)
  image.close()
})

/** A storage without room: writes that reach behind `room` bytes fail. */
function limited(inner: MemoryStorage, room: { bytes: number }): Storage {
  return new Proxy(inner, {
    get(target, name) {
      const value = Reflect.get(target, name, target) as unknown
      if (name === 'write')
        return (buffer: Uint8Array, at: number, length: number, offset: number) => {
          if (offset + length > room.bytes) throw new VdiskError('NO_SPACE', 'no space left', { path: target.path })
          target.write(buffer, at, length, offset)
        }
      return typeof value === 'function' ? (value as () => unknown).bind(target) : value
    },
  })
}

t.test('where the host has little room the file grows by little, and a full host leaves a valid image', async (t) => {
  const inner = dynamicImage()
  const room = { bytes: 0x2000 + 5 * MiB }
  const image = openStorages([limited(inner, room)])
  const data = Buffer.alloc(2 * MiB, 6)
  image.write(data, 0, data.length, 0)
  image.write(data, 0, data.length, 4 * MiB)
  for (let i = 0; i < 2; i++)
    t.throws(() => image.write(data, 0, data.length, 8 * MiB), { code: 'NO_SPACE' }, 'two blocks fit, a third does not')
  image.write(Buffer.of(5), 0, 1, 4 * MiB)
  image.flush()
  const copy = openStorages([inner], { readOnly: true })
  t.equal(copy.size, 10 * MiB)
  t.same([content(copy)[0], content(copy)[4 * MiB], content(copy)[8 * MiB]], [6, 5, 0])
  room.bytes = 100 * MiB
  image.write(data, 0, data.length, 8 * MiB)
  t.equal(content(image)[10 * MiB - 1], 6, 'and when there is room again it goes on')
  image.close()
})

/** A file of which only the first bytes and the footer are there: all else is a hole, however long it is. */
function hollow(base: MemoryStorage, footer: Uint8Array, end: number, written: Set<number>): Storage {
  const start = base.size()
  const read = (buffer: Uint8Array, at: number, length: number, offset: number) => {
    if (offset === end) buffer.set(footer.subarray(0, length), at)
    else if (offset < start) return base.read(buffer, at, length, offset)
    else buffer.fill(0, at, at + length)
    return length
  }
  return new Proxy(base, {
    get(target, name) {
      if (name === 'size') return () => end + 512
      if (name === 'read') return read
      if (name === 'write')
        return (_b: Uint8Array, _at: number, _length: number, offset: number) => void written.add(offset)
      if (['punch', 'zero', 'truncate', 'reserve'].includes(String(name))) return () => {}
      const value = Reflect.get(target, name, target) as unknown
      return typeof value === 'function' ? (value as () => unknown).bind(target) : value
    },
  })
}

t.test('where sector numbers end', async (t) => {
  const last = 0xfffffffe
  const written = new Set<number>()
  const image = openStorages([
    hollow(dynamicImage({ table: [last] }), WINDOWS_FOOTER, last * 512 + 512 + 2 * MiB, written),
  ])
  image.write(Buffer.alloc(512, 1), 0, 512, 0)
  t.ok(written.has(last * 512 + 512), 'the last place there is can be written')
  image.close()

  // Blocks of 2 GiB with less than a block between them, up to the last sector.
  const blockBytes = 2 ** 31 + 2 ** 19
  const entries = 1020
  const spacing = 512 * Math.ceil((NONE * 512 - blockBytes - MiB) / (entries - 2) / 512)
  const storage = dynamicImage({
    footer: footerWith((view) => view.setBigUint64(FooterAt.currentSize, BigInt(entries) * 2n ** 31n)),
    header: headerWith((view) => {
      view.setUint32(HeaderAt.entries, entries)
      view.setUint32(HeaderAt.blockSize, 2 ** 31)
    }),
  })
  const footer = Buffer.alloc(512)
  storage.read(footer, 0, 512, 0)
  const tableBytes = Buffer.alloc(4096, 0xff)
  let end = 0
  for (let block = 0; block < entries - 1; block++) {
    const start = MiB + block * spacing
    tableBytes.writeUInt32BE(start / 512, 4 * block)
    end = start + blockBytes
  }
  t.ok(spacing > blockBytes && spacing < 2 * blockBytes)
  storage.write(tableBytes, 0, 4096, TABLE)
  const full = openStorages([hollow(storage, footer, end, written)])
  t.throws(() => full.write(Buffer.of(1), 0, 1, (entries - 1) * 2 ** 31), {
    code: 'NO_SPACE',
    message: /2 TiB that a VHD can address/,
  })
  full.close()
})

t.test('an image that moved together with its parent opens; a missing parent is named with every place', async (t) => {
  const folder = temporaryFolder(t)
  for (const sub of ['a', 'b']) mkdirSync(join(folder, sub))
  const at = (sub: string, name: string) => join(folder, sub, name)
  createImage(at('a', 'parent.vhd'), { format: 'vhd', size: 10 * MiB })
  const below = openImage(at('a', 'parent.vhd'))
  below.write(Buffer.of(42), 0, 1, 0)
  below.close()
  createImage(at('a', 'child.vhd'), { format: 'vhd', backing: at('a', 'parent.vhd') })
  for (const name of ['parent.vhd', 'child.vhd']) renameSync(at('a', name), at('b', name))
  t.notOk(existsSync(at('a', 'parent.vhd')))
  const image = openImage(at('b', 'child.vhd'), { readOnly: true })
  t.equal(content(image)[0], 42)
  image.close()
  renameSync(at('b', 'parent.vhd'), at('b', 'elsewhere.vhd'))
  const named = new RegExp(
    `child\\.vhd: its parent '.*parent\\.vhd' cannot be opened: looked for ${at('b', 'parent.vhd')}, ${at('a', 'parent.vhd')}`,
  )
  t.throws(() => openImage(at('b', 'child.vhd'), { readOnly: true }), { code: 'NOT_FOUND', message: named })
  createImage(at('b', 'parent.vhd'), { format: 'vhd', size: 10 * MiB })
  t.throws(() => openImage(at('b', 'child.vhd'), { readOnly: true }), {
    code: 'CORRUPT',
    message: /its unique id is [0-9a-f-]{36}: the child was made over [0-9a-f-]{36}/,
  })
})

t.test('an image that Windows wrote is written to, and QEMU reads both', needsCorpus, async (t) => {
  const folder = temporaryFolder(t)
  for (const name of ['dynamic', 'd2v-zerofilled']) {
    const { path } = corpusImage(t, `vhd/${name}.vhd`)
    const expected = byQemu(folder, path)
    const image = openImage(path)
    for (const [offset, length] of [
      [0, 10],
      [4 * MiB + 777, 3 * MiB],
      [image.size - 1, 1],
    ] as const) {
      image.write(Buffer.alloc(length, 0x5a), 0, length, offset)
      expected.fill(0x5a, offset, offset + length)
    }
    image.zero(2 * MiB, 2 * MiB, true)
    expected.fill(0, 2 * MiB, 4 * MiB)
    image.close()
    t.ok(same(byQemu(folder, path), expected), name)
  }
})

t.test('on a device, room that blocks are put into is made zeros as it is needed', async (t) => {
  const path = join(temporaryFolder(t), 'image.vhd')
  createImage(path, { format: 'vhd', size: 256 * MiB })
  const file = readFileSync(path)
  const memory = MemoryStorage.create({ contents: file.subarray(0, -512) })
  const device = new Device(memory, 128 * MiB)
  memory.write(file, file.length - 512, 512, 128 * MiB - 512)
  let cleared = 0
  const { punch } = device
  device.punch = (offset, length) => {
    cleared += length
    punch.call(device, offset, length)
  }
  const disk = Buffer.alloc(256 * MiB)
  const image = openStorages([device], { format: 'vhd' })
  const write = (offset: number) => {
    const bytes = Buffer.alloc(700, 1 + (offset % 251))
    disk.set(bytes, offset)
    image.write(bytes, 0, bytes.length, offset)
  }
  write(100 * MiB + 300)
  t.ok(cleared <= 20 * MiB, `the first write makes ${cleared} bytes zeros`)
  for (let block = 0; block < 48; block++) write((5 * block + 1) * MiB + 300)
  t.ok(same(content(image), disk), 'around what is written are zeros')
  t.throws(
    () => {
      for (let block = 48; block < 128; block++) image.write(disk, 0, 512, 2 * block * MiB)
    },
    { code: 'NO_SPACE' },
  )
  image.close()
  const again = openStorages([device], { format: 'vhd', readOnly: true })
  t.same(
    content(again)
      .subarray(0, 96 * MiB)
      .equals(disk.subarray(0, 96 * MiB)),
    true,
    'and opened again',
  )
})
