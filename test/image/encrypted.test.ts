/** Encrypted data in the engine: with a cipher whose work can be seen, which notes what it is asked for. */

import t from 'tap'
import type { SectorCipher } from '../../lib/formats/driver.js'
import type { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import type { MemoryStorage } from '../../lib/storage/memory.js'
import { Pieces } from '../../lib/util/pieces.js'
import { BLOCK, type Block, called, calls, encryption, faults, makeImage, noting, register } from './fixtures/blocks.js'

const SECTOR = 512

/** Every byte gets the number of its sector's place added, and of its guest place, so that a mistake in either shows. */
function shift(sign: number) {
  return (buffer: Uint8Array, at: number, length: number, guest: number, host: number) => {
    if (length % SECTOR || guest % SECTOR || host % SECTOR) throw new Error(`${length} bytes at ${guest}, ${host}`)
    for (let i = 0; i < length; i++) {
      const key = 3 * Math.floor((host + i) / SECTOR) + 100 * Math.floor((guest + i) / SECTOR) + (i % SECTOR)
      buffer[at + i] = buffer[at + i]! + sign * key
    }
  }
}
const cipher: SectorCipher = { encrypt: shift(1), decrypt: shift(-1) }

register()
t.beforeEach(() => {
  called()
  Object.assign(faults, { prepare: false, release: true })
})

/** An image whose blocks, given in the clear, are encrypted in its file. Blocks of data lie one behind the other. */
function open(blocks: readonly Block[], parent?: MemoryStorage) {
  let next = 2
  const sealed = blocks.map((block, i) => {
    if (!(block instanceof Uint8Array)) return block
    const copy = Uint8Array.from(block)
    cipher.encrypt(copy, 0, copy.length, i * BLOCK, next * BLOCK)
    next++
    return copy
  })
  const storage = makeImage('image', sealed)
  // The driver of the image is made first.
  encryption.ciphers = [cipher]
  return { storage, image: openStorages(parent ? [noting(storage), parent] : [noting(storage)]) }
}

function read(image: Image, offset = 0, length = image.size - offset): Buffer {
  const bytes = Buffer.alloc(length + 2, 0xee)
  image.read(bytes, 1, length, offset)
  if (bytes[0] !== 0xee || bytes[length + 1] !== 0xee) throw new Error('it read beyond its place')
  return bytes.subarray(1, length + 1)
}

/** Bytes that all differ from their neighbours. */
const counting = (length: number, first: number) => Uint8Array.from({ length }, (_, i) => first + 7 * i)

t.test('reading: whole sectors, parts of them, across blocks', async (t) => {
  const clear = Buffer.concat([counting(BLOCK, 1), counting(BLOCK, 2), Buffer.alloc(BLOCK), counting(BLOCK, 4)])
  const { image } = open([
    clear.subarray(0, BLOCK),
    clear.subarray(BLOCK, 2 * BLOCK),
    'zero',
    clear.subarray(3 * BLOCK),
  ])
  t.ok(read(image).equals(clear))
  for (const [offset, length] of [
    [0, 512],
    [1, 510],
    [511, 2],
    [100, 3000],
    [512, 513],
    [4000, 9000],
    [4096, 1],
    [16383, 1],
  ] as const)
    t.ok(read(image, offset, length).equals(clear.subarray(offset, offset + length)), `${length} at ${offset}`)
  image.close()
})

t.test('overwriting in place: the rest of sectors stays, and so does what the caller gave', async (t) => {
  const clear = Buffer.concat([counting(BLOCK, 1), counting(BLOCK, 2)])
  const { image, storage } = open([clear.subarray(0, BLOCK), clear.subarray(BLOCK)])
  for (const [offset, length] of [
    [0, 512],
    [5, 7],
    [511, 2],
    [1000, 3000],
    [1024, 600],
    [600, 936],
    [4000, 200],
    [8191, 1],
  ] as const) {
    const given = counting(length + 2, offset)
    const before = given.slice()
    image.write(given, 1, length, offset)
    t.same(given, before, 'the given bytes')
    clear.set(given.subarray(1, length + 1), offset)
    t.ok(read(image).equals(clear), `${length} at ${offset}`)
  }
  t.ok(calls.every((call) => !/allocate|publish/.test(call)))
  const raw = new Uint8Array(BLOCK)
  storage.read(raw, 0, BLOCK, 2 * BLOCK)
  cipher.decrypt(raw, 0, BLOCK, 0, 2 * BLOCK)
  t.ok(clear.subarray(0, BLOCK).equals(raw), 'in the file it is encrypted')
  image.close()
})

t.test('a new block: what surrounds the bytes is encrypted too', async (t) => {
  const parent = makeImage('parent', [counting(BLOCK, 5), 'absent', counting(BLOCK, 6), counting(1000, 7)])
  const clear = Buffer.alloc(5 * BLOCK)
  clear.set(counting(BLOCK, 8), 4 * BLOCK)
  clear.set(counting(BLOCK, 5), 0)
  clear.set(counting(BLOCK, 6), 2 * BLOCK)
  clear.set(counting(1000, 7), 3 * BLOCK)
  const { image, storage } = open(['absent', 'absent', 'absent', 'absent', counting(BLOCK, 8)], parent)
  t.ok(read(image).equals(clear), 'the parent is not encrypted')
  for (const [offset, length] of [
    [700, 100],
    [BLOCK + 512, 512],
    [2 * BLOCK + 500, 24],
    [3 * BLOCK, BLOCK],
  ] as const) {
    const given = counting(length, offset)
    image.write(given, 0, length, offset)
    clear.set(given, offset)
    t.ok(read(image).equals(clear), `${length} at ${offset}`)
  }
  for (let block = 0; block < 4; block++) {
    const raw = new Uint8Array(BLOCK)
    storage.read(raw, 0, BLOCK, (3 + block) * BLOCK)
    cipher.decrypt(raw, 0, BLOCK, block * BLOCK, (3 + block) * BLOCK)
    t.ok(clear.subarray(block * BLOCK, (block + 1) * BLOCK).equals(raw), `block ${block} in the file`)
  }
  image.close()
})

t.test('zeros in place are encrypted zeros; whole blocks are freed as always', async (t) => {
  const clear = Buffer.concat([counting(BLOCK, 1), counting(BLOCK, 2), counting(BLOCK, 3)])
  const { image } = open([0, 1, 2].map((i) => clear.subarray(i * BLOCK, (i + 1) * BLOCK)))
  for (const unmap of [false, true]) {
    image.zero(100, 1000, unmap)
    clear.fill(0, 100, 1100)
    t.ok(read(image).equals(clear))
  }
  t.notOk(calls.some((call) => /^(punch|zero)/.test(call)))
  called()
  image.zero(BLOCK, BLOCK, true)
  clear.fill(0, BLOCK, 2 * BLOCK)
  t.ok(read(image).equals(clear))
  t.ok(called().some((call) => call.startsWith('release')))
  faults.release = false
  image.zero(2 * BLOCK, BLOCK, true)
  clear.fill(0, 2 * BLOCK)
  t.ok(read(image).equals(clear))
  image.zero(BLOCK + 3, 10, false)
  t.ok(read(image).equals(clear))
  image.close()
})

t.test('nothing is lent, and nobody is told where it lies', async (t) => {
  const { image, storage } = open([counting(BLOCK, 1), 'zero'])
  const plain = makeImage('plain', [counting(BLOCK, 1)])
  // As if they were files.
  for (const each of [storage, plain]) Object.defineProperty(each, 'descriptor', { value: 99 })
  const lent = (from: Image) => from.lend(BLOCK, 0, new Pieces(), () => true)
  t.same([lent(image), lent(openStorages([plain]))], [false, true])
  t.same(image.map(0, 2 * BLOCK), { start: 0, length: BLOCK, depth: 0, present: true, zero: false, data: true })
  t.equal(image.seek(0, true), 0)
  t.equal(image.seek(0, false), BLOCK)
  image.close()
})
