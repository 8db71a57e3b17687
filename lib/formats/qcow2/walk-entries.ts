/** What the entries of an L2 table refer to, and what is wrong with them. */

import { type Counts, Use } from './counts.js'
import {
  ALL_SUBCLUSTERS,
  COMPRESSED,
  COMPRESSED_SECTOR,
  COPIED,
  compressedHigh,
  compressedLength,
  compressedOffset,
  compressedSectors,
  highOf,
  hostOffset,
  L2_RESERVED,
  lowOf,
  ZERO,
} from './entries.js'
import { entryBytes, hexOf } from './pieces.js'
import type { EndFor, Fault, OnFault, Seen, Shape } from './walk.js'

export interface Subclusters {
  readonly zero: number
  readonly data: number
}

export const NO_SUBCLUSTERS: Subclusters = { zero: 0, data: 0 }

/** The entries of one L2 table. */
export class EntryWalk {
  readonly #shape: Shape
  readonly #counts: Counts
  readonly #fault: OnFault
  readonly #endFor: EndFor
  readonly #seen: Seen | undefined
  readonly #weight: number
  #next = 0

  constructor(shape: Shape, counts: Counts, fault: OnFault, endFor: EndFor, seen: Seen | undefined, weight: number) {
    this.#endFor = endFor
    this.#shape = shape
    this.#counts = counts
    this.#fault = fault
    this.#seen = seen
    this.#weight = weight
  }

  visit(at: number, guest: number, high: number, low: number, subclusters: Subclusters): void {
    if ((high & COMPRESSED) !== 0) this.#compressed(at, guest, high, low, subclusters)
    else this.#standard(at, guest, high, low, subclusters)
  }

  #report(what: string, text: string, at: number, guest: number, more: Partial<Fault>): void {
    const message = `the cluster of the disk's byte ${guest} ${text}`
    this.#fault({ severity: 'corruption', what, message, offset: at, guest, ...more })
  }

  /** How an entry is mended whose data are nowhere: what they were reads as zeros, and not as an old parent. */
  #dropped({ zero, data }: Subclusters): Pick<Fault, 'replace' | 'copy' | 'loses'> {
    const { extendedL2, version, shows, clusterSize } = this.#shape
    const loses = true
    if (extendedL2) return { loses, replace: Buffer.concat([entryBytes(0, 0), entryBytes(zero | data, 0)]) }
    if (!shows) return { loses, replace: entryBytes(0, version < 3 ? 0 : ZERO) }
    return { loses, copy: { from: undefined, length: clusterSize, entry: (to) => entryBytes(highOf(to), lowOf(to)) } }
  }

  #compressed(at: number, guest: number, high: number, low: number, { zero, data }: Subclusters): void {
    const { clusterBits, clusterSize, dataFile, placed } = this.#shape
    const offset = compressedOffset(high, low, clusterBits)
    const length = compressedLength(high, low, clusterBits)
    const last = Math.floor((offset + length - 1) / clusterSize)
    const shown = `(${length} compressed bytes at ${offset})`
    if (dataFile || last >= this.#endFor(at) || offset < clusterSize) {
      const why = dataFile ? 'is compressed, which images with a data file cannot have' : 'is not in the file'
      this.#report('l2-entry', `${shown} ${why}`, at, guest, this.#dropped({ zero: 0, data: ALL_SUBCLUSTERS }))
      return
    }
    if (zero !== 0 || data !== 0)
      this.#report('subclusters', `${shown} is compressed, and has subclusters`, at, guest, {
        replace: Buffer.concat([entryBytes(high, low), entryBytes(0, 0)]),
      })
    if (this.#seen) {
      this.#seen.allocated++
      this.#seen.compressed++
      this.#seen.fragmented++
    }
    let free = true
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++)
      free = this.#counts.add(cluster, Use.DATA, this.#weight) && free
    if (free) return
    const inSector = offset % COMPRESSED_SECTOR
    const copy = {
      from: offset - inSector,
      length: inSector + length,
      // The upper bits say how many sectors there are.
      entry: (to: number) => compressedEntry(high, to + inSector, clusterBits),
    }
    this.#report('overlap', `${shown} lies in a cluster of metadata`, at, guest, placed ? {} : { copy })
  }

  #standard(at: number, guest: number, high: number, low: number, subclusters: Subclusters): void {
    const { extendedL2, version } = this.#shape
    const zeroFlag = !extendedL2 && version >= 3
    const reserved = L2_RESERVED.lo | (zeroFlag ? 0 : ZERO)
    const offset = hostOffset(high, low)
    const sound = () => entryBytes(high & ~L2_RESERVED.hi, low & ~reserved)
    if ((high & L2_RESERVED.hi) !== 0 || (low & reserved) !== 0)
      this.#report('l2-reserved', `has reserved bits in its entry (${hexOf(high, low)})`, at, guest, {
        replace: sound(),
      })
    const { zero, data } = subclusters
    if ((zero & data) !== 0)
      this.#report('subclusters', 'has subclusters that are data and zeros at once', at, guest, {
        replace: Buffer.concat([sound(), entryBytes(zero & ~data, data)]),
      })
    if (this.#shape.dataFile) this.#external(at, guest, high, low, subclusters)
    else if (offset !== 0) this.#host(at, guest, high, low, subclusters)
    else this.#nowhere(at, guest, subclusters)
  }

  #nowhere(at: number, guest: number, subclusters: Subclusters): void {
    if (subclusters.data === 0) return
    this.#report('l2-entry', 'has subclusters of data, and none is allocated', at, guest, this.#dropped(subclusters))
  }

  /** In a data file, data is where it is on the disk. */
  #external(at: number, guest: number, high: number, low: number, subclusters: Subclusters): void {
    const offset = hostOffset(high, low)
    const allocated = offset !== 0 || (high & COPIED) !== 0
    if (!allocated) this.#nowhere(at, guest, subclusters)
    if (allocated && this.#seen) this.#count(offset)
    if (allocated && offset !== guest)
      this.#report('l2-entry', `is said to be at byte ${offset} of the data file`, at, guest, {
        replace: entryBytes((Math.floor(guest / 2 ** 32) | COPIED) >>> 0, (guest % 2 ** 32) + (low & ZERO)),
      })
  }

  #host(at: number, guest: number, high: number, low: number, subclusters: Subclusters): void {
    const { clusterSize, extendedL2, version, placed } = this.#shape
    const offset = hostOffset(high, low)
    const cluster = offset / clusterSize
    const aligned = offset % clusterSize === 0
    if (!aligned || cluster >= this.#endFor(at)) {
      const zeros = !extendedL2 && version >= 3 && (low & ZERO) !== 0
      const kind = zeros ? 'preallocated cluster' : 'data'
      const why = aligned ? `beyond the end of the file` : `which is not at a cluster`
      this.#report('l2-entry', `has its ${kind} at byte ${offset}, ${why}`, at, guest, this.#dropped(subclusters))
      return
    }
    this.#count(offset)
    if (!this.#counts.add(cluster, Use.DATA, this.#weight))
      this.#report('overlap', `lies in cluster ${cluster} of the file, which holds metadata`, at, guest, {
        ...(!placed && {
          copy: { from: offset, length: clusterSize, entry: (to) => entryBytes(highOf(to), lowOf(to) | (low & 0x1ff)) },
        }),
      })
  }

  #count(offset: number): void {
    if (!this.#seen) return
    this.#seen.allocated++
    if (this.#next !== 0 && offset !== this.#next) this.#seen.fragmented++
    this.#next = offset + this.#shape.clusterSize
  }
}

/** The entry of a compressed cluster that lies elsewhere. */
function compressedEntry(high: number, offset: number, clusterBits: number): Uint8Array {
  const sectors = compressedSectors(high, clusterBits)
  return entryBytes(compressedHigh(offset, sectors, clusterBits), lowOf(offset))
}
