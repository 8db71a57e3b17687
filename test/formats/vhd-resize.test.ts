/** Resizing VHDs: what the disk holds, as QEMU sees it too; every crash leaves the old size or the new one. */

import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { vhd } from '../../lib/formats/vhd/format.js'
import { scanTable } from '../../lib/formats/vhd/table.js'
import { checkImage } from '../../lib/image/check.js'
import { commitImage } from '../../lib/image/commit.js'
import { createImage } from '../../lib/image/create.js'
import { openImage, openStorages } from '../../lib/image/open.js'
import { resizeImage } from '../../lib/image/resize.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import { needsMounts } from '../support/mounts.js'
import { must } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'
import {
  BatmapAt,
  batmapOf,
  contextOf,
  corpusImage,
  deviceWith,
  needsCorpus,
  shortImage,
  withBatmap,
} from './vhd-images.js'

const KiB = 1024
const MiB = KiB * KiB
const GiB = KiB * MiB
const SECTOR = 512

function fill(path: string, bytes: Uint8Array, offset: number): void {
  const image = openImage(path)
  image.write(bytes, 0, bytes.length, offset)
  image.close()
}

function content(path: string): Buffer {
  const image = openImage(path, { readOnly: true })
  const bytes = Buffer.alloc(image.size)
  image.read(bytes, 0, image.size, 0)
  image.close()
  return bytes
}

/** An image of 5 MiB of which the first and last 700 KiB are written; and what it holds. */
function written(t: TestCase, options: readonly string[]): { path: string; bytes: Buffer } {
  const path = join(temporaryFolder(t), 'x.vhd')
  createImage(path, { format: 'vhd', size: 5 * MiB + SECTOR, options })
  const piece = Buffer.alloc(700 * KiB, 'resize ')
  for (const at of [0, 5 * MiB + SECTOR - piece.length]) fill(path, piece, at)
  return { path, bytes: content(path) }
}

function sound(t: TestCase & { same(a: unknown, b: unknown, name: string): unknown }, path: string): void {
  const { findings } = checkImage(path)
  t.same(findings, [], 'check finds nothing')
}

for (const options of [['block_size=512K'], ['block_size=4096'], ['subformat=fixed']])
  t.test(`larger and smaller: ${options}`, async (t) => {
    const { path, bytes } = written(t, options)
    const raw = join(temporaryFolder(t), 'raw')
    let expected = bytes.length
    writeFileSync(raw, bytes)
    for (const size of [5 * MiB + 2 * SECTOR, 37 * MiB, 3 * GiB, 40 * MiB, 5 * MiB]) {
      t.same(resizeImage(path, { size, shrink: true }), { before: expected, after: size })
      expected = size
      truncateSync(raw, size)
      sound(t, path)
      const judged = must('qemu-img', ['compare', '-f', 'vpc', '-F', 'raw', path, raw])
      t.equal(judged, 'Images are identical.\n', 'for QEMU, with the size')
    }
    t.ok(readFileSync(path).length < 5 * MiB + 80 * KiB, 'what is cut off takes no space')
  })

t.test('rubbish in front of the footer, and a last block that is not there whole', async (t) => {
  for (const rubbish of [0, 8192])
    for (const blocks of [5, 40, 2000]) {
      const { storage, disk } = shortImage(rubbish)
      const path = join(temporaryFolder(t), 'x.vhd')
      const bytes = Buffer.alloc(storage.size())
      storage.read(bytes, 0, bytes.length, 0)
      writeFileSync(path, bytes)
      resizeImage(path, { size: blocks * 4096 })
      const expected = Buffer.alloc(blocks * 4096)
      disk.copy(expected)
      t.ok(content(path).equals(expected), `${rubbish} bytes, ${blocks} blocks`)
      for (const at of [2 * 4096 + 7, blocks * 4096 - 100]) {
        fill(path, Buffer.alloc(10, 9), at)
        expected.fill(9, at, at + 10)
      }
      t.ok(content(path).equals(expected), 'written')
      sound(t, path)
    }
})

t.test('what a smaller disk had cut off does not come back', async (t) => {
  for (const options of [['block_size=512K'], ['subformat=fixed']]) {
    const { path } = written(t, options)
    const at = 5 * MiB - 100 * KiB
    resizeImage(path, { size: at, shrink: true })
    resizeImage(path, { size: 6 * MiB })
    const now = content(path)
    t.ok(now.subarray(at).every((byte) => byte === 0))
    t.equal(now[at - 1], 'resize '.charCodeAt((at - 1 - (5 * MiB + SECTOR - 700 * KiB)) % 7))
  }
})

t.test('an image whose geometry is its size keeps to geometries', async (t) => {
  const path = join(temporaryFolder(t), 'q.vhd')
  must('qemu-img', ['create', '-q', '-f', 'vpc', path, '64M'])
  const { before, after } = resizeImage(path, { size: 37 * MiB, relative: true })
  t.ok(after >= before + 37 * MiB && after < before + 38 * MiB, `${before} to ${after}`)
  const info = JSON.parse(must('qemu-img', ['info', '--output=json', '-f', 'vpc', path])) as { 'virtual-size': number }
  t.equal(info['virtual-size'], after)
})

/** What QEMU, for which the geometry is the size, makes of a size. */
function madeByQemu(t: TestCase, size: number): { path: string; size: number; geometry: string } {
  const path = join(temporaryFolder(t), 'q.vhd')
  must('qemu-img', ['create', '-q', '-f', 'vpc', path, String(size)])
  return { path, ...seenByQemu(path) }
}

function seenByQemu(path: string): { size: number; geometry: string } {
  const info = JSON.parse(must('qemu-img', ['info', '--output=json', '-f', 'vpc', path])) as { 'virtual-size': number }
  return { size: info['virtual-size'], geometry: readFileSync(path).subarray(56, 60).toString('hex') }
}

t.test('an image whose geometry is its size is never smaller than what was asked for', async (t) => {
  // A geometry of disks of a few sectors more says the first; that of the number itself says less.
  for (const size of [69615 * SECTOR, 69565 * SECTOR, 69564 * SECTOR, 87040 * SECTOR + 1, 278528 * SECTOR])
    for (const from of [MiB, 300 * MiB, 200 * GiB]) {
      const expected = madeByQemu(t, size)
      const { path } = madeByQemu(t, from)
      const { after } = resizeImage(path, { size, shrink: true })
      t.ok(after >= size, `${size} bytes: ${after}`)
      t.same({ size: after, geometry: expected.geometry }, seenByQemu(path), 'as QEMU sees it')
      t.equal(after, expected.size, 'as QEMU would have made it')
      sound(t, path)
    }
})

t.test('images that Windows and others made', needsCorpus, async (t) => {
  for (const name of ['vhd/dynamic.vhd', 'vhd/fixed.vhd', 'vhd/virtualpc-dynamic.vhd']) {
    const { path, virtualSize } = corpusImage(t, name)
    const raw = join(temporaryFolder(t), 'raw')
    must('qemu-img', ['convert', '-f', 'vpc', '-O', 'raw', path, raw])
    const { after } = resizeImage(path, { size: 300 * GiB, relative: true })
    t.ok(after >= virtualSize + 300 * GiB)
    sound(t, path)
    must('qemu-img', ['compare', '-f', 'vpc', '-F', 'raw', path, raw])
  }
})

t.test('a differencing disk grows only where its parent cannot show', async (t) => {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhd'), join(folder, 'child.vhd')]
  createImage(parent, { format: 'vhd', size: 4 * MiB })
  fill(parent, Buffer.alloc(4 * MiB, 7), 0)
  createImage(child, { format: 'vhd', backing: parent })
  resizeImage(child, { size: 10 * MiB })
  t.same(
    [
      content(child)
        .subarray(0, 4 * MiB)
        .every((byte) => byte === 7),
      content(child)[4 * MiB],
    ],
    [true, 0],
    'zeros behind the parent',
  )
  resizeImage(child, { size: 3 * MiB, shrink: true })
  t.throws(() => resizeImage(child, { size: 4 * MiB }), { code: 'USAGE', message: /show its parent/ })
})

/** A child of 20 blocks of 64 KiB, in which blocks 1 to 17 are the child's own and full, and XenServer's map says so. */
function childWithBatmap(t: TestCase): { parent: string; child: string } {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhd'), join(folder, 'child.vhd')]
  createImage(parent, { format: 'vhd', size: 20 * 64 * KiB, options: ['block_size=64K'] })
  fill(parent, Buffer.alloc(20 * 64 * KiB, 7), 0)
  createImage(child, { format: 'vhd', backing: parent, options: ['block_size=64K'] })
  const map = Buffer.from('7fffc0', 'hex')
  writeFileSync(child, withBatmap(readFileSync(child), map))
  fill(child, Buffer.alloc(17 * 64 * KiB, 9), 64 * KiB)
  return { parent, child }
}

t.test("XenServer's map forgets the blocks that leave the table", async (t) => {
  const { child } = childWithBatmap(t)
  t.equal(batmapOf(readFileSync(child)), '7fffc0')
  sound(t, child)
  resizeImage(child, { size: 12 * 64 * KiB - SECTOR, shrink: true })
  t.equal(batmapOf(readFileSync(child)), '7ff0', 'blocks 1 to 11 are left')
  const { written } = commitImage(child)
  t.equal(written, 11 * 64 * KiB - SECTOR)
  t.equal(batmapOf(readFileSync(child)), '', 'an empty child')
  t.ok(
    content(child)
      .subarray(64 * KiB)
      .every((byte) => byte === 9),
  )
  sound(t, child)
})

t.test('after a crash no block that has left the table is in the map', async (t) => {
  const { child } = childWithBatmap(t)
  const storage = MemoryStorage.create({ path: 'x.vhd' })
  const bytes = readFileSync(child)
  storage.write(bytes, 0, bytes.length, 0)
  const recorder = new Recorder()
  const recorded = recorder.record(storage)
  vhd.empty!(vhd.open(contextOf(storage, false)).layout, [recorded])
  const seen = new Set<string>()
  for (let count = 0; count <= recorder.length; count++)
    for (let seed = 0; seed < 12; seed++) {
      const [file] = seed === 0 ? recorder.prefix(count) : recorder.crash(count, 31 * count + seed, SECTOR)
      const head = Buffer.alloc(0xc00)
      file!.read(head, 0, head.length, 0)
      const map = batmapOf(head)
      seen.add(map)
      const gone = Array.from({ length: 20 }, (_, i) => i).filter(
        (i) => head.readUInt32BE(0x600 + 4 * i) === 0xffffffff,
      )
      if (map === '7fffc0' && gone.some((i) => i >= 1 && i <= 17))
        t.fail(`after ${count} entries, seed ${seed}: ${gone}`)
    }
  t.same([...seen].sort(), ['', '7fffc0', 'wrong checksum'], 'what a crash leaves of the map')
})

t.test('a batmap that says it lies where something else does is left alone', async (t) => {
  const { child } = childWithBatmap(t)
  const bytes = readFileSync(child)
  bytes.writeBigUInt64BE(0x600n, 0x800 + BatmapAt.offset)
  writeFileSync(child, bytes)
  resizeImage(child, { size: 12 * 64 * KiB, shrink: true })
  t.ok(
    content(child)
      .subarray(64 * KiB)
      .every((byte) => byte === 9),
  )
})

/** A device of 8 MiB with an image of `written`. */
function device(t: TestCase, options: readonly string[]): { path: string; bytes: Buffer } {
  const { path, bytes } = written(t, options)
  return { path: deviceWith(t, readFileSync(path), 8 * MiB), bytes }
}

for (const options of [['block_size=512K'], ['block_size=4096']])
  t.test(`on a device nothing is left over: ${options}`, needsMounts, async (t) => {
    const { path, bytes } = device(t, options)
    let model = bytes
    const is = (name: string) => {
      t.ok(content(path).equals(model), `${name}: content`)
      sound(t, path)
    }
    const resize = (size: number) => {
      resizeImage(path, { size, shrink: true })
      const next = Buffer.alloc(size)
      model.copy(next)
      model = next
      is(`${size} bytes`)
    }
    is('as it was put there')
    fill(path, Buffer.alloc(600 * KiB, 5), 2 * MiB)
    model.fill(5, 2 * MiB, 2 * MiB + 600 * KiB)
    is('written')
    const image = openImage(path)
    image.zero(2 * MiB, model.length - 2 * MiB, true)
    image.close()
    model.fill(0, 2 * MiB)
    is('discarded')
    for (const size of [9 * MiB + SECTOR, 400 * KiB, 30 * MiB]) resize(size)
  })

t.test('a device without room for a larger table is as it was', needsMounts, async (t) => {
  const { path, bytes } = device(t, ['block_size=4096'])
  t.throws(() => resizeImage(path, { size: 20 * GiB }), { code: 'NO_SPACE' })
  t.ok(content(path).equals(bytes))
  sound(t, path)
})

t.test('a child on a device is committed', needsMounts, async (t) => {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhd'), join(folder, 'child.vhd')]
  createImage(parent, { format: 'vhd', size: 4 * MiB })
  fill(parent, Buffer.alloc(4 * MiB, 7), 0)
  createImage(child, { format: 'vhd', backing: parent })
  fill(child, Buffer.alloc(100 * KiB, 8), MiB)
  const expected = Buffer.alloc(4 * MiB, 7).fill(8, MiB, MiB + 100 * KiB)
  const path = deviceWith(t, readFileSync(child), 8 * MiB)
  commitImage(path, { backingDirs: [folder] })
  t.ok(content(parent).equals(expected))
  t.same(checkImage(path, { backingDirs: [folder] }).findings, [])
})

t.test('sizes that it cannot have', async (t) => {
  const path = join(temporaryFolder(t), 'x.vhd')
  createImage(path, { format: 'vhd', size: 64 * MiB })
  const before = readFileSync(path)
  t.throws(() => resizeImage(path, { size: 2041 * GiB }), { code: 'USAGE', message: /2040 GiB/ })
  t.throws(() => resizeImage(path, { size: 32 * MiB }), { code: 'USAGE', message: /--shrink/ })
  t.ok(readFileSync(path).equals(before), 'the image is as it was')
})

/** Grows or shrinks under a recorder, and looks at what every crash leaves. */
function crashes(t: TestCase & Tap, options: Record<string, string | number>, before: number, after: number): void {
  const storage = MemoryStorage.create({ path: 'x.vhd' })
  vhd.create({ storage, path: '/x.vhd', size: before, options, backing: undefined })
  const disk = Buffer.alloc(before)
  const views = () => MemoryStorage.attach(storage.handle() as ReturnType<MemoryStorage['handle']> & { kind: 'memory' })
  const image = openStorages([views()], { cacheSize: MiB })
  for (let at = 0; at < before; at += 40 * KiB) {
    const piece = Buffer.alloc(Math.min(9 * KiB, before - at), 1 + (at % 251))
    image.write(piece, 0, piece.length, at)
    piece.copy(disk, at)
  }
  image.write(Buffer.alloc(SECTOR, 99), 0, SECTOR, before - SECTOR)
  disk.fill(99, before - SECTOR)
  image.close()
  const recorder = new Recorder()
  const recorded = recorder.record(storage)
  vhd.resize!(vhd.open(contextOf(storage, false)).layout, [recorded], after, { below: () => 0, zeroBehind: () => {} })
  for (let count = 0; count <= recorder.length; count++)
    for (let seed = 0; seed < 12; seed++) {
      const [file] = seed === 0 ? recorder.prefix(count) : recorder.crash(count, 31 * count + seed, SECTOR)
      const context = contextOf(file!, true)
      const { layout, size } = vhd.open(context)
      if (layout.blocks) scanTable(layout, file!, layout.footerOffset)
      const found = Buffer.alloc(size)
      const opened = openStorages([file!], { readOnly: true, cacheSize: MiB })
      opened.read(found, 0, size, 0)
      opened.close()
      const expected = Buffer.alloc(size)
      disk.copy(expected)
      const right = (size === before || size === after) && found.equals(expected) && context.warnings.length === 0
      if (right && (count < recorder.length || size === after)) continue
      t.fail(`after ${count} entries, seed ${seed}: size ${size}, ${context.warnings}`)
      t.comment(recorder.describe().join('\n'))
      return
    }
  t.ok(recorder.length > 3, `${recorder.length} entries`)
}

interface Tap {
  ok(value: unknown, name: string): unknown
  comment(text: string): unknown
}

t.test('every crash leaves the old size or the new one', async (t) => {
  const small = { block_size: 4096 }
  crashes(t, small, 600 * KiB, 2 * MiB)
  crashes(t, small, 600 * KiB + SECTOR, 700 * KiB)
  crashes(t, small, 600 * KiB, 601 * KiB)
  crashes(t, { block_size: 65536 }, 600 * KiB, 640 * KiB + SECTOR)
  crashes(t, small, 600 * KiB, 300 * KiB + SECTOR)
  crashes(t, { block_size: 65536 }, 600 * KiB, 70 * KiB)
  crashes(t, { subformat: 'fixed' }, 600 * KiB, 600 * KiB + SECTOR)
  crashes(t, { subformat: 'fixed' }, 600 * KiB, 900 * KiB)
  crashes(t, { subformat: 'fixed' }, 600 * KiB, 100 * KiB)
})
