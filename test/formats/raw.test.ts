import { statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createImage } from '../../lib/image/create.js'
import { openImage, openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { temporaryFolder } from '../support/temp.js'

t.test('the file is the disk, of whatever size', async (t) => {
  const storage = MemoryStorage.create({ contents: Uint8Array.of(1, 2, 3, 4, 5, 6, 7) })
  const image = openStorages([storage], { format: 'raw' })
  t.equal(image.size, 7)
  image.write(Uint8Array.of(9, 9), 0, 2, 5)
  const back = new Uint8Array(7)
  image.read(back, 0, 7, 0)
  t.same([...back], [1, 2, 3, 4, 5, 9, 9])
  t.throws(() => image.write(back, 0, 1, 7), { code: 'RANGE' })
  image.flush()
  t.equal(storage.size(), 7)
  image.close()
})

t.test('new images are sparse, reserved or written, as asked for', async (t) => {
  const folder = temporaryFolder(t)
  const size = 3 * 2 ** 20 + 512
  for (const [preallocation, least, most] of [
    ['off', 0, 65536],
    ['falloc', size, 2 * size],
    ['full', size, 2 * size],
  ] as const) {
    const path = join(folder, `${preallocation}.img`)
    createImage(path, { format: 'raw', size, options: [`preallocation=${preallocation}`] })
    const { size: found, blocks } = statSync(path)
    t.equal(found, size, `${preallocation}: size`)
    t.ok(blocks * 512 >= least && blocks * 512 <= most, `${preallocation}: ${blocks * 512} bytes allocated`)
    const image = openImage(path, { readOnly: true })
    if (preallocation === 'off') t.match(image.map(0, size), { start: 0, length: size, zero: true, data: false })
    t.equal(image.size, size, `${preallocation}: size of the disk`)
    image.close()
  }
  t.throws(() => createImage(join(folder, 'x'), { format: 'raw', size, options: ['preallocation=some'] }), {
    code: 'USAGE',
  })
})

t.test('holes of a sparse file are holes of the disk', async (t) => {
  const storage = MemoryStorage.create()
  storage.truncate(1 << 20)
  storage.write(new Uint8Array(4096).fill(1), 0, 4096, 65536)
  const image = openStorages([storage], { format: 'raw', readOnly: true })
  t.equal(image.seek(0, true), 65536)
  t.equal(image.seek(65536, false), 65536 + 4096)
  t.match(image.map(0, image.size), { start: 0, length: 65536, zero: true, data: false })
  t.equal(image.seek(70000, true), -1)
  image.close()
})
