/**
 * Checks an expanding image, and mends it: header, in-use mark, extension, BAT, leaked clusters. Works on the file itself,
 * without the cache, so that it can be used on images that nothing else opens. Memory is bounded, however large the file
 * is: clusters are counted in windows.
 */

import type { Storage } from '../../storage/storage.js'
import type { CheckTotals, Finding, Repair } from '../driver.js'
import {
  encodeExtension,
  type Feature,
  forbidding,
  isOpaque,
  keptFeatures,
  L1_SET,
  loadExtension,
  withL1,
} from './extension.js'
import { UsedClusters, WINDOW } from './gaps.js'
import {
  BAT_ENTRY_SIZE,
  bitmapsTrusted,
  FLAG_EMPTY,
  type Geometry,
  geometryOf,
  HEADER,
  HEADER_SIZE,
  type Header,
  headerProblems,
  InUse,
  MAX_ENTRY,
  readHeader,
  SECTOR,
} from './header.js'

const CHUNK = 1 << 20
const ZEROS = Buffer.alloc(65536)

export interface CheckOptions {
  readonly repair: Repair
  found(finding: Finding): void
}

/** @throws FORMAT, UNSUPPORTED, CORRUPT where the header cannot be read; IO */
export function checkImage(storage: Storage, options: CheckOptions): CheckTotals {
  return new Check(storage, options).run()
}

class Check {
  readonly #storage: Storage
  readonly #options: CheckOptions
  readonly #header: Header
  readonly #geometry: Geometry
  #features: readonly Feature[] = []
  /** The extension and its bitmaps, as they are in the file now. */
  #clusters: number[] = []
  /** Where the next cluster goes that a repair needs. */
  #end: number
  #all: boolean
  #leaks: boolean
  #marked = false
  #bitmapsWrong = false
  /** Bits and guest data may be mixed up. */
  #overlapped = false
  #allocated = 0
  #fragmented = 0
  #lastUsed: number

  constructor(storage: Storage, options: CheckOptions) {
    this.#storage = storage
    this.#options = options
    this.#header = readHeader(storage)
    this.#geometry = geometryOf(this.#header)
    this.#all = options.repair === 'all'
    this.#leaks = options.repair !== 'none'
    this.#end = this.#fileEnd()
    this.#lastUsed = this.#geometry.dataStart
  }

  run(): CheckTotals {
    const wasOpen = this.#header.inUse === InUse.OPEN
    const before = { ...this.#header }
    this.#checkExtension(before)
    this.#checkHeader()
    if (wasOpen)
      this.#report('corruption', 'in-use', 'it is in use, or was left in use', this.#all, {
        offset: HEADER.offsetOf('inUse'),
        found: `0x${InUse.OPEN.toString(16)}`,
        expected: `0x${InUse.CLOSED.toString(16)}`,
      })
    this.#checkClusters(before)
    // A repair of leaks alone leaves the mark as it was: what it says of bitmaps still holds.
    if (this.#marked || (wasOpen && this.#all)) this.#finish(this.#all ? InUse.CLOSED : before.inUse)
    return {
      imageEnd: this.#lastUsed,
      clusters: this.#geometry.entries,
      allocated: this.#allocated,
      fragmented: this.#fragmented,
      compressed: 0,
    }
  }

  #report(
    severity: Finding['severity'],
    what: string,
    message: string,
    repaired: boolean,
    more: Partial<Finding> = {},
  ): void {
    this.#options.found({ severity, what, message, repairable: true, repaired, ...more })
  }

  /** The file's end, rounded up to a cluster. */
  #fileEnd(): number {
    const { dataStart, clusterSize } = this.#geometry
    return dataStart + Math.max(0, Math.ceil((this.#storage.size() - dataStart) / clusterSize)) * clusterSize
  }

  /** Before the first change: whoever finds the image half mended shall know. */
  #mark(): void {
    if (this.#marked) return
    this.#marked = true
    this.#header.inUse = InUse.OPEN
    this.#writeHeader()
  }

  #finish(inUse: number): void {
    this.#storage.sync()
    this.#header.inUse = inUse
    this.#writeHeader()
  }

  #writeHeader(): void {
    const bytes = new Uint8Array(HEADER_SIZE)
    HEADER.write(this.#header, bytes)
    this.#storage.write(bytes, 0, HEADER_SIZE, 0)
    this.#storage.sync()
  }

  #checkHeader(): void {
    const problems = headerProblems(this.#header)
    for (const { what, message, offset, found, expected, repair } of problems) {
      const mended = this.#all && repair !== undefined
      this.#report('corruption', what, message, mended, { offset, found, expected, repairable: repair !== undefined })
      if (!mended) continue
      this.#mark()
      repair(this.#header)
      this.#writeHeader()
    }
  }

  #checkExtension(before: Header): void {
    if (before.extOff === 0) return
    const offset = before.extOff * SECTOR
    const loaded = loadExtension(this.#storage, this.#geometry, offset)
    if ('error' in loaded) {
      this.#report('corruption', 'extension', `the format extension cannot be used: ${loaded.error}`, this.#all, {
        ...(Number.isSafeInteger(offset) ? { offset } : {}),
      })
      if (this.#all) this.#dropExtension()
      return
    }
    this.#features = loaded.extension.features
    this.#checkFeatures(offset)
    this.#clusters = [offset, ...this.#bitmapClusters()]
    const stale = !bitmapsTrusted(before) && this.#features.some(({ bitmap }) => bitmap)
    const allSet = this.#features.every(({ bitmap }) => !bitmap || bitmap.l1.every((entry) => entry === L1_SET))
    if (stale && !allSet) {
      this.#bitmapsWrong = true
      this.#report('warning', 'bitmaps', 'the bitmaps were not kept up to date: all counts as changed', this.#all)
    }
  }

  #dropExtension(): void {
    this.#mark()
    this.#header.extOff = 0
    this.#writeHeader()
  }

  #checkFeatures(offset: number): void {
    const forbids = forbidding(this.#features)
    if (forbids) {
      // Who cannot load it must not change anything.
      this.#all = false
      this.#leaks = false
    }
    const kept = keptFeatures(this.#features)
    for (const feature of this.#features) {
      const { magic, error } = feature
      if (error === undefined) continue
      const forbidden = feature === forbids ? '; it forbids every change' : ''
      const mended = this.#all && !kept.includes(feature)
      this.#report('warning', 'feature', `feature ${magic}: ${error}${forbidden}`, mended, {
        offset,
        repairable: !kept.includes(feature),
      })
      this.#bitmapsWrong ||= mended
    }
  }

  #bitmapClusters(): number[] {
    return this.#features.flatMap(({ bitmap }) => bitmap?.l1.filter((entry) => entry > L1_SET) ?? [])
  }

  /**
   * Writes the extension without what cannot be kept; bitmaps that nobody kept are all set from then on.
   * @returns true where that was done
   */
  #mendBitmaps(before: Header): boolean {
    if (!this.#bitmapsWrong || before.extOff === 0) return false
    this.#mark()
    const { clusterSize } = this.#geometry
    const kept = keptFeatures(this.#features)
    const trusted = bitmapsTrusted(before) && !this.#overlapped
    this.#features = trusted ? kept : withL1(kept, this.#geometry, () => L1_SET)
    const bytes = kept.length > 0 ? encodeExtension(this.#features, clusterSize) : undefined
    if (bytes) this.#storage.write(bytes, 0, bytes.length, before.extOff * SECTOR)
    else this.#dropExtension()
    this.#clusters = bytes ? [before.extOff * SECTOR, ...this.#bitmapClusters()] : []
    return true
  }

  /** The BAT, the bitmaps that it may overlap, and then what is left over. */
  #checkClusters(before: Header): void {
    let mended = false
    let used: UsedClusters | undefined
    for (const from of this.#windows()) {
      used = this.#newWindow(from)
      mended = this.#checkBat(used, from) || mended
    }
    if (this.#all) mended = this.#mendBitmaps(before) || mended
    if (isOpaque(this.#features)) return
    const again = mended || this.#end - this.#geometry.dataStart > WINDOW * this.#geometry.clusterSize
    for (const from of this.#windows()) this.#checkLeaks(again || !used ? this.#markAll(from) : used)
    this.#checkTail()
  }

  /** The numbers of the first cluster of each window; there is always one. */
  *#windows(): Generator<number> {
    const { dataStart, clusterSize } = this.#geometry
    for (let from = 0; from === 0 || dataStart + from * clusterSize < this.#end; from += WINDOW) yield from
  }

  #newWindow(from: number): UsedClusters {
    const { dataStart, clusterSize } = this.#geometry
    const count = Math.min(WINDOW, (this.#end - dataStart) / clusterSize - from)
    const used = new UsedClusters(dataStart + from * clusterSize, clusterSize, Math.max(0, count))
    for (const cluster of this.#clusters) if (used.mark(cluster, clusterSize) && from === 0) this.#sharedBitmap(cluster)
    return used
  }

  /** Two bitmaps, or a bitmap and the extension, in one cluster: nobody can say whose bits these are. */
  #sharedBitmap(cluster: number): void {
    if (this.#overlapped) return
    this.#report('corruption', 'shared-cluster', `several bitmaps share the cluster at byte ${cluster}`, this.#all, {
      offset: cluster,
    })
    this.#overlapped = true
    this.#bitmapsWrong = true
  }

  /** @returns true where entries were changed. */
  #checkBat(used: UsedClusters, from: number): boolean {
    const { dataStart, clusterSize, unit } = this.#geometry
    const first = dataStart + from * clusterSize
    const end = first + WINDOW * clusterSize
    const fileEnd = this.#fileEnd()
    let previous = 0
    let mended = false
    this.#eachEntry((entry, index) => {
      const offset = entry * unit
      if (from === 0) {
        this.#allocated++
        if (previous !== 0 && previous + clusterSize !== offset) this.#fragmented++
        previous = offset
      }
      if (offset < this.#geometry.batEnd || offset >= this.#end) {
        if (from === 0) mended = this.#outOfRange(index, offset, fileEnd) || mended
      } else if (offset < dataStart || (offset - dataStart) % clusterSize !== 0) {
        if (from === 0) mended = this.#misplaced(index, offset) || mended
        used.mark(offset, clusterSize)
      } else if (offset >= first && offset < end && used.mark(offset, clusterSize))
        mended = this.#shared(index, offset) || mended
      if (offset < this.#end) this.#lastUsed = Math.max(this.#lastUsed, offset + clusterSize)
    })
    return mended
  }

  #markAll(from: number): UsedClusters {
    const used = this.#newWindow(from)
    const { clusterSize, unit } = this.#geometry
    this.#eachEntry((entry) => {
      used.mark(entry * unit, clusterSize)
      this.#lastUsed = Math.max(this.#lastUsed, entry * unit + clusterSize)
    })
    return used
  }

  /** Calls back for every entry that is not 0. */
  #eachEntry(visit: (entry: number, index: number) => void): void {
    const { entries } = this.#geometry
    if ((this.#header.flags & FLAG_EMPTY) !== 0) return
    const perChunk = CHUNK / BAT_ENTRY_SIZE
    const chunk = new Uint8Array(CHUNK)
    const view = new DataView(chunk.buffer)
    const batStart = HEADER_SIZE
    for (let first = 0; first < entries; first += perChunk) {
      const count = Math.min(perChunk, entries - first)
      const at = batStart + first * BAT_ENTRY_SIZE
      // A table of a huge empty disk is mostly a hole.
      if (this.#storage.nextData(at) >= at + count * BAT_ENTRY_SIZE) continue
      this.#storage.read(chunk, 0, count * BAT_ENTRY_SIZE, at)
      for (let i = 0; i < count; i++) {
        const entry = view.getUint32(i * BAT_ENTRY_SIZE, true)
        if (entry !== 0) visit(entry, first + i)
      }
    }
  }

  #setEntry(index: number, offset: number): void {
    this.#mark()
    const bytes = new Uint8Array(BAT_ENTRY_SIZE)
    new DataView(bytes.buffer).setUint32(0, offset / this.#geometry.unit, true)
    this.#storage.write(bytes, 0, BAT_ENTRY_SIZE, HEADER_SIZE + index * BAT_ENTRY_SIZE)
  }

  #where(index: number): Partial<Finding> {
    return { offset: HEADER_SIZE + index * BAT_ENTRY_SIZE, guest: index * this.#geometry.clusterSize }
  }

  #outOfRange(index: number, offset: number, fileEnd: number): boolean {
    const { dataStart } = this.#geometry
    const message = `BAT entry ${index} says byte ${offset}, expected one from ${dataStart} to ${fileEnd}`
    this.#report('corruption', 'bat-range', message, this.#all, {
      ...this.#where(index),
      found: offset,
      expected: `${dataStart} to ${fileEnd}`,
    })
    if (this.#all) this.#setEntry(index, 0)
    return this.#all
  }

  #misplaced(index: number, offset: number): boolean {
    const { dataStart, clusterSize } = this.#geometry
    const message = `BAT entry ${index} says byte ${offset}, which is not a whole number of clusters (${clusterSize} bytes) behind ${dataStart}`
    const mended = this.#all && this.#copyAway(index, offset)
    this.#report('corruption', 'bat-alignment', message, mended, { ...this.#where(index), found: offset })
    return mended
  }

  #shared(index: number, offset: number): boolean {
    const ofBitmap = this.#clusters.includes(offset)
    const message = `BAT entry ${index} says byte ${offset}, which ${ofBitmap ? 'the format extension' : 'another entry'} uses too`
    if (ofBitmap) {
      this.#overlapped = true
      this.#bitmapsWrong = true
    }
    const mended = this.#all && this.#copyAway(index, offset)
    this.#report('corruption', 'shared-cluster', message, mended, { ...this.#where(index), found: offset })
    return mended
  }

  /** Gives an entry a cluster of its own at the file's end, with what it shows now. */
  #copyAway(index: number, from: number): boolean {
    const { clusterSize, unit } = this.#geometry
    const to = this.#end
    if (to / unit > MAX_ENTRY) return false
    this.#mark()
    const buffer = new Uint8Array(Math.min(CHUNK, clusterSize))
    for (let done = 0; done < clusterSize; done += buffer.length) {
      const count = Math.min(buffer.length, clusterSize - done)
      buffer.fill(0, this.#storage.read(buffer, 0, count, from + done))
      this.#storage.write(buffer, 0, count, to + done)
    }
    this.#storage.sync()
    this.#end = to + clusterSize
    this.#setEntry(index, to)
    return true
  }

  /** Clusters between used ones that hold something although nothing refers to them. Zeros are free space, not leaks. */
  #checkLeaks(used: UsedClusters): void {
    const { clusterSize } = this.#geometry
    for (const { offset, length } of used.gaps()) {
      const end = Math.min(offset + length, this.#tailStart())
      for (let at = offset; at < end; ) {
        const data = this.#nextNonZero(at, end)
        if (data >= end) break
        const cluster = data - ((data - offset) % clusterSize)
        const next = cluster + clusterSize
        this.#report('leak', 'leak', `the cluster at byte ${cluster} is used by nothing`, this.#leaks, {
          offset: cluster,
        })
        if (this.#leaks) {
          this.#mark()
          this.#storage.punch(cluster, clusterSize)
        }
        at = next
      }
    }
  }

  /** Behind the last cluster that is used. Gaps there are cut off instead. */
  #tailStart(): number {
    const { clusterSize } = this.#geometry
    return this.#clusters.reduce((last, cluster) => Math.max(last, cluster + clusterSize), this.#lastUsed)
  }

  #nextNonZero(from: number, end: number): number {
    const buffer = Buffer.alloc(ZEROS.length)
    for (let at = this.#storage.nextData(from); at < end; ) {
      const count = this.#storage.read(buffer, 0, Math.min(buffer.length, end - at), at)
      if (count === 0) return end
      if (buffer.compare(ZEROS, 0, count, 0, count) !== 0) return at + buffer.findIndex((byte) => byte !== 0)
      at = this.#storage.nextData(at + count)
    }
    return end
  }

  /** What is behind the last cluster in use. */
  #checkTail(): void {
    const { clusterSize } = this.#geometry
    const size = this.#storage.size()
    const tail = this.#tailStart()
    this.#lastUsed = tail
    if (size <= tail || isOpaque(this.#features)) return
    const count = Math.ceil((size - tail) / clusterSize)
    const message = `${count} clusters from byte ${tail} on, at the file's end, are used by nothing`
    this.#report('leak', 'leak', message, this.#leaks, { offset: tail, count, found: size, expected: tail })
    if (!this.#leaks) return
    this.#mark()
    this.#storage.truncate(tail)
  }
}
