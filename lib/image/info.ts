/** What `info` prints: facts of an image, with qemu-img's names. */

import { basename, dirname, isAbsolute, join, resolve } from 'node:path'
import type { Facts, LogListing, ParentRequest, SnapshotFacts } from '../formats/driver.js'
import { findFormat } from '../formats/registry.js'
import { openFile } from '../storage/file.js'
import { VdiskError } from '../util/errors.js'
import { closeLayers, detectFormat, imageFile, type Layer, openChain } from './chain.js'
import { chainOptions, type OpenOptions } from './open.js'

/** As `qemu-img info --output=json`. */
export interface ImageInfo {
  readonly 'virtual-size': number
  readonly filename: string
  readonly format: string
  /** Bytes on the host. */
  readonly 'actual-size': number
  /** Bytes that are allocated together, in formats that allocate. */
  readonly 'cluster-size'?: number
  /** It was not closed cleanly, and its format says so by a flag. */
  readonly 'dirty-flag': boolean
  /** There where it is true. */
  readonly encrypted?: boolean
  readonly 'backing-filename'?: string
  readonly 'full-backing-filename'?: string
  readonly 'backing-filename-format'?: string
  /** Of those inside the image. */
  readonly snapshots?: readonly Facts[]
  readonly 'format-specific'?: { readonly type: string; readonly data: Facts }
}

function describe(layer: Layer, shown: string, parent: Layer | undefined): ImageInfo {
  const { format, storage, files, opened } = layer
  const facts = format.facts(opened.layout, storage, [storage, ...files])
  const cluster = facts['cluster-size'] ?? facts['block-size']
  return {
    'virtual-size': opened.size,
    filename: shown,
    format: format.name,
    'actual-size': [storage, ...files].reduce((sum, file) => sum + file.allocated(), 0),
    ...(typeof cluster === 'number' && { 'cluster-size': cluster }),
    'dirty-flag': facts['dirty-flag'] === true,
    ...(facts.encrypt !== undefined && { encrypted: true }),
    ...(opened.parent && { 'backing-filename': opened.parent.name }),
    ...namedParent(opened.parent, shown),
    ...(parent && { 'full-backing-filename': parent.path, 'backing-filename-format': parent.format.name }),
    ...snapshotsOf(layer),
    ...(Object.keys(facts).length > 0 && { 'format-specific': { type: format.name, data: facts } }),
  }
}

/** What an image says of its parent, where that is a path: what qemu-img makes of it. Its chain says what it is. */
function namedParent(parent: ParentRequest | undefined, shown: string): Partial<ImageInfo> {
  if (parent?.path === undefined) return {}
  const { path, format } = parent
  const full = isAbsolute(path) ? path : join(dirname(shown), path)
  return { 'full-backing-filename': full, ...(format !== undefined && { 'backing-filename-format': format }) }
}

/** An image whose snapshots cannot be read is still an image. */
function snapshotsOf({ format, storage, files, opened }: Layer): { snapshots?: Facts[] } {
  try {
    const found = format.snapshotTools?.list(opened.layout, [storage, ...files]) ?? []
    return found.length === 0 ? {} : { snapshots: found.map(snapshotFacts) }
  } catch (error) {
    if (!(error instanceof VdiskError)) throw error
    return { snapshots: [{ error: error.message }] }
  }
}

/** With the keys of qemu-img. */
export function snapshotFacts(snapshot: SnapshotFacts): Facts {
  return {
    id: snapshot.id,
    name: snapshot.name,
    'vm-state-size': snapshot.vmStateSize,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': snapshot.clockSeconds,
    'vm-clock-nsec': snapshot.clockNanoseconds,
    ...(snapshot.icount !== undefined && { icount: snapshot.icount }),
  }
}

/**
 * Facts of an image, read without a lock and without opening its parents.
 * @throws VdiskError
 */
export function imageInfo(path: string, options: OpenOptions = {}): ImageInfo {
  const layers = openChain(path, { ...chainOptions(options), readOnly: true, lock: false, parents: false })
  try {
    return describe(layers[0]!, path, undefined)
  } finally {
    closeLayers(layers)
  }
}

/** Facts of an image and all its parents, top first. @throws VdiskError, also where a parent is missing. */
export function chainInfo(path: string, options: OpenOptions = {}): ImageInfo[] {
  const layers = openChain(path, { ...chainOptions(options), readOnly: true, lock: false })
  try {
    const besideTop = (p: string) => (dirname(p) === dirname(resolve(path)) ? resolve(dirname(path), basename(p)) : p)
    return layers.map((layer, i) => describe(layer, i === 0 ? path : besideTop(layer.path), layers[i + 1]))
  } finally {
    closeLayers(layers)
  }
}

/**
 * The log of an image, read without a lock and without opening the image, which may be too broken for that.
 * @throws VdiskError, UNSUPPORTED where the format has no log
 */
export function imageLog(path: string, options: Pick<OpenOptions, 'format'> = {}): LogListing {
  const storage = openFile(imageFile(path), { readOnly: true })
  try {
    const format = options.format === undefined ? detectFormat(storage) : findFormat(options.format)
    if (!format.log) throw new VdiskError('UNSUPPORTED', `images of format ${format.name} have no log`, { path })
    return format.log(storage)
  } finally {
    storage.close()
  }
}
