/** What guest bytes are: the entries of the L2 tables, put together into extents. */

import { type Extent, Kind, type LayerContext } from '../driver.js'
import { compressedLength, compressedOffset, hostOffset, isCompressed, isCopied, onesFrom, ZERO } from './entries.js'
import type { Guard } from './guard.js'
import { type Qcow2Layout, State, SUBCLUSTERS } from './layout.js'
import type { Tables } from './tables.js'

export class Mapping {
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #tables: Tables
  readonly #guard: Guard
  /** The file that holds data. */
  readonly #file: number
  /** Of the part that was looked at last: what it is, where, and for how many subclusters. */
  #kind = 0
  #host = 0
  #writable = false
  #run = 0

  constructor(layout: Qcow2Layout, context: LayerContext, tables: Tables, guard: Guard) {
    this.#layout = layout
    this.#context = context
    this.#tables = tables
    this.#guard = guard
    this.#file = context.files[layout.dataFile?.index ?? 0]!.index
  }

  /** As `Driver.map`. */
  map(offset: number, length: number, out: Extent): void {
    const { clusterSize, subclusterSize, extendedL2 } = this.#layout
    const tables = this.#tables
    const first = Math.floor(offset / clusterSize)
    const end = offset + length
    tables.select(first)
    if (tables.table === 0) {
      const until = tables.emptyUntil(first, Math.ceil(end / clusterSize))
      out.kind = Kind.PARENT
      out.length = Math.min(until * clusterSize, end) - offset
      return
    }
    const inCluster = offset - first * clusterSize
    const sub = extendedL2 ? Math.floor(inCluster / subclusterSize) : 0
    this.#look(first, sub)
    const kind = this.#kind
    const writable = this.#writable
    // What a compressed cluster says of its place is no offset of a byte of the disk.
    if (kind === Kind.ENCODED) {
      out.kind = kind
      out.file = this.#file
      out.offset = this.#host
      out.aux = this.#run
      out.length = Math.min((first + 1) * clusterSize, end) - offset
      return
    }
    const host = this.#host + inCluster
    const stop = Math.min(tables.pageEnd(first), Math.ceil(end / clusterSize))
    const parts = extendedL2 ? SUBCLUSTERS : 1
    let until = first * clusterSize + (sub + this.#run) * subclusterSize
    for (let next = first + 1; next < stop && until === next * clusterSize; next++) {
      this.#look(next, 0)
      if (this.#kind !== kind || this.#writable !== writable) break
      if (kind === Kind.DATA && this.#host !== host + (next * clusterSize - offset)) break
      until += this.#run * subclusterSize
      if (this.#run < parts) break
    }
    out.kind = kind
    out.explicit = kind === Kind.ZERO
    out.length = Math.min(until, end) - offset
    out.file = this.#file
    out.offset = host
    out.writable = writable
  }

  /** Looks at what begins at a subcluster of a cluster. */
  #look(cluster: number, sub: number): void {
    const tables = this.#tables
    tables.look(cluster)
    const { hi, lo } = tables
    if (isCompressed(hi)) this.#lookCompressed(cluster, hi, lo)
    else if (this.#layout.extendedL2) this.#lookExtended(cluster, sub, hi, lo)
    else this.#lookStandard(cluster, hi, lo)
  }

  #lookStandard(cluster: number, hi: number, lo: number): void {
    this.#run = 1
    this.#writable = false
    if ((lo & ZERO) !== 0 && this.#layout.zeroClusters) this.#kind = Kind.ZERO
    else if (hi === 0 && lo === 0) this.#kind = Kind.PARENT
    else this.#lookData(cluster, hi, lo)
  }

  #lookData(cluster: number, hi: number, lo: number): void {
    const { clusterSize, dataFile } = this.#layout
    const host = hostOffset(hi, lo)
    this.#writable = false
    if (host === 0 && !(dataFile && isCopied(hi))) {
      this.#kind = Kind.PARENT
      return
    }
    if (host % clusterSize !== 0 || !Number.isSafeInteger(host + clusterSize)) throw this.#wrong(cluster, host)
    if (dataFile && host !== cluster * clusterSize) throw this.#wrong(cluster, host)
    this.#kind = Kind.DATA
    this.#host = host
    // A place behind the file's end is never written to: it would be anywhere.
    const inFile = dataFile !== undefined || host < this.#context.state[State.LIMIT]!
    this.#writable = this.#context.writable && this.#tables.copied && isCopied(hi) && inFile
    if (this.#writable && !dataFile && this.#guard.covers(host)) throw this.#wrong(cluster, host)
  }

  #lookExtended(cluster: number, sub: number, hi: number, lo: number): void {
    const { zeros, allocated } = this.#tables
    if ((zeros & allocated) !== 0)
      throw this.#guard.corrupt(
        `cluster ${cluster} of the disk has subclusters that are both allocated and zeros`,
        this.#tables.table,
      )
    this.#writable = false
    const bit = 1 << sub
    if ((allocated & bit) !== 0) {
      this.#run = onesFrom(allocated, sub)
      this.#lookData(cluster, hi, lo)
      if (this.#kind !== Kind.DATA) throw this.#wrong(cluster, 0)
    } else if ((zeros & bit) !== 0) {
      this.#run = onesFrom(zeros, sub)
      this.#kind = Kind.ZERO
    } else {
      this.#run = onesFrom(~(zeros | allocated), sub)
      this.#kind = Kind.PARENT
    }
  }

  #lookCompressed(cluster: number, hi: number, lo: number): void {
    const { clusterBits } = this.#layout.header
    const offset = compressedOffset(hi, lo, clusterBits)
    if (this.#layout.dataFile || !Number.isSafeInteger(offset)) throw this.#wrong(cluster, offset)
    this.#kind = Kind.ENCODED
    this.#host = offset
    this.#writable = false
    this.#run = compressedLength(hi, lo, clusterBits)
  }

  #wrong(cluster: number, host: number): Error {
    const { clusterSize, dataFile } = this.#layout
    const expected = dataFile ? `${cluster * clusterSize}` : `a multiple of ${clusterSize} that no table has`
    return this.#guard.corrupt(
      `the L2 entry of cluster ${cluster} of the disk says byte ${host}: expected ${expected}`,
      this.#tables.table,
    )
  }
}
