/** Dirty bitmaps of an expanding image that nobody has open: listed, shown, added, cleared, removed. */

import { cutOff } from '../../storage/shorten.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { parseGuid, randomGuid } from '../../util/guid.js'
import { KiB } from '../../util/sizes.js'
import type { BitmapFacts, ByteRange } from '../driver.js'
import { checkImage } from './check.js'
import { refuseOutside } from './entries.js'
import {
  type Bitmap,
  bitmapFeature,
  bitsPerCluster,
  encodeExtension,
  type Feature,
  keptFeatures,
  L1_CLEAR,
  L1_SET,
  l1Entries,
  MAX_BITMAPS,
  withL1,
} from './extension.js'
import { placeForCluster } from './free-cluster.js'
import {
  bitmapsTrusted,
  type Geometry,
  geometryOf,
  type Header,
  InUse,
  readHeader,
  SECTOR,
  writeHeader,
} from './header.js'
import { extensionOf } from './image.js'

/** As Virtuozzo makes them. */
const DEFAULT_GRANULARITY = 64 * KiB
const MAX_GRANULARITY = 2 ** 31 * SECTOR

interface State {
  readonly header: Header
  readonly geometry: Geometry
  readonly features: readonly Feature[]
}

function stateOf(storage: Storage): State {
  const header = readHeader(storage)
  const geometry = geometryOf(header)
  const loaded = extensionOf(storage, header, geometry)
  if (loaded && 'error' in loaded)
    throw new VdiskError('CORRUPT', `its format extension cannot be used: ${loaded.error}`, { path: storage.path })
  return { header, geometry, features: loaded?.extension.features ?? [] }
}

function bitmapsOf(state: State): Bitmap[] {
  return state.features.flatMap(({ bitmap }) => bitmap ?? [])
}

/** The GUID as it is listed. @throws USAGE */
function idOf(name: string): string {
  parseGuid(name, 'big')
  return bare(name)
}

const bare = (name: string) => name.replace(/[{}]/g, '').toLowerCase()

/** A name as ids are written; one that is no GUID is that of no bitmap. */
function named(state: State, name: string): Bitmap | undefined {
  const wanted = bare(name)
  return bitmapsOf(state).find(({ id }) => id === wanted)
}

export function hasBitmap(storage: Storage, name: string): boolean {
  return named(stateOf(storage), name) !== undefined
}

function find(storage: Storage, state: State, name: string): Bitmap {
  const found = named(state, name)
  if (found) return found
  const names = bitmapsOf(state).map(({ id }) => id)
  throw new VdiskError('NOT_FOUND', `no bitmap '${name}'; it has: ${names.join(', ') || 'none'}`, {
    path: storage.path,
  })
}

export function listBitmaps(storage: Storage): BitmapFacts[] {
  const state = stateOf(storage)
  const flags = bitmapsTrusted(state.header) ? [] : ['in-use']
  return bitmapsOf(state).map(({ id, granularity }) => ({ name: id, granularity, flags }))
}

/** Every bit that is set, merged into ranges. All of the disk where nobody knows better. */
export function* bitmapExtents(storage: Storage, name: string): Generator<ByteRange> {
  const state = stateOf(storage)
  const { size } = state.geometry
  const bitmap = find(storage, state, name)
  let start = -1
  const { granularity } = bitmap
  const runs = bitmapsTrusted(state.header) ? setRuns(storage, state.geometry, bitmap) : [{ bit: 0, set: true }]
  for (const { bit, set } of runs) {
    if (set && start < 0) start = bit * granularity
    if (set || start < 0) continue
    yield { start, length: bit * granularity - start }
    start = -1
  }
  if (start >= 0 && start < size) yield { start, length: size - start }
}

/** The bits at which runs of set and of clear bits begin. */
function* setRuns(storage: Storage, geometry: Geometry, bitmap: Bitmap): Generator<{ bit: number; set: boolean }> {
  const { clusterSize } = geometry
  const bits = Math.ceil(geometry.size / bitmap.granularity)
  const buffer = new Uint8Array(Math.min(clusterSize, 64 * KiB))
  let set = false
  for (const [i, entry] of bitmap.l1.entries()) {
    const first = i * bitsPerCluster(clusterSize)
    if (entry <= L1_SET) {
      if (set !== (entry === L1_SET)) yield { bit: first, set: !set }
      set = entry === L1_SET
      continue
    }
    const bytes = Math.min(clusterSize, Math.ceil((bits - first) / 8))
    for (let done = 0; done < bytes; done += buffer.length) {
      const count = Math.min(buffer.length, bytes - done)
      buffer.fill(0, storage.read(buffer, 0, count, entry + done))
      for (let b = 0; b < count; b++) {
        const byte = buffer[b]!
        if (byte === (set ? 0xff : 0)) continue
        for (let k = 0; k < 8; k++)
          if ((((byte >> k) & 1) === 1) !== set) {
            set = !set
            const bit = first + (done + b) * 8 + k
            if (bit < bits) yield { bit, set }
          }
      }
    }
  }
}

/** The id of a new bitmap: the one that is asked for, or any. @throws USAGE */
export function newBitmapId(name: string | undefined): string {
  return name === undefined ? randomGuid() : idOf(name)
}

/** @throws CORRUPT where nothing of its bitmaps may be changed. Changes nothing. */
export function refuseChanging(storage: Storage): void {
  const { header, geometry } = stateOf(storage)
  refuseOutside(storage, header, geometry)
}

/** @throws what `addBitmap` throws because of what is in the image. Changes nothing. */
export function refuseAdding(storage: Storage, id: string, granularity: number | undefined): void {
  refuseChanging(storage)
  const state = stateOf(storage)
  withNew(storage, state, id, granularity)
  placeForCluster(storage, state.header, state.geometry, state.features)
}

/** @param id of `newBitmapId`. @throws EXISTS, USAGE, NO_SPACE */
export function addBitmap(storage: Storage, id: string, granularity: number | undefined): void {
  const state = stateOf(storage)
  replace(storage, state, withNew(storage, state, id, granularity))
}

/** The features with one more bitmap, in which nothing is set. */
function withNew(storage: Storage, state: State, id: string, granularity = DEFAULT_GRANULARITY): Feature[] {
  const { geometry } = state
  const wrong = granularity < SECTOR || granularity > MAX_GRANULARITY || !Number.isInteger(Math.log2(granularity))
  if (wrong) throw new VdiskError('USAGE', `granularity ${granularity}: expected a power of two from ${SECTOR} on`)
  if (bitmapsOf(state).some((bitmap) => bitmap.id === id))
    throw new VdiskError('EXISTS', `it has a bitmap '${id}' already`, { path: storage.path })
  if (bitmapsOf(state).length === MAX_BITMAPS)
    throw new VdiskError('NO_SPACE', `it has ${MAX_BITMAPS} bitmaps, and can have no more`, { path: storage.path })
  const entries = l1Entries(geometry, granularity)
  if (entries * 8 > geometry.clusterSize) throw tooMany(storage, granularity)
  const l1 = new Array<number>(entries).fill(L1_CLEAR)
  const features = [...known(state), bitmapFeature({ id, granularity, l1 }, geometry)]
  if (!encodeExtension(features, geometry.clusterSize)) throw tooMany(storage, undefined)
  return features
}

function tooMany(storage: Storage, granularity: number | undefined): VdiskError {
  const size = granularity === undefined ? '' : ` of granularity ${granularity}`
  return new VdiskError('NO_SPACE', `a bitmap${size} does not fit into the format extension; a coarser one may`, {
    path: storage.path,
  })
}

/** The features that stay, whose bitmaps are all set where nobody kept them. */
function known({ header, geometry, features }: State): Feature[] {
  const kept = keptFeatures(features)
  return bitmapsTrusted(header) ? kept : withL1(kept, geometry, () => L1_SET)
}

export function clearBitmap(storage: Storage, name: string): void {
  const state = stateOf(storage)
  const { id } = find(storage, state, name)
  const clear = (feature: Feature) => withL1([feature], state.geometry, () => L1_CLEAR)[0]!
  replace(
    storage,
    state,
    known(state).map((feature) => (feature.bitmap?.id === id ? clear(feature) : feature)),
  )
}

export function removeBitmap(storage: Storage, name: string): void {
  const state = stateOf(storage)
  const { id } = find(storage, state, name)
  replace(
    storage,
    state,
    known(state).filter(({ bitmap }) => bitmap?.id !== id),
  )
}

/**
 * Writes other features. The header always refers to a whole extension: to a new one in another place, until the old
 * one's cluster is written. What is not used any more is freed.
 */
function replace(storage: Storage, state: State, features: readonly Feature[]): void {
  const { header, geometry } = state
  refuseOutside(storage, header, geometry)
  const { clusterSize } = geometry
  const bytes = features.length > 0 ? encodeExtension(features, clusterSize) : undefined
  if (features.length > 0 && !bytes) throw tooMany(storage, undefined)
  const before = header.extOff * SECTOR
  const size = storage.size()
  const places = bytes ? [placeForCluster(storage, header, geometry, state.features)] : [0]
  if (bytes && before !== 0) places.push(before)
  for (const place of places) {
    if (bytes) storage.write(bytes, 0, clusterSize, place)
    storage.sync()
    pointTo(storage, header, place)
  }
  // What is unknown may own any cluster, so that no leak is looked for then: but this one is ours.
  if (places.length > 1) cutOff(storage, size)
  // The rest of what this left behind: the other place, and the clusters of bits.
  checkImage(storage, { repair: 'leaks', found: () => {} })
}

function pointTo(storage: Storage, header: Header, place: number): void {
  header.extOff = place / SECTOR
  header.inUse = InUse.CLOSED
  writeHeader(storage, header)
}
