/** Puts an image over another parent, so that it shows what it did (or, where that is asked for, without a look). */

import { realpathSync } from 'node:fs'
import { resolve } from 'node:path'
import type { Backing } from '../formats/driver.js'
import { VdiskError } from '../util/errors.js'
import { MiB } from '../util/sizes.js'
import { closeLayers, openChain } from './chain.js'
import { isZero } from './convert/zeros.js'
import { backingAt, namedBacking } from './create.js'
import type { Image } from './image.js'
import { chainOptions, openImage, type Secret } from './open.js'
import { refuseSnapshots } from './snapshots.js'

/** Compared at a time; what differs in it is written as a whole. */
const PIECE = MiB / 16

export interface RebaseOptions {
  /** Path of the new parent, relative to the working folder; undefined: none. */
  readonly backing: string | undefined
  readonly backingFormat?: string | undefined
  /** Only the image's word about its parent is changed: the parent was moved, or has another format or content. */
  readonly unsafe?: boolean
  /** It is done although the image has snapshots inside, which will not show what they did. */
  readonly force?: boolean
  readonly format?: string | undefined
  readonly backingDirs?: readonly string[]
  /** The passphrase of the image and its parents. */
  readonly secret?: Secret | undefined
  readonly onProgress?: ((position: number, size: number) => void) | undefined
  readonly warn?: ((message: string) => void) | undefined
}

/**
 * First everything is written into the image that the new parent does not hold as the old one did, and made durable;
 * then the new parent is named.
 * @throws USAGE for a parent that it cannot have, and for snapshots inside, see `force`; UNSUPPORTED where its format has no parents, and as opening both
 */
export function rebaseImage(path: string, options: RebaseOptions): void {
  const { format, backingDirs = [], warn, unsafe = false, force = false } = options
  const opening = { format, backingDirs, ...(warn && { warn }) }
  const backing = findBacking(options)
  // A look at what is possible, before anything is written.
  change(path, { ...opening, readOnly: true }, (layers) => {
    const { format: kind, opened, storage, files } = layers[0]!
    if (!kind.rebase) throw new VdiskError('UNSUPPORTED', `images of format ${kind.name} have no parents`, { path })
    kind.rebase(opened.layout, [storage, ...files], { path: realpathSync(path), backing, look: true })
    if (!unsafe && !force && (backing || opened.parent)) refuseSnapshots(layers[0]!)
  })
  if (!unsafe) {
    if (backing) refuseDescendant(path, backing, options)
    bringUp(path, backing, options)
  }
  change(path, { ...opening, readOnly: false }, ([layer]) => {
    const { format: kind, opened, storage, files } = layer!
    // Names in it are relative to where it is, and not to where a link to it is.
    kind.rebase!(opened.layout, [storage, ...files], { path: realpathSync(path), backing })
  })
}

type Layers = ReturnType<typeof openChain>

function change(path: string, options: Parameters<typeof chainOptions>[0], use: (layers: Layers) => void): void {
  const layers = openChain(path, { ...chainOptions(options), parents: false })
  try {
    use(layers)
  } finally {
    closeLayers(layers)
  }
}

/** Without safety the new parent need not be there yet, if its format is given. */
function findBacking({ backing, backingFormat, backingDirs = [], unsafe }: RebaseOptions): Backing | undefined {
  if (backing === undefined) return undefined
  const path = resolve(backing)
  try {
    return backingAt(path, backingFormat, { backingDirs, parents: !unsafe })
  } catch (error) {
    const absent = error instanceof VdiskError && error.code === 'NOT_FOUND'
    if (!unsafe || !absent || backingFormat === undefined) throw error
    return namedBacking(path, backingFormat)
  }
}

/** @throws USAGE where the image is below its new parent, or is it */
function refuseDescendant(path: string, backing: Backing, { backingDirs = [], secret }: RebaseOptions): void {
  const below = openImage(backing.path, { readOnly: true, lock: false, format: backing.format, backingDirs, secret })
  const paths = below.paths.map((file) => realpathSync(file))
  below.close()
  if (paths.includes(realpathSync(path)))
    throw new VdiskError('USAGE', `${backing.path} is made over it, so it cannot be its parent`, { path })
}

/** Writes what the image shows through its old parent, and would not show through the new one, into the image. */
function bringUp(path: string, backing: Backing | undefined, options: RebaseOptions): void {
  const { format, backingDirs = [], secret, warn, onProgress } = options
  const opening = { backingDirs, secret, ...(warn && { warn }) }
  const image = openImage(path, { ...opening, readOnly: false, format, guess: false, sameContent: true })
  try {
    const below = backing && openImage(backing.path, { ...opening, readOnly: true, format: backing.format })
    try {
      new BringUp(image, below).run(onProgress)
    } finally {
      below?.close()
    }
    image.flush()
  } finally {
    image.close()
  }
}

class BringUp {
  readonly #image: Image
  readonly #below: Image | undefined
  readonly #old = Buffer.allocUnsafeSlow(PIECE)
  readonly #new = Buffer.allocUnsafeSlow(PIECE)

  constructor(image: Image, below: Image | undefined) {
    this.#image = image
    this.#below = below
  }

  run(onProgress: RebaseOptions['onProgress']): void {
    const { size } = this.#image
    for (let at = 0; at < size; ) {
      const { length, kind } = this.#image.own(at, size - at)
      if (kind === 'parent') this.#bringUp(at, length)
      at += length
      onProgress?.(at, size)
    }
  }

  #bringUp(start: number, length: number): void {
    const end = start + length
    for (let at = start; at < end; ) {
      const zeros = this.#zeros(at, end - at)
      const n = zeros > 0 ? zeros : Math.min(PIECE - (at % PIECE), end - at)
      if (zeros === 0) this.#compare(at, n)
      at += n
    }
  }

  /** How many bytes from `at` on are zeros in both, as their maps say. */
  #zeros(at: number, length: number): number {
    const old = this.#image.map(at, length)
    if (!old.zero) return 0
    const below = this.#below
    if (!below || at >= below.size) return old.length
    const now = below.map(at, Math.min(length, below.size - at))
    return now.zero ? Math.min(old.length, now.length) : 0
  }

  #compare(at: number, n: number): void {
    this.#image.read(this.#old, 0, n, at)
    const has = this.#below ? Math.max(0, Math.min(n, this.#below.size - at)) : 0
    if (has > 0) this.#below!.read(this.#new, 0, has, at)
    const same = this.#old.compare(this.#new, 0, has, 0, has) === 0 && (has === n || isZero(this.#old, has, n - has))
    // Never by `zero`: what it leaves to the old parent would be the new one's.
    if (!same) this.#image.write(this.#old, 0, n, at)
  }
}
