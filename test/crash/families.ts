/** Images over other images, in real files, each with something of its own: what operations on chains begin with. */

import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import { createImage } from '../../lib/image/create.js'
import type { Image } from '../../lib/image/image.js'
import { openImage } from '../../lib/image/open.js'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import { randomBytes, secret } from '../model/variants.js'

const KiB = 1024
const CACHE = 1024 * KiB

interface Member {
  readonly format: string
  readonly options: readonly string[]
  readonly size: number
}

/** One kind of family: the image, its parent, the parent's parent. */
export interface Kind {
  readonly name: string
  readonly format: string
  readonly members: readonly Member[]
  /** QEMU can read it, with all its parents. */
  readonly qemu: boolean
}

const qcow2 = (size: number, ...options: string[]): Member => ({ format: 'qcow2', options, size })
const vhd = (size: number, ...options: string[]): Member => ({ format: 'vhd', options, size })
const vhdx = (size: number, ...options: string[]): Member => ({ format: 'vhdx', options, size })
const raw = (size: number): Member => ({ format: 'raw', options: [], size })

const AES = 'encrypt.format=aes'

/** Parents that are shorter have to grow in a commit, inside of their last cluster too. */
const FAMILIES: readonly (readonly Member[])[] = [
  [qcow2(300 * KiB + 512, 'cluster_size=4K'), qcow2(300 * KiB + 512, 'cluster_size=16K')],
  [
    qcow2(260 * KiB + 512, 'cluster_size=16K', 'extended_l2=on'),
    qcow2(201 * KiB + 512, 'cluster_size=16K', 'extended_l2=on'),
    raw(230 * KiB),
  ],
  [
    qcow2(200 * KiB, 'cluster_size=1K', 'compat=0.10'),
    qcow2(150 * KiB + 512, 'cluster_size=4K', 'compat=0.10'),
    qcow2(400 * KiB),
  ],
  [
    qcow2(260 * KiB + 512, 'cluster_size=2K', 'lazy_refcounts=on'),
    qcow2(199 * KiB + 512, 'cluster_size=64K'),
    qcow2(230 * KiB),
  ],
  [qcow2(200 * KiB, AES, 'cluster_size=4K'), qcow2(150 * KiB + 512, AES, 'cluster_size=16K')],
  [vhd(260 * KiB, 'block_size=16K'), vhd(260 * KiB, 'block_size=4K')],
  [vhd(300 * KiB, 'block_size=4K'), vhd(130 * KiB + 512, 'block_size=64K')],
  [vhd(300 * KiB, 'block_size=64K'), vhd(130 * KiB + 512, 'subformat=fixed')],
  [vhdx(1300 * KiB, 'block_size=1M'), vhdx(1300 * KiB, 'block_size=2M')],
  [vhdx(2600 * KiB, 'block_size=1M'), vhdx(1500 * KiB, 'block_size=1M')],
]

export const kinds: readonly Kind[] = FAMILIES.map((members) => ({
  name: members.map(({ format, options, size }) => [format, ...options, size].join(' ')).join(' over '),
  format: members[0]!.format,
  members,
  qemu: members.every(({ format, options }) => ['qcow2', 'raw'].includes(format) && !options.includes(AES)),
}))

export interface Family {
  readonly kind: Kind
  readonly top: string
  readonly parent: string
  /** An image that could be its parent: of the same kind and size as that, with another content. */
  readonly other: string
  /** Byte for byte what its parent is. */
  readonly twin: string
}

/** Makes the files in a folder that is empty. */
export function makeFamily(kind: Kind, folder: string, seed: number): Family {
  const random = randomFrom(seed)
  const paths = kind.members.map(({ format }, i) => join(folder, `${i}.${format}`))
  const make = (path: string, { format, options, size }: Member, backing: string | undefined, writes: number) => {
    createImage(path, { format, options, size, secret, backing })
    // In the end of a disk that has a parent, that parent's bytes may be behind the end.
    edit(path, (disk) => live(disk, random, writes, backing === undefined))
  }
  for (let i = paths.length - 1; i >= 0; i--) make(paths[i]!, kind.members[i]!, paths[i + 1], i === 0 ? 9 : 14)
  const { format } = kind.members[1]!
  const [other, twin] = [join(folder, `other.${format}`), join(folder, `twin.${format}`)]
  make(other, kind.members[1]!, paths[2], 14)
  copyFileSync(paths[1]!, twin)
  return { kind, top: paths[0]!, parent: paths[1]!, other, twin }
}

export function edit(path: string, change: (disk: Image) => void): void {
  const disk = openImage(path, { secret, cacheSize: CACHE })
  try {
    change(disk)
  } finally {
    disk.close()
  }
}

/**
 * Writes at random places, and in between zeros.
 * @param end the last bytes are among them
 */
function live(disk: Image, random: () => number, changes: number, end: boolean): void {
  const { size } = disk
  for (let i = 0; i < changes; i++) {
    const length = Math.min(size, Math.ceil(random() * 16_000))
    const offset = end && i === 0 ? size - length : Math.floor(random() * (size - length))
    if (i % 4 === 3) disk.zero(offset, length, i % 8 === 3)
    else disk.write(randomBytes(length, random), 0, length, offset)
  }
}

/** What a disk holds, and what opening it warned of. */
export function look(path: string): { bytes: Buffer; warnings: string[] } {
  const warnings: string[] = []
  const disk = openImage(path, { readOnly: true, secret, cacheSize: CACHE, warn: (text) => warnings.push(text) })
  try {
    const bytes = Buffer.alloc(disk.size)
    disk.read(bytes, 0, disk.size, 0)
    return { bytes, warnings }
  } finally {
    disk.close()
  }
}
