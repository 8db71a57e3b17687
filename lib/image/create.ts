/** Makes new images. */

import { closeSync, fsyncSync, lstatSync, openSync, realpathSync, rmSync, statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import type { Backing, Format } from '../formats/driver.js'
import { parseOptions } from '../formats/options.js'
import { findFormat } from '../formats/registry.js'
import { openFile } from '../storage/file.js'
import { lockImage } from '../storage/lock.js'
import type { Storage } from '../storage/storage.js'
import { fromSystem, VdiskError } from '../util/errors.js'
import { closeLayers, imageFile, openChain } from './chain.js'
import { chainOptions, type Secret, secretFunction } from './open.js'

export interface CreateOptions {
  /** Name of the format. */
  readonly format: string
  /** Bytes; may be left out with a backing image, whose size is taken then. */
  readonly size?: number | undefined
  /** `name=value`, as the format declares them. */
  readonly options?: readonly string[]
  /** Path of the parent, relative to the working folder. */
  readonly backing?: string | undefined
  readonly backingFormat?: string | undefined
  /** The new image keeps what its parent is now, where its format can do that: see `ParentRecord`. */
  readonly recordBacking?: boolean
  /** The parent is named and not opened: it need not be there yet. Its format and the size must be given then. */
  readonly unsafe?: boolean
  /** Folders besides the parent's own from which files that it names may be opened. */
  readonly backingDirs?: readonly string[]
  /** The passphrase of the new image, where the options say that it is encrypted. */
  readonly secret?: Secret | undefined
  /** False: its name, and what is written to it, need not be durable yet. */
  readonly durable?: boolean
  /** Permission bits of its file, before the umask; default: all may read and write. */
  readonly mode?: number | undefined
  /** Called before its file is made: what may take long, such as making keys, is done. */
  readonly onMaking?: (() => void) | undefined
}

export interface Created {
  /** Bytes of the new disk. */
  readonly size: number
  /** Further files that the image names as its own. */
  readonly others: readonly string[]
}

/**
 * Makes a new, empty image and makes it durable. Never touches a file that exists.
 * @throws USAGE, EXISTS, and what opening the parent throws; nothing stays behind then.
 */
export function createImage(path: string, request: CreateOptions): Created {
  const format = findFormat(request.format)
  const options = parseOptions(format.name, format.createOptions, request.options ?? [])
  if (request.backingFormat !== undefined && request.backing === undefined)
    throw new VdiskError('USAGE', `the format ${request.backingFormat} of a parent is given, and no parent`, { path })
  const backing = request.backing === undefined ? undefined : openBacking(format, request)
  const size = request.size ?? backing?.size
  if (size === undefined) throw new VdiskError('USAGE', 'a size is needed', { path })
  const durable = request.durable ?? true
  const { mode, recordBacking = false } = request
  const secret = secretFunction(request.secret)
  const made = { path: whereMade(path), size, options, ...(secret && { secret }), backing, recordBacking }
  refuseExisting(path)
  const prepared = format.prepare?.(made)
  request.onMaking?.()
  const files = [path]
  const storage = openFile(path, { readOnly: false, create: true, mode, syncAtClose: !durable })
  try {
    lockImage(storage, { write: true })
    format.create({ ...made, storage, prepared, madeFile: (file) => files.push(file) })
    storage.sync()
    const created = lookAt(storage, made.path, format)
    if (durable) syncFolder(path)
    return created
  } catch (error) {
    for (const file of files) rmSync(file, { force: true })
    throw error
  } finally {
    storage.close()
  }
}

/** Where the image is going to be: names in it are relative to that folder, and not to a link to it. @throws NOT_FOUND */
function whereMade(path: string): string {
  const folder = dirname(resolve(path))
  try {
    return join(realpathSync(folder), basename(path))
  } catch (error) {
    throw fromSystem(error, path, 'create')
  }
}

/** Before anybody is asked for a passphrase; opening it does it again. @throws EXISTS */
function refuseExisting(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false }))
    throw new VdiskError('EXISTS', `cannot create ${path}: exists already`, { path, errno: 'EEXIST' })
}

/** What was made. The files that it names are those that the user has named. */
function lookAt(storage: Storage, path: string, format: Format): Created {
  const files: Storage[] = []
  const openNamed = (_name: string, candidates: readonly string[]) => {
    files.push(openFile(candidates[0]!, { readOnly: true }))
    return { index: files.length, storage: files.at(-1)! }
  }
  try {
    const { size } = format.open({ storage, path, readOnly: true, openFile: openNamed, warn: () => {} })
    return { size, others: files.map((file) => file.path) }
  } finally {
    for (const file of files) file.close()
  }
}

function openBacking(format: Format, request: CreateOptions): Backing {
  if (!format.backing) throw new VdiskError('USAGE', `an image of format ${format.name} cannot have a parent`)
  const { backingDirs = [], backingFormat, unsafe } = request
  const path = resolve(request.backing!)
  if (!unsafe) return backingAt(path, backingFormat, { backingDirs })
  if (format.identifiesParents)
    throw new VdiskError('USAGE', `an image of format ${format.name} has its parent's identifier: it must be opened`, {
      path,
    })
  if (backingFormat === undefined || request.size === undefined)
    throw new VdiskError('USAGE', 'a parent that is not opened needs its format (-F FMT), and the new image a SIZE', {
      path,
    })
  return namedBacking(path, backingFormat)
}

/** A parent that is only named. @throws USAGE for a format that there is not */
export function namedBacking(path: string, format: string): Backing {
  return { path, format: findFormat(format).name, layout: undefined, size: 0, mtimeMs: 0 }
}

/** Looks at a parent, its own parents included, so that no image is ever made over a broken chain. */
export function backingAt(
  named: string,
  format: string | undefined,
  options: { readonly backingDirs?: readonly string[]; readonly parents?: boolean } = {},
): Backing {
  const { backingDirs = [], parents = true } = options
  const path = imageFile(named)
  const chain = chainOptions({ readOnly: true, format, lock: false, backingDirs })
  const layers = openChain(path, { ...chain, parents })
  try {
    const top = layers[0]!
    const { layout, size } = top.opened
    const stats = statSync(path)
    const record = { size, mtimeMs: stats.isFile() ? Math.max(0, Math.floor(stats.mtimeMs)) : 0 }
    return { path, format: top.format.name, layout, size, mtimeMs: stats.mtimeMs, record }
  } finally {
    closeLayers(layers)
  }
}

/** Makes a new name itself durable. */
export function syncFolder(path: string): void {
  const fd = openSync(dirname(resolve(path)), 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}
