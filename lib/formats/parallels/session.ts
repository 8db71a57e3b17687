/**
 * The beginning and the end of writing an image.
 *
 * The in-use mark and the extension's offset are in one sector, so that they change together. While an image is written,
 * the header refers to a stand-in for the extension, with the same features, in which every bitmap is all set: whatever
 * happens, nobody ever takes changed data for unchanged. The true extension's cluster holds what the bitmaps will be, and
 * the header refers to it again at the clean end, when it has its MD5.
 */

import { shorten } from '../../storage/shorten.js'
import { VdiskError } from '../../util/errors.js'
import type { LayerContext } from '../driver.js'
import type { Bat } from './bat.js'
import { eachEntry, refuseOutside } from './entries.js'
import {
  clustersOf,
  encodeExtension,
  type Feature,
  keptFeatures,
  L1_SET,
  loadExtension,
  seal,
  withL1,
} from './extension.js'
import { placeForCluster } from './free-cluster.js'
import { FLAG_EMPTY, HEADER_SIZE, InUse, SECTOR } from './header.js'
import { type ImageLayout, State, type TrackedExtension } from './layout.js'

/** Before the first change. No lock, one thread, nothing is cached dirty. */
export function beginSession(layout: ImageLayout, context: LayerContext, bat: Bat): void {
  const { header } = layout
  const { metadata, state } = context
  if (state[State.EMPTY] !== 0) forgetBat(layout, context)
  const flags = header.flags & ~FLAG_EMPTY
  const { extension } = layout
  if (extension?.plan === 'rewrite') beginExtension(layout, extension, context, bat, flags)
  else {
    const extOff = extension?.plan === 'drop' ? { extOff: 0 } : {}
    metadata.exclusive(() => bat.setHeader({ inUse: InUse.OPEN, flags, ...extOff }))
    metadata.commit()
    if (extension?.plan === 'drop') context.space!.add(extension.offset, layout.geometry.clusterSize)
  }
}

/** An image whose header calls it empty gets a BAT that says so too. */
function forgetBat({ geometry }: ImageLayout, context: LayerContext): void {
  const { index, storage } = context.files[0]!
  storage.zero(HEADER_SIZE, geometry.batEnd - HEADER_SIZE)
  context.metadata.wrote(index)
  context.metadata.barrier()
  context.metadata.exclusive(() => {
    context.state[State.EMPTY] = 0
  })
}

function featuresOf({ geometry }: ImageLayout, { offset }: TrackedExtension, context: LayerContext): Feature[] {
  const { storage } = context.files[0]!
  const loaded = loadExtension(storage, geometry, offset)
  if ('error' in loaded)
    throw new VdiskError('CORRUPT', `its format extension changed while it was open: ${loaded.error}`, {
      path: storage.path,
      offset,
    })
  return keptFeatures(loaded.extension.features)
}

function beginExtension(
  layout: ImageLayout,
  extension: TrackedExtension,
  context: LayerContext,
  bat: Bat,
  flags: number,
): void {
  const { metadata, state, files } = context
  const { index, storage } = files[0]!
  const { clusterSize } = layout.geometry
  refuseOutside(storage, layout.header, layout.geometry, state[State.FLOOR]!)
  const features = featuresOf(layout, extension, context)
  const allSet = withL1(features, layout.geometry, () => L1_SET)
  // The same again where the commit of an earlier attempt failed.
  const standIn =
    state[State.STAND_IN]! ||
    (storage.fixedSize ? placeForCluster(storage, layout.header, layout.geometry, features) : state[State.END]!)
  const bytes = encoded(allSet, clusterSize, storage.path)
  // Both may lie in holes: on a full disk all of this fails before anything is changed.
  storage.reserve(standIn, clusterSize)
  storage.reserve(extension.offset, clusterSize)
  storage.write(bytes, 0, clusterSize, standIn)
  metadata.wrote(index)
  metadata.exclusive(() => {
    state[State.END] = Math.max(state[State.END]!, standIn + clusterSize)
    state[State.LIMIT] = Math.max(state[State.LIMIT]!, standIn + clusterSize)
    state[State.STAND_IN] = standIn
    bat.setHeader({ inUse: InUse.OPEN, flags, extOff: standIn / SECTOR })
  })
  metadata.commit()
  // Nothing refers to the extension's own cluster now: it becomes the table of what the bitmaps will be.
  const working = extension.trusted ? encoded(features, clusterSize, storage.path) : bytes
  storage.write(working, 0, clusterSize, extension.offset)
  metadata.wrote(index)
  if (extension.trusted) return
  for (const { bitmap } of features)
    for (const cluster of bitmap?.l1 ?? []) if (cluster > L1_SET) context.space!.add(cluster, clusterSize)
}

function encoded(features: readonly Feature[], clusterSize: number, path: string): Uint8Array {
  const bytes = encodeExtension(features, clusterSize)
  if (!bytes) throw new VdiskError('INTERNAL', 'the format extension does not fit into its cluster', { path })
  return bytes
}

/** After the last commit. No other thread is left. */
export function endSession(layout: ImageLayout, context: LayerContext, bat: Bat): void {
  const { metadata, state, files } = context
  const { extension } = layout
  const standIn = state[State.STAND_IN]!
  if (extension && standIn !== 0) {
    sealExtension(layout, extension, context)
    metadata.exclusive(() => bat.setHeader({ inUse: InUse.CLOSED, extOff: extension.offset / SECTOR }))
  } else metadata.exclusive(() => bat.setHeader({ inUse: InUse.CLOSED }))
  metadata.commit()
  if (standIn !== 0) context.space!.add(standIn, layout.geometry.clusterSize)
  cutTail(context)
  cutUnused(layout, context)
  if (shorten(files[0]!.storage, state[State.END]!)) metadata.wrote(files[0]!.index)
  metadata.barrier()
}

/** Puts the MD5 into the true extension, whose L1 tables and bits are on disk by now. */
function sealExtension({ geometry }: ImageLayout, { offset }: TrackedExtension, context: LayerContext): void {
  const { index, storage } = context.files[0]!
  const bytes = new Uint8Array(geometry.clusterSize)
  storage.read(bytes, 0, bytes.length, offset)
  seal(bytes)
  storage.write(bytes, 0, SECTOR, offset)
  context.metadata.wrote(index)
}

/**
 * Moves the end in front of what an earlier session left unused there: a hole that was in front of what was cut off now,
 * or the room that a crash left. Both tables are on disk whole by now.
 */
function cutUnused({ geometry, header, extension }: ImageLayout, { metadata, state, files }: LayerContext): void {
  const { storage } = files[0]!
  const sank = state[State.END]! < state[State.FLOOR]!
  if (storage.fixedSize || extension?.opaque || !(sank || header.inUse === InUse.OPEN)) return
  const { clusterSize, dataStart, entries, unit } = geometry
  let end = dataStart
  const use = (offset: number) => {
    end = Math.max(end, offset + clusterSize)
  }
  if (extension && extension.plan !== 'drop') {
    const loaded = loadExtension(storage, geometry, extension.offset)
    if ('error' in loaded) return
    for (const cluster of clustersOf(extension.offset, loaded.extension.features)) use(cluster)
  }
  eachEntry(storage, entries, (entry) => use(entry * unit))
  metadata.exclusive(() => {
    state[State.END] = Math.min(state[State.END]!, end)
  })
}

/** Moves the end in front of all freed space that lies there. */
function cutTail({ metadata, state, space }: LayerContext): void {
  metadata.exclusive(() => {
    for (;;) {
      const offset = space!.takeEndingAt(state[State.END]!)
      if (offset < 0) return
      state[State.END] = offset
    }
  })
}
