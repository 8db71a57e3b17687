/** Where an image's own structures are that lie in one piece: nothing else may be put there. */

import { VdiskError } from '../../util/errors.js'
import { ENTRY_BYTES, type Qcow2Layout, State } from './layout.js'

export interface Area {
  readonly name: string
  /** Bytes. */
  readonly start: number
  readonly end: number
}

/** @param state as `LayerContext.state` */
export function metadataAreas({ header, clusterSize }: Qcow2Layout, state: ArrayLike<number>): Area[] {
  const { l1TableOffset, l1Size, nbSnapshots, snapshotsOffset } = header
  const table = state[State.TABLE_OFFSET]!
  const roundUp = (length: number) => Math.ceil(length / clusterSize) * clusterSize
  const areas = [
    { name: 'header', start: 0, end: clusterSize },
    { name: 'L1 table', start: l1TableOffset, end: l1TableOffset + roundUp(l1Size * ENTRY_BYTES) },
    { name: 'refcount table', start: table, end: table + state[State.TABLE_CLUSTERS]! * clusterSize },
  ]
  if (nbSnapshots > 0)
    areas.push({ name: 'table of snapshots', start: snapshotsOffset, end: snapshotsOffset + clusterSize })
  return areas.filter(({ start, end }) => end > start)
}

/** @throws CORRUPT where two of them lie over each other, so that writing one would destroy the other */
export function refuseOverlaps(areas: readonly Area[], path: string): void {
  for (const [i, a] of areas.entries())
    for (const b of areas.slice(i + 1)) {
      if (a.start >= b.end || b.start >= a.end) continue
      throw new VdiskError(
        'CORRUPT',
        `its ${b.name} at bytes ${b.start} to ${b.end} lies over its ${a.name} at ${a.start} to ${a.end}`,
        { path, offset: b.start },
      )
    }
}
