/** A host that fails at the n-th operation, for every n: the caller is told, and nothing that was flushed is lost. */

import t from 'tap'
import { parallels } from '../../../lib/formats/parallels/format.js'
import { resizeExpanding } from '../../../lib/formats/parallels/resize.js'
import type { Image } from '../../../lib/image/image.js'
import { openStorages } from '../../../lib/image/open.js'
import { type Fault, FaultStorage } from '../../../lib/storage/fault.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { BITMAP, bitmapData, extensionBytes, imageBytes, KiB } from './bytes.js'

const CLUSTER = 4 * KiB
const SECTORS = 16 * 8
const ID = '00112233-4455-6677-8899-aabbccddeeff'

function start(): MemoryStorage {
  const file = imageBytes({ cluster: 8, sectors: SECTORS, dataOff: 8, extOff: 16, bat: [3], size: 4 * CLUSTER })
  extensionBytes(CLUSTER, [{ magic: BITMAP, data: bitmapData(SECTORS, ID, 8, [8]) }]).copy(file, 2 * CLUSTER)
  file.fill(0x11, 3 * CLUSTER)
  return MemoryStorage.create({ path: 'x.hds', contents: file })
}

const byteAt = (disk: Image, cluster: number) => {
  const byte = Buffer.alloc(1)
  disk.read(byte, 0, 1, cluster * CLUSTER)
  return byte[0]!
}

/**
 * Steps of a session; each is tried again once where it fails.
 * @returns for every cluster what it may hold then: what was flushed last, and what came after
 */
function session(disk: Image): number[][] {
  const may = [[0x11], [0], [0], [0], [0], [0]]
  const put = (cluster: number, byte: number) => () => {
    may[cluster]!.push(byte)
    disk.write(Buffer.alloc(CLUSTER, byte), 0, CLUSTER, cluster * CLUSTER)
  }
  const drop = (cluster: number) => () => {
    may[cluster]!.push(0)
    disk.zero(cluster * CLUSTER, CLUSTER, true)
  }
  const flush = () => {
    disk.flush()
    for (const values of may) values.splice(0, values.length - 1)
  }
  for (const step of [put(1, 1), flush, put(2, 2), drop(0), flush, put(3, 3), put(1, 9), flush, put(4, 4), flush]) {
    try {
      step()
    } catch {
      try {
        step()
      } catch {
        // A sync that failed ends writing.
        break
      }
    }
  }
  try {
    disk.close()
  } catch {
    // Said so; what was flushed counts.
  }
  return may
}

t.test('a disk that cannot be made smaller, because the host is full, keeps what it holds', async (t) => {
  for (let nth = 1, fired = 1; fired > 0; nth++) {
    const memory = start()
    const storage = new FaultStorage(memory)
    // In the middle of the cluster that holds something.
    storage.fail({ kinds: ['write', 'zero'], nth, errno: 'ENOSPC', persistent: true })
    const resize = () => resizeExpanding(storage, 1024)
    try {
      resize()
    } catch {
      t.ok(storage.fired > 0)
    }
    fired = storage.fired
    storage.heal()
    const disk = openStorages([memory], { readOnly: true })
    const found = Buffer.alloc(Math.min(disk.size, CLUSTER))
    disk.read(found, 0, found.length, 0)
    t.ok(found.equals(Buffer.alloc(found.length, 0x11)), `the ${nth}.: a disk of ${disk.size} bytes`)
    disk.close()
    resize()
    t.ok(nth < 50)
  }
})

for (const [errno, kinds] of [
  ['EIO', ['write']],
  ['ENOSPC', ['write', 'truncate', 'reserve']],
  ['EIO', ['sync']],
  ['EIO', ['punch', 'zero']],
] as const satisfies readonly (readonly [Fault['errno'], Fault['kinds']])[])
  t.test(`${errno} of ${kinds.join(', ')}`, async (t) => {
    let nth = 1
    for (; nth < 200; nth++) {
      const memory = start()
      const storage = new FaultStorage(memory)
      const disk = openStorages([storage])
      storage.fail({ kinds, nth, errno })
      const may = session(disk)
      const fired = storage.fired
      storage.heal()
      const again = openStorages([memory], { readOnly: true })
      const found = may.map((_, cluster) => byteAt(again, cluster))
      again.close()
      t.same(
        found.filter((byte, i) => !may[i]!.includes(byte)),
        [],
        `the ${nth}.: found ${found}, expected ${JSON.stringify(may)}`,
      )
      if (fired === 0) t.same(found, [0, 9, 2, 3, 4, 0], 'with no fault')
      const problems: string[] = []
      parallels.check!({
        storage: memory,
        path: 'x.hds',
        readOnly: true,
        repair: 'none',
        warn: () => {},
        found: ({ severity, what }) => void (severity !== 'leak' && what !== 'in-use' && problems.push(what)),
      })
      t.same(problems, [], `a check after the ${nth}.`)
      if (fired === 0) break
    }
    t.ok(nth > 1 && nth < 200, `${nth - 1} operations failed, one at a time`)
  })
