/** Images that end inside of their last block or cluster, as other programs make them, and images on devices. */

import { openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { contents } from '../metadata/fixtures/metadata.js'
import { Device } from '../support/device.js'
import { type Chain, createInMemory, randomBytes, secret, type Variant, variants } from './variants.js'

const SECTOR = 512
const ROOM = 2 ** 28

/** Formats whose files may lack zeros at the end of their last cluster. */
const ENDS_ANYWHERE = ['qcow2', 'parallels']

/** Formats of which the end of the file says what it is. */
const HAS_FOOTER = ['vhd']

/** All kinds, with a disk that ends inside of a block of any size. */
export const oddVariants = variants.map(
  (variant): Variant =>
    variant.sectorSize === undefined && variant.size % 4096 === 0 ? { ...variant, size: variant.size + 512 } : variant,
)

/**
 * An image whose file ends where the guest's data end, inside of a block.
 * @param whole every byte of the guest is in the file, also where the format allows zeros to be missing
 * @returns undefined where the file ends in something else, or with a whole block
 */
export function cutShort(variant: Variant, random: () => number, whole = false): Chain | undefined {
  const { format } = variant
  const { storages, contents: model } = createInMemory(variant, random)
  const [top, ...parents] = storages
  const anywhere = !whole && ENDS_ANYWHERE.includes(format.name) && random() < 0.5
  const disk = openStorages(storages, { secret })
  const { size, blockSize } = disk
  const writes = Math.floor(random() * 4)
  // The last sector comes last, so that its block is the last one of the file.
  for (let i = 0; i <= writes; i++) {
    const length = Math.min(size, SECTOR * Math.ceil(random() * 60))
    const offset = i === writes ? size - length : SECTOR * Math.floor((random() * (size - length)) / SECTOR)
    const data = randomBytes(length, random)
    if (i === writes && anywhere) data.fill(0, length / 2)
    disk.write(data, 0, length, offset)
    model.set(data, offset)
  }
  const guestEnd = endOfData(disk)
  disk.close()
  const bytes = contents(top!)
  const tail = HAS_FOOTER.includes(format.name) ? bytes.slice(-SECTOR) : new Uint8Array(0)
  const dataEnd = SECTOR * Math.ceil((1 + bytes.findLastIndex((byte) => byte !== 0)) / SECTOR)
  const inLast = guestEnd !== undefined && bytes.length - guestEnd < blockSize
  // Nobody says where encrypted data are: behind everything else, here.
  const end = guestEnd === undefined || (anywhere && inLast) ? dataEnd : guestEnd
  const rest = bytes.subarray(end, bytes.length - tail.length)
  if (end === 0 || rest.length === 0 || rest.length >= blockSize || rest.some((byte) => byte !== 0)) return undefined
  // A writer may end anywhere behind the data.
  const more = random() < 0.5 ? 0 : SECTOR * Math.floor((random() * rest.length) / SECTOR)
  const kept = new Uint8Array(end + more + tail.length)
  kept.set(bytes.subarray(0, end + more))
  kept.set(tail, end + more)
  const cut = MemoryStorage.create({ path: 'image', contents: kept, maxSize: ROOM })
  return { storages: [cut, ...parents], contents: model }
}

/** Where in the file the disk's last byte ends if nothing of it is behind that; 0: elsewhere; undefined: unknown. */
function endOfData(disk: ReturnType<typeof openStorages>): number | undefined {
  let end = 0
  for (let at = 0; at < disk.size; ) {
    const { length, depth, offset } = disk.map(at, disk.size - at)
    at += length
    if (depth === 0 && offset === undefined && at === disk.size) return undefined
    if (depth === 0 && offset !== undefined && offset + length > end) end = at === disk.size ? offset + length : 0
  }
  return end
}

/** Puts an image on a device that is so much larger, and has old data in what is more. */
export function onDevice({ format }: Variant, memory: MemoryStorage, more: number): Device {
  const end = memory.size()
  const footer = contents(memory).slice(-SECTOR)
  const device = new Device(memory, SECTOR * Math.ceil((end + more) / SECTOR))
  if (HAS_FOOTER.includes(format.name)) device.write(footer, 0, SECTOR, device.size() - SECTOR)
  return device
}
