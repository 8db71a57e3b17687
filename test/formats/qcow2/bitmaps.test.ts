import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { checkImage as checkStorage } from '../../../lib/formats/qcow2/check.js'
import { qcow2 } from '../../../lib/formats/qcow2/format.js'
import { addBitmap, clearBitmap, eachBitmapExtent, listBitmaps, removeBitmap } from '../../../lib/image/bitmaps.js'
import { checkImage } from '../../../lib/image/check.js'
import { openImage, openStorages } from '../../../lib/image/open.js'
import { resizeImage } from '../../../lib/image/resize.js'
import { applySnapshot, createSnapshot } from '../../../lib/image/snapshots.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { type Bytes, change, create, inMemory, io, KiB, layoutOf, MiB, qemuCheck, qemuInfo, toFile } from './tools.js'

function extents(path: string, name: string): [start: number, length: number][] {
  const found: [number, number][] = []
  eachBitmapExtent(path, name, ({ start, length }) => found.push([start, length]))
  return found
}

/** As QEMU sees them. */
function theirs(path: string): [name: string, granularity: number, flags: readonly string[]][] {
  const bitmaps = qemuInfo(path)['format-specific'].data.bitmaps ?? []
  return bitmaps.map((b: { name: string; granularity: number; flags: string[] }) => [b.name, b.granularity, b.flags])
}

function write(path: string, ...ranges: (readonly [offset: number, length: number])[]): void {
  const disk = openImage(path)
  for (const [offset, length] of ranges) disk.write(new Uint8Array(length).fill(9), 0, length, offset)
  disk.close()
}

/** Where the bitmap directory is: the extension's type and length, then where it says. */
const directoryOf = (b: Bytes) => b.u64(b.bytes.indexOf(Buffer.from('2385287500000018', 'hex')) + 8 + 16)

/** All is in order, for QEMU too. */
function sound(t: Test, path: string): void {
  t.equal(qemuCheck(path).code, 0)
  t.same(
    checkImage(path).findings.filter(({ severity }) => severity !== 'warning'),
    [],
  )
}

for (const options of ['cluster_size=64k', 'cluster_size=512', 'cluster_size=2M', 'extended_l2=on'])
  t.test(`added, written, shown, cleared, removed, in turns with QEMU: ${options}`, async (t) => {
    const path = join(temporaryFolder(t), 'image.qcow2')
    create(path, '64M', options)
    t.equal(addBitmap(path, 'b0', 64 * KiB), 'b0')
    t.same(theirs(path), [['b0', 65536, ['auto']]])
    sound(t, path)
    io(path, 'write 5M 64k', 'write 63M 1M')
    t.same(extents(path, 'b0'), [
      [5 * MiB, 64 * KiB],
      [63 * MiB, MiB],
    ])
    must('qemu-img', ['bitmap', '--add', '-g', '512', path, 'fine'])
    write(path, [MiB + 700, 10], [32 * MiB, 3 * MiB])
    t.same(extents(path, 'fine'), [
      [MiB + 512, 512],
      [32 * MiB, 3 * MiB],
    ])
    t.same(extents(path, 'b0'), [
      [MiB, 64 * KiB],
      [5 * MiB, 64 * KiB],
      [32 * MiB, 3 * MiB],
      [63 * MiB, MiB],
    ])
    sound(t, path)
    t.same(theirs(path), [
      ['b0', 65536, ['auto']],
      ['fine', 512, ['auto']],
    ])
    // What QEMU makes of our bits: merged into a bitmap of its own.
    must('qemu-img', ['bitmap', '--add', '--merge', 'b0', '-g', '64k', path, 'copy'])
    t.same(extents(path, 'copy'), extents(path, 'b0'))
    clearBitmap(path, 'b0')
    t.same(extents(path, 'b0'), [])
    removeBitmap(path, 'fine')
    t.same(
      listBitmaps(path).map(({ name }) => name),
      ['b0', 'copy'],
    )
    sound(t, path)
    io(path, 'write 6M 64k')
    t.same(extents(path, 'b0'), [[6 * MiB, 64 * KiB]])
    removeBitmap(path, 'copy')
    removeBitmap(path, 'b0')
    t.same(theirs(path), [])
    sound(t, path)
  })

t.test('zeros and discards are changes; a disabled bitmap records nothing, and stays', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M')
  io(path, 'write 0 8M')
  addBitmap(path, 'on', undefined)
  must('qemu-img', ['bitmap', '--add', '--disable', '-g', '64k', path, 'off'])
  const disk = openImage(path)
  disk.zero(MiB, 64 * KiB, false)
  disk.zero(2 * MiB, 64 * KiB, true)
  disk.close()
  t.same(extents(path, 'on'), [
    [MiB, 64 * KiB],
    [2 * MiB, 64 * KiB],
  ])
  t.same(extents(path, 'off'), [])
  t.same(theirs(path), [
    ['on', 65536, ['auto']],
    ['off', 65536, []],
  ])
  t.same(listBitmaps(path), [
    { name: 'on', granularity: 65536, flags: ['auto'] },
    { name: 'off', granularity: 65536, flags: [] },
  ])
  sound(t, path)
})

t.test('while the image is written, and after a crash, all counts as changed', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'image.qcow2')
  create(path, '2M', 'cluster_size=4k')
  addBitmap(path, 'b', 4096)
  const memory = inMemory(path)
  const recorder = new Recorder()
  const disk = openStorages([recorder.record(memory)])
  const random = randomFrom(11)
  for (let i = 0; i < 6; i++) {
    disk.write(new Uint8Array(8 * KiB).fill(i + 1), 0, 8 * KiB, i * 300 * KiB)
    if (i % 2 === 1) disk.flush()
  }
  disk.close()
  const wrong: string[] = []
  for (let i = 0; i < 3 * recorder.length; i++) {
    const moment = i <= recorder.length ? i : Math.floor(random() * (recorder.length + 1))
    const [crashed] =
      i <= recorder.length ? recorder.prefix(moment) : recorder.crash(moment, Math.floor(random() * 2 ** 31), 512)
    const bits = [...qcow2.bitmaps!.extents(layoutOf(crashed!), [crashed!], 'b')]
    const shown = openStorages([crashed!], { readOnly: true })
    const bytes = new Uint8Array(2 * MiB)
    shown.read(bytes, 0, bytes.length, 0)
    shown.close()
    const missed = bytes.findIndex(
      (byte, at) => byte !== 0 && !bits.some(({ start, length }) => at >= start && at < start + length),
    )
    if (missed >= 0) wrong.push(`${moment}: byte ${missed} is not in the bitmap`)
    checkStorage(crashed!, {
      repair: 'none',
      found: ({ severity, message }) => severity === 'corruption' && wrong.push(`${moment}: ${message}`),
    })
  }
  t.same(wrong, [])
  t.same([...qcow2.bitmaps!.extents(layoutOf(memory), [memory], 'b')].length, 6, 'at the end, only what was written')
  // Somebody who was killed: in use, kept so by the next writer, right again when it is cleared.
  const halfway = recorder.prefix(Math.floor(recorder.length / 2))[0]!
  toFile(halfway, path)
  t.match(listBitmaps(path), [{ name: 'b', flags: ['in-use', 'auto'] }])
  t.same(extents(path, 'b'), [[0, 2 * MiB]])
  write(path, [0, 100])
  t.same(theirs(path), [['b', 4096, ['in-use', 'auto']]])
  clearBitmap(path, 'b')
  write(path, [4096, 100])
  t.same(extents(path, 'b'), [[4096, 4096]])
  t.ok([0, 3].includes(qemuCheck(path).code), 'at worst with clusters that the crash leaked')
})

t.test('a directory whose bit is not set is not believed', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M')
  addBitmap(path, 'b', undefined)
  change(path, (b) => b.set64(88, 0))
  t.same(listBitmaps(path), [])
  t.equal(checkImage(path, { repair: 'all' }).leaksFixed, 2, 'its clusters are free')
  t.equal(addBitmap(path, undefined, undefined), 'bitmap0')
  t.same(theirs(path), [['bitmap0', 65536, ['auto']]])
  t.equal(qemuCheck(path).code, 0)
})

t.test('snapshots and sizes', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M', 'cluster_size=512')
  addBitmap(path, 'b', 512)
  createSnapshot(path, 'one')
  t.same(extents(path, 'b'), [], 'a new snapshot changes nothing')
  write(path, [0, 512], [7 * MiB, MiB])
  resizeImage(path, { size: 7 * MiB + 512, shrink: true })
  t.same(extents(path, 'b'), [
    [0, 512],
    [7 * MiB, 512],
  ])
  sound(t, path)
  t.same(theirs(path), [['b', 512, ['auto']]])
  resizeImage(path, { size: 40 * MiB })
  t.same(extents(path, 'b'), [
    [0, 512],
    [7 * MiB, 512],
  ])
  io(path, 'write 39M 512')
  t.same(extents(path, 'b').at(-1), [39 * MiB, 512])
  applySnapshot(path, 'one')
  t.same(extents(path, 'b'), [[0, 8 * MiB]], 'going back changes everything')
  t.same(theirs(path), [['b', 512, ['auto']]])
  sound(t, path)
})

t.test('bitmaps of the future are kept, and not used', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M')
  addBitmap(path, 'b', undefined)
  // Another type; extra data that is not declared harmless needs more bytes, so the type will do.
  change(path, (b) => {
    b.bytes[directoryOf(b) + 16] = 2
  })
  const warnings: string[] = []
  const disk = openImage(path, { warn: (message) => warnings.push(message) })
  disk.write(new Uint8Array(512), 0, 512, 0)
  disk.close()
  t.match(warnings.join(), /bitmap 'b' cannot be kept up to date/)
  change(path, (b) => t.equal(b.bytes.readUInt32BE(directoryOf(b) + 12), 3, 'in use for ever'))
  t.throws(() => clearBitmap(path, 'b'), { code: 'UNSUPPORTED' })
  removeBitmap(path, 'b')
  t.equal(qemuCheck(path).code, 0)
})

t.test('refused', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M')
  addBitmap(path, 'b', undefined)
  t.throws(() => addBitmap(path, 'b', undefined), { code: 'EXISTS' })
  t.throws(() => addBitmap(path, 'c', 1000), { code: 'USAGE' })
  t.throws(() => addBitmap(path, 'c', 256), { code: 'USAGE' })
  t.throws(() => addBitmap(path, 'x'.repeat(1024), undefined), { code: 'USAGE' })
  t.throws(() => clearBitmap(path, 'c'), { code: 'NOT_FOUND', message: /no bitmap 'c'; it has: b/ })
  t.throws(() => removeBitmap(path, 'c'), { code: 'NOT_FOUND' })
  create(`${path}2`, '8M', 'compat=0.10')
  t.throws(() => addBitmap(`${path}2`, 'b', undefined), { code: 'UNSUPPORTED' })
  const large = `${path}3`
  create(large, '8T')
  t.throws(() => addBitmap(large, 'b', 512), { code: 'NO_SPACE' })
  change(path, (b) => b.set64(directoryOf(b), 2 ** 40))
  t.throws(() => addBitmap(path, 'c', undefined), { code: 'CORRUPT' })
})

t.test('a size with which a bitmap would be too large is refused before anything is changed', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '1M')
  resizeImage(path, { size: 4 * 2 ** 40 })
  createSnapshot(path, 'large')
  resizeImage(path, { size: 2 ** 40, shrink: true })
  addBitmap(path, 'b', 512)
  const before = readFileSync(path)
  const expected = {
    code: 'NO_SPACE',
    message: /image.qcow2: bitmap 'b' would have 1073741824 bytes .*: expected 536870912/,
  }
  t.throws(() => resizeImage(path, { size: 4 * 2 ** 40 }), expected)
  t.throws(() => applySnapshot(path, 'large'), expected)
  t.ok(readFileSync(path).equals(before))
  t.match(listBitmaps(path), [{ name: 'b', flags: ['auto'] }])
  t.equal(qemuInfo(path)['virtual-size'], 2 ** 40)
})

t.test('a snapshot of 0 bytes is not applied over bitmaps, which QEMU would not open', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '0')
  createSnapshot(path, 'empty')
  resizeImage(path, { size: MiB })
  addBitmap(path, 'b', undefined)
  const expected = { code: 'USAGE', message: /image.qcow2: a disk of 0 bytes can have no bitmap: remove 'b' before/ }
  t.throws(() => applySnapshot(path, 'empty'), expected)
  t.match(listBitmaps(path), [{ name: 'b', flags: ['auto'] }])
  t.equal(qemuInfo(path)['virtual-size'], MiB)
  removeBitmap(path, 'b')
  applySnapshot(path, 'empty')
  t.equal(qemuInfo(path)['virtual-size'], 0)
})

t.test('crashes while bitmaps are changed: the image is sound, and the bitmap is old, new or not there', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '512k', 'cluster_size=4k')
  io(path, 'write 0 64k')
  addBitmap(path, 'a', 4096)
  io(path, 'write 64k 64k')
  const tools = qcow2.bitmaps!
  for (const act of [
    (s: Parameters<typeof layoutOf>[0]) => tools.add(layoutOf(s), [s], 'b', 4096),
    (s: Parameters<typeof layoutOf>[0]) => tools.clear(layoutOf(s), [s], 'a'),
    (s: Parameters<typeof layoutOf>[0]) => tools.remove(layoutOf(s), [s], 'a'),
  ]) {
    const memory = inMemory(path)
    const recorder = new Recorder()
    act(recorder.record(memory))
    const random = randomFrom(3)
    const wrong: string[] = []
    for (let i = 0; i < 3 * recorder.length; i++) {
      const moment = i <= recorder.length ? i : Math.floor(random() * (recorder.length + 1))
      const [crashed] =
        i <= recorder.length ? recorder.prefix(moment) : recorder.crash(moment, Math.floor(random() * 2 ** 31), 4096)
      checkStorage(crashed!, {
        repair: 'none',
        found: ({ severity, message }) => severity === 'corruption' && wrong.push(`${moment}: ${message}`),
      })
      const layout = layoutOf(crashed!)
      for (const { name } of tools.list(layout, [crashed!])) {
        const bits = [...tools.extents(layout, [crashed!], name)]
          .map(({ start, length }) => `${start}+${length}`)
          .join()
        if (name === 'a' && bits !== '65536+65536' && bits !== '') wrong.push(`${moment}: ${bits}`)
        if (name === 'b' && bits !== '') wrong.push(`${moment}: ${bits}`)
      }
    }
    t.same(wrong, [])
  }
})
