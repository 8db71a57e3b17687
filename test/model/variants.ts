/** Every kind of image that can be created, small: what model, crash and conformance tests run over. */

import type { Backing, Format } from '../../lib/formats/driver.js'
import { parseOptions } from '../../lib/formats/options.js'
import { formats } from '../../lib/formats/registry.js'
import { openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import type { Storage } from '../../lib/storage/storage.js'

export interface Variant {
  readonly name: string
  readonly format: Format
  readonly options: readonly string[]
  /** Size of the disk in bytes. */
  readonly size: number
  /** What sizes of such disks are multiples of; 512 where it is not given. */
  readonly sectorSize?: number
  /** A parent, and its size. */
  readonly parent?: { readonly format: string; readonly options: readonly string[]; readonly size: number }
  /** QEMU's name of the format, where it can read this kind. */
  readonly qemu?: string
  /** What opening it after a crash may warn of. */
  readonly unclean?: RegExp
}

const KiB = 1024

/** The passphrase of the kinds that are encrypted; the others do not ask for it. */
export const secret = Buffer.from('a passphrase')

/** Room for images in memory, in bytes. */
const ROOM = 2 ** 28

const UNCLEAN = /left in use|not closed|in use/

/** Of these formats more than the default is tried; others that are in the registry come with their defaults. */
const KINDS: Readonly<Record<string, readonly Omit<Variant, 'format' | 'name'>[]>> = {
  raw: [{ options: [], size: 200 * KiB + 512, qemu: 'raw' }],
  parallels: [
    { options: ['cluster_size=64K'], size: 300 * KiB + 1536, qemu: 'parallels', unclean: UNCLEAN },
    { options: ['cluster_size=4K'], size: 700 * KiB + 512, qemu: 'parallels', unclean: UNCLEAN },
  ],
  vhdx: [
    { options: ['block_size=1M'], size: 1300 * KiB, qemu: 'vhdx' },
    {
      options: ['block_size=1M', 'logical_sector_size=4096', 'block_state_zero=on'],
      size: 1300 * KiB,
      sectorSize: 4096,
    },
    { options: ['subformat=fixed', 'block_size=1M'], size: 1100 * KiB, qemu: 'vhdx' },
    {
      options: ['block_size=1M'],
      size: 1300 * KiB,
      parent: { format: 'vhdx', options: ['block_size=2M'], size: 1300 * KiB },
    },
    // Larger blocks than the parent's, and a parent that is shorter.
    {
      options: ['block_size=4M', 'logical_sector_size=4096'],
      size: 600 * KiB,
      sectorSize: 4096,
      parent: { format: 'vhdx', options: ['block_size=1M', 'logical_sector_size=4096'], size: 500 * KiB },
    },
  ],
  qcow2: [
    { options: [], size: 300 * KiB + 1536, qemu: 'qcow2' },
    { options: ['cluster_size=512'], size: 300 * KiB + 512, qemu: 'qcow2' },
    { options: ['cluster_size=4K', 'compat=0.10'], size: 700 * KiB, qemu: 'qcow2' },
    { options: ['cluster_size=16K', 'extended_l2=on', 'refcount_bits=1'], size: 500 * KiB, qemu: 'qcow2' },
    {
      options: ['cluster_size=2K', 'refcount_bits=64', 'lazy_refcounts=on'],
      size: 400 * KiB,
      qemu: 'qcow2',
      unclean: UNCLEAN,
    },
    {
      options: ['cluster_size=16K'],
      size: 500 * KiB + 512,
      parent: { format: 'qcow2', options: ['cluster_size=4K'], size: 400 * KiB + 512 },
    },
    {
      options: ['cluster_size=32K', 'extended_l2=on'],
      size: 300 * KiB,
      parent: { format: 'raw', options: [], size: 400 * KiB },
    },
    // Without the derivation of a key, which would take much of the tests' time.
    { options: ['encrypt.format=aes', 'cluster_size=4K'], size: 300 * KiB + 1536, qemu: 'qcow2' },
    {
      options: ['encrypt.format=aes', 'cluster_size=16K', 'extended_l2=on'],
      size: 300 * KiB,
      parent: { format: 'raw', options: [], size: 200 * KiB + 512 },
    },
    {
      options: ['cluster_size=1K', 'compat=0.10'],
      size: 200 * KiB,
      parent: { format: 'qcow2', options: ['extended_l2=on'], size: 200 * KiB },
    },
  ],
  vhd: [
    { options: ['subformat=fixed'], size: 200 * KiB, qemu: 'vpc' },
    { options: ['block_size=64K'], size: 300 * KiB + 1536, qemu: 'vpc' },
    // Several sectors of table.
    { options: ['block_size=4K'], size: 700 * KiB + 512, qemu: 'vpc' },
    {
      options: ['block_size=16K'],
      size: 260 * KiB,
      parent: { format: 'vhd', options: ['block_size=4K'], size: 260 * KiB },
    },
    // A parent that is shorter, and ends inside of a block.
    {
      options: ['block_size=64K'],
      size: 300 * KiB,
      parent: { format: 'vhd', options: ['subformat=fixed'], size: 130 * KiB + 512 },
    },
  ],
}

export const variants: readonly Variant[] = formats.flatMap((format) =>
  (KINDS[format.name] ?? [{ options: [], size: 300 * KiB }]).map((kind) => ({
    ...kind,
    format,
    name: [format.name, ...kind.options, ...(kind.parent ? [`over ${kind.parent.options.join(' ')}`] : [])].join(' '),
  })),
)

/** What tells qemu-img of an image of this kind; undefined where it cannot read it. */
export function forQemu({ qemu, options }: Variant, path: string): string[] | undefined {
  if (qemu === undefined) return undefined
  if (!options.some((option) => option.startsWith('encrypt'))) return ['-f', qemu, path]
  const encrypted = `driver=${qemu},encrypt.key-secret=s,file.filename=${path}`
  return ['--object', `secret,id=s,data=${secret}`, '--image-opts', encrypted]
}

/** Writes an empty image. */
export function create(format: Format, storage: Storage, size: number, options: readonly string[], backing?: Backing) {
  const values = parseOptions(format.name, format.createOptions, options)
  format.create({ storage, path: `/${storage.path}`, size, options: values, secret: () => secret, backing })
  storage.sync()
}

export interface Chain {
  /** The image, and its parents. */
  readonly storages: MemoryStorage[]
  /** What the disk holds. */
  readonly contents: Uint8Array
}

/** A new image of this kind in memory, over a parent that holds something where it has one. */
export function createInMemory(variant: Variant, random: () => number): Chain {
  const { format, options, size, parent } = variant
  const contents = new Uint8Array(size)
  const top = MemoryStorage.create({ path: 'image', maxSize: ROOM })
  if (!parent) {
    create(format, top, size, options)
    return { storages: [top], contents }
  }
  const below = MemoryStorage.create({ path: 'parent', maxSize: ROOM })
  const parentFormat = formats.find(({ name }) => name === parent.format)!
  create(parentFormat, below, parent.size, parent.options)
  const image = openStorages([below], { secret })
  for (let i = 0; i < 12; i++) {
    const length = Math.ceil(random() * 20000)
    const offset = Math.floor(random() * (parent.size - length))
    const data = randomBytes(length, random)
    image.write(data, 0, length, offset)
    if (offset < size) contents.set(data.subarray(0, size - offset), offset)
  }
  image.close()
  const opened = parentFormat.open({ storage: below, path: '/parent', readOnly: true, warn: () => {} })
  const backing = { path: '/parent', format: parentFormat.name, layout: opened.layout, size: opened.size, mtimeMs: 0 }
  create(format, top, size, options, backing)
  return { storages: [top, below], contents }
}

/** Bytes of which hardly two sectors are alike. */
export function randomBytes(length: number, random: () => number): Uint8Array {
  const bytes = new Uint8Array(length)
  let word = Math.floor(random() * 2 ** 32)
  for (let i = 0; i < length; i++) {
    word = (Math.imul(word, 1664525) + 1013904223) | 0
    bytes[i] = word >>> 24
  }
  return bytes
}
