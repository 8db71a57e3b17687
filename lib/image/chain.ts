/** From a path to the open layers of an image: detection, locks, parents through the gate, loops refused. */

import { existsSync, fstatSync, realpathSync, statSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import type { Format, Opened, OpenedFile, ParentRequest, Probe } from '../formats/driver.js'
import { raw } from '../formats/raw.js'
import { detect, findFormat, formats } from '../formats/registry.js'
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

/** False also where that cannot be seen: opening it says why. */
function isFolder(path: string): boolean {
  try {
    return statSync(path).isDirectory()
  } catch {
    return false
  }
}

export interface ChainOptions {
  readonly readOnly: boolean
  /** The format of the top layer; undefined: detected by content. */
  readonly format: string | undefined
  readonly backingDirs: readonly string[]
  /** A snapshot in the top layer, by name or id, instead of its newest state. It can be read only. */
  readonly snapshot?: string | undefined
  /** False: no locks are taken (looking at an image that somebody may be using). */
  readonly lock: boolean
  /** The top layer is written, and durable when it was closed and not before. */
  readonly syncAtClose?: boolean | undefined
  /** See `OpenContext`. */
  readonly sameContent?: boolean | undefined
  /** False: the top layer alone. */
  readonly parents: boolean
  /** False: parents are where the images say, or nowhere. */
  readonly guess?: boolean | undefined
  /** Gives the passphrase of layers that are encrypted. */
  readonly secret?: (() => Uint8Array | undefined) | undefined
  readonly warn: (message: string) => void
}

/** An open layer, top first in a chain. */
export interface Layer {
  readonly path: string
  readonly format: Format
  /** The format was not given, and nothing but raw matched. */
  readonly guessedRaw: boolean
  /** The image itself, and the further files of this layer. */
  readonly storage: Storage
  readonly files: readonly Storage[]
  /** The snapshot that this layer shows. */
  readonly snapshot: string | undefined
  readonly opened: Opened<unknown>
}

export function closeLayers(layers: readonly Layer[]): void {
  for (const layer of layers) for (const storage of [layer.storage, ...layer.files]) storage.close()
}

/**
 * The file that an image begins with: the path itself or, where that is a folder, the file that makes it an image.
 * @throws USAGE for a folder that is none
 */
export function imageFile(path: string): string {
  if (!isFolder(path)) return path
  const names = formats.flatMap(({ folder }) => folder ?? [])
  const name = names.find((candidate) => existsSync(join(path, candidate)))
  if (name !== undefined) return join(path, name)
  const expected = names.length > 0 ? `, or a folder with ${names.join(' or ')}` : ''
  throw new VdiskError('USAGE', `it is a directory; expected a file${expected}`, { path })
}

/**
 * Opens an image and all its parents.
 * @throws VdiskError; nothing stays open or locked then.
 */
export function openChain(path: string, options: ChainOptions): Layer[] {
  const layers: Layer[] = []
  const file = imageFile(path)
  const { syncAtClose = false } = options
  const storage = openFile(file, { readOnly: options.readOnly, syncAtClose })
  try {
    const { format, readOnly, snapshot } = options
    const gate = new Gate(file, options.backingDirs)
    layers.push({ ...openLayer(storage, gate, options, { format, readOnly, snapshot, lockedAlready: false }), path })
    if (!options.parents) return layers
    for (let request = layers[0]!.opened.parent; request; request = layers.at(-1)!.opened.parent)
      layers.push(openParent(layers, request, gate, options))
    return layers
  } catch (error) {
    closeLayers(layers)
    if (layers.length === 0) storage.close()
    throw error
  }
}

interface LayerOptions {
  readonly format: string | undefined
  readonly readOnly: boolean
  readonly snapshot: string | undefined
  /** The image itself is locked; its further files are not. */
  readonly lockedAlready: boolean
}

function openLayer(storage: Storage, gate: Gate, options: ChainOptions, wanted: LayerOptions): Layer {
  const { path } = storage
  const { readOnly, snapshot } = wanted
  const lock = (file: Storage) => {
    if (options.lock && !lockImage(file, { write: !readOnly }))
      options.warn(`${file.path}: this file system has no locks; take care that nobody else writes to the image`)
  }
  if (!wanted.lockedAlready) lock(storage)
  const format = wanted.format === undefined ? detectFormat(storage) : findFormat(wanted.format)
  if (snapshot !== undefined && !format.snapshots)
    throw new VdiskError('USAGE', `no snapshot '${snapshot}': format ${format.name} has none inside`, { path })
  const files: Storage[] = []
  // Where the file really is decides what is beside it; messages keep the name that the user gave.
  const warn = (message: string) => options.warn(`${path}: ${message}`)
  const openFile = (name: string, candidates: readonly string[], guesses?: readonly string[]): OpenedFile => {
    const { syncAtClose } = options
    const file = openBeside(path, { name, candidates, guesses }, gate, { readOnly, syncAtClose, warn })
    files.push(file)
    refuseTwice([storage, ...files], name)
    lock(file)
    return { index: files.length, storage: file }
  }
  const secret = options.secret && { secret: options.secret }
  try {
    const { sameContent } = options
    const real = realpathSync(path)
    const opened = format.open({ storage, path: real, readOnly, snapshot, sameContent, openFile, ...secret, warn })
    if (trace.enabled) trace(`${path}: ${format.name}, ${opened.size} bytes`)
    const guessedRaw = wanted.format === undefined && format.name === 'raw'
    return { path, format, guessedRaw, storage: opened.storage ?? storage, files, snapshot, opened }
  } catch (error) {
    for (const file of files) file.close()
    throw error
  }
}

interface BesideOptions {
  readonly readOnly: boolean
  readonly syncAtClose?: boolean | undefined
  readonly warn: (message: string) => void
}

/** Opens a further file of a layer at the first of its places where there is one. @throws NOT_FOUND naming them */
export function openBeside(
  path: string,
  { name, candidates, guesses = [] }: Pick<ParentRequest, 'name' | 'candidates' | 'guesses'>,
  gate: Gate,
  { readOnly, syncAtClose = false, warn }: BesideOptions,
): Storage {
  const places = readOnly ? [...candidates, ...guesses] : candidates
  for (const [i, place] of places.entries()) {
    try {
      const storage = gate.open(resolve(place), readOnly, syncAtClose)
      if (i >= candidates.length) warn(`its part '${name}' is not there: taken for ${place}`)
      return storage
    } catch (error) {
      if (!(error instanceof VdiskError) || error.code !== 'NOT_FOUND') throw error
    }
  }
  throw new VdiskError('NOT_FOUND', `its part '${name}' is missing: ${whereLooked(places)}`, { path })
}

/** @throws CORRUPT where the last of a layer's files is another one of them: what is written to one would change the other. */
export function refuseTwice(files: readonly Storage[], name: string): void {
  const last = files.at(-1)!
  const id = identity(last)
  const other = files.find((file) => file !== last && identity(file) === id)
  if (id === undefined || !other) return
  throw new VdiskError('CORRUPT', `its part '${name}' is the same file as ${other.path}`, { path: last.path })
}

function whereLooked(places: readonly string[]): string {
  return places.length === 0 ? 'it names no place to look in' : `looked for ${places.join(', ')}`
}

/**
 * Looks at the content alone: a name says nothing. But the file that makes a folder an image is never a disk by itself,
 * however damaged it is.
 */
export function detectFormat(storage: Storage): Format {
  const found = detect(probeOf(storage))
  const byName = found === raw && formats.find(({ folder }) => folder === basename(storage.path))
  return byName || found
}

function probeOf(storage: Storage): Probe {
  const size = storage.size()
  const head = new Uint8Array(Math.min(PROBE_HEAD, size))
  const tail = new Uint8Array(Math.min(PROBE_TAIL, size))
  storage.read(head, 0, head.length, 0)
  storage.read(tail, 0, tail.length, size - tail.length)
  return { path: storage.path, size, head, tail }
}

/** Whether a file looks like an image of one format, whatever else it looks like. @throws what opening it throws */
export function looksLike(path: string, format: string): boolean {
  const storage = openFile(path, { readOnly: true })
  try {
    return findFormat(format).probe(probeOf(storage))
  } finally {
    storage.close()
  }
}

/** What finding a layer's parent needs to know of it. */
type Child = Pick<Layer, 'path' | 'storage' | 'snapshot'>

/** Opens a parent as opening its child would, without a lock, and closes it again. @throws what opening it throws */
export function lookForParent(child: Child, request: ParentRequest, gate: Gate): void {
  const options = { ...NO_OPTIONS, warn: () => {} }
  closeLayers([openParent([child], request, gate, options)])
}

const NO_OPTIONS = {
  readOnly: true,
  format: undefined,
  backingDirs: [],
  lock: false,
  parents: true,
}

/** Tries the places where the parent may be, best first; takes the first that is the right one. */
function openParent(layers: readonly Child[], request: ParentRequest, gate: Gate, options: ChainOptions): Layer {
  const child = layers.at(-1)!
  if (layers.length >= MAX_LAYERS)
    throw new VdiskError('CORRUPT', `a chain of more than ${MAX_LAYERS} images`, { path: layers[0]!.path })
  const tried: string[] = []
  let refused: unknown
  const { candidates, guesses = [] } = request
  for (const [i, candidate] of [...candidates, ...guesses].entries()) {
    const guessed = i >= candidates.length
    if (guessed && (options.guess === false || refused !== undefined)) break
    let layer: Layer | undefined
    try {
      layer = tryParent(layers, request, candidate, gate, options)
    } catch (error) {
      if (!(error instanceof VdiskError)) throw error
      // The host says so where there is no such file; otherwise it is there, and something in it is missing.
      const absent = error.code === 'NOT_FOUND' && error.errno !== undefined
      if (!absent) refused ??= error
      tried.push(absent ? candidate : `${candidate} (${withoutPath(error, candidate)})`)
      continue
    }
    if (guessed) options.warn(guessText(child.path, request.name, candidate))
    return layer
  }
  const code = refused instanceof VdiskError ? refused.code : 'NOT_FOUND'
  throw new VdiskError(code, `its parent '${request.name}' cannot be opened: ${whereLooked(tried)}`, {
    path: child.path,
    cause: refused,
  })
}

function guessText(path: string, name: string, guess: string): string {
  const remedy = `vdiskfs rebase -u -b ${guess} says so`
  return `${path}: its parent '${name}' is not there: taken for ${guess}, which nothing tells; ${remedy}`
}

function tryParent(
  layers: readonly Child[],
  request: ParentRequest,
  candidate: string,
  gate: Gate,
  options: ChainOptions,
): Layer {
  const storage = gate.open(resolve(candidate))
  try {
    const { format, snapshot } = request
    refuseLoop(layers, storage, snapshot)
    // An image that holds its own parents is locked already, by its topmost layer.
    const lockedAlready = layers.some((layer) => identity(layer.storage) === identity(storage))
    const layer = openLayer(storage, gate, options, { format, readOnly: true, snapshot, lockedAlready })
    const warn = (message: string) => options.warn(`${layers.at(-1)!.path}: ${message}`)
    const { mtimeMs } = statSync(storage.path)
    try {
      request.verify({ path: storage.path, format: layer.format.name, layout: layer.opened.layout, mtimeMs }, warn)
    } catch (error) {
      for (const file of layer.files) file.close()
      throw error
    }
    return layer
  } catch (error) {
    storage.close()
    throw error
  }
}

function refuseLoop(layers: readonly Child[], storage: Storage, snapshot: string | undefined): void {
  const id = identity(storage)
  if (id !== undefined && layers.some((layer) => identity(layer.storage) === id && layer.snapshot === snapshot))
    throw new VdiskError('CORRUPT', 'it is its own parent: the chain of images is a loop', { path: storage.path })
}

/** Asked for every pair of files in a chain, and always the same. */
const identities = new WeakMap<Storage, string>()

function identity(storage: Storage): string | undefined {
  const known = identities.get(storage)
  if (known !== undefined) return known
  let handle = storage.handle()
  if (handle.kind === 'replayed') handle = handle.inner
  if (handle.kind !== 'file') return undefined
  const { dev, ino } = fstatSync(handle.fd)
  const id = `${dev}:${ino}`
  identities.set(storage, id)
  return id
}

function withoutPath(error: VdiskError, path: string): string {
  return error.message.startsWith(`${path}: `) ? error.message.slice(path.length + 2) : error.message
}
