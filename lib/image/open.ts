/** Opens an image: the layers, the shared memory, and the Image over them. */

import { basename } from 'node:path'
import { findFormat } from '../formats/registry.js'
import { makeShared } from '../metadata/shared.js'
import type { Storage } from '../storage/storage.js'
import { printable, VdiskError } from '../util/errors.js'
import { MiB } from '../util/sizes.js'
import { type ChainOptions, closeLayers, detectFormat, type Layer, openChain } from './chain.js'
import { Image } from './image.js'
import type { ImageShape, LayerHandle } from './stack.js'

/** What the sectors of a disk are that does not say so. */
const SECTOR = 512

export const DEFAULT_CACHE_SIZE = 32 * MiB

/** A passphrase: text (in UTF-8), bytes, or a function that is called where an image is encrypted. */
export type Secret = string | Uint8Array | (() => Uint8Array | undefined)

/** The function that a format is given. It asks once, whatever the number of layers. */
export function secretFunction(secret: Secret | undefined): (() => Uint8Array | undefined) | undefined {
  if (secret === undefined) return undefined
  if (typeof secret === 'string') return () => Buffer.from(secret)
  if (typeof secret !== 'function') return () => secret
  let asked: { readonly bytes: Uint8Array | undefined } | undefined
  return () => {
    asked ??= { bytes: secret() }
    return asked.bytes
  }
}

export interface OpenOptions {
  /** Nothing is written to any file, not even to repair it. Default false. */
  readonly readOnly?: boolean
  /** The format; default: found by looking at the content. */
  readonly format?: string | undefined
  /** A snapshot in the image, by name or id, instead of its newest state. It can be read only. */
  readonly snapshot?: string | undefined
  /** Folders besides the image's own from which files that the image names may be opened. */
  readonly backingDirs?: readonly string[]
  /** Bytes of the metadata cache; default 32 MiB, at least 1 MiB, at most 2 GiB. */
  readonly cacheSize?: number
  /** Threads that may attach, this one included; default 1. */
  readonly threads?: number
  /** False: a parent that is not where its child says is missing, though one of that name is beside the child. */
  readonly guess?: boolean
  /** False: no lock is taken. For looking at an image that may be in use. */
  readonly lock?: boolean
  /** What is written is durable when the image was closed, and not before: `flush` promises nothing. */
  readonly syncAtClose?: boolean
  /** See `OpenContext`. */
  readonly sameContent?: boolean
  /**
   * The passphrase of every layer that is encrypted, or a function that gives it, and is called only where one is.
   * Default: there is none; opening an encrypted image fails with ACCESS then.
   */
  readonly secret?: Secret | undefined
  /** Is told what the user should know although the image opens: one line. Default: nothing is said. */
  readonly warn?: (message: string) => void
}

/** Fills in what openChain wants to know. */
export function chainOptions(options: OpenOptions): ChainOptions {
  return {
    readOnly: options.readOnly ?? options.snapshot !== undefined,
    format: options.format,
    snapshot: options.snapshot,
    backingDirs: options.backingDirs ?? [],
    lock: options.lock ?? true,
    parents: true,
    guess: options.guess,
    syncAtClose: options.syncAtClose,
    sameContent: options.sameContent,
    secret: secretFunction(options.secret),
    warn: (message) => options.warn?.(printable(message)),
  }
}

/**
 * Opens an image with all its parents, for reading and writing or read-only, and locks every file of it.
 * @throws VdiskError with one line that names the file; nothing stays open or locked then.
 */
export function openImage(path: string, options: OpenOptions = {}): Image {
  const chain = chainOptions(options)
  if (chain.snapshot !== undefined && !chain.readOnly)
    throw new VdiskError('USAGE', 'a snapshot can be opened read-only only', { path })
  const layers = openChain(path, chain)
  try {
    if (layers[0]!.guessedRaw && !chain.readOnly)
      options.warn?.(`${basename(path)}: no format was recognised, so it is taken as raw; say --format raw if it is`)
    return imageOver(layers, { ...options, readOnly: chain.readOnly })
  } catch (error) {
    closeLayers(layers)
    throw error
  }
}

/** An image over layers that are open already, top first. Closing it closes them. */
export function imageOver(layers: readonly Layer[], options: OpenOptions = {}): Image {
  return Image.first(makeShape(layers, options.readOnly ?? false, options), layers.flatMap(filesOf))
}

/**
 * Opens an image over storages that are open already: the image itself, then its parents, top first. Nothing is locked,
 * and whether a parent is the right one is not looked at. Closing the image closes the storages.
 * @throws VdiskError; the storages stay open then.
 */
export function openStorages(storages: readonly Storage[], options: OpenOptions = {}): Image {
  return imageOver(layersOver(storages, options), options)
}

/** The layers of such an image. */
export function layersOver(storages: readonly Storage[], options: OpenOptions = {}): Layer[] {
  return storages.map((storage, depth): Layer => {
    const { path } = storage
    const name = depth === 0 ? options.format : undefined
    const snapshot = depth === 0 ? options.snapshot : undefined
    const format = name === undefined ? detectFormat(storage) : findFormat(name)
    const readOnly = depth > 0 || (options.readOnly ?? false)
    const warn = (message: string) => options.warn?.(printable(`${path}: ${message}`))
    const secret = secretFunction(options.secret)
    const opened = format.open({ storage, path, readOnly, snapshot, ...(secret && { secret }), warn })
    const guessedRaw = name === undefined && format.name === 'raw'
    return { path, format, guessedRaw, storage: opened.storage ?? storage, files: [], snapshot, opened }
  })
}

function filesOf(layer: Layer): Storage[] {
  return [layer.storage, ...layer.files]
}

function makeShape(layers: readonly Layer[], readOnly: boolean, options: OpenOptions): ImageShape {
  let stateNumbers = 0
  const files: Storage[] = []
  const described: LayerHandle[] = layers.map((layer) => {
    const stateStart = stateNumbers
    stateNumbers += layer.opened.state.length
    const firstFile = files.length
    files.push(...filesOf(layer))
    return {
      path: layer.path,
      format: layer.format.name,
      layout: layer.opened.layout,
      size: layer.opened.size,
      sectorSize: layer.opened.sectorSize ?? SECTOR,
      files: filesOf(layer).map((_, i) => firstFile + i),
      stateStart,
      state: layer.opened.state,
    }
  })
  const shape = makeShared({
    threads: options.threads ?? 1,
    cacheSize: options.cacheSize ?? DEFAULT_CACHE_SIZE,
    files: files.length,
    stateNumbers,
  })
  return {
    readOnly,
    layers: described,
    shape,
  }
}

/** Whether opening an image takes a secret. What cannot be opened needs none: opening it says what is wrong. */
export function needsSecret(path: string, options: OpenOptions = {}): boolean {
  let asked = false
  const secret = () => {
    asked = true
    return undefined
  }
  try {
    closeLayers(openChain(path, chainOptions({ ...options, readOnly: true, lock: false, secret, warn: () => {} })))
  } catch (error) {
    if (!(error instanceof VdiskError)) throw error
  }
  return asked
}
