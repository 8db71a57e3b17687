/** What the parts of a check have in common: the image, what may be mended, and how that is begun and ended. */

import type { Storage } from '../../storage/storage.js'
import type { Finding, Repair } from '../driver.js'
import { type Geometry, geometryOf, type Header, InUse, readHeader, writeHeader } from './header.js'

export interface CheckOptions {
  readonly repair: Repair
  found(finding: Finding): void
}

export class Repairs {
  readonly storage: Storage
  readonly header: Header
  /** The header as it was found. */
  readonly before: Readonly<Header>
  readonly geometry: Geometry
  /** Whether everything, or leaks at least, are to be mended. */
  all: boolean
  leaks: boolean
  #marked = false
  /** Corruptions are left that nobody mended. */
  #left = false
  readonly #found: (finding: Finding) => void

  /** @throws FORMAT, UNSUPPORTED, CORRUPT where the header cannot be read; IO */
  constructor(storage: Storage, options: CheckOptions) {
    this.storage = storage
    this.header = readHeader(storage)
    this.before = { ...this.header }
    this.geometry = geometryOf(this.header)
    this.all = options.repair === 'all'
    this.leaks = options.repair !== 'none'
    this.#found = (finding) => options.found(finding)
  }

  report(
    severity: Finding['severity'],
    what: string,
    message: string,
    repaired: boolean,
    more: Partial<Finding> = {},
  ): void {
    if (severity === 'corruption' && !repaired) this.#left = true
    this.#found({ severity, what, message, repairable: true, repaired, ...more })
  }

  /** Before the first change: whoever finds the image half mended shall know. */
  mark(): void {
    if (this.#marked) return
    this.#marked = true
    this.header.inUse = InUse.OPEN
    this.writeHeader()
  }

  writeHeader(): void {
    writeHeader(this.storage, this.header)
  }

  /** Whether the mark of an image that was left in use goes: what could not be mended keeps it from being written. */
  get closes(): boolean {
    return this.all && !(this.before.inUse === InUse.OPEN && this.#left)
  }

  /** After the last change. A repair of leaks alone leaves the mark as it was: what it says of bitmaps still holds. */
  finish(): void {
    const wasOpen = this.before.inUse === InUse.OPEN
    if (!this.#marked && !(wasOpen && this.closes)) return
    this.storage.sync()
    this.header.inUse = this.closes ? InUse.CLOSED : this.before.inUse
    this.writeHeader()
  }
}
