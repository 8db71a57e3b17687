/** From a path to the open layers of an image: detection, locks, parents through the gate, loops refused. */

import { fstatSync, realpathSync, statSync } from 'node:fs'
import { resolve } from 'node:path'
import type { Format, Opened, ParentRequest } from '../formats/driver.js'
import { detect, findFormat } from '../formats/registry.js'
import { openFile } from '../storage/file.js'
import { lockImage } from '../storage/lock.js'
import type { Storage } from '../storage/storage.js'
import { VdiskError } from '../util/errors.js'
import { makeTrace } from '../util/trace.js'
import { Gate } from './gate.js'

const trace = makeTrace('image')

/** Layers of one chain; every one costs a descriptor. */
const MAX_LAYERS = 512
const PROBE_HEAD = 65536
const PROBE_TAIL = 1024

export interface ChainOptions {
  readonly readOnly: boolean
  /** The format of the top layer; undefined: detected by content. */
  readonly format: string | undefined
  readonly backingDirs: readonly string[]
  /** False: no locks are taken (looking at an image that somebody may be using). */
  readonly lock: boolean
  /** False: the top layer alone. */
  readonly parents: boolean
  readonly warn: (message: string) => void
}

/** An open layer, top first in a chain. */
export interface Layer {
  readonly path: string
  readonly format: Format
  /** The format was not given, and nothing but raw matched. */
  readonly guessedRaw: boolean
  readonly storage: Storage
  readonly opened: Opened<unknown>
}

/**
 * Opens an image and all its parents.
 * @throws VdiskError; nothing stays open or locked then.
 */
export function openChain(path: string, options: ChainOptions): Layer[] {
  const layers: Layer[] = []
  const storage = openFile(path, { readOnly: options.readOnly })
  try {
    layers.push(openLayer(storage, options, options.format, options.readOnly))
    if (!options.parents) return layers
    const gate = new Gate(path, options.backingDirs)
    for (let request = layers[0]!.opened.parent; request; request = layers.at(-1)!.opened.parent)
      layers.push(openParent(layers, request, gate, options))
    return layers
  } catch (error) {
    for (const layer of layers) layer.storage.close()
    if (layers.length === 0) storage.close()
    throw error
  }
}

function openLayer(storage: Storage, options: ChainOptions, name: string | undefined, readOnly: boolean): Layer {
  const { path } = storage
  if (options.lock && !lockImage(storage, { write: !readOnly }))
    options.warn(`${path}: this file system has no locks; take care that nobody else writes to the image`)
  const format = name === undefined ? detectFormat(storage) : findFormat(name)
  // Where the file really is decides what is beside it; messages keep the name that the user gave.
  const opened = format.open({
    storage,
    path: realpathSync(path),
    readOnly,
    warn: (message) => options.warn(`${path}: ${message}`),
  })
  if (trace.enabled) trace(`${path}: ${format.name}, ${opened.size} bytes`)
  return { path, format, guessedRaw: name === undefined && format.name === 'raw', storage, opened }
}

/** Looks at the content alone: a name says nothing. */
export function detectFormat(storage: Storage): Format {
  const size = storage.size()
  const head = new Uint8Array(Math.min(PROBE_HEAD, size))
  const tail = new Uint8Array(Math.min(PROBE_TAIL, size))
  storage.read(head, 0, head.length, 0)
  storage.read(tail, 0, tail.length, size - tail.length)
  return detect({ path: storage.path, size, head, tail })
}

/** Tries the places where the parent may be, best first; takes the first that is the right one. */
function openParent(layers: readonly Layer[], request: ParentRequest, gate: Gate, options: ChainOptions): Layer {
  const child = layers.at(-1)!
  if (layers.length >= MAX_LAYERS)
    throw new VdiskError('CORRUPT', `a chain of more than ${MAX_LAYERS} images`, { path: layers[0]!.path })
  const tried: string[] = []
  let refused: unknown
  for (const candidate of request.candidates) {
    let layer: Layer | undefined
    try {
      layer = tryParent(layers, request, candidate, gate, options)
    } catch (error) {
      if (!(error instanceof VdiskError)) throw error
      if (error.code !== 'NOT_FOUND') refused ??= error
      tried.push(error.code === 'GATE' ? `${candidate} (${withoutPath(error, candidate)})` : candidate)
      if (error.code !== 'NOT_FOUND' && error.code !== 'GATE')
        tried[tried.length - 1] += ` (${withoutPath(error, candidate)})`
      continue
    }
    return layer
  }
  const where = tried.length === 0 ? 'it names no place to look in' : `looked for ${tried.join(', ')}`
  const code = refused instanceof VdiskError ? refused.code : 'NOT_FOUND'
  throw new VdiskError(code, `its parent '${request.name}' cannot be opened: ${where}`, {
    path: child.path,
    cause: refused,
  })
}

function tryParent(
  layers: readonly Layer[],
  request: ParentRequest,
  candidate: string,
  gate: Gate,
  options: ChainOptions,
): Layer {
  const storage = gate.open(resolve(candidate))
  try {
    refuseLoop(layers, storage)
    const layer = openLayer(storage, options, request.format, true)
    const warn = (message: string) => options.warn(`${layers.at(-1)!.path}: ${message}`)
    const { mtimeMs } = statSync(storage.path)
    request.verify({ path: storage.path, format: layer.format.name, layout: layer.opened.layout, mtimeMs }, warn)
    return layer
  } catch (error) {
    storage.close()
    throw error
  }
}

function refuseLoop(layers: readonly Layer[], storage: Storage): void {
  const id = identity(storage)
  if (id !== undefined && layers.some((layer) => identity(layer.storage) === id))
    throw new VdiskError('CORRUPT', 'it is its own parent: the chain of images is a loop', { path: storage.path })
}

function identity(storage: Storage): string | undefined {
  const handle = storage.handle()
  if (handle.kind !== 'file') return undefined
  const { dev, ino } = fstatSync(handle.fd)
  return `${dev}:${ino}`
}

function withoutPath(error: VdiskError, path: string): string {
  return error.message.startsWith(`${path}: `) ? error.message.slice(path.length + 2) : error.message
}
