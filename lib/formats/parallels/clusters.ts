/**
 * The half of a check that counts clusters: the BAT entries one by one, then what nothing refers to. Memory is bounded,
 * however large the file is: clusters are looked at in windows.
 */

import type { Finding } from '../driver.js'
import { clustersEnd, countedEntries, eachEntry } from './entries.js'
import { unusedCluster } from './free-cluster.js'
import { UsedClusters, WINDOW } from './gaps.js'
import { BAT_ENTRY_SIZE, HEADER_SIZE, MAX_ENTRY } from './header.js'
import type { Repairs } from './repairs.js'

const CHUNK = 1 << 20
const LEAST_READ = 4096
const ZEROS = Buffer.alloc(65536)

export class ClusterCheck {
  readonly #r: Repairs
  readonly #opaque: boolean
  /** The clusters of the extension and its bitmaps. */
  #extension: ReadonlySet<number>
  /** Where the next cluster goes that a repair needs. */
  #end: number
  /** The file's end, in whole clusters, before anything was mended: no entry that was there may lie behind it. */
  readonly #limit: number
  #lastUsed = 0
  allocated = 0
  fragmented = 0
  /** Guest data, or other bits, lie in clusters of bitmaps. */
  overlapped = false

  /** @param opaque what looks free may be in use */
  constructor(repairs: Repairs, extension: readonly number[], opaque: boolean) {
    this.#r = repairs
    this.#opaque = opaque
    this.#extension = new Set(extension)
    this.#limit = this.#fileEnd()
    this.#end = this.#limit
    if (this.#extension.size < extension.length) this.#sharedBits()
  }

  /** Two bitmaps, or a bitmap and the extension, in one cluster: nobody can say whose bits these are. */
  #sharedBits(): void {
    this.overlapped = true
    this.#r.report('corruption', 'shared-cluster', 'several bitmaps share a cluster', this.#r.all)
  }

  /** End of the last cluster in use, in bytes. */
  get imageEnd(): number {
    return this.#lastUsed
  }

  /** The file's end, rounded up to a cluster. */
  #fileEnd(): number {
    return clustersEnd(this.#r.geometry, this.#r.storage.size())
  }

  /** Every entry: is it in the file, in its place, and alone there. */
  checkBat(): void {
    for (const from of this.#usedWindows()) this.#checkWindow(this.#newWindow(from), from)
  }

  /**
   * What nothing refers to.
   * @param extension the clusters of the extension as it is now
   */
  checkLeaks(extension: readonly number[]): void {
    this.#extension = new Set(extension)
    this.#lastUsed = this.#r.geometry.dataStart
    const { dataStart, clusterSize } = this.#r.geometry
    const windows = new Set(this.#usedWindows())
    // The first finds out where the last cluster in use is.
    for (let from = 0; from === 0 || dataStart + from * clusterSize < this.#lastUsed; from += WINDOW)
      this.#checkGaps(
        windows.has(from)
          ? this.#markAll(from).gaps()
          : [{ offset: dataStart + from * clusterSize, length: WINDOW * clusterSize }],
      )
    this.#checkTail()
  }

  #use(offset: number): void {
    if (offset < this.#end) this.#lastUsed = Math.max(this.#lastUsed, offset + this.#r.geometry.clusterSize)
  }

  /** The first clusters of the windows that anything is in: the file may be one large hole. There is always one. */
  #usedWindows(): number[] {
    const { dataStart, clusterSize, unit } = this.#r.geometry
    const found = new Set([0])
    const use = (offset: number) => {
      if (offset >= this.#end) return
      const cluster = Math.floor((offset - dataStart) / clusterSize)
      for (const reached of [cluster, cluster + 1]) found.add(Math.max(0, Math.floor(reached / WINDOW)))
    }
    this.#eachEntry((entry) => use(entry * unit))
    for (const cluster of this.#extension) use(cluster)
    return [...found].sort((a, b) => a - b).map((window) => window * WINDOW)
  }

  /** With the extension's clusters marked. */
  #newWindow(from: number): UsedClusters {
    const { dataStart, clusterSize } = this.#r.geometry
    const count = Math.min(WINDOW, (this.#end - dataStart) / clusterSize - from)
    const used = new UsedClusters(dataStart + from * clusterSize, clusterSize, Math.max(0, count))
    for (const cluster of this.#extension) {
      used.mark(cluster, clusterSize)
      this.#use(cluster)
    }
    return used
  }

  #markAll(from: number): UsedClusters {
    const used = this.#newWindow(from)
    const { clusterSize, unit } = this.#r.geometry
    this.#eachEntry((entry) => {
      used.mark(entry * unit, clusterSize)
      this.#use(entry * unit)
    })
    return used
  }

  #checkWindow(used: UsedClusters, from: number): void {
    const { dataStart, batEnd, clusterSize, unit } = this.#r.geometry
    const first = dataStart + from * clusterSize
    const end = first + WINDOW * clusterSize
    let previous = 0
    this.#eachEntry((entry, index) => {
      const offset = entry * unit
      const misplaced = offset < dataStart || (offset - dataStart) % clusterSize !== 0
      if (from === 0) {
        this.allocated++
        if (previous !== 0 && previous + clusterSize !== offset) this.fragmented++
        previous = offset
        this.#use(offset)
        if (offset < batEnd || offset >= this.#limit) this.#outOfRange(index, offset)
        else if (misplaced) this.#misplaced(index, offset)
      }
      if (misplaced && offset >= batEnd) used.mark(offset, clusterSize)
      else if (offset >= first && offset < Math.min(end, this.#limit) && used.mark(offset, clusterSize))
        this.#shared(index, offset)
    })
  }

  /** Calls back for every entry that is not 0. */
  #eachEntry(visit: (entry: number, index: number) => void): void {
    eachEntry(this.#r.storage, countedEntries(this.#r.header, this.#r.geometry), visit)
  }

  #setEntry(index: number, offset: number): void {
    this.#r.mark()
    const bytes = new Uint8Array(BAT_ENTRY_SIZE)
    new DataView(bytes.buffer).setUint32(0, offset / this.#r.geometry.unit, true)
    this.#r.storage.write(bytes, 0, BAT_ENTRY_SIZE, HEADER_SIZE + index * BAT_ENTRY_SIZE)
  }

  #where(index: number): Partial<Finding> {
    return { offset: HEADER_SIZE + index * BAT_ENTRY_SIZE, guest: index * this.#r.geometry.clusterSize }
  }

  #outOfRange(index: number, offset: number): void {
    const { dataStart } = this.#r.geometry
    const expected = `${dataStart} to ${this.#fileEnd()}`
    const message = `BAT entry ${index} says byte ${offset}, expected one from ${expected}`
    if (this.#r.all) this.#setEntry(index, 0)
    this.#r.report('corruption', 'bat-range', message, this.#r.all, { ...this.#where(index), found: offset, expected })
  }

  #misplaced(index: number, offset: number): void {
    const { dataStart, clusterSize } = this.#r.geometry
    const message = `BAT entry ${index} says byte ${offset}, expected a whole number of clusters (${clusterSize} bytes) behind ${dataStart}`
    const mended = this.#r.all && this.#copyAway(index, offset)
    this.#r.report('corruption', 'bat-alignment', message, mended, { ...this.#where(index), found: offset })
  }

  #shared(index: number, offset: number): void {
    const ofExtension = this.#extension.has(offset)
    const other = ofExtension ? 'the format extension' : 'another entry'
    this.overlapped ||= ofExtension
    const mended = this.#r.all && this.#copyAway(index, offset)
    const message = `BAT entry ${index} says byte ${offset}, which ${other} uses too`
    this.#r.report('corruption', 'shared-cluster', message, mended, { ...this.#where(index), found: offset })
  }

  /** Where a cluster goes that an entry is to have for itself; undefined: nowhere. */
  #newPlace(): number | undefined {
    const { storage, header, geometry } = this.#r
    if (!storage.fixedSize) return this.#end / geometry.unit > MAX_ENTRY ? undefined : this.#end
    return this.#opaque ? undefined : unusedCluster(storage, header, geometry, this.#extension)
  }

  /**
   * Gives an entry a cluster of its own, with what it shows now.
   * @returns false where there is none
   */
  #copyAway(index: number, from: number): boolean {
    const { clusterSize } = this.#r.geometry
    const to = this.#newPlace()
    if (to === undefined) return false
    this.#r.mark()
    const { storage } = this.#r
    const buffer = new Uint8Array(Math.min(CHUNK, clusterSize))
    // Not what other entries were given behind the file's end.
    const end = Math.min(from + clusterSize, this.#limit)
    if (storage.fixedSize) storage.punch(to, clusterSize)
    else storage.truncate(to + clusterSize)
    // A cluster can be said to be of any size, and is mostly a hole then.
    for (let at = storage.nextData(from); at < end; at = storage.nextData(at)) {
      const count = storage.read(buffer, 0, Math.min(buffer.length, end - at), at)
      storage.write(buffer, 0, count, to + at - from)
      at += count
    }
    storage.sync()
    this.#end = Math.max(this.#end, to + clusterSize)
    this.#setEntry(index, to)
    return true
  }

  /** Clusters between used ones that hold something although nothing refers to them. Zeros are free space, not leaks. */
  #checkGaps(gaps: Iterable<{ offset: number; length: number }>): void {
    const { clusterSize } = this.#r.geometry
    for (const { offset, length } of gaps) {
      // What is behind the last cluster in use is cut off instead.
      const end = Math.min(offset + length, this.#lastUsed)
      for (let data = this.#nextNonZero(offset, end); data < end; ) {
        const cluster = data - ((data - offset) % clusterSize)
        const message = `the cluster at byte ${cluster} is used by nothing`
        this.#r.report('leak', 'leak', message, this.#r.leaks, { offset: cluster })
        if (this.#r.leaks) {
          this.#r.mark()
          this.#r.storage.punch(cluster, clusterSize)
        }
        data = this.#nextNonZero(cluster + clusterSize, end)
      }
    }
  }

  #nextNonZero(from: number, end: number): number {
    const { storage } = this.#r
    // Small clusters are asked for one by one: what is read is not to be a hundred times what there is.
    const buffer = Buffer.alloc(Math.min(ZEROS.length, Math.max(LEAST_READ, this.#r.geometry.clusterSize)))
    for (let at = from < end ? storage.nextData(from) : end; at < end; ) {
      const count = storage.read(buffer, 0, Math.min(buffer.length, end - at), at)
      if (count === 0) return end
      if (buffer.compare(ZEROS, 0, count, 0, count) !== 0) return at + buffer.findIndex((byte) => byte !== 0)
      at = storage.nextData(at + count)
    }
    return end
  }

  /** What is behind the last cluster in use. A block device cannot be cut: there it is room for clusters to come. */
  #checkTail(): void {
    const { clusterSize } = this.#r.geometry
    const size = this.#r.storage.size()
    const tail = this.#lastUsed
    if (size <= tail || this.#r.storage.fixedSize) return
    const count = Math.ceil((size - tail) / clusterSize)
    const message = `${count} clusters from byte ${tail} on, at the file's end, are used by nothing`
    if (this.#r.leaks) {
      this.#r.mark()
      this.#r.storage.truncate(tail)
    }
    this.#r.report('leak', 'leak', message, this.#r.leaks, { offset: tail, count, found: size, expected: tail })
  }
}
