import t from 'tap'
import { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import { FaultStorage } from '../../lib/storage/fault.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import type { Storage } from '../../lib/storage/storage.js'
import { BLOCK, type Block, called, faults, found, makeImage, noting, register } from './fixtures/blocks.js'

register()
t.beforeEach(() => {
  called()
  Object.assign(faults, { prepare: false, release: true, begin: false })
  found.gap = undefined
})

const filled = (byte: number, length = BLOCK) => new Uint8Array(length).fill(byte)

function read(image: Image, offset = 0, length = image.size - offset): Uint8Array {
  const bytes = filled(0xee, length + 2)
  image.read(bytes, 1, length, offset)
  if (bytes[0] !== 0xee || bytes[length + 1] !== 0xee) throw new Error('it read beyond its place')
  return bytes.subarray(1, length + 1)
}

/** The disk as runs of equal bytes: `3*4096 0*10`. */
function runs(bytes: Uint8Array): string {
  const parts: string[] = []
  for (let at = 0; at < bytes.length; ) {
    let end = at
    while (end < bytes.length && bytes[end] === bytes[at]) end++
    parts.push(`${bytes[at]}*${end - at}`)
    at = end
  }
  return parts.join(' ')
}

function open(blocks: readonly Block[], ...parents: Storage[]) {
  const storage = makeImage('image', blocks)
  const image = openStorages([noting(storage), ...parents])
  return { image, storage }
}

t.test('reading over extents of every kind', async (t) => {
  const { image } = open([filled(1), 'zero', { encoded: filled(2) }, 'absent', filled(3)])
  t.equal(image.size, 5 * BLOCK)
  t.equal(image.format, 'blocks')
  t.equal(runs(read(image)), '1*4096 0*4096 2*4096 0*4096 3*4096')
  t.same(called(), ['decode 4096 at 8192'])
  t.equal(runs(read(image, 4000, 4300)), '1*96 0*4096 2*108')
  t.same(called(), ['decode 108 at 8192'])
  t.equal(read(image, 5 * BLOCK, 0).length, 0)
})

t.test('a file that ends inside of its last block', async (t) => {
  const { image } = open([filled(1), filled(2, 100)])
  t.equal(runs(read(image)), '1*4096 2*100 0*3996')
  t.equal(runs(read(image, BLOCK + 50, 100)), '2*50 0*50')
  t.equal(runs(read(image, BLOCK + 200, 100)), '0*100')
})

t.test('what is beyond the end', async (t) => {
  const { image } = open([filled(1)])
  const buffer = new Uint8Array(10)
  const range = { code: 'RANGE', message: /image: bytes .* of a disk of 4096 bytes/ }
  t.throws(() => image.read(buffer, 0, 10, 4090), range)
  t.throws(() => image.read(buffer, 0, 1, 4096), range)
  t.throws(() => image.read(buffer, 0, 1, -1), range)
  t.throws(() => image.read(buffer, 0, 1, Number.NaN), range)
  t.throws(() => image.write(buffer, 0, 10, 4090), range)
  t.throws(() => image.zero(4090, 10, true), range)
  t.throws(() => image.map(4090, 10), range)
  t.same(called(), [])
})

t.test('parents, and a parent that is shorter', async (t) => {
  const middle = makeImage('middle', ['absent', filled(4), 'absent'])
  const base = makeImage('base', [filled(5), filled(6), filled(7), filled(8), filled(9)])
  const { image } = open(['absent', 'absent', 'absent', 'absent', filled(1)], middle, base)
  t.equal(runs(read(image)), '5*4096 4*4096 7*4096 0*4096 1*4096', 'behind the middle one there is nothing')
  t.same(
    image.layers.map(({ path, size }) => [path, size / BLOCK]),
    [
      ['image', 5],
      ['middle', 3],
      ['base', 5],
    ],
  )
  t.same(image.map(0, image.size), {
    start: 0,
    length: BLOCK,
    depth: 2,
    present: true,
    zero: false,
    data: true,
    offset: 2 * BLOCK,
    file: 'base',
  })
  t.same(image.map(3 * BLOCK, 100), {
    start: 3 * BLOCK,
    length: 100,
    depth: 0,
    present: false,
    zero: true,
    data: false,
  })
})

t.test('a write in place, and one that needs a new block', async (t) => {
  const { image } = open([filled(1), 'absent', 'absent'], makeImage('base', ['absent', filled(5), 'absent']))
  image.write(filled(7, 10), 0, 10, 100)
  t.same(called(), ['begin', 'write 10 at 8292'])
  image.write(filled(8, 10), 0, 10, BLOCK + 100)
  t.same(called(), [
    'full',
    'full',
    'grow',
    `allocate at ${BLOCK + 100}`,
    'prepare',
    'write 100 at 12288',
    'write 10 at 12388',
    'write 3986 at 12398',
    `publish ${BLOCK}`,
  ])
  image.write(filled(9, 10), 0, 10, 2 * BLOCK)
  t.same(
    called(),
    [
      `allocate at ${2 * BLOCK}`,
      'prepare',
      `write 10 at ${4 * BLOCK}`,
      `zero 4086 at ${4 * BLOCK + 10}`,
      `publish ${2 * BLOCK}`,
    ],
    'zeros are not read and written',
  )
  t.equal(runs(read(image)), '1*100 7*10 1*3986 5*100 8*10 5*3986 9*10 0*4086')
  t.ok(image.unflushed)
  image.flush()
  t.same(called(), ['sync', 'sync'])
  t.notOk(image.unflushed)
})

t.test('a write over several blocks of all kinds', async (t) => {
  const { image } = open([filled(1), { encoded: filled(2) }, 'zero', 'absent'])
  const data = Uint8Array.from({ length: 3 * BLOCK }, (_, i) => i % 251)
  image.write(data, 0, data.length, 100)
  const disk = read(image)
  t.equal(Buffer.compare(disk.subarray(100, 100 + data.length), data), 0)
  t.equal(runs(disk.subarray(0, 100)), '1*100')
  t.equal(runs(disk.subarray(100 + data.length)), '0*3996')
})

t.test('copy-on-write of an encoded block', async (t) => {
  const { image } = open([{ encoded: filled(2) }])
  image.write(filled(3, 1), 0, 1, 4095)
  t.equal(runs(read(image)), '2*4095 3*1')
})

t.test('an allocation that cannot be prepared is taken back', async (t) => {
  const { image } = open(['absent'])
  faults.prepare = true
  t.throws(() => image.write(filled(3), 0, BLOCK, 0), { code: 'NO_SPACE' })
  t.same(called().slice(-2), ['prepare', 'abandon 0'])
  t.equal(runs(read(image)), '0*4096')
  faults.prepare = false
  image.write(filled(3), 0, BLOCK, 0)
  t.equal(runs(read(image)), '3*4096')
})

t.test('data that cannot be written is not published', async (t) => {
  const storage = new FaultStorage(makeImage('image', ['absent']))
  const image = openStorages([storage])
  storage.fail({ kinds: ['write'], nth: 1, errno: 'EIO', shortWrite: 50 })
  t.throws(() => image.write(filled(3), 0, BLOCK, 0), { code: 'IO' })
  t.equal(called().at(-1), 'abandon 0')
  t.equal(runs(read(image)), '0*4096')
  image.write(filled(4, 10), 0, 10, 0)
  t.equal(runs(read(image)), '4*10 0*4086')
})

t.test('zeros: whole blocks are freed, parts are zeroed in place', async (t) => {
  const { image } = open([filled(1), filled(2), filled(3), 'absent'])
  image.zero(100, 2 * BLOCK, false)
  t.same(called(), [
    'begin',
    `zero 3996 at ${2 * BLOCK + 100}`,
    `release ${BLOCK + 100} at ${BLOCK}`,
    `zero 100 at ${4 * BLOCK}`,
  ])
  t.equal(runs(read(image)), '1*100 0*8192 3*3996 0*4096')
  image.zero(2 * BLOCK + 200, 100, true)
  t.same(called(), [`punch 100 at ${4 * BLOCK + 200}`])
  image.zero(3 * BLOCK + 5, 10, true)
  t.same(called(), [], 'what is zeros already')
})

t.test('zeros where the format frees nothing', async (t) => {
  const { image } = open([filled(1), filled(2)])
  faults.release = false
  image.zero(0, 2 * BLOCK, true)
  t.equal(runs(read(image)), '0*8192')
  t.same(
    called().filter((call) => call.startsWith('punch')),
    [`punch 4096 at ${2 * BLOCK}`, `punch 4096 at ${3 * BLOCK}`],
  )
})

t.test('zeros over a parent', async (t) => {
  const base = makeImage('base', [filled(5), 'absent', filled(6), filled(7)])
  const { image } = open(['absent', filled(1), 'absent', 'absent'], base)
  image.zero(0, 3 * BLOCK, false)
  t.same(called(), [
    'begin',
    `release ${BLOCK} at 0 over data`,
    `release ${BLOCK} at ${BLOCK}`,
    `release ${BLOCK} at ${2 * BLOCK} over data`,
  ])
  t.equal(runs(read(image)), '0*12288 7*4096')
  faults.release = false
  image.zero(3 * BLOCK + 10, 20, false)
  t.equal(runs(read(image)), '0*12288 7*10 0*20 7*4066', 'a new block with what the parent has around')
})

t.test('opened read-only, nothing is ever written', async (t) => {
  const storage = MemoryStorage.attach({ ...makeImage('image', [filled(1)]).handle(), readOnly: true })
  const image = openStorages([storage], { readOnly: true })
  t.ok(image.readOnly)
  t.throws(() => image.write(filled(2), 0, 1, 0), { code: 'READ_ONLY', message: /^image: / })
  t.throws(() => image.zero(0, 1, true), { code: 'READ_ONLY' })
  image.flush()
  t.notOk(image.unflushed)
  image.close()
  t.same(called(), [])
})

t.test('the beginning and the end of writing', async (t) => {
  const first = open([filled(1)])
  read(first.image)
  first.image.flush()
  first.image.close()
  t.same(called(), [], 'nothing was written')
  const { image, storage } = open([filled(1)])
  let closed = 0
  image.write(filled(2, 1), 0, 1, 0)
  image.write(filled(2, 1), 0, 1, 1)
  t.same(called(), ['begin', 'write 1 at 8192', 'write 1 at 8193'])
  storage.close = () => {
    closed++
  }
  image.close()
  image.close()
  t.same(called(), ['sync', 'finish'])
  t.ok(closed <= 1)
})

t.test('files are closed also where the last commit fails', async (t) => {
  const storage = new FaultStorage(makeImage('image', ['absent']))
  let closed = false
  storage.close = () => {
    closed = true
  }
  const image = openStorages([storage])
  image.write(filled(1), 0, BLOCK, 0)
  storage.fail({ kinds: ['sync'], nth: 1, errno: 'EIO' })
  t.throws(() => image.close(), { code: 'IO' })
  t.ok(closed)
  t.notOk(called().includes('finish'), 'it was no clean end')
})

t.test('after a sync that failed nothing is written, and reading goes on', async (t) => {
  const storage = new FaultStorage(makeImage('image', ['absent', filled(1)]))
  const image = openStorages([storage])
  image.write(filled(2), 0, BLOCK, 0)
  storage.fail({ kinds: ['sync'], nth: 1, errno: 'EIO' })
  t.throws(() => image.flush(), { code: 'IO' })
  t.throws(() => image.write(filled(3, 1), 0, 1, 0), { code: 'READ_ONLY', message: /opened again/ })
  t.throws(() => image.zero(0, 1, false), { code: 'READ_ONLY' })
  t.throws(() => image.flush(), { code: 'IO' })
  t.equal(runs(read(image)), '2*4096 1*4096')
})

t.test('another thread of the same image', async (t) => {
  const storage = makeImage('image', [filled(1), 'absent'])
  const image = openStorages([storage], { threads: 2 })
  const other = Image.attach(image.handle(), 1)
  other.write(filled(2), 0, BLOCK, BLOCK)
  t.equal(runs(read(image)), '1*4096 2*4096')
  image.zero(0, BLOCK, true)
  t.equal(runs(read(other)), '0*4096 2*4096')
  t.ok(other.unflushed)
  image.flush()
  t.notOk(other.unflushed)
  t.same(
    called().filter((call) => call === 'begin'),
    ['begin'],
  )
  image.threadDied(1)
  image.write(filled(3, 1), 0, 1, 0)
  image.close()
})

t.test('statistics', async (t) => {
  const { image } = open(['absent', 'absent'])
  const before = image.statistics()
  t.match(before, { pages: 8192, cached: 0, dirty: 0, misses: 0, evictions: 0, commits: 0 })
  image.write(filled(1), 0, 1, 0)
  t.match(image.statistics(), { cached: 1, dirty: 1, misses: 1, commits: 0 })
  image.flush()
  t.match(image.statistics(), { dirty: 0, commits: 1 })
})

t.test('data and holes', async (t) => {
  const base = makeImage('base', ['absent', 'absent', 'absent', filled(9)])
  const { image } = open(['absent', filled(1), 'absent', 'absent', { encoded: filled(2) }, 'zero'], base)
  const seek = (data: boolean, ...at: number[]) => at.map((block) => image.seek(block * BLOCK, data) / BLOCK)
  t.same(seek(true, 0, 1, 2, 3, 4), [1, 1, 3, 3, 4])
  t.same(seek(false, 0, 1, 2, 3, 4, 5), [0, 2, 2, 5, 5, 5])
  t.equal(image.seek(5 * BLOCK, true), -1)
  t.equal(image.seek(BLOCK + 100, true), BLOCK + 100)
  t.equal(image.seek(6 * BLOCK, false), -1)
  t.same(
    [0, 1, 4, 5].map((block) => {
      const { depth, present, zero, data, compressed } = image.map(block * BLOCK, BLOCK)
      return [depth, present, zero, data, compressed]
    }),
    [
      [1, false, true, false, undefined],
      [0, true, false, true, undefined],
      [0, true, false, true, true],
      [0, false, true, false, undefined],
    ],
  )
})

t.test('zeros in a disk of one run are one call', async (t) => {
  const storage = noting(MemoryStorage.create({ path: 'raw', contents: filled(1, 10 * BLOCK) }))
  const image = openStorages([storage], { format: 'raw' })
  image.zero(100, 9 * BLOCK, true)
  t.same(called(), [`punch ${9 * BLOCK} at 100`])
  t.equal(runs(read(image)), `1*100 0*${9 * BLOCK} 1*3996`)
})

t.test('the host is told early to write back where syncs come often, and only there', async (t) => {
  const MiB = 2 ** 20
  let begun = 0
  const storage = MemoryStorage.create({ maxSize: 128 * MiB })
  storage.truncate(128 * MiB)
  const image = openStorages([Object.assign(storage, { startWriteBack: () => begun++ })], { format: 'raw' })
  const bytes = new Uint8Array(MiB / 2)
  const write = (count: number) => {
    for (let i = 0; i < count; i++) image.write(bytes, 0, bytes.length, i * bytes.length)
    return begun
  }
  image.flush()
  t.equal(write(20), 0, 'a sync of nothing, as opening brings it, is none')
  image.flush()
  t.equal(write(1), 0, 'too little')
  t.equal(write(1), 1)
  t.equal(write(4), 3, 'once a MiB')
  image.flush()
  t.equal(write(1), 3, 'counted from the last sync')
  write(200)
  t.ok(begun < 3 + 80, 'not for ever')
  image.flush()
  begun = 0
  t.equal(write(20), 0, 'the last sync came late')
  image.close()
})

t.test('somebody else brings data to the disk early, who is asked more often', async (t) => {
  const KiB = 1024
  let here = 0
  let asked = 0
  const storage = MemoryStorage.create({ maxSize: 128 * KiB * KiB })
  storage.truncate(128 * KiB * KiB)
  const image = openStorages([Object.assign(storage, { startWriteBack: () => here++ })], { format: 'raw' })
  image.delegateWriteBack(() => asked++)
  const write = (count: number) => {
    for (let i = 0; i < count; i++) image.write(new Uint8Array(128 * KiB), 0, 128 * KiB, i * 128 * KiB)
    return asked
  }
  t.equal(write(8), 0, 'no sync yet')
  image.flush()
  t.equal(write(8), 4, 'once 256 KiB')
  t.equal(here, 0)
  image.close()
})

t.test('what need not stay in the cache is said to the storage, of new data and old', async (t) => {
  const past: string[] = []
  const passing = (storage: Storage) =>
    Object.assign(storage, {
      writeData: (buffer: Uint8Array, at: number, length: number, offset: number, isPast: boolean) => {
        if (isPast) past.push(`${length} at ${offset}`)
        storage.write(buffer, at, length, offset)
      },
    })
  const image = openStorages([passing(makeImage('image', [filled(1), 'absent', filled(3)]))])
  image.write(filled(7, 3 * BLOCK), 0, 3 * BLOCK, 0, true)
  t.same(past.length, 3)
  t.same(
    past.map((call) => call.split(' ')[0]),
    ['4096', '4096', '4096'],
  )
  t.equal(runs(read(image)), `7*${3 * BLOCK}`)
  past.length = 0
  image.write(filled(8, 3 * BLOCK), 0, 3 * BLOCK, 0)
  t.same(past, [], 'and only where it is said')
  t.equal(runs(read(image)), `8*${3 * BLOCK}`)
})

t.test('free space that an attempt to begin found before it failed is given out once', async (t) => {
  const { image } = open(['absent'])
  found.gap = [64 * BLOCK, BLOCK]
  faults.begin = true
  for (let times = 0; times < 2; times++) t.throws(() => image.write(filled(7), 0, BLOCK, 0), { code: 'IO' })
  faults.begin = false
  image.write(filled(7), 0, BLOCK, 0)
  const { metadata, space } = found.context!
  const taken = [1, 2].map(() => metadata.exclusive(() => space!.take(BLOCK)))
  t.same(taken, [64 * BLOCK, -1])
})
