/** An image that is not changed: all that is written goes to a QCOW2 overlay beside it, or to a file without a name. */

import { existsSync, fstatSync, realpathSync, statSync, unlinkSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import type { ParentRecord, ParentRequest } from '../formats/driver.js'
import { findFormat } from '../formats/registry.js'
import { openFile } from '../storage/file.js'
import { lockImage } from '../storage/lock.js'
import { VdiskError } from '../util/errors.js'
import { randomGuid } from '../util/guid.js'
import { closeLayers, imageFile, looksLike, openChain } from './chain.js'
import { backingAt, createImage } from './create.js'
import type { Image } from './image.js'
import { chainOptions, needsSecret, type OpenOptions, openImage } from './open.js'

export const OVERLAY_FORMAT = 'qcow2'

/** What outlasts no reboot belongs here, where there is more room than in /tmp. */
const TEMPORARY_FOLDER = '/var/tmp'

/** Where temporary overlays are. */
export function temporaryFolder(): string {
  return process.env.TMPDIR || TEMPORARY_FOLDER
}

function isSame(a: string, b: string): boolean {
  const [first, second] = [a, b].map((path) => statSync(path, { throwIfNoEntry: false }))
  return first !== undefined && second !== undefined && first.dev === second.dev && first.ino === second.ino
}

/**
 * Opens an image with an overlay over it: the image itself read-only, and locked so.
 * @param overlay path of the overlay, which is made where it is missing; undefined: a file that nobody sees, and that is
 * gone when the image is closed
 * @param options those of the image; `readOnly` that of the overlay
 * @throws USAGE where the overlay belongs to another image, or to what this one was, ACCESS for an encrypted one without a passphrase, and what creating and opening throw
 */
export function openOverlay(image: string, overlay: string | undefined, options: OpenOptions = {}): Image {
  if (options.snapshot !== undefined)
    throw new VdiskError('USAGE', 'a snapshot can have no overlay: it would be one of the whole image', { path: image })
  const below = imageFile(image)
  const path = resolve(overlay ?? join(temporaryFolder(), `vdiskfs-${randomGuid()}.${OVERLAY_FORMAT}`))
  const made = prepare(path, below, overlay === undefined, options)
  try {
    return openOver(path, below, overlay === undefined, options)
  } catch (error) {
    if (made) removeUnused(path, overlay === undefined)
    throw error
  }
}

/**
 * Takes an overlay away that was made in vain. Another program may have found it meanwhile: then it is that one's, and
 * stays. Who opens it after the look at the lock sees in `openOver` that it has no name any more.
 */
function removeUnused(path: string, temporary: boolean): void {
  if (!existsSync(path)) return
  try {
    const storage = openFile(path)
    try {
      // What is temporary has a name that nobody else knows.
      if (lockImage(storage, { write: true }) || temporary) unlinkSync(path)
    } finally {
      storage.close()
    }
  } catch {
    // Somebody has it. Why it was made in vain is what the user should be told.
  }
}

/** Makes the overlay where it is missing, and looks whose it is where it is there. @returns whether it was made */
function prepare(path: string, below: string, temporary: boolean, options: OpenOptions): boolean {
  const { backingDirs = [], format } = options
  if (isSame(path, below)) throw new VdiskError('USAGE', 'an image cannot be its own overlay', { path })
  if (!temporary && (existsSync(path) || options.readOnly)) {
    refuseForeign(path, below, options)
    return false
  }
  const backing = backingAt(resolve(below), format, { backingDirs })
  // What was encrypted must not be written in the clear elsewhere.
  const encrypted = needsSecret(below, options)
  if (encrypted && options.secret === undefined)
    throw new VdiskError('ACCESS', 'it is encrypted: say --secret FILE, with its passphrase', { path: below })
  createImage(path, {
    ...(encrypted && { options: ['encrypt.format=luks'], secret: options.secret }),
    format: OVERLAY_FORMAT,
    size: backing.size,
    backing: backing.path,
    backingFormat: backing.format,
    backingDirs,
    recordBacking: true,
    durable: !temporary,
  })
  return true
}

/** Before it is opened as a disk, so that nothing is changed in it. @throws USAGE */
function refuseForeign(path: string, below: string, options: OpenOptions): void {
  // What the guest wrote to its end is no reason to refuse it.
  const known = looksLike(path, OVERLAY_FORMAT) ? OVERLAY_FORMAT : undefined
  const layers = openChain(path, { ...chainOptions({ readOnly: true, lock: false, format: known }), parents: false })
  try {
    const { format, opened } = layers[0]!
    const fail = (text: string) => new VdiskError('USAGE', text, { path })
    if (format.name !== OVERLAY_FORMAT)
      throw fail(`it is there already, and no overlay: its format is ${format.name}, expected ${OVERLAY_FORMAT}`)
    if (!opened.parent) throw fail(`it is an image of its own, and no overlay of ${below}`)
    if (!opened.parent.candidates.some((candidate) => isSame(candidate, below)))
      throw fail(`it is an overlay of ${opened.parent.name}, and not of ${below}`)
    refuseOther(path, below, opened.parent, options)
  } finally {
    closeLayers(layers)
  }
}

/** The image below has the right name: whether it is read as it was, and is what it was. @throws USAGE */
function refuseOther(path: string, below: string, parent: ParentRequest, options: OpenOptions): void {
  const { backingDirs = [], warn } = options
  const [given, said] = [options.format, parent.format].map((name) => name && findFormat(name).name)
  if (given && said && given !== said)
    throw new VdiskError('USAGE', `it says that ${below} is ${said}, and --format says ${given}`, { path })
  const { recorded } = parent
  if (!recorded) {
    if (statSync(below).mtimeMs > statSync(path).mtimeMs)
      warn?.(`${path}: ${below} was written after its overlay: what the overlay shows may be a mixture`)
    return
  }
  const { format, record } = backingAt(resolve(below), said || given, { backingDirs })
  if (record!.size === recorded.size && record!.mtimeMs === recorded.mtimeMs) return
  const found = `${below} has ${describe(record!)}; expected ${describe(recorded)}, as when the overlay was made`
  const remedy = `if that is meant, say so: vdiskfs rebase -u -F ${format} -b ${below} ${path}`
  throw new VdiskError('USAGE', `${found}; ${remedy}`, { path })
}

function describe({ size, mtimeMs }: ParentRecord): string {
  return mtimeMs > 0 ? `${size} bytes, written ${new Date(mtimeMs).toISOString()}` : `${size} bytes`
}

/** False for a file that was removed by whoever made it, after it was opened. */
function hasName(image: Image): boolean {
  const file = image.handle().files[0]!
  return file.kind !== 'file' || fstatSync(file.fd).nlink > 0
}

function openOver(path: string, below: string, temporary: boolean, options: OpenOptions): Image {
  const { backingDirs = [] } = options
  const opened = openImage(path, {
    ...options,
    format: OVERLAY_FORMAT,
    backingDirs: [...backingDirs, dirname(realpathSync(below))],
    // What is gone with this process need not be brought to the disk.
    syncAtClose: temporary,
  })
  try {
    const parent = opened.layers[1]?.path
    if (parent === undefined || !isSame(parent, below))
      throw new VdiskError('USAGE', `it is an overlay of ${parent ?? 'nothing'}, and not of ${below}`, { path })
    const size = opened.layers[1]!.size
    if (opened.size < size)
      options.warn?.(`${path}: it was made when ${below} had ${opened.size} bytes; it has ${size} now`)
    if (temporary) unlinkSync(path)
    else if (!hasName(opened))
      throw new VdiskError('NOT_FOUND', 'another mount has just made it and taken it away again: try again', { path })
    return opened
  } catch (error) {
    opened.abandon()
    throw error
  }
}
