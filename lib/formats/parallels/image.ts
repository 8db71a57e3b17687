/** Opening one expanding image: header, extension, and whether it can be written as it is. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { checkImage } from './check.js'
import { forbidding, isOpaque, keptFeatures, type LoadedExtension, l1Places, loadExtension } from './extension.js'
import {
  bitmapsTrusted,
  type Geometry,
  geometryOf,
  HEADER,
  type Header,
  headerProblems,
  InUse,
  readHeader,
  SECTOR,
} from './header.js'
import type { ImageLayout, TrackedExtension } from './layout.js'

const REPAIR = 'vdiskfs check --repair all mends it, and it can be read as it is'

export interface ImageOptions {
  readonly readOnly: boolean
  /** It is an overlay. */
  readonly parent: boolean
  readonly warn: (message: string) => void
}

/** @throws FORMAT, CORRUPT, UNSUPPORTED, IO */
export function openExpanding(storage: Storage, options: ImageOptions): ImageLayout {
  const header = readHeader(storage)
  const geometry = geometryOf(header)
  const loaded = extensionOf(storage, header, geometry)
  if (options.readOnly) warnReader(header, loaded, options.warn)
  else refuseWriter(storage, header, loaded, options.warn)
  const extension = options.readOnly || !loaded ? undefined : track(loaded, header)
  return { geometry, header, parent: options.parent, extension }
}

/** The extension that the header refers to, if any. */
export function extensionOf(storage: Storage, header: Header, geometry: Geometry): LoadedExtension | undefined {
  return header.extOff === 0 ? undefined : loadExtension(storage, geometry, header.extOff * SECTOR)
}

function warnReader(header: Header, loaded: LoadedExtension | undefined, warn: (message: string) => void): void {
  for (const { message } of headerProblems(header)) warn(message)
  if (loaded && 'error' in loaded) warn(`its format extension cannot be used: ${loaded.error}`)
}

function refuseWriter(
  storage: Storage,
  header: Header,
  loaded: LoadedExtension | undefined,
  warn: (message: string) => void,
): void {
  const { path } = storage
  for (const { message, offset } of headerProblems(header))
    throw new VdiskError('CORRUPT', `not opened for writing: ${message}; ${REPAIR}`, { path, offset })
  if (loaded && 'error' in loaded)
    throw new VdiskError('CORRUPT', `not opened for writing: in its format extension, ${loaded.error}; ${REPAIR}`, {
      path,
      offset: header.extOff * SECTOR,
    })
  const feature = loaded && forbidding(loaded.extension.features)
  if (feature)
    throw new VdiskError(
      'UNSUPPORTED',
      `not opened for writing: its feature ${feature.magic} forbids that to who cannot load it, and ${feature.error}; it can be mounted with -r`,
      { path, offset: header.extOff * SECTOR },
    )
  if (header.inUse === InUse.OPEN || (loaded && header.inUse === InUse.OLD)) checkFirst(storage, header, warn)
  for (const { error, magic } of loaded?.extension.features ?? [])
    if (error !== undefined) warn(`its feature ${magic} cannot be used: ${error}`)
  if (loaded && !bitmapsTrusted(header) && keptFeatures(loaded.extension.features).some(({ bitmap }) => bitmap))
    warn('it was written without its bitmaps being kept: they count all of the disk as changed')
}

/** An image that was left in use may be written where a check finds nothing worse than clusters that nobody uses. */
function checkFirst(storage: Storage, header: Header, warn: (message: string) => void): void {
  let leaks = 0
  let worst: string | undefined
  checkImage(storage, {
    repair: 'none',
    found: ({ severity, message }) => {
      if (severity === 'leak') leaks++
      if (severity === 'corruption') worst ??= message
    },
  })
  const left = header.inUse === InUse.OPEN ? 'it was left in use' : 'software without format extensions wrote it'
  if (worst !== undefined)
    throw new VdiskError('CORRUPT', `${left}, and is damaged: ${worst}; ${REPAIR}`, {
      path: storage.path,
      offset: HEADER.offsetOf('inUse'),
    })
  if (header.inUse === InUse.OPEN || leaks > 0)
    warn(`${left}; a check found ${leaks === 0 ? 'no errors' : `${leaks} leaked ranges and no errors`}`)
}

/** What writing has to know of the extension. */
function track(loaded: LoadedExtension, header: Header): TrackedExtension {
  const features = 'error' in loaded ? [] : loaded.extension.features
  const kept = keptFeatures(features)
  const offset = header.extOff * SECTOR
  const { tables } = l1Places(kept)
  const bitmaps = kept
    .flatMap(({ bitmap }) => bitmap ?? [])
    .map(({ granularity, l1 }, i) => ({ granularity, l1: offset + tables[i]!, l1Size: l1.length }))
  const rewrite = bitmaps.length > 0 || kept.length < features.length
  const plan = kept.length === 0 ? 'drop' : rewrite ? 'rewrite' : 'keep'
  return { offset, plan, bitmaps, opaque: isOpaque(features), trusted: bitmapsTrusted(header) }
}
