/** Gives an image another size, whatever its format. */

import type { ByteRange } from '../formats/driver.js'
import { VdiskError } from '../util/errors.js'
import { type ChainOptions, closeLayers, type Layer, openChain } from './chain.js'
import { chainOptions, type OpenOptions, openImage, type Secret } from './open.js'

export interface ResizeRequest {
  /** Bytes: the new size, or with `relative` how much larger (or, below 0, smaller) it becomes. */
  readonly size: number
  readonly relative?: boolean
  /** A smaller size is meant: what lies behind it is lost. */
  readonly shrink?: boolean
  readonly format?: string | undefined
  readonly backingDirs?: readonly string[]
  /** The passphrase of an encrypted image; needed where a part of its last cluster becomes a part of the disk. */
  readonly secret?: Secret | undefined
  readonly warn?: (message: string) => void
}

/**
 * @returns the size before and after, in bytes
 * @throws USAGE for a smaller size that is not meant; UNSUPPORTED where the format cannot do it; as opening for writing
 */
export function resizeImage(path: string, request: ResizeRequest): { before: number; after: number } {
  const { format, backingDirs, secret, warn } = request
  const options = { format, readOnly: false, secret, ...(backingDirs && { backingDirs }), ...(warn && { warn }) }
  const { before, after, left } = resizeLayer(path, request, options)
  if (left) {
    const image = openImage(path, options)
    try {
      image.zero(left.start, left.length, false)
      image.flush()
    } finally {
      image.close()
    }
  }
  return { before, after }
}

function resizeLayer(
  path: string,
  request: ResizeRequest,
  options: OpenOptions,
): { before: number; after: number; left: ByteRange | undefined } {
  const chain = chainOptions(options)
  const layers = openChain(path, { ...chain, parents: false })
  try {
    const { format: kind, opened } = layers[0]!
    const before = opened.size
    const after = request.relative ? before + request.size : request.size
    if (after <= 0) throw new VdiskError('USAGE', `a size of ${after} bytes: expected more than 0`, { path })
    if (!kind.resize) throw new VdiskError('UNSUPPORTED', `images of format ${kind.name} cannot be resized`, { path })
    if (after < before && !request.shrink)
      throw new VdiskError('USAGE', `from ${before} to ${after} bytes: what is cut off is lost; say --shrink`, { path })
    if (after === before) return { before, after, left: undefined }
    const left = resizeOpened(layers[0]!, after, chain)
    return { before, after: sizeOf(path, chain), left }
  } finally {
    closeLayers(layers)
  }
}

/**
 * Gives a layer that is open for writing, and whose format can do it, another size.
 * @param chain as it was opened
 * @returns the part of the disk that has to be zeroed when it is open as one again
 * @throws what opening it as a disk throws, such as ACCESS without the key, where that is to be done; nothing is changed then
 */
export function resizeOpened(layer: Layer, size: number, chain: ChainOptions): ByteRange | undefined {
  const { format, opened, storage, files, path } = layer
  let left: ByteRange | undefined
  format.resize!(opened.layout, [storage, ...files], size, {
    below: () => parentSize(path, chain),
    zeroLater: (range) => {
      tryOpening(path, chain)
      left = range
    },
  })
  return left
}

/** Opens an image as a disk, to find out before anything is changed whether that can be done. @throws what it throws */
export function tryOpening(path: string, chain: ChainOptions): void {
  openImage(path, { ...chain, readOnly: true, lock: false, syncAtClose: false, warn: () => {} }).close()
}

/** The size that an image has now: a format may round what it was asked for. */
function sizeOf(path: string, options: ChainOptions): number {
  const layers = openChain(path, { ...options, readOnly: true, lock: false, parents: false, warn: () => {} })
  try {
    return layers[0]!.opened.size
  } finally {
    closeLayers(layers)
  }
}

/** Bytes of the disk under this one; 0: there is none. @throws what opening the parents throws */
function parentSize(path: string, chain: ChainOptions): number {
  const layers = openChain(path, { ...chain, readOnly: true, lock: false, warn: () => {} })
  try {
    return layers[1]?.opened.size ?? 0
  } finally {
    closeLayers(layers)
  }
}
