/** A new, empty expanding image. */

import { VdiskError } from '../../util/errors.js'
import { MiB } from '../../util/sizes.js'
import type { CreateContext } from '../driver.js'
import type { OptionSpec } from '../options.js'
import { BAT_ENTRY_SIZE, HEADER, HEADER_SIZE, type Header, InUse, MAGIC_CLUSTERS, SECTOR, VERSION } from './header.js'

/** What everybody makes, for many years. */
const DEFAULT_CLUSTER = MiB
/** More entries than this other programs do not read (QEMU: the table's bytes are a signed 32-bit number). */
const MAX_ENTRIES = 2 ** 29 - 1
const MAX_CLUSTER = 1024 * MiB

/** The geometry that Parallels and QEMU give new images, and that nobody boots from. */
const HEADS = 16
const SECTORS_PER_TRACK = 32

export const createOptions: readonly OptionSpec[] = [
  {
    name: 'cluster_size',
    help: 'how much is allocated together: a multiple of 512 bytes',
    type: 'size',
    default: DEFAULT_CLUSTER,
    min: SECTOR,
    max: MAX_CLUSTER,
  },
]

/** @throws USAGE for a cluster size that is no multiple of 512, or too small for the disk */
export function createExpanding({ storage, path, size, options }: CreateContext): void {
  const clusterSize = options.cluster_size as number
  if (clusterSize % SECTOR !== 0)
    throw new VdiskError('USAGE', `option cluster_size=${clusterSize}: expected a multiple of ${SECTOR}`, { path })
  const header = newHeader(size, clusterSize)
  if (header.nbBatEntries > MAX_ENTRIES)
    throw new VdiskError(
      'USAGE',
      `a disk of ${size} bytes has too many clusters of ${clusterSize} bytes; expected a cluster_size of at least ${Math.ceil(size / MAX_ENTRIES / MiB)}M`,
      { path },
    )
  const bytes = new Uint8Array(HEADER_SIZE)
  HEADER.write(header, bytes)
  storage.write(bytes, 0, HEADER_SIZE, 0)
  // The BAT is zeros: a hole.
  storage.truncate(header.dataOff * SECTOR)
}

/** The header of an empty image; a size that is no whole number of sectors is rounded up. */
export function newHeader(size: number, clusterSize: number): Header {
  const sectors = Math.ceil(size / SECTOR)
  const tracks = clusterSize / SECTOR
  const nbBatEntries = Math.ceil(sectors / tracks)
  return {
    magic: MAGIC_CLUSTERS,
    version: VERSION,
    heads: HEADS,
    cylinders: Math.min(2 ** 32 - 1, Math.floor(sectors / HEADS / SECTORS_PER_TRACK)),
    tracks,
    nbBatEntries,
    nbSectors: sectors,
    inUse: InUse.CLOSED,
    dataOff: Math.ceil((HEADER_SIZE + nbBatEntries * BAT_ENTRY_SIZE) / clusterSize) * tracks,
    flags: 0,
    extOff: 0,
  }
}
