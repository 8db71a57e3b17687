/** The internal snapshots of an image that nobody has mounted. */

import type { SnapshotFacts, SnapshotTools } from '../formats/driver.js'
import type { Storage } from '../storage/storage.js'
import { VdiskError } from '../util/errors.js'
import { closeLayers, type Layer, openChain } from './chain.js'
import { chainOptions } from './open.js'

export interface SnapshotOptions {
  /** Default: found by looking at the content. */
  readonly format?: string | undefined
  readonly backingDirs?: readonly string[]
  readonly warn?: (message: string) => void
}

type Use<T> = (tools: SnapshotTools<unknown>, layout: unknown, files: readonly Storage[]) => T

function withSnapshots<T>(path: string, readOnly: boolean, options: SnapshotOptions, use: Use<T>): T {
  const layers = openChain(path, { ...chainOptions({ ...options, readOnly }), parents: false })
  try {
    const { format, opened, storage, files } = layers[0]!
    if (!format.snapshotTools)
      throw new VdiskError('UNSUPPORTED', `images of format ${format.name} have no snapshots that can be worked with`, {
        path,
      })
    return use(format.snapshotTools, opened.layout, [storage, ...files])
  } finally {
    closeLayers(layers)
  }
}

/** @throws VdiskError, IN_USE where somebody writes the image */
export function listSnapshots(path: string, options: SnapshotOptions = {}): SnapshotFacts[] {
  return withSnapshots(path, true, options, (tools, layout, files) => tools.list(layout, files))
}

/** Keeps the disk as it is now. @returns the snapshot's id. @throws EXISTS, USAGE, UNSUPPORTED, NO_SPACE, IN_USE */
export function createSnapshot(path: string, name: string, options: SnapshotOptions = {}): string {
  return withSnapshots(path, false, options, (tools, layout, files) => tools.create(layout, files, name))
}

/**
 * Makes the disk what it was when the snapshot was made; what it is now is lost.
 * @param wanted an id or a name
 * @throws NOT_FOUND, IN_USE
 */
export function applySnapshot(path: string, wanted: string, options: SnapshotOptions = {}): void {
  withSnapshots(path, false, options, (tools, layout, files) => tools.apply(layout, files, wanted))
}

/** @param wanted an id or a name. @throws NOT_FOUND, IN_USE */
export function deleteSnapshot(path: string, wanted: string, options: SnapshotOptions = {}): void {
  withSnapshots(path, false, options, (tools, layout, files) => tools.delete(layout, files, wanted))
}

/**
 * For what changes what an image reads through: the snapshots inside would show something else, as nothing is written
 * into them. @throws USAGE where there are some, naming them
 */
export function refuseSnapshots({ format, opened, storage, files, path }: Layer): void {
  const snapshots = format.snapshotTools?.list(opened.layout, [storage, ...files]) ?? []
  if (snapshots.length === 0) return
  const names = snapshots.map(({ name, id }) => `'${name || id}'`).join(', ')
  const harm = 'would not show what they do, as they read through its parent'
  const remedy = 'copy them (convert -l) and delete them first, or say --force'
  throw new VdiskError('USAGE', `its snapshots ${names} ${harm}: ${remedy}`, { path })
}
