import { readFileSync, statSync } from 'node:fs'
import { basename, join } from 'node:path'
import t from 'tap'
import { findFormat, formats } from '../../lib/formats/registry.js'
import { createImage } from '../../lib/image/create.js'
import { Image } from '../../lib/image/image.js'
import { imageInfo } from '../../lib/image/info.js'
import { openImage } from '../../lib/image/open.js'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import { createFiles, enlarge, open } from '../model/files.js'
import { secret, variants } from '../model/variants.js'
import { temporaryFolder } from '../support/temp.js'

/** No multiple of any block; a disk of 4 KiB sectors can have it. */
const SIZE = 6 * 2 ** 20 + 4096

function read(image: Image, offset = 0, length = image.size - offset): Uint8Array {
  const bytes = new Uint8Array(length).fill(0xee)
  image.read(bytes, 0, length, offset)
  return bytes
}

const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0

t.test('the registry', async (t) => {
  const names = formats.flatMap(({ name, aliases }) => [name, ...aliases])
  t.equal(new Set(names).size, names.length, 'no name twice')
  for (const format of formats) {
    for (const name of [format.name, ...format.aliases, format.name.toUpperCase()]) t.equal(findFormat(name), format)
    for (const extension of format.extensions) t.match(extension, /^\.[a-z0-9]+$/)
    for (const option of format.createOptions) t.ok(option.help.length > 0 && !option.help.endsWith('.'))
  }
  t.equal(formats.at(-1)!.name, 'raw', 'what matches everything comes last')
})

for (const small of variants) {
  const variant = enlarge(small, SIZE)
  const make = (folder: string) => createFiles(folder, variant, randomFrom(3))

  t.test(`a new image of ${variant.name}`, async (t) => {
    const [path, disk] = make(temporaryFolder(t))
    const image = openImage(path, { readOnly: true, secret })
    t.equal(image.format, variant.format.name, 'is recognised by its content')
    t.equal(image.size, SIZE, 'has the size that was asked for, to the byte')
    t.ok(same(read(image), disk), 'holds nothing, or what its parent does')
    image.close()
    const info = JSON.parse(JSON.stringify(imageInfo(path)))
    t.match(info, { format: variant.format.name, 'virtual-size': SIZE, filename: path })
    const before = readFileSync(path)
    const { format, options } = variant
    t.throws(() => createImage(path, { format: format.name, size: SIZE, options }), { code: 'EXISTS' })
    t.throws(() => createImage(`${path}2`, { format: format.name, size: SIZE, options: ['no=thing'] }), {
      code: 'USAGE',
    })
    t.ok(before.equals(readFileSync(path)), 'and is left as it is')
  })

  t.test(`reading ${variant.name} changes nothing`, async (t) => {
    const [path] = make(temporaryFolder(t))
    const before = readFileSync(path)
    const { mtimeMs } = statSync(path)
    for (const readOnly of [true, false]) {
      const image = open(path, variant, { readOnly })
      read(image)
      image.map(0, SIZE)
      image.seek(0, true)
      image.flush()
      image.close()
    }
    t.ok(before.equals(readFileSync(path)))
    t.equal(statSync(path).mtimeMs, mtimeMs)
  })

  t.test(`the edges of ${variant.name}`, async (t) => {
    const [path, disk] = make(temporaryFolder(t))
    const image = open(path, variant)
    for (const offset of [0, 511, 4095, SIZE - 513, SIZE - 1]) {
      const byte = Uint8Array.of(1 + (offset % 255))
      image.write(byte, 0, 1, offset)
      disk.set(byte, offset)
    }
    t.ok(same(read(image), disk), 'single bytes')
    for (const [offset, length] of [
      [SIZE, 1],
      [SIZE - 1, 2],
      [-1, 1],
    ] as const) {
      t.throws(() => image.write(new Uint8Array(2), 0, length, offset), { code: 'RANGE' })
      t.throws(() => image.read(new Uint8Array(2), 0, length, offset), { code: 'RANGE' })
      t.throws(() => image.zero(offset, length, true), { code: 'RANGE' })
    }
    image.write(new Uint8Array(0), 0, 0, SIZE)
    image.close()
    const again = open(path, variant, { readOnly: true })
    t.ok(same(read(again), disk))
    t.throws(() => again.write(Uint8Array.of(1), 0, 1, 0), { code: 'READ_ONLY', message: new RegExp(basename(path)) })
    again.close()
  })

  t.test(`space of ${variant.name} that is given back`, async (t) => {
    const [path, disk] = make(temporaryFolder(t))
    const image = open(path, variant)
    const data = new Uint8Array(SIZE).fill(0x55)
    image.write(data, 0, SIZE, 0)
    image.flush()
    const full = image.allocated()
    t.ok(full >= SIZE)
    image.zero(0, SIZE, true)
    image.flush()
    t.ok(same(read(image), new Uint8Array(SIZE)))
    // What is over data of a parent may have to stay, as zeros.
    if (!variant.parent) t.ok(image.allocated() < full - SIZE / 2, 'the host has it back')
    const size = statSync(path).size
    image.write(data, 0, SIZE / 2, 0)
    image.flush()
    t.ok(statSync(path).size <= size, 'and it is used again')
    image.close()
    disk.fill(0).fill(0x55, 0, SIZE / 2)
    const again = open(path, variant, { readOnly: true })
    t.ok(same(read(again), disk))
    again.close()
  })

  t.test(`zeros where nothing is in ${variant.name}`, async (t) => {
    if (variant.parent) return
    const [path] = make(temporaryFolder(t))
    const image = open(path, variant)
    // What a format needs at the first change of all counts for nothing here.
    image.zero(100, 5000, true)
    image.flush()
    const before = image.allocated()
    image.zero(0, SIZE, false)
    image.flush()
    if (image.map(0, SIZE).present === false) t.ok(image.allocated() <= before + 65536, 'takes up nothing')
    t.ok(same(read(image), new Uint8Array(SIZE)))
    image.close()
  })

  t.test(`two threads at ${variant.name}`, async (t) => {
    const [path, disk] = make(temporaryFolder(t))
    const image = open(path, variant, { threads: 2 })
    const other = Image.attach(image.handle(), 1)
    for (let i = 0; i < 200; i++) {
      const data = Uint8Array.of(i, i, i)
      const offset = 1 + 997 * i
      const user = i % 2 === 0 ? image : other
      user.write(data, 0, 3, offset)
      disk.set(data, offset)
      if (i % 50 === 0) user.flush()
    }
    t.ok(same(read(image), disk))
    t.ok(same(read(other), disk))
    image.close()
    const again = open(path, variant, { readOnly: true })
    t.ok(same(read(again), disk))
    again.close()
  })
}

t.test('a name does not decide what a file is', async (t) => {
  const folder = temporaryFolder(t)
  for (const { name, createOptions } of formats) {
    const path = join(folder, `${name}.image`)
    createImage(path, { format: name, size: 2 ** 20 })
    const image = openImage(path)
    t.equal(image.format, name)
    image.close()
    for (const option of createOptions) {
      // Of these a name alone says that it is on.
      if (option.type === 'boolean') continue
      const wrong = createImage.bind(null, `${path}-not`, { format: name, size: 2 ** 20, options: [option.name] })
      t.throws(wrong, { code: 'USAGE', message: /needs a value/ })
    }
  }
})
