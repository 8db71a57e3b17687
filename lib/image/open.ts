/** Opens an image: the layers, the shared memory, and the Image over them. */

import { basename } from 'node:path'
import { makeShared } from '../metadata/shared.js'
import { MiB } from '../util/sizes.js'
import { type ChainOptions, type Layer, openChain } from './chain.js'
import { Image, type ImageHandle, type LayerHandle } from './image.js'

export const DEFAULT_CACHE_SIZE = 32 * MiB

export interface OpenOptions {
  /** Nothing is written to any file, not even to repair it. Default false. */
  readonly readOnly?: boolean
  /** The format; default: found by looking at the content. */
  readonly format?: string | undefined
  /** Folders besides the image's own from which files that the image names may be opened. */
  readonly backingDirs?: readonly string[]
  /** Bytes of the metadata cache; default 32 MiB, at least 1 MiB. */
  readonly cacheSize?: number
  /** Threads that may attach, this one included; default 1. */
  readonly threads?: number
  /** False: no lock is taken. For looking at an image that may be in use. */
  readonly lock?: boolean
  /** Is told what the user should know although the image opens: one line. Default: nothing is said. */
  readonly warn?: (message: string) => void
}

/** Fills in what openChain wants to know. */
export function chainOptions(options: OpenOptions): ChainOptions {
  return {
    readOnly: options.readOnly ?? false,
    format: options.format,
    backingDirs: options.backingDirs ?? [],
    lock: options.lock ?? true,
    parents: true,
    warn: options.warn ?? (() => {}),
  }
}

/**
 * Opens an image with all its parents, for reading and writing or read-only, and locks every file of it.
 * @throws VdiskError with one line that names the file; nothing stays open or locked then.
 */
export function openImage(path: string, options: OpenOptions = {}): Image {
  const layers = openChain(path, chainOptions(options))
  try {
    if (layers[0]!.guessedRaw && !options.readOnly)
      options.warn?.(`${basename(path)}: no format was recognised, so it is taken as raw; say --format raw if it is`)
    const storages = layers.map((layer) => layer.storage)
    return Image.first(makeHandle(layers, options), storages)
  } catch (error) {
    for (const layer of layers) layer.storage.close()
    throw error
  }
}

function makeHandle(layers: readonly Layer[], options: OpenOptions): ImageHandle {
  let stateNumbers = 0
  const described: LayerHandle[] = layers.map((layer, i) => {
    const stateStart = stateNumbers
    stateNumbers += layer.opened.state.length
    return {
      path: layer.path,
      format: layer.format.name,
      layout: layer.opened.layout,
      size: layer.opened.size,
      files: [i],
      stateStart,
      state: layer.opened.state,
    }
  })
  const shape = makeShared({
    threads: options.threads ?? 1,
    cacheSize: options.cacheSize ?? DEFAULT_CACHE_SIZE,
    files: layers.length,
    stateNumbers,
  })
  return {
    readOnly: options.readOnly ?? false,
    files: layers.map((layer) => layer.storage.handle()),
    layers: described,
    shape,
  }
}
