/** Gives an image another size, whatever its format. */

import { VdiskError } from '../util/errors.js'
import { type ChainOptions, closeLayers, openChain } from './chain.js'
import { chainOptions } from './open.js'

export interface ResizeRequest {
  /** Bytes: the new size, or with `relative` how much larger (or, below 0, smaller) it becomes. */
  readonly size: number
  readonly relative?: boolean
  /** A smaller size is meant: what lies behind it is lost. */
  readonly shrink?: boolean
  readonly format?: string | undefined
  readonly backingDirs?: readonly string[]
  readonly warn?: (message: string) => void
}

/**
 * @returns the size before and after, in bytes
 * @throws USAGE for a smaller size that is not meant; UNSUPPORTED where the format cannot do it; as opening for writing
 */
export function resizeImage(path: string, request: ResizeRequest): { before: number; after: number } {
  const { format, backingDirs, warn } = request
  const chain = chainOptions({ format, readOnly: false, ...(backingDirs && { backingDirs }), ...(warn && { warn }) })
  const layers = openChain(path, chain)
  try {
    const { format: kind, opened, storage, files } = layers[0]!
    const before = opened.size
    const after = request.relative ? before + request.size : request.size
    if (after <= 0) throw new VdiskError('USAGE', `a size of ${after} bytes: expected more than 0`, { path })
    if (!kind.resize) throw new VdiskError('UNSUPPORTED', `images of format ${kind.name} cannot be resized`, { path })
    if (after < before && !request.shrink)
      throw new VdiskError('USAGE', `from ${before} to ${after} bytes: what is cut off is lost; say --shrink`, { path })
    if (after === before) return { before, after }
    kind.resize(opened.layout, [storage, ...files], after, layers[1]?.opened.size)
    return { before, after: sizeOf(path, chain) }
  } finally {
    closeLayers(layers)
  }
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
