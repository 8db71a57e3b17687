/** The BAT as it is in the file, read from beginning to end: for tools, and for what is looked at once. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { BAT_ENTRY_SIZE, FLAG_EMPTY, type Geometry, HEADER_SIZE, type Header } from './header.js'

const CHUNK = 1 << 20

/** How many entries count: none where the header says that the disk is empty. */
export function countedEntries({ flags }: Pick<Header, 'flags'>, { entries }: Geometry): number {
  return (flags & FLAG_EMPTY) === 0 ? entries : 0
}

/** Calls back for every one of the first `count` entries that is not 0. */
export function eachEntry(storage: Storage, count: number, visit: (entry: number, index: number) => void): void {
  const perChunk = CHUNK / BAT_ENTRY_SIZE
  const chunk = new Uint8Array(Math.min(CHUNK, count * BAT_ENTRY_SIZE))
  const view = new DataView(chunk.buffer)
  for (let first = 0; first < count; first += perChunk) {
    const some = Math.min(perChunk, count - first)
    const at = HEADER_SIZE + first * BAT_ENTRY_SIZE
    // A table of a huge empty disk is mostly a hole.
    if (storage.nextData(at) >= at + some * BAT_ENTRY_SIZE) continue
    storage.read(chunk, 0, some * BAT_ENTRY_SIZE, at)
    for (let i = 0; i < some; i++) {
      const entry = view.getUint32(i * BAT_ENTRY_SIZE, true)
      if (entry !== 0) visit(entry, first + i)
    }
  }
}

/** Where the last cluster that a file of `size` bytes has something of ends. */
export function clustersEnd({ dataStart, clusterSize }: Geometry, size: number): number {
  return dataStart + Math.max(0, Math.ceil((size - dataStart) / clusterSize)) * clusterSize
}

/** The error for an entry that is not between the BAT and `end`. */
export function outsideError(path: string, { batEnd }: Geometry, end: number, index: number, offset: number) {
  return new VdiskError(
    'CORRUPT',
    `BAT entry ${index} says byte ${offset}, expected one from ${batEnd} to ${end}: vdiskfs check --repair all`,
    { path, offset: HEADER_SIZE + index * BAT_ENTRY_SIZE },
  )
}

/**
 * Before anything is put behind the file's end: in a copy that was cut short, entries refer to clusters there already.
 * @param end where that end is
 * @throws CORRUPT
 */
export function refuseOutside(
  storage: Storage,
  header: Header,
  geometry: Geometry,
  end = clustersEnd(geometry, storage.size()),
): void {
  eachEntry(storage, countedEntries(header, geometry), (entry, index) => {
    const offset = entry * geometry.unit
    if (offset < geometry.batEnd || offset >= end) throw outsideError(storage.path, geometry, end, index, offset)
  })
}
