/**
 * What an image has when its recorded life begins: nothing, or a snapshot, which must show what it showed whatever
 * happens, or a bitmap, which must not miss a change.
 */

import type { Format } from '../../lib/formats/driver.js'
import { openStorages } from '../../lib/image/open.js'
import type { Storage } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'
import { cutShort, onDevice } from '../model/cut-short.js'
import { type Chain, createInMemory, randomBytes, secret, type Variant } from '../model/variants.js'

const SECTOR = 512

export interface Beginning extends Chain {
  /** The image lies on a device of so many bytes. */
  readonly device?: number
  /** Looks at what has to be kept. @returns what is wrong, or undefined */
  keeps?(storages: readonly Storage[], disk: Uint8Array): string | undefined
}

export interface Life {
  readonly name: string
  /** It takes long, and is left out of the tests. */
  readonly long?: boolean
  /** @returns undefined where this kind of image cannot have it */
  begin(variant: Variant, random: () => number): Beginning | undefined
}

/** The layout of an image, and its files. */
export function openedAlone(format: Format, storage: Storage, readOnly = false): { layout: unknown; files: Storage[] } {
  const context = { storage, path: storage.path, readOnly, secret: () => secret, warn: () => {} }
  const { layout, storage: shown } = format.open(context)
  return { layout, files: [shown ?? storage] }
}

/** An image that was written to. */
function used(variant: Variant, random: () => number): Chain {
  const { storages, contents } = createInMemory(variant, random)
  const disk = openStorages(storages, { secret })
  for (let i = 0; i < 6; i++) {
    const length = Math.ceil(random() * 20_000)
    const offset = Math.floor(random() * (disk.size - length))
    const data = randomBytes(length, random)
    disk.write(data, 0, length, offset)
    contents.set(data, offset)
  }
  disk.close()
  return { storages, contents }
}

/** @returns undefined where the format says that this image cannot have it */
function tryTo<T>(action: () => T): T | undefined {
  try {
    return action()
  } catch (error) {
    if (error instanceof VdiskError && error.code === 'UNSUPPORTED') return undefined
    throw error
  }
}

function withSnapshot(variant: Variant, random: () => number): Beginning | undefined {
  const tools = variant.format.snapshotTools
  if (!tools) return undefined
  const chain = used(variant, random)
  const { layout, files } = openedAlone(variant.format, chain.storages[0]!)
  const id = tryTo(() => tools.create(layout, files, 'kept'))
  if (id === undefined) return undefined
  const kept = chain.contents.slice()
  const keeps = (storages: readonly Storage[]) => {
    const image = openStorages(storages, { readOnly: true, secret, snapshot: 'kept' })
    const bytes = new Uint8Array(image.size)
    image.read(bytes, 0, image.size, 0)
    image.close()
    return Buffer.compare(bytes, kept) === 0 ? undefined : 'the snapshot shows something else'
  }
  return { ...chain, keeps }
}

function withBitmap(variant: Variant, random: () => number): Beginning | undefined {
  const { format } = variant
  const tools = format.bitmaps
  if (!tools) return undefined
  const chain = used(variant, random)
  const { layout, files } = openedAlone(format, chain.storages[0]!)
  const name = tryTo(() => tools.add(layout, files, undefined, undefined))
  if (name === undefined) return undefined
  const before = chain.contents.slice()
  const keeps = ([top]: readonly Storage[], disk: Uint8Array) => {
    const { layout, files } = openedAlone(format, top!, true)
    const said = new Uint8Array(disk.length)
    for (const { start, length } of tools.extents(layout, files, name)) said.fill(1, start, start + length)
    for (let at = 0; at < disk.length; at += SECTOR) {
      const changed = Buffer.compare(disk.subarray(at, at + SECTOR), before.subarray(at, at + SECTOR)) !== 0
      if (changed && said[at] === 0) return `the bitmap misses that the sector at byte ${at} was changed`
    }
    return undefined
  }
  return { ...chain, keeps }
}

/** What a device has more than the image that was put on it: room for all blocks of the small disks. */
const MORE = 10 * 2 ** 20

function onRoomyDevice(variant: Variant, random: () => number): Beginning | undefined {
  const chain = cutShort(variant, random, true)
  const device = chain && onDevice(variant, chain.storages[0]!, MORE).size()
  return chain && { ...chain, device }
}

export const lives: readonly Life[] = [
  { name: 'plain', begin: createInMemory },
  { name: 'with a snapshot', begin: withSnapshot },
  { name: 'with a bitmap', begin: withBitmap },
  { name: 'ending inside of its last block', begin: cutShort, long: true },
  { name: 'ending inside of its last block, on a device', begin: onRoomyDevice },
]
