/** Gives an image another size, whatever its format. */

import { VdiskError } from '../util/errors.js'
import { type ChainOptions, closeLayers, type Layer, openChain } from './chain.js'
import { childrenBeside } from './children.js'
import { chainOptions, imageOver, openImage, type Secret } from './open.js'

export interface ResizeRequest {
  /** Bytes: the new size, or with `relative` how much larger (or, below 0, smaller) it becomes. */
  readonly size: number
  readonly relative?: boolean
  /** A smaller size is meant: what lies behind it is lost. */
  readonly shrink?: boolean
  /** It is resized although images in its folder are made over it, which may not open after that. */
  readonly force?: boolean
  readonly format?: string | undefined
  readonly backingDirs?: readonly string[]
  /** The passphrase of an encrypted image; needed where a part of its last cluster becomes a part of the disk. */
  readonly secret?: Secret | undefined
  readonly warn?: (message: string) => void
}

/**
 * @returns the size before and after, in bytes
 * @throws USAGE for a smaller size that is not meant, and for the parent of others, see `force`; UNSUPPORTED where the format cannot do it; as opening for writing
 */
export function resizeImage(path: string, request: ResizeRequest): { before: number; after: number } {
  const { format, backingDirs, secret, warn } = request
  const options = { format, readOnly: false, secret, ...(backingDirs && { backingDirs }), ...(warn && { warn }) }
  const chain = chainOptions(options)
  const layers = openChain(path, { ...chain, parents: false })
  let parents: readonly Layer[] | undefined
  try {
    const top = layers[0]!
    const before = top.opened.size
    const after = request.relative ? before + request.size : request.size
    if (after <= 0) throw new VdiskError('USAGE', `a size of ${after} bytes: expected more than 0`, { path })
    if (!top.format.resize)
      throw new VdiskError('UNSUPPORTED', `images of format ${top.format.name} cannot be resized`, { path })
    if (after < before && !request.shrink)
      throw new VdiskError('USAGE', `from ${before} to ${after} bytes: what is cut off is lost; say --shrink`, { path })
    if (after === before) return { before, after }
    if (!request.force) refuseParent(top)
    resizeLayer(top, after, () => {
      parents ??= parentsOf(path, chain)
      return parents
    })
    return { before, after: sizeOf(path, chain) }
  } finally {
    closeLayers([...layers, ...(parents ?? [])])
  }
}

/** Children of such formats count on their parent's size, or on its time stamp. @throws USAGE */
function refuseParent(layer: Layer): void {
  const [child, ...more] = layer.format.identifiesParents ? childrenBeside(layer) : []
  if (child === undefined) return
  const children = more.length > 0 ? `${child} and ${more.length} more are` : `${child} is`
  const harm = 'which may not open, or not show what it did, after that: say --force if it is meant'
  throw new VdiskError('USAGE', `${children} made over it, ${harm}`, { path: layer.path })
}

/**
 * Gives an open layer of a format that can do it, which nothing was written to yet, another size. It is not what it was
 * opened as after that.
 * @param parents gives the layers below it, top first; asked only where they count
 * @throws what the format throws
 */
export function resizeLayer(layer: Layer, size: number, parents: () => readonly Layer[]): void {
  const { format, opened, storage, files } = layer
  format.resize!(opened.layout, [storage, ...files], size, {
    below: () => parents()[0]?.opened.size ?? 0,
    zeroBehind: (layout, { start, length }) => {
      const longer = { ...layer, opened: { ...opened, layout, size: start + length } }
      const image = imageOver([longer, ...parents()])
      image.zero(start, length, false)
      image.finish()
    },
  })
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

/** The layers under this one. @throws what opening them throws */
function parentsOf(path: string, chain: ChainOptions): Layer[] {
  const [top, ...parents] = openChain(path, { ...chain, readOnly: true, lock: false, warn: () => {} })
  closeLayers([top!])
  return parents
}
