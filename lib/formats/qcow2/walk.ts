/**
 * Follows every reference to a cluster: from L1 tables to L2 tables to data, and what else is known to be in use. An L2
 * table that many snapshots share is read once, and counts as often as it is shared; so the time goes with the size of
 * the metadata, not with the number of snapshots.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { MiB } from '../../util/sizes.js'
import type { CheckTotals, Severity } from '../driver.js'
import { Counts, Use } from './counts.js'
import {
  COMPRESSED,
  COPIED,
  compressedLength,
  compressedOffset,
  hostOffset,
  L1_RESERVED,
  L2_RESERVED,
  ZERO,
} from './entries.js'
import { eachEntry, entryBytes, hexOf, pieces } from './pieces.js'

/** What of an image the walk has to know. */
export interface Shape {
  readonly version: number
  readonly clusterBits: number
  readonly clusterSize: number
  /** Entries of 16 bytes with subclusters. */
  readonly extendedL2: boolean
  /** Guest data lies in a file of its own. */
  readonly dataFile: boolean
  /** Of the disk, in bytes. */
  readonly size: number
}

export interface L1Table {
  /** As messages call it. */
  readonly name: string
  readonly offset: number
  readonly entries: number
  readonly active: boolean
}

/** Bytes of the file that belong to one structure and to nothing else. */
export interface Range {
  readonly name: string
  readonly offset: number
  readonly length: number
}

/** Everything that refers to clusters, but the refcounts themselves. */
export interface Roots {
  readonly tables: readonly L1Table[]
  readonly ranges: readonly Range[]
}

/** Something wrong in an entry. */
export interface Fault {
  readonly severity: Severity
  readonly what: string
  readonly message: string
  /** Of the entry, or of the structure, in the file. */
  readonly offset: number
  readonly guest?: number
  /** What the entry is to be from now on, where that mends it. */
  readonly replace?: Uint8Array
  /** Where it is mended by a cluster of its own: the one that it shares, and the entry's halves. */
  readonly copy?: { readonly cluster: number; readonly use: Use; readonly weight: number; readonly low: number }
  /** What is lost with it cannot be told: what looks unused may not be. */
  readonly loses?: boolean
}

export type OnFault = (fault: Fault) => void

/** Counts for `CheckTotals`. */
type Seen = { -readonly [K in 'allocated' | 'fragmented' | 'compressed']: CheckTotals[K] }

export interface Walked {
  readonly counts: Counts
  readonly seen: Seen
}

/** @throws UNSUPPORTED where counting takes too much memory, CORRUPT where L1 tables are one over another a hundred times */
export function walk(storage: Storage, shape: Shape, roots: Roots, fault: OnFault = () => {}): Walked {
  const counts = new Counts(Math.ceil(storage.size() / shape.clusterSize), storage.path)
  const walker = new Walker(storage, shape, counts, fault)
  for (const range of roots.ranges) walker.mark(range)
  const tables = walker.sound(roots.tables)
  for (const table of tables) walker.countL2(table)
  for (const table of tables) walker.countData(table)
  return { counts, seen: walker.seen }
}

export function l2EntrySize({ extendedL2 }: Shape): number {
  return extendedL2 ? 16 : 8
}

/** Guest bytes that one L2 table maps. */
export function l2Span(shape: Shape): number {
  return (shape.clusterSize / l2EntrySize(shape)) * shape.clusterSize
}

/** The offset of an L2 table in an L1 entry; undefined where there is none or it cannot be one. */
export function l2TableAt(
  shape: Shape,
  counts: { readonly clusters: number },
  high: number,
  low: number,
): number | undefined {
  const offset = hostOffset(high, low)
  if (offset === 0 || offset % shape.clusterSize !== 0 || offset / shape.clusterSize >= counts.clusters)
    return undefined
  return offset
}

class Walker {
  readonly seen: Seen = { allocated: 0, fragmented: 0, compressed: 0 }
  readonly #storage: Storage
  readonly #shape: Shape
  readonly #counts: Counts
  readonly #fault: OnFault

  constructor(storage: Storage, shape: Shape, counts: Counts, fault: OnFault) {
    this.#storage = storage
    this.#shape = shape
    this.#counts = counts
    this.#fault = fault
  }

  /** Counts the clusters of a structure. */
  mark({ name, offset, length }: Range): void {
    const { clusterSize } = this.#shape
    const end = Math.min(this.#counts.clusters, Math.ceil((offset + length) / clusterSize))
    let shared = 0
    for (let cluster = Math.floor(offset / clusterSize); cluster < end; cluster++)
      if (!this.#counts.add(cluster, Use.METADATA)) shared++
    if (shared > 0)
      this.#report('overlap', `${name} shares ${shared} clusters with other metadata`, offset, { loses: true })
  }

  #report(what: string, message: string, offset: number, more: Partial<Fault> = {}): void {
    this.#fault({ severity: 'corruption', what, message, offset, ...more })
  }

  /** Those L1 tables that can be read; their clusters are counted. */
  sound(tables: readonly L1Table[]): L1Table[] {
    const { clusterSize } = this.#shape
    const size = this.#counts.clusters * clusterSize
    let bytes = 0
    return tables.filter((table) => {
      const { name, offset, entries } = table
      if (entries === 0) return false
      const length = entries * 8
      if (offset % clusterSize !== 0 || offset === 0 || offset + length > size) {
        const text = `${name} of ${entries} entries is said to be at byte ${offset}: expected a cluster of the file`
        this.#report('l1-range', text, offset, { loses: true })
        return false
      }
      bytes += length
      if (bytes > size + 64 * MiB)
        throw new VdiskError('CORRUPT', 'its L1 tables lie one over another, and are more than the file', {
          path: this.#storage.path,
        })
      this.mark({ name, offset, length })
      return true
    })
  }

  countL2({ name, offset, entries }: L1Table): void {
    const { clusterSize } = this.#shape
    eachEntry(this.#storage, offset, entries, (index, high, low) => {
      const at = offset + index * 8
      const guest = index * l2Span(this.#shape)
      const place = hostOffset(high, low)
      const entry = `entry ${index} of ${name} (${hexOf(high, low)})`
      if (place === 0 && (high & ~COPIED) === 0 && low === 0) return
      if (place % clusterSize !== 0 || place / clusterSize >= this.#counts.clusters || place === 0) {
        const why = place % clusterSize !== 0 ? 'is not at a cluster' : 'is not in the file'
        this.#report('l1-entry', `the L2 table of ${entry} ${why}`, at, {
          guest,
          replace: entryBytes(0, 0),
          loses: true,
        })
        return
      }
      const cluster = place / clusterSize
      if ((high & L1_RESERVED.hi) !== 0 || (low & L1_RESERVED.lo) !== 0)
        this.#report('l1-reserved', `reserved bits are set in ${entry}`, at, {
          guest,
          replace: entryBytes(high & ~L1_RESERVED.hi, low & ~L1_RESERVED.lo),
        })
      if (!this.#counts.add(cluster, Use.L2))
        this.#report('overlap', `the L2 table of ${entry} lies in a cluster of other metadata`, at, {
          guest,
          copy: { cluster, use: Use.L2, weight: 1, low: low & 0x1ff },
        })
    })
  }

  countData({ offset, entries, active }: L1Table): void {
    eachEntry(this.#storage, offset, entries, (index, high, low) => {
      const place = l2TableAt(this.#shape, this.#counts, high, low)
      if (place === undefined || !this.#counts.once(place / this.#shape.clusterSize)) return
      this.#countTable(place, index * l2Span(this.#shape), active)
    })
  }

  #countTable(table: number, firstGuest: number, active: boolean): void {
    const { clusterSize } = this.#shape
    const size = l2EntrySize(this.#shape)
    const weight = this.#counts.of(table / clusterSize)
    const entries = new EntryWalk(this.#shape, this.#counts, this.#fault, active ? this.seen : undefined, weight)
    for (const { at, bytes } of pieces(this.#storage, table, clusterSize, size))
      for (let i = 0; i < bytes.length; i += size) {
        const high = bytes.readUInt32BE(i)
        const low = bytes.readUInt32BE(i + 4)
        const subclusters = size > 8 ? { zero: bytes.readUInt32BE(i + 8), data: bytes.readUInt32BE(i + 12) } : NONE
        if (high === 0 && low === 0 && subclusters.data === 0) continue
        const guest = firstGuest + ((at + i - table) / size) * clusterSize
        entries.visit(at + i, guest, high, low, subclusters)
      }
  }
}

interface Subclusters {
  readonly zero: number
  readonly data: number
}

const NONE: Subclusters = { zero: 0, data: 0 }
const ALL_ZERO = 0xffffffff

/** The entries of one L2 table. */
class EntryWalk {
  readonly #shape: Shape
  readonly #counts: Counts
  readonly #fault: OnFault
  readonly #seen: Seen | undefined
  readonly #weight: number
  #next = 0

  constructor(shape: Shape, counts: Counts, fault: OnFault, seen: Seen | undefined, weight: number) {
    this.#shape = shape
    this.#counts = counts
    this.#fault = fault
    this.#seen = seen
    this.#weight = weight
  }

  visit(at: number, guest: number, high: number, low: number, subclusters: Subclusters): void {
    if ((high & COMPRESSED) !== 0) this.#compressed(at, guest, high, low)
    else this.#standard(at, guest, high, low, subclusters)
  }

  #report(what: string, text: string, at: number, guest: number, more: Partial<Fault>): void {
    const message = `the cluster of the disk's byte ${guest} ${text}`
    this.#fault({ severity: 'corruption', what, message, offset: at, guest, ...more })
  }

  /** What an entry becomes whose data are nowhere: it reads as zeros. */
  get #dropped(): Uint8Array {
    if (this.#shape.extendedL2) return Buffer.concat([entryBytes(0, 0), entryBytes(ALL_ZERO, 0)])
    return entryBytes(0, this.#shape.version < 3 ? 0 : ZERO)
  }

  #compressed(at: number, guest: number, high: number, low: number): void {
    const { clusterBits, clusterSize, dataFile } = this.#shape
    const offset = compressedOffset(high, low, clusterBits)
    const length = compressedLength(high, low, clusterBits)
    const last = Math.floor((offset + length - 1) / clusterSize)
    const shown = `(${length} compressed bytes at ${offset})`
    if (dataFile || last >= this.#counts.clusters || offset < clusterSize) {
      const why = dataFile ? 'is compressed, which images with a data file cannot have' : 'is not in the file'
      this.#report('l2-entry', `${shown} ${why}`, at, guest, { replace: this.#dropped })
      return
    }
    if (this.#seen) {
      this.#seen.allocated++
      this.#seen.compressed++
      this.#seen.fragmented++
    }
    let free = true
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++)
      free = this.#counts.add(cluster, Use.DATA, this.#weight) && free
    if (!free) this.#report('overlap', `${shown} lies in a cluster of metadata`, at, guest, {})
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
    if (this.#shape.dataFile) this.#external(at, guest, high, low)
    else if (offset !== 0) this.#host(at, guest, high, low, zeroFlag && (low & ZERO) !== 0)
    else if (data !== 0)
      this.#report('l2-entry', 'has subclusters of data, and none is allocated', at, guest, { replace: this.#dropped })
  }

  /** In a data file, data is where it is on the disk. */
  #external(at: number, guest: number, high: number, low: number): void {
    const offset = hostOffset(high, low)
    const allocated = offset !== 0 || (high & COPIED) !== 0
    if (allocated && this.#seen) this.#count(offset)
    if (allocated && offset !== guest)
      this.#report('l2-entry', `is said to be at byte ${offset} of the data file`, at, guest, {
        replace: entryBytes((Math.floor(guest / 2 ** 32) | COPIED) >>> 0, (guest % 2 ** 32) + (low & ZERO)),
      })
  }

  #host(at: number, guest: number, high: number, low: number, zeros: boolean): void {
    const { clusterSize } = this.#shape
    const offset = hostOffset(high, low)
    const cluster = offset / clusterSize
    const aligned = offset % clusterSize === 0
    if (!aligned || cluster >= this.#counts.clusters) {
      const kind = zeros ? 'preallocated cluster' : 'data'
      const why = aligned ? `beyond the end of the file` : `which is not at a cluster`
      this.#report('l2-entry', `has its ${kind} at byte ${offset}, ${why}`, at, guest, { replace: this.#dropped })
      return
    }
    this.#count(offset)
    if (!this.#counts.add(cluster, Use.DATA, this.#weight))
      this.#report('overlap', `lies in cluster ${cluster} of the file, which holds metadata`, at, guest, {
        copy: { cluster, use: Use.DATA, weight: this.#weight, low: low & 0x1ff },
      })
  }

  #count(offset: number): void {
    if (!this.#seen) return
    this.#seen.allocated++
    if (this.#next !== 0 && offset !== this.#next) this.#seen.fragmented++
    this.#next = offset + this.#shape.clusterSize
  }
}
