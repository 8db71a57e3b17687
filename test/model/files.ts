/** Images of every kind as files in a folder of their own. */

import { join } from 'node:path'
import { createImage } from '../../lib/image/create.js'
import { type OpenOptions, openImage } from '../../lib/image/open.js'
import { randomBytes, secret, type Variant } from './variants.js'

/** A kind of image with a disk of another size than the small ones of `variants`. */
export function enlarge(variant: Variant, wanted: number): Variant {
  const { parent, sectorSize = 512 } = variant
  const size = sectorSize * Math.floor(wanted / sectorSize)
  const scale = size / variant.size
  const larger = parent && { ...parent, size: sectorSize * Math.floor((parent.size * scale) / sectorSize) }
  return { ...variant, size, ...(larger && { parent: larger }) }
}

/** Makes an image, over a parent that holds something where the kind has one. @returns its path, what the disk holds */
export function createFiles(folder: string, variant: Variant, random: () => number): [path: string, disk: Uint8Array] {
  const { format, options, size, parent } = variant
  const path = join(folder, `image.${format.name}`)
  const disk = new Uint8Array(size)
  if (!parent) {
    createImage(path, { format: format.name, size, options, secret })
    return [path, disk]
  }
  const backing = join(folder, `parent.${parent.format}`)
  createImage(backing, { format: parent.format, size: parent.size, options: parent.options, secret })
  const image = openImage(backing, { format: parent.format, secret })
  for (let i = 0; i < 20; i++) {
    const length = Math.ceil((random() * parent.size) / 15)
    const offset = Math.floor(random() * (parent.size - length))
    const data = randomBytes(length, random)
    image.write(data, 0, length, offset)
    if (offset < size) disk.set(data.subarray(0, size - offset), offset)
  }
  image.close()
  createImage(path, { format: format.name, size, options, secret, backing, backingFormat: parent.format })
  return [path, disk]
}

/** Opens it as the kind that it is: a raw disk may hold anything. */
export function open(path: string, { format }: Variant, options: OpenOptions = {}) {
  return openImage(path, { format: format.name, secret, ...options })
}
