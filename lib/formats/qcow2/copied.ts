/** The COPIED flags of the active tables: set exactly where the refcount is 1. */

import type { Storage } from '../../storage/storage.js'
import { COMPRESSED, COPIED, hostOffset } from './entries.js'
import { pieces } from './pieces.js'
import { type L1Table, l2EntrySize, l2Span, l2TableAt, type Shape } from './walk.js'

/** The refcounts of the clusters of a file. */
export interface Refcounts {
  readonly clusters: number
  of(cluster: number): number
}

/** A flag that is not as it should be. */
export interface WrongFlag {
  /** Byte offset of the entry in the file. */
  readonly offset: number
  readonly guest: number
  /** Of the table or cluster that it refers to. */
  readonly host: number
  readonly kind: 'L2 table' | 'cluster' | 'compressed cluster'
  readonly refcount: number
  readonly set: boolean
}

/** @returns true where the flag is to be changed */
export type OnWrongFlag = (flag: WrongFlag) => boolean

/**
 * Looks at every flag, and changes those that `wrong` says. Not durable before a sync.
 * @param tables those that `walk` found to be sound
 */
export function checkCopied(
  storage: Storage,
  shape: Shape,
  tables: readonly L1Table[],
  counts: Refcounts,
  wrong: OnWrongFlag,
): void {
  const flags = new Flags(storage, shape, counts, wrong)
  for (const { active, offset, entries } of tables) if (active) flags.l1(offset, entries)
}

class Flags {
  readonly #storage: Storage
  readonly #shape: Shape
  readonly #counts: Refcounts
  readonly #wrong: OnWrongFlag

  constructor(storage: Storage, shape: Shape, counts: Refcounts, wrong: OnWrongFlag) {
    this.#storage = storage
    this.#shape = shape
    this.#counts = counts
    this.#wrong = wrong
  }

  l1(offset: number, entries: number): void {
    this.#table(offset, entries * 8, 8, (at, high, low) => {
      const host = l2TableAt(this.#shape, this.#counts, high, low)
      if (host === undefined) return false
      const guest = ((at - offset) / 8) * l2Span(this.#shape)
      this.#l2(host, guest)
      const refcount = this.#counts.of(host / this.#shape.clusterSize)
      const set = (high & COPIED) !== 0
      return (refcount === 1) !== set && this.#wrong({ offset: at, guest, host, kind: 'L2 table', set, refcount })
    })
  }

  #l2(table: number, firstGuest: number): void {
    const { clusterSize } = this.#shape
    const size = l2EntrySize(this.#shape)
    this.#table(table, clusterSize, size, (at, high, low) => {
      const set = (high & COPIED) !== 0
      const compressed = (high & COMPRESSED) !== 0
      const host = compressed ? 0 : hostOffset(high, low)
      const refcount = this.#refcountOf(compressed, host)
      if (refcount === undefined || (refcount === 1) === set) return false
      const kind = compressed ? 'compressed cluster' : 'cluster'
      const guest = firstGuest + ((at - table) / size) * clusterSize
      return this.#wrong({ offset: at, guest, host, kind, set, refcount })
    })
  }

  /** What the flag is judged by; undefined: there is nothing to judge. */
  #refcountOf(compressed: boolean, host: number): number | undefined {
    const { clusterSize, dataFile } = this.#shape
    if (compressed) return 0
    // A cluster of a data file has the one user that it can have; only at 0 the flag itself says that it is there.
    if (host === 0) return undefined
    if (dataFile) return 1
    return host % clusterSize === 0 && host / clusterSize < this.#counts.clusters
      ? this.#counts.of(host / clusterSize)
      : undefined
  }

  /** Changes the flag of every entry for which `toggle` says so. */
  #table(
    offset: number,
    length: number,
    size: number,
    toggle: (at: number, high: number, low: number) => boolean,
  ): void {
    for (const { at, bytes } of pieces(this.#storage, offset, length, size)) {
      let changed = false
      for (let i = 0; i < bytes.length; i += size) {
        const high = bytes.readUInt32BE(i)
        const low = bytes.readUInt32BE(i + 4)
        if ((high === 0 && low === 0) || !toggle(at + i, high, low)) continue
        bytes.writeUInt32BE((high ^ COPIED) >>> 0, i)
        changed = true
      }
      if (changed) this.#storage.write(bytes, 0, bytes.length, at)
    }
  }
}
