/** The beginning and the end of writing a layer: feature bits before the first change, refcounts and the file's end after. */

import { shorten } from '../../storage/shorten.js'
import { VdiskError } from '../../util/errors.js'
import type { LayerContext } from '../driver.js'
import { metadataAreas, refuseOverlaps } from './areas.js'
import type { Clusters } from './clusters.js'
import { autoclearKept } from './features.js'
import { Incompatible, readFeatures, writeFeatures } from './header.js'
import { type Qcow2Layout, State } from './layout.js'
import type { Refcounts } from './refcounts.js'

/** Sectors of refcounts that one change at the end makes dirty at most: a page, or a step of decrements. */
const CHANGE_SECTORS = 40

interface Session {
  readonly layout: Qcow2Layout
  readonly context: LayerContext
  readonly refcounts: Refcounts
  readonly clusters: Clusters
}

/**
 * Before the first change. No lock, one thread.
 * @throws CORRUPT where the refcounts do not even count what everybody needs
 */
export function beginSession({ layout, context, refcounts }: Session): void {
  const { metadata, files, state } = context
  const { index, storage } = files[0]!
  const areas = metadataAreas(layout, state)
  refuseOverlaps(areas, storage.path)
  for (const { name, start } of areas)
    if (metadata.shared(() => refcounts.get(start / layout.clusterSize)) === 0)
      throw new VdiskError(
        'CORRUPT',
        `its refcounts call its ${name} free: nothing is written before vdiskfs check --repair all`,
        { path: storage.path, offset: start },
      )
  if (layout.header.version === 2) return
  const kept = autoclearKept(layout.header, layout.bitmapsKept)
  const cleared = kept.length < layout.header.autoclear.length
  if (cleared) writeFeatures(storage, 'autoclear', kept)
  if (layout.lazyRefcounts) setDirty(context, true)
  if (!cleared && !layout.lazyRefcounts) return
  metadata.wrote(index)
  metadata.barrier()
}

function setDirty({ files }: LayerContext, dirty: boolean): void {
  const { storage } = files[0]!
  const others = readFeatures(storage, 'incompatible').filter((bit) => bit !== Incompatible.DIRTY)
  writeFeatures(storage, 'incompatible', dirty ? [Incompatible.DIRTY, ...others] : others)
}

/** After the last commit. No other thread is left. */
export function endSession(session: Session): void {
  const { layout, context } = session
  const { metadata, files } = context
  const { storage, index } = files[0]!
  doAllDecrements(session)
  // What that has freed is punched with this one.
  metadata.commit()
  const end = clearFree(session)
  metadata.commit()
  if (shorten(storage, end)) metadata.wrote(index)
  if (layout.lazyRefcounts) {
    metadata.barrier()
    setDirty(context, false)
    metadata.wrote(index)
  }
  metadata.barrier()
}

/** Every reference is gone from the disk by now. */
function doAllDecrements({ context, clusters }: Session): void {
  while (clusters.waiting)
    change(context, () => {
      const count = clusters.planDecrements()
      if (count === 0) throw new VdiskError('INTERNAL', 'a reference count waits for a commit that is done')
      clusters.doDecrements(count)
    })
}

function change(context: LayerContext, work: () => void): void {
  const { metadata } = context
  metadata.reserve(CHANGE_SECTORS)
  try {
    metadata.exclusive(work)
  } finally {
    metadata.unreserve()
  }
}

/** Sets the refcounts of all that is free to 0. @returns where the file can end */
function clearFree({ layout, context, refcounts }: Session): number {
  const { state, space } = context
  const { clusterSize } = layout
  const ranges = [{ offset: state[State.NEXT]!, length: state[State.LIMIT]! - state[State.NEXT]! }]
  space!.each((offset, length) => ranges.push({ offset, length }))
  for (const { offset, length } of ranges) {
    const stop = (offset + length) / clusterSize
    for (let first = offset / clusterSize; first < stop; ) {
      const end = Math.min(stop, refcounts.pageEnd(first))
      change(context, () => {
        for (let c = first; c < end; c = refcounts.sectorEnd(c)) refcounts.touch(c)
        for (let c = first; c < end; c++) refcounts.set(c, 0)
      })
      first = end
    }
  }
  ranges.sort((a, b) => b.offset - a.offset)
  let end = state[State.LIMIT]!
  for (const { offset, length } of ranges) if (length > 0 && offset + length === end) end = offset
  return end
}
