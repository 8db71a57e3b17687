/** Two threads that write to different bytes of one sector at once: both are there in the end. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createImage } from '../../lib/image/create.js'
import { Image } from '../../lib/image/image.js'
import { openImage, openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { temporaryFolder } from '../support/temp.js'

const MiB = 2 ** 20

const KINDS = [
  { format: 'vhd', over: true, sector: 512, options: [] },
  { format: 'vhd', over: false, sector: 512, options: [] },
  { format: 'vhdx', over: true, sector: 512, options: [] },
  { format: 'vhdx', over: true, sector: 4096, options: ['logical_sector_size=4096'] },
]

for (const { format, over, sector, options } of KINDS)
  t.test(`${format}${over ? ' over a parent' : ''}, sectors of ${sector}`, async (t) => {
    const folder = temporaryFolder(t)
    const [parent, path] = [join(folder, `parent.${format}`), join(folder, `child.${format}`)]
    createImage(parent, { format, size: 16 * MiB, options: over ? options : [] })
    if (over) createImage(path, { format, backing: parent })
    const image = over ? path : parent
    const before = openImage(image)
    // The second sector is there; of the block's others a child has none.
    before.write(new Uint8Array(sector).fill(1), 0, sector, sector)
    before.close()
    const memory = (file: string) => MemoryStorage.create({ path: file, contents: readFileSync(file) })
    const storages = over ? [memory(path), memory(parent)] : [memory(image)]
    const first = openStorages(storages, { format, threads: 2 })
    const second = Image.attach(first.handle(), 1)
    const at = sector + 300
    let value = 2
    second.write(Uint8Array.of(value), 0, 1, at)
    const { write } = MemoryStorage.prototype
    let inside = false
    MemoryStorage.prototype.write = function (...request) {
      if (!inside) {
        inside = true
        second.write(Uint8Array.of(++value), 0, 1, at)
        inside = false
      }
      write.apply(this, request)
    }
    try {
      first.write(new Uint8Array(sector + 100).fill(9), 0, sector + 100, 0)
    } finally {
      MemoryStorage.prototype.write = write
    }
    t.ok(value > 2, 'the second wrote meanwhile')
    const expected = new Uint8Array(3 * sector).fill(9, 0, sector + 100).fill(1, sector + 100, 2 * sector)
    expected[at] = value
    for (const image of [first, second]) {
      const found = new Uint8Array(3 * sector)
      image.read(found, 0, found.length, 0)
      t.same(found, expected)
    }
    first.close()
  })
