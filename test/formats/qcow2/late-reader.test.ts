/** A reader that was on its way to an L2 table when the table was given up. */

import { join } from 'node:path'
import t from 'tap'
import { Image } from '../../../lib/image/image.js'
import { openStorages } from '../../../lib/image/open.js'
import { Metadata } from '../../../lib/metadata/metadata.js'
import { temporaryFolder } from '../../support/temp.js'
import { change, create, inMemory, io, KiB, MiB } from './tools.js'

/** Bytes of the disk that an L2 table of an image with clusters of 4 KiB is for. */
const SPAN = 2 * MiB

t.test('what it puts into the cache is not taken for a new table in the same place', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '16M', 'cluster_size=4k')
  io(path, 'write -P 1 0 8k')
  // Others may use the table too, though its refcount is 1: whoever writes gets a copy.
  change(path, (bytes) => bytes.set64(bytes.l1, BigInt(bytes.l2)))
  const storage = inMemory(path)
  const first = openStorages([storage], { threads: 2 })
  const second = Image.attach(first.handle(), 1)
  const sector = new Uint8Array(512).fill(2)
  const write = (offset: number) => {
    first.write(sector, 0, sector.length, offset)
    first.flush()
  }
  const { load } = Metadata.prototype
  let gone = false
  Metadata.prototype.load = function () {
    if (this.thread === 1 && !gone && this.miss.start === table) {
      gone = true
      // The table is replaced; its place is freed with the next allocation.
      write(64 * KiB)
      write(128 * KiB)
    }
    load.call(this)
  }
  const table = entryOf(0)
  try {
    second.read(new Uint8Array(512), 0, 512, 0)
  } finally {
    Metadata.prototype.load = load
  }
  t.ok(gone, 'the reader was late')
  first.flush()
  const found = new Uint8Array(8 * KiB)
  for (let place = 1; place < 8; place++) {
    write(place * SPAN + 32 * KiB)
    second.read(found, 0, found.length, place * SPAN)
    t.ok(
      found.every((byte) => byte === 0),
      `nothing was ever written at ${place * SPAN}`,
    )
  }
  t.ok(
    [1, 2, 3, 4, 5, 6, 7].some((index) => entryOf(index) === table),
    'a new table took the place',
  )
  first.close()

  /** Where the L2 table is that an entry of the L1 table says, in the file. */
  function entryOf(index: number): number {
    const bytes = Buffer.alloc(8)
    storage.read(bytes, 0, 8, 40)
    storage.read(bytes, 0, 8, Number(bytes.readBigUInt64BE()) + 8 * index)
    return Number(bytes.readBigUInt64BE() & 0x00ff_ffff_ffff_fe00n)
  }
})
