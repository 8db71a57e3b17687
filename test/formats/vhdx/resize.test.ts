import { appendFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Finding } from '../../../lib/formats/driver.js'
import { parseOptions } from '../../../lib/formats/options.js'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import type { VhdxLayout } from '../../../lib/formats/vhdx/layout.js'
import { checkImage } from '../../../lib/image/check.js'
import { createImage } from '../../../lib/image/create.js'
import { imageInfo } from '../../../lib/image/info.js'
import { openImage, openStorages } from '../../../lib/image/open.js'
import { resizeImage } from '../../../lib/image/resize.js'
import { openFile } from '../../../lib/storage/file.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import type { Storage } from '../../../lib/storage/storage.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { Device } from '../../support/device.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { bytesAt, contextOf, MiB, u64At, windowsImage } from './bytes.js'

const GiB = 1024 * MiB

interface Piece {
  readonly offset: number
  readonly length: number
  readonly value: number
}

function write(path: string, ...pieces: Piece[]): void {
  const image = openImage(path)
  for (const { offset, length, value } of pieces) image.write(new Uint8Array(length).fill(value), 0, length, offset)
  image.close()
}

function expect(t: Test, path: string, size: number, ...pieces: Piece[]): void {
  const image = openImage(path, { readOnly: true })
  t.equal(image.size, size)
  for (const { offset, length, value } of pieces) {
    const bytes = new Uint8Array(length)
    image.read(bytes, 0, length, offset)
    t.equal(
      bytes.findIndex((byte) => byte !== value),
      -1,
      `${length} bytes at ${offset} are ${value}`,
    )
  }
  image.close()
  t.same(checkImage(path).findings, [], 'check')
}

for (const [name, options, before, after, moves] of [
  ['inside of its table', ['block_size=1M'], 3 * MiB + 512, 70 * MiB, false],
  ['its table moves', ['block_size=1M'], 3 * MiB + 512, 200 * GiB, true],
  ['fixed', ['block_size=1M', 'subformat=fixed'], 3 * MiB + 512, 9 * MiB, false],
  ['inside of its last block', ['block_size=4M'], MiB, 3 * MiB, false],
] as const)
  t.test(`larger: ${name}`, async (t) => {
    const path = join(temporaryFolder(t), 'image.vhdx')
    createImage(path, { format: 'vhdx', size: before, options: [...options] })
    const ones = { offset: 0, length: 5000, value: 1 }
    const last = { offset: before - 512, length: 512, value: 2 }
    write(path, ones, last)
    const guid = imageInfo(path)['format-specific']!.data['data-write-guid']
    t.same(resizeImage(path, { size: after }), { before, after })
    t.not(imageInfo(path)['format-specific']!.data['data-write-guid'], guid, 'DataWriteGuid')
    const zeros = { offset: before, length: 65536, value: 0 }
    const end = { offset: after - 65536, length: 65536, value: 0 }
    expect(t, path, after, ones, last, zeros, end)
    must('qemu-img', ['check', '-q', '-f', 'vhdx', path])
    t.notMatch(
      must('qemu-io', ['-r', '-f', 'vhdx', '-c', `read -P 0 ${before} 64k`, '-c', `read -P 1 0 5000`, path]),
      /failed/,
    )
    write(path, { ...end, value: 3 }, { ...zeros, value: 4 })
    expect(t, path, after, ones, last, { ...end, value: 3 }, { ...zeros, value: 4 })
    must('qemu-img', ['check', '-q', '-f', 'vhdx', path])
    t.notMatch(must('qemu-io', ['-r', '-f', 'vhdx', '-c', `read -P 3 ${end.offset} 64k`, path]), /failed/)
    t.match(must('vhdiinfo', [path]), new RegExp(`\\(${after} bytes\\)`))
    t.equal(tableOf(path) !== 3 * MiB, moves)
  })

/** Where the table is, by the first region table. */
function tableOf(path: string): number {
  const storage = openFile(path, { readOnly: true })
  const offset = Number(u64At(storage, 196608 + 16 + 16))
  storage.close()
  return offset
}

t.test('a file of QEMU that ends inside of its last block: that block keeps all of its space', async (t) => {
  for (const [name, before, after, moves] of [
    ['in place', 12 * MiB, 36 * MiB, false],
    ['the table moves', 1000 * GiB + 4 * MiB, 1100 * GiB, true],
  ] as const) {
    const path = join(temporaryFolder(t), 'image.vhdx')
    const options = 'subformat=fixed,block_size=8M,block_state_zero=off'
    must('qemu-img', ['create', '-q', '-f', 'vhdx', '-o', options, path, `${before}`])
    t.equal(statSync(path).size % (8 * MiB), before % (8 * MiB), name)
    const table = tableOf(path)
    const [first, last] = [
      { offset: 0, length: 5000, value: 1 },
      { offset: before - 4096, length: 4096, value: 2 },
    ]
    write(path, first, last)
    resizeImage(path, { size: after })
    t.equal(tableOf(path) !== table, moves)
    const zeros = { offset: before, length: 10 * MiB, value: 0 }
    const end = { offset: after - 5 * MiB, length: 5 * MiB, value: 0 }
    expect(t, path, after, first, last, zeros, end)
    const blocks = { offset: before + 4 * MiB, length: 9 * MiB, value: 3 }
    write(path, blocks, { ...end, length: 512, value: 4 })
    expect(t, path, after, first, last, { ...zeros, length: 4 * MiB }, blocks, { ...end, length: 512, value: 4 })
    must('qemu-img', ['check', '-q', '-f', 'vhdx', path])
    const reads = [last, { ...zeros, length: 4 * MiB }, blocks].flatMap(({ offset, length, value }) => [
      '-c',
      `read -P ${value} ${offset} ${length}`,
    ])
    t.notMatch(must('qemu-io', ['-r', '-f', 'vhdx', ...reads, path]), /failed/)
  }
})

t.test('smaller, and larger again: what was cut off does not come back', async (t) => {
  for (const options of [['block_size=1M'], ['block_size=1M', 'subformat=fixed']]) {
    const path = join(temporaryFolder(t), 'image.vhdx')
    createImage(path, { format: 'vhdx', size: 10 * MiB, options })
    write(path, { offset: 0, length: 10 * MiB, value: 5 })
    t.throws(() => resizeImage(path, { size: 2 * MiB }), { code: 'USAGE' })
    resizeImage(path, { size: 2 * MiB + 1024, shrink: true })
    expect(t, path, 2 * MiB + 1024, { offset: 0, length: 2 * MiB + 1024, value: 5 })
    must('qemu-img', ['check', '-q', '-f', 'vhdx', path])
    resizeImage(path, { size: 10 * MiB })
    expect(
      t,
      path,
      10 * MiB,
      { offset: 0, length: 2 * MiB + 1024, value: 5 },
      { offset: 2 * MiB + 1024, length: 8 * MiB - 1024, value: 0 },
    )
  }
})

t.test('what a crash or somebody else left behind the last block is never shown', async (t) => {
  const folder = temporaryFolder(t)
  const [fixed, parent, child] = ['fixed.vhdx', 'parent.vhdx', 'child.vhdx'].map((name) => join(folder, name))
  createImage(fixed!, { format: 'vhdx', size: 2 * MiB, options: ['subformat=fixed', 'block_size=1M'] })
  createImage(parent!, { format: 'vhdx', size: 4 * MiB })
  createImage(child!, { format: 'vhdx', backing: parent!, size: 2 * MiB - 4096, options: ['block_size=1M'] })
  for (const path of [fixed!, child!]) {
    const ones = { offset: 0, length: MiB, value: 1 }
    write(path, ones)
    appendFileSync(path, Buffer.alloc(4 * MiB, 'Z'))
    resizeImage(path, { size: 5 * MiB })
    expect(t, path, 5 * MiB, ones, { offset: MiB, length: 4 * MiB, value: 0 })
  }
  must('qemu-img', ['check', '-q', '-f', 'vhdx', fixed!])
  t.notMatch(must('qemu-io', ['-r', '-f', 'vhdx', '-c', 'read -P 0 1M 4M', fixed!]), /failed/)
})

t.test('a differencing disk that was smaller than its parent does not show more of it', async (t) => {
  for (const written of [undefined, { offset: MiB + 4096, length: 512, value: 2 }]) {
    const folder = temporaryFolder(t)
    const [parent, child] = [join(folder, 'parent.vhdx'), join(folder, 'child.vhdx')]
    createImage(parent, { format: 'vhdx', size: 8 * MiB })
    write(parent, { offset: 0, length: 8 * MiB, value: 1 })
    createImage(child, { format: 'vhdx', backing: parent, size: MiB + 8192, options: ['block_size=1M'] })
    if (written) write(child, written)
    resizeImage(child, { size: 8 * MiB })
    expect(
      t,
      child,
      8 * MiB,
      { offset: 0, length: MiB + 4096, value: 1 },
      { offset: MiB + 4096, length: 512, value: written?.value ?? 1 },
      { offset: MiB + 4608, length: 3584, value: 1 },
      { offset: MiB + 8192, length: 7 * MiB - 8192, value: 0 },
    )
    write(child, { offset: 7 * MiB + 512, length: 512, value: 3 })
    expect(
      t,
      child,
      8 * MiB,
      { offset: 7 * MiB, length: 512, value: 0 },
      { offset: 7 * MiB + 512, length: 512, value: 3 },
    )
    resizeImage(child, { size: MiB + 4096, shrink: true })
    expect(t, child, MiB + 4096, { offset: 0, length: MiB + 4096, value: 1 })
    resizeImage(child, { size: 6000 * MiB })
    expect(
      t,
      child,
      6000 * MiB,
      { offset: MiB + 4096, length: MiB, value: 0 },
      { offset: 5999 * MiB, length: MiB, value: 0 },
    )
  }
})

t.test('a device that ends inside of the last block: that block grows as far as the device goes', async (t) => {
  const memory = MemoryStorage.create({ path: 'image.vhdx' })
  const options = parseOptions('vhdx', vhdx.createOptions, ['block_size=8M'])
  vhdx.create({ storage: memory, path: '/image.vhdx', size: 2 * MiB, options, backing: undefined })
  const disk = openStorages([memory])
  disk.write(new Uint8Array(2 * MiB).fill(1), 0, 2 * MiB, 0)
  disk.finish()
  const { offset } = disk.map(0, 1)
  memory.truncate(offset! + 3 * MiB)
  const recorder = new Recorder()
  const device = recorder.record(new Device(memory))
  t.throws(() => vhdx.resize!(layoutOf(device), [device], 4 * MiB, NO_HELP), { code: 'NO_SPACE' })
  vhdx.resize!(layoutOf(device), [device], 3 * MiB, NO_HELP)
  for (let moment = 0; moment <= recorder.length; moment++) {
    const image = openStorages([new Device(recorder.prefix(moment)[0]!)])
    const bytes = new Uint8Array(image.size)
    image.read(bytes, 0, image.size, 0)
    image.finish()
    t.equal(
      bytes.findIndex((byte, i) => byte !== (i < 2 * MiB ? 1 : 0)),
      -1,
      `${moment}: ${bytes.length} bytes`,
    )
  }
  t.equal(layoutOf(device).size, 3 * MiB)
})

t.test('on a block device what is not used any more becomes zeros', async (t) => {
  const parent = { path: '/parent.vhdx', format: 'vhdx', layout: layoutOf(windowsImage()), size: 6 * MiB, mtimeMs: 0 }
  const cases: readonly [string, typeof parent | undefined, number, (device: Device) => void][] = [
    ['smaller', undefined, 5, (device) => vhdx.resize!(layoutOf(device), [device], MiB, NO_HELP)],
    ['a child that is emptied', parent, 4, (device) => vhdx.empty!(layoutOf(device), [device])],
    ['leaks', undefined, 10, (device) => device.write(new Uint8Array(MiB).fill(9), 0, MiB, 12 * MiB)],
  ]
  for (const [name, backing, end, change] of cases) {
    const memory = MemoryStorage.create({ path: 'image.vhdx' })
    const options = parseOptions('vhdx', vhdx.createOptions, ['block_size=1M'])
    vhdx.create({ storage: memory, path: '/image.vhdx', size: 6 * MiB, options, backing })
    memory.truncate(16 * MiB)
    const device = new Device(memory)
    const image = openStorages([device])
    image.write(new Uint8Array(6 * MiB).fill(1), 0, 6 * MiB, 0)
    image.finish()
    change(device)
    const found: string[] = []
    const context = { ...contextOf(device, false), repair: 'leaks', found: (f: Finding) => found.push(f.what) } as const
    vhdx.check!(context)
    t.same(found, name === 'leaks' ? ['leak'] : [], name)
    const rest = bytesAt(memory, end * MiB, (16 - end) * MiB)
    t.equal(
      rest.findIndex((byte) => byte !== 0),
      -1,
      `${name}: zeros from ${end} MiB on`,
    )
    t.equal(device.size(), 16 * MiB)
  }
})

const NO_HELP = { below: () => 0, zeroBehind: () => {} }

function layoutOf(storage: Storage): VhdxLayout {
  return vhdx.open(contextOf(storage, false)).layout
}

t.test('sizes that there cannot be', async (t) => {
  const path = join(temporaryFolder(t), 'image.vhdx')
  createImage(path, { format: 'vhdx', size: MiB })
  t.throws(() => resizeImage(path, { size: 64 * 1024 * GiB + 1 }), { code: 'USAGE' })
  t.same(resizeImage(path, { size: 2 * MiB + 1 }).after, 2 * MiB + 512)
  t.equal(imageInfo(path)['virtual-size'], 2 * MiB + 512, 'whole sectors')
})

t.test('crashes while a disk becomes larger: it has the old size or the new one, and all its data', async (t) => {
  for (const [name, options, after] of [
    ['in place', ['block_size=1M'], 20 * MiB],
    ['moving', ['block_size=1M'], 300 * GiB],
    ['fixed', ['block_size=1M', 'subformat=fixed'], 9 * MiB],
  ] as const) {
    const top = MemoryStorage.create({ path: 'image.vhdx', maxSize: GiB })
    const values = parseOptions('vhdx', vhdx.createOptions, [...options])
    vhdx.create({ storage: top, path: '/image.vhdx', size: 3 * MiB + 512, options: values, backing: undefined })
    const image = openStorages([top])
    image.write(new Uint8Array(MiB).fill(7), 0, MiB, 2 * MiB + 512)
    image.close()
    const recorder = new Recorder()
    const recording = recorder.record(top)
    const { layout } = vhdx.open(contextOf(recording, false))
    vhdx.resize!(layout, [recording], after, { below: () => 0, zeroBehind: () => {} })
    const random = randomFrom(3)
    const sizes = new Set<number>()
    for (let i = 0; i < 120; i++) {
      const moment = i <= recorder.length ? i : Math.floor(random() * (recorder.length + 1))
      const [crashed] =
        i <= recorder.length ? recorder.prefix(moment) : recorder.crash(moment, Math.floor(random() * 2 ** 31), 512)
      const disk = openStorages([crashed!], { readOnly: i % 2 === 0 })
      sizes.add(disk.size)
      const bytes = new Uint8Array(MiB)
      disk.read(bytes, 0, MiB, 2 * MiB + 512)
      const lost = bytes.findIndex((byte) => byte !== 7)
      const rest = Math.min(MiB, disk.size - 3 * MiB - 512)
      disk.read(bytes, 0, rest, 3 * MiB + 512)
      const shown = bytes.subarray(0, rest).findIndex((byte) => byte !== 0)
      disk.close()
      if (lost >= 0 || shown >= 0) {
        t.fail(`${name}, moment ${moment}: ${lost} ${shown}\n${recorder.describe(0, moment).join('\n')}`)
        break
      }
    }
    t.same(
      [...sizes].sort((a, b) => a - b),
      [3 * MiB + 512, after],
      name,
    )
    t.equal(u64At(top, 65536 + 48), 0n, 'the log is empty')
    t.same(bytesAt(top, 0, 8), new Uint8Array(Buffer.from('vhdxfile')))
  }
})
