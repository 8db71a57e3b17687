/** Where one more cluster can go, for tools and for what is needed once: behind the file's end, or inside of a device. */

import { placesEnd } from '../../storage/shorten.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { clustersEnd, countedEntries, eachEntry } from './entries.js'
import { clustersOf, type Feature, isOpaque } from './extension.js'
import { UsedClusters, WINDOW } from './gaps.js'
import { type Geometry, type Header, SECTOR } from './header.js'

/**
 * The first cluster that no BAT entry, as it is in the file, refers to. It may hold something old.
 * @param taken offsets of clusters that are in use besides
 * @returns its offset; undefined where there is none in front of the file's end
 */
export function unusedCluster(
  storage: Storage,
  header: Header,
  geometry: Geometry,
  taken: Iterable<number>,
): number | undefined {
  const { dataStart, clusterSize, unit } = geometry
  const end = Math.min(storage.size(), placesEnd(storage))
  const clusters = Math.max(0, Math.floor((end - dataStart) / clusterSize))
  for (let from = 0; from < clusters; from += WINDOW) {
    const used = new UsedClusters(dataStart + from * clusterSize, clusterSize, Math.min(WINDOW, clusters - from))
    for (const offset of taken) used.mark(offset, clusterSize)
    eachEntry(storage, countedEntries(header, geometry), (entry) => void used.mark(entry * unit, clusterSize))
    const [gap] = used.gaps()
    if (gap) return gap.offset
  }
  return undefined
}

/**
 * A place for one more cluster of an extension.
 * @param features those of the extension that the header refers to
 * @throws NO_SPACE on a device that has none
 */
export function placeForCluster(
  storage: Storage,
  header: Header,
  geometry: Geometry,
  features: readonly Feature[],
): number {
  if (!storage.fixedSize) return clustersEnd(geometry, storage.size())
  const { path } = storage
  if (isOpaque(features))
    throw new VdiskError('NO_SPACE', 'on a device there is no room but gaps, which its unknown features may own', {
      path,
    })
  const taken = header.extOff === 0 ? [] : clustersOf(header.extOff * SECTOR, features)
  const place = unusedCluster(storage, header, geometry, taken)
  if (place !== undefined) return place
  throw new VdiskError('NO_SPACE', 'the device has no cluster that nothing uses; its format extension needs one', {
    path,
  })
}
