/**
 * Images whose server was killed: there are gaps between their blocks, and behind the last one what a session made room
 * for. At their first write one operation of the host fails, and the guest tries again.
 */

import t from 'tap'
import { parseOptions } from '../../lib/formats/options.js'
import { openStorages } from '../../lib/image/open.js'
import { type Fault, FaultStorage } from '../../lib/storage/fault.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { corruption } from '../crash/scenario.js'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import { createInMemory, secret, type Variant, variants } from '../model/variants.js'

const BLOCKS = 16
/** That the first session writes, and that it gives back then. */
const WRITTEN = 11
const GIVEN_BACK = [1, 3, 4, 8]
/** The first write of the second session: nothing is there yet. */
const NEW = 13
const SECTOR = 4096
const ROOM = 2 ** 28

/** All but syncs: behind one that failed, nothing is written until the image is opened again. */
const KINDS = ['read', 'write', 'truncate', 'punch', 'zero', 'reserve', 'seek'] as const

interface Killed {
  readonly storages: readonly MemoryStorage[]
  readonly disk: Buffer
  readonly blockSize: number
}

/** Bytes of a block or cluster, or of several that are small. */
function blockSizeOf({ format, options }: Variant): number {
  const values = parseOptions(format.name, format.createOptions, options)
  return Math.max(SECTOR, Number(values.cluster_size ?? values.block_size))
}

function killed(variant: Variant): Killed {
  const blockSize = blockSizeOf(variant)
  const size = BLOCKS * blockSize
  const { storages, contents } = createInMemory({ ...variant, size }, randomFrom(1))
  const disk = Buffer.from(contents)
  const image = openStorages(storages, { secret })
  const fill = (block: number, value: number) => {
    disk.fill(value, block * blockSize, (block + 1) * blockSize)
    image.write(disk, block * blockSize, blockSize, block * blockSize)
  }
  for (let block = 0; block < WRITTEN; block++) fill(block, 0x10 + block)
  image.flush()
  for (const block of GIVEN_BACK) {
    disk.fill(0, block * blockSize, (block + 1) * blockSize)
    image.zero(block * blockSize, blockSize, true)
  }
  image.flush()
  image.abandon()
  return { storages, disk, blockSize }
}

/** Copies what is not a hole. */
function copyOf(original: MemoryStorage): MemoryStorage {
  const copy = MemoryStorage.create({ path: original.path, maxSize: ROOM })
  const size = original.size()
  copy.truncate(size)
  for (let at = original.nextData(0); at < size; ) {
    const end = Math.min(size, original.nextHole(at))
    const bytes = new Uint8Array(end - at)
    original.read(bytes, 0, bytes.length, at)
    copy.write(bytes, 0, bytes.length, at)
    at = original.nextData(end)
  }
  return copy
}

/** @returns what is wrong, or undefined; the fault did not come where `fired` is false */
function firstWrite(variant: Variant, killed: Killed, fault: Fault): { wrong: string | undefined; fired: boolean } {
  const { storages, blockSize } = killed
  const [top, ...parents] = storages
  const disk = Buffer.from(killed.disk)
  const copy = copyOf(top!)
  const host = new FaultStorage(copy)
  const options = { secret, warn: () => {} }
  const image = openStorages([host, ...parents], options)
  const write = (at: number, length: number, value: number) => {
    disk.fill(value, at, at + length)
    image.write(disk, at, length, at)
  }
  host.fail(fault)
  try {
    write(NEW * blockSize, SECTOR, 0xa1)
  } catch {
    write(NEW * blockSize, SECTOR, 0xa1)
  }
  const fired = host.fired > 0
  host.heal()
  for (const block of [...GIVEN_BACK, 14, 12, 15, 11]) write(block * blockSize, blockSize, 0x80 + block)
  const differs = (image: { read(b: Uint8Array, at: number, length: number, offset: number): void }, when: string) => {
    const found = Buffer.alloc(disk.length)
    image.read(found, 0, found.length, 0)
    if (found.equals(disk)) return undefined
    const at = found.findIndex((byte, i) => byte !== disk[i])
    return `${when}, byte ${at} is ${found[at]}: expected ${disk[at]}`
  }
  let wrong = differs(image, 'while it is open')
  image.close()
  const again = openStorages([copy, ...parents], { ...options, readOnly: true })
  wrong ??= differs(again, 'opened again')
  again.close()
  return { wrong: wrong ?? corruption({ ...variant, unclean: undefined }, copy), fired }
}

/** Whose blocks come one by one. */
const growing = ({ format, options }: Variant) => format.name !== 'raw' && !options.includes('subformat=fixed')

for (const variant of variants.filter(growing))
  t.test(`killed, and the first write fails once: ${variant.name}`, async (t) => {
    const image = killed(variant)
    for (const errno of ['EIO', 'ENOSPC'] as const)
      for (let nth = 1; ; nth++) {
        const { wrong, fired } = firstWrite(variant, image, { kinds: KINDS, nth, errno })
        if (wrong !== undefined) t.fail(`${errno} at operation ${nth}: ${wrong}`)
        if (!fired) break
      }
    t.pass('every operation')
  })
