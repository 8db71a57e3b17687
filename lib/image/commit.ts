/**
 * Commits an image into its parent. At every moment one of the two holds the data, and the image shows the same:
 *
 * 1. where the image is larger, its parent gets its size
 * 2. the image is told that its parent is going to change, where its format wants to know
 * 3. what is the image's own is written into the parent, and made durable
 * 4. the image is told of the parent as it is now
 * 5. the image is emptied
 */

import { realpathSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Backing } from '../formats/driver.js'
import { VdiskError } from '../util/errors.js'
import { KiB, MiB } from '../util/sizes.js'
import { type ChainOptions, closeLayers, type Layer, openChain } from './chain.js'
import { childrenBeside } from './children.js'
import { isDevice } from './convert/target.js'
import { eachRun } from './convert/zeros.js'
import { backingAt } from './create.js'
import type { Image } from './image.js'
import { chainOptions, imageOver, type Secret } from './open.js'
import { resizeLayer, tryOpening } from './resize.js'
import { refuseSnapshots } from './snapshots.js'

/** Copied at a time. */
const PIECE = MiB
/** Fewer zeros than this in a row are data: to take them out would cost more than to write them. */
const GRANULE = 64 * KiB

export interface CommitOptions {
  /** The image's format; default: found by looking at the content. */
  readonly format?: string | undefined
  readonly backingDirs?: readonly string[]
  /** The passphrase of the image and its parent. */
  readonly secret?: Secret | undefined
  /** The image keeps what it has. */
  readonly keep?: boolean
  /** It is done although snapshots inside the image, or other images over its parent, will not show what they did. */
  readonly force?: boolean
  readonly onProgress?: ((position: number, size: number) => void) | undefined
  readonly warn?: ((message: string) => void) | undefined
}

/**
 * Writes what an image has of its own into its parent, and empties it.
 * @returns the parent's path, and how many bytes of data were written to it
 * @throws USAGE where it has no parent, or others would change, see `force`; UNSUPPORTED where its format cannot be emptied, and as opening both for writing
 */
export function commitImage(path: string, options: CommitOptions = {}): { parent: string; written: number } {
  const { format, backingDirs = [], secret, warn } = options
  const parent = parentOf(path, { ...chainOptions({ readOnly: true, format, backingDirs, lock: false, guess: false }) })
  const writing = chainOptions({ readOnly: false, format, backingDirs, secret, ...(warn && { warn }) })
  const layers = openChain(path, { ...writing, parents: false })
  try {
    const own = layers[0]!
    if (!own.format.empty && !options.keep)
      throw new VdiskError('UNSUPPORTED', `images of format ${own.format.name} cannot be emptied`, { path })
    if (!options.force) refuseSnapshots(own)
    const into = { ...writing, format: parent.format, backingDirs: [...backingDirs, dirname(path)] }
    if (!options.force) refuseSiblings(own, parent.path, into)
    growParent(own, parent.path, into)
    const written = copyDown(own, parent.path, into, options)
    tell(own, backingAt(parent.path, parent.format, { backingDirs, parents: false }), 'after')
    if (!options.keep) own.format.empty!(own.opened.layout, filesOf(own))
    return { parent: parent.path, written }
  } finally {
    closeLayers(layers)
  }
}

const filesOf = ({ storage, files }: Layer) => [storage, ...files]

/** @throws USAGE where there is none */
function parentOf(path: string, options: ChainOptions): { path: string; format: string } {
  const layers = openChain(path, options)
  try {
    const parent = layers[1]
    if (!parent) throw new VdiskError('USAGE', 'it has no parent to commit to', { path })
    if (parent.snapshot !== undefined)
      throw new VdiskError('USAGE', `its parent is the snapshot '${parent.snapshot}', which cannot be written`, {
        path,
      })
    return { path: parent.path, format: parent.format.name }
  } finally {
    closeLayers(layers)
  }
}

/** @throws USAGE where the parent is that of others too, as far as its folder shows */
function refuseSiblings(own: Layer, parent: string, options: ChainOptions): void {
  // A file beside the parent may be what the device lies in.
  if (isDevice(own.path)) return
  const layers = openChain(parent, { ...options, readOnly: true, lock: false, parents: false })
  try {
    const [child, ...more] = childrenBeside(layers[0]!, own)
    if (child === undefined) return
    const children = more.length > 0 ? `${child} and ${more.length} more are` : `${child} is`
    const harm = 'which will not show what it did, or not open, after that: say --force if it is meant'
    throw new VdiskError('USAGE', `${children} made over it too, ${harm}`, { path: parent })
  } finally {
    closeLayers(layers)
  }
}

function tell(own: Layer, backing: Backing, change: 'before' | 'after'): void {
  own.format.rebase?.(reopened(own), filesOf(own), { path: realpathSync(own.path), backing, change })
}

/** The layout as it is now: telling it of its parent may have changed it. */
function reopened({ format, storage, files, path }: Layer): unknown {
  const context = {
    storage,
    path,
    readOnly: true,
    warn: () => {},
    openFile: (_name: string, _candidates: readonly string[]) => ({ index: 1, storage: files[0]! }),
  }
  return format.open(context).layout
}

function growParent(own: Layer, parent: string, options: ChainOptions): void {
  const layers = openChain(parent, options)
  try {
    const below = layers[0]!
    if (below.opened.size >= own.opened.size) return
    const { format } = below
    if (!format.resize)
      throw new VdiskError('UNSUPPORTED', `it is smaller than its child, and format ${format.name} cannot grow`, {
        path: parent,
      })
    // Whether all can be read and written later: a key may be missing.
    tryOpening(own.path, { ...options, format: own.format.name })
    tell(own, backingOf(below), 'before')
    resizeLayer(below, own.opened.size, () => layers.slice(1))
  } finally {
    closeLayers(layers)
  }
}

function backingOf({ path, format, opened }: Layer): Backing {
  return { path, format: format.name, layout: opened.layout, size: opened.size, mtimeMs: 0 }
}

/** @returns the bytes of data that were written */
function copyDown(own: Layer, parent: string, into: ChainOptions, options: CommitOptions): number {
  const layers = openChain(parent, into)
  let target: Image | undefined
  try {
    tell(own, backingOf(layers[0]!), 'before')
    target = imageOver(layers)
    // Never closed: its file is the caller's.
    const source = imageOver([own], { readOnly: true })
    const written = copyOwn(source, target, options)
    target.flush()
    return written
  } finally {
    if (target) target.close()
    else closeLayers(layers)
  }
}

/** @returns the bytes of data that were written */
function copyOwn(source: Image, target: Image, { onProgress }: CommitOptions): number {
  const copy = new Copy(source, target)
  for (let at = 0; at < source.size; onProgress?.(at, source.size)) {
    const { length, kind } = source.own(at, source.size - at)
    if (kind === 'zero') copy.zero(at, length)
    at += kind === 'data' ? copy.piece(at, at + length) : length
  }
  copy.finish()
  return copy.written
}

/**
 * What an image has of its own may be zeros for the most part: blocks are large. Those are written as zeros, which takes
 * no space where the parent has nothing, and gives whole blocks back.
 */
class Copy {
  written = 0
  readonly #source: Image
  readonly #target: Image
  readonly #buffer = Buffer.allocUnsafe(PIECE)
  /** In front of it the source's file has a hole, from where it was asked last. */
  #data = 0
  /** Zeros that are not written yet: what follows may join them to a whole block. */
  #zeros = { start: 0, end: 0 }

  constructor(source: Image, target: Image) {
    this.#source = source
    this.#target = target
  }

  /** Copies from `at` on, where the source has something, at most to `end`. @returns the bytes done */
  piece(at: number, end: number): number {
    if (this.#data <= at) {
      const next = this.#source.seek(at, true)
      this.#data = next < 0 ? this.#source.size : next
    }
    if (this.#data > at) return this.zero(at, Math.min(this.#data, end) - at)
    const length = Math.min(PIECE, end - at)
    this.#source.read(this.#buffer, 0, length, at)
    eachRun(this.#buffer, length, at, GRANULE, (from, n, zero) => {
      if (zero) this.zero(at + from, n)
      else this.#write(from, n, at + from)
    })
    return length
  }

  #write(from: number, length: number, offset: number): void {
    this.#target.write(this.#buffer, from, length, offset)
    this.written += length
  }

  zero(start: number, length: number): number {
    if (this.#zeros.end !== start) {
      this.finish()
      this.#zeros.start = start
    }
    this.#zeros.end = start + length
    return length
  }

  finish(): void {
    const { start, end } = this.#zeros
    this.#zeros.start = end
    if (end > start) this.#target.zero(start, end - start, true)
  }
}
