/**
 * Another size for an expanding image that nobody has open. The BAT lies in front of the data: where it grows into it, the
 * clusters there move to the end of the file first.
 *
 * 1. the in-use mark → barrier
 * 2. clusters that are in the way are copied to the end → barrier → BAT entries → barrier
 * 3. where the extension is in the way, one of the same size at the end, in which all is set → barrier → the header refers
 *    to it → barrier
 * 4. new BAT entries are zeroed, an extension for the new size is written at the end → barrier
 * 5. the header: sizes, data offset, extension and mark, in one sector → barrier
 * 6. in a smaller disk, what its last cluster has behind the new end is zeroed; what nothing refers to any more is freed
 *
 * A larger disk would show what the last cluster has behind the old end: that is zeroed behind 1.
 * A crash before 5 leaves the old size, marked as in use, with leaked clusters and bitmaps that count all as changed.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { checkImage } from './check.js'
import { clustersEnd, countedEntries, refuseOutside } from './entries.js'
import {
  bitmapFeature,
  encodeExtension,
  type Feature,
  isOpaque,
  keptFeatures,
  L1_CLEAR,
  L1_SET,
  l1Entries,
  withL1,
} from './extension.js'
import {
  BAT_ENTRY_SIZE,
  bitmapsTrusted,
  type Geometry,
  geometryOf,
  HEADER_SIZE,
  type Header,
  InUse,
  MAGIC_CLUSTERS,
  MAX_ENTRY,
  readHeader,
  SECTOR,
  writeHeader,
} from './header.js'
import { extensionOf } from './image.js'

const CHUNK = 1 << 20

/**
 * @param size bytes; rounded up to a sector
 * @throws USAGE for a size that the image cannot have, NO_SPACE, CORRUPT
 */
export function resizeExpanding(storage: Storage, size: number): void {
  new Resize(storage, Math.ceil(size / SECTOR) * SECTOR).run()
}

class Resize {
  readonly #storage: Storage
  readonly #header: Header
  readonly #before: Geometry
  readonly #after: Geometry
  readonly #next: Header
  readonly #trusted: boolean
  /** Where the next cluster goes. */
  #end: number
  /** From the place of a cluster that was in the way to its new one. */
  readonly #moved = new Map<number, number>()

  constructor(storage: Storage, size: number) {
    this.#storage = storage
    this.#header = readHeader(storage)
    this.#before = geometryOf(this.#header)
    this.#trusted = bitmapsTrusted(this.#header)
    this.#next = this.#newHeader(size)
    this.#after = geometryOf(this.#next)
    // The end of the file may still be in front of where data begins from now on.
    this.#end = Math.max(clustersEnd(this.#before, storage.size()), this.#after.dataStart)
  }

  #newHeader(size: number): Header {
    const { clusterSize, dataStart } = this.#before
    const { magic } = this.#header
    const entries = Math.ceil(size / clusterSize)
    const sectors = size / SECTOR
    const last = dataStart / clusterSize + entries
    const most = magic === MAGIC_CLUSTERS ? MAX_ENTRY : (MAX_ENTRY * SECTOR) / clusterSize
    if (last > most || (magic !== MAGIC_CLUSTERS && sectors > MAX_ENTRY))
      throw new VdiskError('USAGE', `its BAT cannot count the clusters of ${size} bytes`, { path: this.#storage.path })
    const batEnd = HEADER_SIZE + entries * BAT_ENTRY_SIZE
    const start = dataStart + Math.max(0, Math.ceil((batEnd - dataStart) / clusterSize)) * clusterSize
    const cylinders = Math.floor(sectors / Math.max(1, this.#header.heads) / 32)
    return {
      ...this.#header,
      cylinders: Math.min(2 ** 32 - 1, cylinders),
      nbBatEntries: entries,
      nbSectors: sectors,
      dataOff: start / SECTOR,
    }
  }

  run(): void {
    const features = this.#loadFeatures()
    // Here, because it throws where bitmaps do not fit.
    this.#encoded(this.#resized(features))
    refuseOutside(this.#storage, this.#header, this.#before)
    writeHeader(this.#storage, { ...this.#header, inUse: InUse.OPEN })
    if (this.#after.size > this.#before.size) this.#clearBehind(this.#before.size)
    this.#moveData()
    this.#moveBits(features)
    this.#moveExtension(features)
    this.#extendBat()
    const extOff = this.#writeExtension(this.#resized(features))
    this.#storage.sync()
    writeHeader(this.#storage, { ...this.#next, extOff: extOff / SECTOR, inUse: InUse.CLOSED })
    if (this.#after.size < this.#before.size) this.#clearBehind(this.#after.size)
    checkImage(this.#storage, { repair: 'leaks', found: () => {} })
  }

  #loadFeatures(): readonly Feature[] {
    const loaded = extensionOf(this.#storage, this.#header, this.#before)
    if (!loaded) return []
    if ('error' in loaded) throw new VdiskError('CORRUPT', loaded.error, { path: this.#storage.path })
    if (isOpaque(loaded.extension.features))
      throw new VdiskError('UNSUPPORTED', 'it has features that are unknown, and that may depend on its size', {
        path: this.#storage.path,
      })
    return keptFeatures(loaded.extension.features)
  }

  /** 0 for all of them where the header says that the disk is empty. */
  #entry(index: number): number {
    if (index >= countedEntries(this.#header, this.#before)) return 0
    const bytes = Buffer.alloc(BAT_ENTRY_SIZE)
    this.#storage.read(bytes, 0, BAT_ENTRY_SIZE, HEADER_SIZE + index * BAT_ENTRY_SIZE)
    return bytes.readUInt32LE() * this.#before.unit
  }

  /** Punches what the last cluster has behind the end of a disk: a full host file system has no room for zeros. */
  #clearBehind(size: number): void {
    const { clusterSize } = this.#before
    const index = Math.floor(size / clusterSize)
    const inside = size - index * clusterSize
    const host = inside === 0 ? 0 : this.#entry(index)
    if (host !== 0) this.#storage.punch(host + inside, clusterSize - inside)
  }

  /** Gives every entry whose cluster lies where the BAT will be another cluster. */
  #moveData(): void {
    const { dataStart, unit } = this.#before
    const limit = this.#after.dataStart
    if (limit <= dataStart) return
    const changes: (readonly [index: number, place: number])[] = []
    const keep = Math.min(countedEntries(this.#header, this.#before), this.#after.entries)
    const chunk = Buffer.alloc(CHUNK)
    for (let first = 0; first < keep; first += CHUNK / BAT_ENTRY_SIZE) {
      const count = Math.min(keep - first, CHUNK / BAT_ENTRY_SIZE)
      this.#storage.read(chunk, 0, count * BAT_ENTRY_SIZE, HEADER_SIZE + first * BAT_ENTRY_SIZE)
      for (let i = 0; i < count; i++) {
        const place = chunk.readUInt32LE(i * BAT_ENTRY_SIZE) * unit
        if (place !== 0 && place < limit) changes.push([first + i, this.#move(place)])
      }
    }
    this.#storage.sync()
    const bytes = Buffer.alloc(BAT_ENTRY_SIZE)
    for (const [index, place] of changes) {
      bytes.writeUInt32LE(place / unit)
      this.#storage.write(bytes, 0, BAT_ENTRY_SIZE, HEADER_SIZE + index * BAT_ENTRY_SIZE)
    }
    this.#storage.sync()
  }

  /** Copies a cluster to the end. @returns its new place */
  #move(from: number): number {
    const { clusterSize } = this.#before
    const to = this.#newCluster()
    const buffer = new Uint8Array(Math.min(CHUNK, clusterSize))
    for (let done = 0; done < clusterSize; done += buffer.length) {
      const count = Math.min(buffer.length, clusterSize - done)
      buffer.fill(0, this.#storage.read(buffer, 0, count, from + done))
      this.#storage.write(buffer, 0, count, to + done)
    }
    this.#moved.set(from, to)
    return to
  }

  #newCluster(): number {
    const place = this.#end
    this.#end += this.#before.clusterSize
    return place
  }

  /** As `#moveData`, for the clusters of bitmaps. */
  #moveBits(features: readonly Feature[]): void {
    for (const { bitmap } of features)
      for (const cluster of bitmap?.l1 ?? [])
        if (cluster > L1_SET && cluster < this.#after.dataStart) this.#move(cluster)
  }

  /** What the header refers to until the end is whole: a stand-in, because the true extension is of the old size. */
  #moveExtension(features: readonly Feature[]): void {
    const { extOff } = this.#header
    if (extOff === 0 || extOff * SECTOR >= this.#after.dataStart) return
    const place = this.#writeExtension(withL1(features, this.#before, () => L1_SET))
    this.#storage.sync()
    writeHeader(this.#storage, { ...this.#header, extOff: place / SECTOR, inUse: InUse.OPEN })
  }

  /** Everything is out of the way now: what is behind the old entries becomes new ones. */
  #extendBat(): void {
    const { batEnd, dataStart } = this.#after
    if (this.#storage.size() < dataStart) this.#storage.truncate(dataStart)
    if (batEnd > this.#before.batEnd) this.#storage.zero(this.#before.batEnd, batEnd - this.#before.batEnd)
  }

  /** @returns where it is; 0 where it would hold nothing. */
  #writeExtension(features: readonly Feature[]): number {
    const bytes = this.#encoded(features)
    if (!bytes) return 0
    const place = this.#newCluster()
    this.#storage.write(bytes, 0, bytes.length, place)
    return place
  }

  /** @returns undefined where there is nothing. @throws NO_SPACE */
  #encoded(features: readonly Feature[]): Uint8Array | undefined {
    if (features.length === 0) return undefined
    const bytes = encodeExtension(features, this.#before.clusterSize)
    if (bytes) return bytes
    throw new VdiskError('NO_SPACE', 'its bitmaps for the new size do not fit into the format extension', {
      path: this.#storage.path,
    })
  }

  /** The features for the new size, with the clusters of bits where they are now. */
  #resized(features: readonly Feature[]): Feature[] {
    return features.map((feature) => this.#resizedFeature(feature))
  }

  #resizedFeature(feature: Feature): Feature {
    const { bitmap, flags } = feature
    if (!bitmap) return feature
    const count = l1Entries(this.#after, bitmap.granularity)
    const l1 = Array.from({ length: count }, (_, i) => {
      const old = bitmap.l1[i]
      if (!this.#trusted || old === L1_SET) return L1_SET
      return old === undefined ? L1_CLEAR : (this.#moved.get(old) ?? old)
    })
    return bitmapFeature({ ...bitmap, l1 }, this.#after, flags)
  }
}
