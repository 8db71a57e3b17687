/** SEEK_DATA and SEEK_HOLE while other threads move what they are about. */

import { join } from 'node:path'
import t from 'tap'
import { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { create, inMemory, io, KiB, MiB } from '../formats/qcow2/tools.js'
import { temporaryFolder } from '../support/temp.js'

/** The L2 entry of cluster 0 says that others may use its place too, though its refcount is 1: a write moves it. */
function movable(path: string): MemoryStorage {
  create(path, '4M')
  io(path, 'write -P 1 0 64k')
  const storage = inMemory(path)
  const entry = (offset: number) => {
    const bytes = Buffer.alloc(8)
    storage.read(bytes, 0, 8, offset)
    return bytes
  }
  const l1 = Number(entry(40).readBigUInt64BE())
  const l2 = Number(entry(l1).readBigUInt64BE() & 0x00ff_ffff_ffff_fe00n)
  const place = entry(l2)
  place[0]! &= 0x7f
  storage.write(place, 0, 8, l2)
  return storage
}

t.test('the place of data is not punched while somebody looks for holes in it', async (t) => {
  const first = openStorages([movable(join(temporaryFolder(t), 'image.qcow2'))], { threads: 2 })
  const second = Image.attach(first.handle(), 1)
  const sector = new Uint8Array(512).fill(2)
  const { nextData } = MemoryStorage.prototype
  t.teardown(() => {
    MemoryStorage.prototype.nextData = nextData
  })
  MemoryStorage.prototype.nextData = function (offset) {
    MemoryStorage.prototype.nextData = nextData
    // The cluster moves; the commit takes its old place from the disk; the next allocation frees it, and a commit that.
    first.write(sector, 0, 512, 4 * KiB)
    first.flush()
    first.write(sector, 0, 512, MiB)
    first.flush()
    return nextData.call(this, offset)
  }
  t.equal(second.seek(0, true), 0, 'data at every moment')
  first.flush()
  t.equal(second.seek(0, true), 0)
  t.equal(second.seek(0, false), 64 * KiB)
  first.close()
})
