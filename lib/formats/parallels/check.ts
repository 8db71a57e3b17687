/**
 * Checks an expanding image, and mends it: extension, header, in-use mark, then its clusters. Works on the file itself,
 * without the cache, so that it can be used on images that nothing else opens.
 */

import type { Storage } from '../../storage/storage.js'
import type { CheckTotals } from '../driver.js'
import { ClusterCheck } from './clusters.js'
import {
  clustersOf,
  encodeExtension,
  type Feature,
  forbidding,
  isOpaque,
  keptFeatures,
  L1_SET,
  loadExtension,
  withL1,
} from './extension.js'
import { bitmapsTrusted, HEADER, headerProblems, InUse, SECTOR } from './header.js'
import { type CheckOptions, Repairs } from './repairs.js'

/** @throws FORMAT, UNSUPPORTED, CORRUPT where the header cannot be read; IO */
export function checkImage(storage: Storage, options: CheckOptions): CheckTotals {
  const repairs = new Repairs(storage, options)
  const extension = new ExtensionCheck(repairs)
  // First of all, because a feature may forbid every change.
  extension.check()
  checkHeader(repairs)
  const clusters = new ClusterCheck(repairs, extension.clusters, extension.opaque)
  clusters.checkBat()
  extension.mend(clusters.overlapped)
  if (!extension.opaque) clusters.checkLeaks(extension.clusters)
  checkMark(repairs)
  repairs.finish()
  const { allocated, fragmented, imageEnd } = clusters
  return { imageEnd, clusters: repairs.geometry.entries, allocated, fragmented, compressed: 0 }
}

function checkHeader(repairs: Repairs): void {
  for (const { what, message, offset, found, expected, repair } of headerProblems(repairs.header)) {
    const mended = repairs.all && repair !== undefined
    if (mended) {
      repairs.mark()
      repair(repairs.header)
      repairs.writeHeader()
    }
    const repairable = repair !== undefined
    repairs.report('corruption', what, message, mended, { offset, found, expected, repairable })
  }
}

/** Behind everything else: what is left decides whether the mark can go. */
function checkMark(repairs: Repairs): void {
  if (repairs.before.inUse === InUse.OPEN)
    repairs.report('warning', 'in-use', 'it is in use, or was left in use', repairs.closes, {
      offset: HEADER.offsetOf('inUse'),
      found: `0x${InUse.OPEN.toString(16)}`,
      expected: `0x${InUse.CLOSED.toString(16)}`,
    })
}

/** The format extension, its features and bitmaps. */
class ExtensionCheck {
  readonly #r: Repairs
  /** Byte offset of its cluster; 0: there is none. */
  #offset: number
  #features: readonly Feature[] = []
  /** Features are to be dropped, or bitmaps to be set: the extension has to be written. */
  #outdated = false

  constructor(repairs: Repairs) {
    this.#r = repairs
    this.#offset = repairs.before.extOff * SECTOR
  }

  /** The clusters that it takes up now. */
  get clusters(): number[] {
    return this.#offset === 0 ? [] : clustersOf(this.#offset, this.#features)
  }

  /** True where clusters may be in use by features that nobody here understands. */
  get opaque(): boolean {
    return isOpaque(this.#features)
  }

  check(): void {
    if (this.#offset === 0) return
    const loaded = loadExtension(this.#r.storage, this.#r.geometry, this.#offset)
    if ('error' in loaded) {
      const at = Number.isSafeInteger(this.#offset) ? { offset: this.#offset } : {}
      this.#offset = 0
      if (this.#r.all) this.#drop()
      this.#keepClusters()
      this.#r.report('corruption', 'extension', `in the format extension, ${loaded.error}`, this.#r.all, at)
      return
    }
    this.#features = loaded.extension.features
    this.#checkFeatures()
    this.#checkTrust()
  }

  /** What is not understood, and stays, may own clusters that look free: these are given back only where it is dropped. */
  #keepClusters(): void {
    if (!this.#r.all) this.#r.leaks = false
  }

  #drop(): void {
    this.#r.mark()
    this.#r.header.extOff = 0
    this.#r.writeHeader()
    this.#offset = 0
  }

  #checkFeatures(): void {
    const forbids = forbidding(this.#features)
    if (forbids) {
      this.#r.all = false
      this.#r.leaks = false
    }
    const kept = keptFeatures(this.#features)
    for (const feature of this.#features) {
      const { magic, error } = feature
      if (error === undefined) continue
      const repairable = !kept.includes(feature)
      const mended = this.#r.all && repairable
      const forbidden = feature === forbids ? '; it forbids every change' : ''
      const message = `feature ${magic}: ${error}${forbidden}`
      this.#r.report('warning', 'feature', message, mended, { offset: this.#offset, repairable })
      this.#outdated ||= mended
      this.#keepClusters()
    }
  }

  #checkTrust(): void {
    const bitmaps = this.#features.flatMap(({ bitmap }) => bitmap ?? [])
    const allSet = bitmaps.every(({ l1 }) => l1.every((entry) => entry === L1_SET))
    if (allSet || bitmapsTrusted(this.#r.before)) return
    this.#outdated = true
    const message = 'the bitmaps were not kept up to date: all counts as changed'
    this.#r.report('warning', 'bitmaps', message, this.#r.all)
  }

  /**
   * Writes the extension without what cannot be kept. Bitmaps that cannot be believed are all set from then on.
   * @param overlapped bits and other data may be mixed up
   */
  mend(overlapped: boolean): void {
    if (!this.#r.all || this.#offset === 0 || !(this.#outdated || overlapped)) return
    this.#r.mark()
    const { storage, before, geometry } = this.#r
    const kept = keptFeatures(this.#features)
    const trusted = bitmapsTrusted(before) && !overlapped
    this.#features = trusted ? kept : withL1(kept, geometry, () => L1_SET)
    const bytes = kept.length > 0 ? encodeExtension(this.#features, geometry.clusterSize) : undefined
    if (bytes) {
      storage.write(bytes, 0, bytes.length, this.#offset)
      // What it does not refer to any more is freed next.
      storage.sync()
    } else this.#drop()
  }
}
