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
import { COPIED, highOf, hostOffset, L1_RESERVED, lowOf } from './entries.js'
import { eachEntry, entryBytes, hexOf, pieces } from './pieces.js'
import { EntryWalk, NO_SUBCLUSTERS } from './walk-entries.js'

/** What of an image the walk has to know. */
export interface Shape {
  readonly version: number
  readonly clusterBits: number
  readonly clusterSize: number
  /** Entries of 16 bytes with subclusters. */
  readonly extendedL2: boolean
  /** Guest data lies in a file of its own. */
  readonly dataFile: boolean
  /** Where it is not allocated it reads as a parent, and there is no entry for zeros. */
  readonly shows: boolean
  /** Data is encrypted by where in the file it lies, and cannot be moved. */
  readonly placed: boolean
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

/** What bitmaps have clusters for. Where that lies over anything else, they are given up. */
export interface BitmapClusters {
  readonly ranges: readonly Range[]
  /** In their tables: mended there, and so only where those are nothing else. */
  readonly faults: readonly Fault[]
  giveUp(what: string, message: string): Fault
}

/** Everything that refers to clusters, but the refcounts themselves. */
export interface Roots {
  readonly tables: readonly L1Table[]
  readonly ranges: readonly Range[]
  readonly bitmaps: BitmapClusters
}

/** Bytes of the file that an entry refers to. */
export interface Copy {
  /** Byte offset; undefined: they are nowhere, and zeros. */
  readonly from: number | undefined
  readonly length: number
  /** What the entry becomes with a copy at this byte, at the beginning of a cluster. */
  entry(to: number): Uint8Array
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
  /** It shares what is its own: mended by a copy. */
  readonly copy?: Copy
  /** What is lost with it cannot be told: what looks unused may not be. */
  readonly loses?: boolean
  /** The disk itself cannot be made out, or lies over what says how to read it: mending anything may destroy data. */
  readonly holds?: boolean
}

export type OnFault = (fault: Fault) => void

/** Counts for `CheckTotals`. */
export type Seen = { -readonly [K in 'allocated' | 'fragmented' | 'compressed']: CheckTotals[K] }

export interface Walked {
  readonly counts: Counts
  readonly seen: Seen
  /** Those that can be read, and are nothing else. */
  readonly tables: readonly L1Table[]
}

/**
 * What the file was before anything was mended: what an entry says of a place behind its end is wrong, and stays so when
 * something else is put there.
 */
export interface Origin {
  readonly clusters: number
  /** Entries, by their byte offsets, that were given new places. */
  readonly moved: ReadonlySet<number>
}

/** @throws UNSUPPORTED where counting takes too much memory, CORRUPT where L1 tables are one over another a hundred times */
export function walk(storage: Storage, shape: Shape, roots: Roots, fault: OnFault = () => {}, origin?: Origin): Walked {
  const counts = new Counts(Math.ceil(storage.size() / shape.clusterSize), storage.path)
  const endFor = (entry: number) =>
    origin === undefined || origin.moved.has(entry) ? counts.clusters : origin.clusters
  const walker = new Walker(storage, shape, counts, fault, endFor)
  const tables = walker.roots(roots)
  for (const table of tables) walker.countL2(table)
  const own = walker.bitmaps(roots.bitmaps)
  for (const table of tables) walker.countData(table)
  // Data that lay in their clusters lies elsewhere by now.
  if (own) for (const wrong of roots.bitmaps.faults) fault(wrong)
  return { counts, seen: walker.seen, tables }
}

/** What `walk` will say of L1 tables and of what is in one piece, without a look at what they refer to. */
export function examine(storage: Storage, shape: Shape, roots: Roots, fault: OnFault): void {
  const counts = new Counts(Math.ceil(storage.size() / shape.clusterSize), storage.path)
  new Walker(storage, shape, counts, fault, () => counts.clusters).roots(roots)
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

/** The number of the cluster before which what an entry refers to has to lie, by the entry's byte offset. */
export type EndFor = (entry: number) => number

class Walker {
  readonly seen: Seen = { allocated: 0, fragmented: 0, compressed: 0 }
  readonly #storage: Storage
  readonly #shape: Shape
  readonly #counts: Counts
  readonly #fault: OnFault
  readonly #endFor: EndFor

  constructor(storage: Storage, shape: Shape, counts: Counts, fault: OnFault, endFor: EndFor) {
    this.#endFor = endFor
    this.#storage = storage
    this.#shape = shape
    this.#counts = counts
    this.#fault = fault
  }

  /** @returns the L1 tables that can be read; their clusters are counted, and those of the ranges. */
  roots({ ranges, tables }: Roots): L1Table[] {
    for (const range of ranges) this.#markOnce(range, { loses: true, holds: true })
    return this.#sound(tables)
  }

  /** @returns false where they lie over something else */
  bitmaps({ ranges, giveUp }: BitmapClusters): boolean {
    for (const range of ranges) {
      const shared = this.#mark(range)
      if (shared === 0) continue
      this.#fault(giveUp('overlap', `${range.name} shares ${shared} clusters with other metadata`))
      return false
    }
    return true
  }

  /** Counts the clusters of a structure. @returns how many of them something else has already */
  #mark({ offset, length }: Range): number {
    const { clusterSize } = this.#shape
    const end = Math.min(this.#counts.clusters, Math.ceil((offset + length) / clusterSize))
    let shared = 0
    for (let cluster = Math.floor(offset / clusterSize); cluster < end; cluster++)
      if (!this.#counts.add(cluster, Use.METADATA)) shared++
    return shared
  }

  #markOnce(range: Range, more: Partial<Fault>): boolean {
    const shared = this.#mark(range)
    if (shared > 0)
      this.#report('overlap', `${range.name} shares ${shared} clusters with other metadata`, range.offset, more)
    return shared === 0
  }

  #report(what: string, message: string, offset: number, more: Partial<Fault> = {}): void {
    this.#fault({ severity: 'corruption', what, message, offset, ...more })
  }

  #sound(tables: readonly L1Table[]): L1Table[] {
    const { clusterSize } = this.#shape
    const size = this.#counts.clusters * clusterSize
    let bytes = 0
    return tables.filter(({ name, offset, entries, active }) => {
      if (entries === 0) return false
      const length = entries * 8
      const more = { loses: true, holds: active }
      if (offset % clusterSize !== 0 || offset === 0 || offset + length > size) {
        const text = `${name} of ${entries} entries is said to be at byte ${offset}: expected a cluster of the file`
        this.#report('l1-range', text, offset, more)
        return false
      }
      bytes += length
      if (bytes > size + 64 * MiB)
        throw new VdiskError('CORRUPT', 'its L1 tables lie one over another, and are more than the file', {
          path: this.#storage.path,
        })
      // What is something else as well is not written to, nor believed.
      return this.#markOnce({ name, offset, length }, more)
    })
  }

  countL2({ name, offset, entries }: L1Table): void {
    const { clusterSize } = this.#shape
    eachEntry(this.#storage, offset, entries, (index, high, low) => {
      const at = offset + index * 8
      const guest = index * l2Span(this.#shape)
      const place = hostOffset(high, low)
      const entry = `entry ${index} of ${name} (${hexOf(high, low)})`
      if (place === 0 && (high & ~COPIED) === 0 && low === 0) {
        // It reads as nothing here; QEMU takes the header for its table.
        this.#report('l1-entry', `${entry} has COPIED set, and refers to nothing`, at, {
          guest,
          replace: entryBytes(0, 0),
        })
        return
      }
      if (place % clusterSize !== 0 || place / clusterSize >= this.#endFor(at) || place === 0) {
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
          copy: { from: place, length: clusterSize, entry: (to) => entryBytes(highOf(to), lowOf(to)) },
        })
    })
  }

  countData({ offset, entries, active }: L1Table): void {
    eachEntry(this.#storage, offset, entries, (index, high, low) => {
      const place = l2TableAt(this.#shape, { clusters: this.#endFor(offset + index * 8) }, high, low)
      if (place === undefined || !this.#counts.once(place / this.#shape.clusterSize)) return
      this.#countTable(place, index * l2Span(this.#shape), active)
    })
  }

  #countTable(table: number, firstGuest: number, active: boolean): void {
    const { clusterSize } = this.#shape
    const size = l2EntrySize(this.#shape)
    const weight = this.#counts.of(table / clusterSize)
    const entries = new EntryWalk(
      this.#shape,
      this.#counts,
      this.#fault,
      this.#endFor,
      active ? this.seen : undefined,
      weight,
    )
    for (const { at, bytes } of pieces(this.#storage, table, clusterSize, size))
      for (let i = 0; i < bytes.length; i += size) {
        const high = bytes.readUInt32BE(i)
        const low = bytes.readUInt32BE(i + 4)
        const subclusters =
          size > 8 ? { zero: bytes.readUInt32BE(i + 8), data: bytes.readUInt32BE(i + 12) } : NO_SUBCLUSTERS
        if (high === 0 && low === 0 && subclusters.data === 0) continue
        const guest = firstGuest + ((at + i - table) / size) * clusterSize
        entries.visit(at + i, guest, high, low, subclusters)
      }
  }
}
