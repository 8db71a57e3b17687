/**
 * What the parts of a check share: what may be mended, and how that begins and ends. While something is mended the dirty
 * bit is set, where there is one, so that whoever finds the image half mended repairs it first.
 */

import type { Storage } from '../../storage/storage.js'
import { MiB } from '../../util/sizes.js'
import type { Finding, Repair } from '../driver.js'
import { type Counts, Use } from './counts.js'
import { withoutUnknown } from './features.js'
import { Incompatible, readFeatures, writeFeatures } from './header.js'
import { FreeClusters, noneForSure } from './inside.js'
import type { Copy, Fault, Shape } from './walk.js'

/** More bytes are not copied: an image that needs more of that is no image. */
const MAX_COPIED = 64 * MiB

export interface CheckOptions {
  readonly repair: Repair
  found(finding: Finding): void
}

export class Mending {
  /** Whether everything is to be mended, or leaks. */
  all: boolean
  leaks: boolean
  /** Byte offset behind which there is nothing, nor is said to be anything. */
  freeEnd = 0
  /** On a device: all that may be in use. Undefined where that cannot be told. */
  inUse: Counts | undefined
  /** Entries, by their byte offsets, that refer to copies. */
  readonly moved = new Set<number>()
  /** Corruptions that are left. */
  left = 0
  /** Structures cannot be read, so that what they refer to looks unused. */
  lost = false
  /** Something that says where more is was given up by mending: what looks unused may be that. */
  gaveUp = false
  /** Entries were changed, so that clusters have to be counted again. */
  changed = false
  readonly storage: Storage
  readonly #shape: Shape
  readonly #found: (finding: Finding) => void
  readonly #features: readonly number[] | undefined
  #marked = false
  #held = false
  #copied = 0

  constructor(storage: Storage, shape: Shape, { repair, found }: CheckOptions) {
    this.storage = storage
    this.all = repair === 'all'
    this.leaks = repair !== 'none'
    this.#shape = shape
    this.#found = (finding) => found(finding)
    this.#features = shape.version < 3 ? undefined : readFeatures(storage, 'incompatible')
  }

  /** Leaks stay: they may be all that is left of what is lost. */
  get keepsLeaks(): boolean {
    return this.lost || this.gaveUp
  }

  report(
    severity: Finding['severity'],
    what: string,
    message: string,
    repaired: boolean,
    more: Partial<Finding> = {},
  ): void {
    if (severity === 'corruption' && !repaired) this.left += more.count ?? 1
    const repairable = !this.#held && (more.repairable ?? true)
    this.#found({ severity, what, message, repaired, ...more, repairable })
  }

  /** Nothing is mended, nor can be. */
  hold(): void {
    this.#held = true
    this.all = false
    this.leaks = false
  }

  /** Before the first change. */
  mark(): void {
    if (this.#marked) return
    this.#marked = true
    if (this.#features) this.#write([...new Set([...this.#features, Incompatible.DIRTY])])
  }

  #write(features: readonly number[]): void {
    withoutUnknown(this.storage)
    writeFeatures(this.storage, 'incompatible', features)
    this.storage.sync()
  }

  /**
   * After the last change. An image with no fault that is left is neither dirty nor corrupt.
   * @returns true where it is marked as neither now
   */
  finish(): boolean {
    if (this.leaks) this.storage.sync()
    const marks: readonly number[] = [Incompatible.DIRTY, Incompatible.CORRUPT]
    const clean = this.leaks && this.left === 0
    const wasMarked = this.#features?.some((bit) => marks.includes(bit))
    if (this.#features && (this.#marked || (clean && wasMarked)))
      this.#write(clean ? this.#features.filter((bit) => !marks.includes(bit)) : this.#features)
    return clean
  }

  /** Writes bytes that mend something. */
  write(bytes: Uint8Array, offset: number): void {
    this.mark()
    this.storage.write(bytes, 0, bytes.length, offset)
  }

  /** Clusters behind everything, or on a device between the rest. Their refcounts are 0 until they are counted. */
  append(bytes: Uint8Array): number {
    const { clusterSize } = this.#shape
    const count = Math.ceil(bytes.length / clusterSize)
    const first = this.storage.fixedSize
      ? this.#takeInside(count)
      : Math.ceil(Math.max(this.storage.size(), this.freeEnd) / clusterSize)
    const offset = first * clusterSize
    const filled = new Uint8Array(count * clusterSize)
    filled.set(bytes)
    this.write(filled, offset)
    this.storage.sync()
    return offset
  }

  /** @throws NO_SPACE */
  #takeInside(count: number): number {
    const { inUse } = this
    if (!inUse) throw noneForSure(this.storage)
    const isFree = (cluster: number) => inUse.of(cluster) === 0
    const first = new FreeClusters(this.storage, this.#shape.clusterSize, isFree).run(count)
    for (let i = 0; i < count; i++) inUse.add(first + i, Use.METADATA)
    return first
  }

  /** Reports a fault of an entry, and mends it where that is wanted and possible. */
  entry(fault: Fault): void {
    const { severity, what, message, offset, guest, replace, copy, loses } = fault
    const copied = copy !== undefined && this.#copied + copy.length <= MAX_COPIED
    const repairable = replace !== undefined || copied
    // What would have to be mended lies over something that is not to be touched.
    if (this.all && what === 'overlap' && !repairable) this.hold()
    const repaired = this.all && repairable
    if (repaired) {
      this.changed = true
      if (copy) this.#copy(copy, offset)
      else this.write(replace!, offset)
      this.gaveUp ||= loses === true
    } else if (loses) this.lost = true
    const kept = repaired && loses ? '; what it referred to is lost: its clusters are kept, as leaks' : ''
    this.report(severity, what, message + kept, repaired, { offset, repairable, ...(guest !== undefined && { guest }) })
  }

  /** Gives an entry clusters of its own with the same bytes. */
  #copy({ from, length, entry }: Copy, at: number): void {
    this.#copied += length
    const bytes = new Uint8Array(length)
    if (from !== undefined) this.storage.read(bytes, 0, length, from)
    const place = this.append(bytes)
    this.write(entry(place), at)
    this.moved.add(at)
    // Of a table, its entries lie elsewhere now.
    if (from !== undefined)
      for (const other of [...this.moved])
        if (other >= from && other < from + length) this.moved.add(other - from + place)
  }
}
