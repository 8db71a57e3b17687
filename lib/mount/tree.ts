/**
 * The files that a mount shows: a root folder with `disk.raw`, the whole disk, and on request a folder of partitions. A
 * file is a window of the image, from an offset on and of some length.
 */

import { statfsSync } from 'node:fs'
import type { Image } from '../image/image.js'
import type { Partition } from '../partitions/partition.js'
import {
  type Attributes,
  type DirectoryEntry,
  type FileTree,
  ROOT_INODE,
  type Statistics,
} from '../transports/transport.js'
import { VdiskError } from '../util/errors.js'
import type { Pieces } from '../util/pieces.js'

export const DISK_NAME = 'disk.raw'
const DISK_INODE = 2
/** A folder with a file for each partition, called by its number: `1.raw`. */
export const PARTITIONS_NAME = 'partitions'
const PARTITIONS_INODE = 3
/** Partitions count from 1. */
const partitionInode = (number: number) => PARTITIONS_INODE + number

const SECTOR = 512
/** The unit in which `df` and its like are told of space. */
const STATFS_BLOCK = 4096
const NAME_LENGTH = 255

const FILE_BITS = 0o666
const FOLDER_BITS = 0o777
const WRITE_BITS = 0o222

/** The image as the tree uses it. */
export type TreeImage = Pick<
  Image,
  'path' | 'size' | 'readOnly' | 'read' | 'lend' | 'write' | 'zero' | 'seek' | 'flush' | 'unflushed' | 'allocated'
>

/** What all threads show alike; plain data and shared memory. */
export interface TreeSettings {
  readonly uid: number
  readonly gid: number
  readonly umask: number
  /** Milliseconds since 1970: the image file's, until something is written. */
  readonly atimeMs: number
  /** One number, milliseconds since 1970: when the disk was written to last. Shared by all threads. */
  readonly mtimeMs: Float64Array<SharedArrayBuffer>
  /** Those that are shown as files; undefined: no folder for them. */
  readonly partitions: readonly Partition[] | undefined
}

export function treeSettings(
  owner: { readonly uid: number; readonly gid: number; readonly umask: number },
  times: { readonly atimeMs: number; readonly mtimeMs: number },
  partitions?: readonly Partition[],
): TreeSettings {
  const mtimeMs = new Float64Array(new SharedArrayBuffer(Float64Array.BYTES_PER_ELEMENT))
  mtimeMs[0] = times.mtimeMs
  return { uid: owner.uid, gid: owner.gid, umask: owner.umask, atimeMs: times.atimeMs, mtimeMs, partitions }
}

/** A part of the disk that is shown as a file. */
interface Window {
  readonly start: number
  readonly length: number
}

interface Folder {
  readonly children: ReadonlyMap<string, number>
}

/** The tree of one thread over its image. */
export class ImageTree implements FileTree {
  readonly readOnly: boolean
  readonly #image: TreeImage
  readonly #settings: TreeSettings
  readonly #folders: ReadonlyMap<number, Folder>
  readonly #windows: ReadonlyMap<number, Window>

  constructor(image: TreeImage, settings: TreeSettings) {
    this.#image = image
    this.#settings = settings
    this.readOnly = image.readOnly
    const root = new Map([[DISK_NAME, DISK_INODE]])
    const folders = new Map<number, Folder>([[ROOT_INODE, { children: root }]])
    const windows = new Map<number, Window>([[DISK_INODE, { start: 0, length: image.size }]])
    const { partitions } = settings
    if (partitions) {
      root.set(PARTITIONS_NAME, PARTITIONS_INODE)
      const children = partitions.map(({ number }) => [`${number}.raw`, partitionInode(number)] as const)
      folders.set(PARTITIONS_INODE, { children: new Map(children) })
      for (const { number, start, size } of partitions) windows.set(partitionInode(number), { start, length: size })
    }
    this.#folders = folders
    this.#windows = windows
  }

  lookup(parent: number, name: string): number | undefined {
    return this.#folders.get(parent)?.children.get(name)
  }

  attributes(inode: number): Attributes | undefined {
    const { uid, gid, umask, atimeMs, mtimeMs } = this.#settings
    const window = this.#windows.get(inode)
    if (!window && !this.#folders.has(inode)) return undefined
    // Nothing can be made or removed in a folder, but its bits follow the files', as people read them.
    const bits = (window ? FILE_BITS : FOLDER_BITS) & ~umask & ~(this.readOnly ? WRITE_BITS : 0)
    const mtime = mtimeMs[0]!
    return {
      inode,
      directory: window === undefined,
      size: window?.length ?? 0,
      blocks: window ? Math.ceil(this.#allocated(window) / SECTOR) : 0,
      mode: bits,
      uid,
      gid,
      links: window ? 1 : 2 + this.#foldersIn(inode),
      atimeMs,
      mtimeMs: mtime,
      ctimeMs: mtime,
    }
  }

  /** Each counts as a link, as its `..` is one. */
  #foldersIn(inode: number): number {
    return inode === ROOT_INODE ? this.#folders.size - 1 : 0
  }

  list(inode: number): readonly DirectoryEntry[] {
    const folder = this.#folders.get(inode)
    if (!folder) return []
    return [...folder.children].map(([name, child]) => ({ name, inode: child, directory: this.#folders.has(child) }))
  }

  /**
   * The disk as a file system: total is the disk, used what the image takes on the host, as `du disk.raw` says it.
   * Free is what can still be written before the image is full, or the host's file system is: `df` tells how far a
   * sparse image has grown, a program that looks for room before it writes gets a true answer, and monitors that
   * warn of full file systems do so when there is cause to. Read-only: no room.
   */
  statistics(): Statistics {
    const { size, path } = this.#image
    const used = Math.min(this.#image.allocated(), size)
    const blocks = Math.ceil(size / STATFS_BLOCK)
    const unwritten = blocks - Math.ceil(used / STATFS_BLOCK)
    const available = this.readOnly ? 0 : Math.min(unwritten, Math.floor(hostRoom(path) / STATFS_BLOCK))
    return {
      blockSize: STATFS_BLOCK,
      blocks,
      freeBlocks: unwritten,
      availableBlocks: available,
      files: this.#windows.size + this.#folders.size,
      nameLength: NAME_LENGTH,
    }
  }

  read(inode: number, buffer: Uint8Array, at: number, length: number, offset: number): number {
    const window = this.#window(inode)
    const count = Math.min(length, window.length - offset)
    if (count <= 0) return 0
    this.#image.read(buffer, at, count, window.start + offset)
    return count
  }

  lend(inode: number, length: number, offset: number, pieces: Pieces, use: () => boolean): boolean {
    const window = this.#window(inode)
    return offset + length <= window.length && this.#image.lend(length, window.start + offset, pieces, use)
  }

  write(inode: number, buffer: Uint8Array, at: number, length: number, offset: number, past = false): number {
    const window = this.#changing(inode)
    if (length === 0) return 0
    if (offset >= window.length)
      throw new VdiskError('RANGE', `${this.#image.path}: byte ${offset} is behind the end of the disk`)
    const count = Math.min(length, window.length - offset)
    this.#image.write(buffer, at, count, window.start + offset, past)
    this.#touch()
    return count
  }

  zero(inode: number, offset: number, length: number, unmap: boolean): void {
    const window = this.#changing(inode)
    const count = Math.min(length, window.length - offset)
    if (count <= 0) return
    this.#image.zero(window.start + offset, count, unmap)
    this.#touch()
  }

  /** The disk was written to. All threads say so in one place: no more often than there is something new to say. */
  #touch(): void {
    const { mtimeMs } = this.#settings
    const now = Date.now()
    if (mtimeMs[0] !== now) mtimeMs[0] = now
  }

  seek(inode: number, offset: number, data: boolean): number {
    const window = this.#window(inode)
    if (offset >= window.length) return -1
    const found = this.#image.seek(window.start + offset, data)
    if (found >= 0 && found - window.start < window.length) return found - window.start
    return data ? -1 : window.length
  }

  flush(): void {
    this.#image.flush()
  }

  get unflushed(): boolean {
    return this.#image.unflushed
  }

  /** Bytes that a window takes on the host: its share of what the image takes, as telling exactly would cost a scan. */
  #allocated({ length }: Window): number {
    const { size } = this.#image
    const allocated = Math.min(this.#image.allocated(), size)
    return length === size ? allocated : Math.round((allocated / size) * length)
  }

  #window(inode: number): Window {
    const window = this.#windows.get(inode)
    if (!window) throw new VdiskError('NOT_FOUND', `${this.#image.path}: no file with inode number ${inode}`)
    return window
  }

  #changing(inode: number): Window {
    if (this.readOnly) throw new VdiskError('READ_ONLY', `${this.#image.path} is mounted read-only`)
    return this.#window(inode)
  }
}

/** Bytes that can still be written to the file system of a path; without limit where it does not tell. */
function hostRoom(path: string): number {
  try {
    const { bavail, bsize } = statfsSync(path)
    return bavail * bsize
  } catch {
    return Number.POSITIVE_INFINITY
  }
}
