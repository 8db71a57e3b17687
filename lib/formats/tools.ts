/** What the tools for images that nobody else has open get from a format: check, dirty bitmaps, the log, snapshots. */

import type { Storage } from '../storage/storage.js'
import type { OpenContext, ParentRequest } from './opening.js'

/** How bad a finding of `check` is: space that nobody uses; data that is wrong or in danger; worth knowing. */
export type Severity = 'leak' | 'corruption' | 'warning'

/** One thing that `check` found. */
export interface Finding {
  readonly severity: Severity
  /** What kind of fault, for programs: `bat-range`, `shared-cluster`, `leak`, … */
  readonly what: string
  /** One line for people: where, what was found, what was expected. Without the file's name. */
  readonly message: string
  /** The file that it is in, where that is not the image itself. */
  readonly path?: string
  /** Byte offset in the file. */
  readonly offset?: number
  /** Byte offset on the disk. */
  readonly guest?: number
  readonly found?: string | number
  readonly expected?: string | number
  /** For how many clusters (blocks, sectors) it stands; 1 where it is not given. */
  readonly count?: number
  /** A repair can mend it. */
  readonly repairable: boolean
  /** It was mended now. */
  readonly repaired: boolean
}

/** `leaks` gives leaked space back and changes nothing else; `all` mends what can be mended. */
export type Repair = 'none' | 'leaks' | 'all'

export interface CheckContext extends OpenContext {
  readonly repair: Repair
  /** Is told everything that is found, in no order that matters. */
  found(finding: Finding): void
  /**
   * Looks for a parent as opening the image would, read-only and without a lock, and closes it again.
   * @throws what opening would: NOT_FOUND, GATE, and what `verify` throws
   */
  lookForParent?(request: ParentRequest): void
}

/** What a check counted, with qemu-img's meaning. */
export interface CheckTotals {
  /** Where the last used byte of the file is, plus 1. */
  readonly imageEnd: number
  readonly clusters: number
  readonly allocated: number
  readonly fragmented: number
  readonly compressed: number
}

/** A dirty bitmap in an image. */
export interface BitmapFacts {
  readonly name: string
  /** Bytes that one bit stands for. */
  readonly granularity: number
  /**
   * `in-use`: it was not kept up to date, so that all of the disk counts as changed, or all of a part. `auto`: it records
   * writes. `inconsistent`: not all parts of the disk have it, and it can only be removed.
   */
  readonly flags: readonly string[]
}

/** A range of the disk in bytes. */
export interface ByteRange {
  readonly start: number
  readonly length: number
}

/** What can be done with the dirty bitmaps of an image that nobody else has open. `files` as in `LayerContext`. */
export interface BitmapTools<Layout> {
  list(layout: Layout, files: readonly Storage[]): BitmapFacts[]
  /** What it calls changed: merged, in order. @throws NOT_FOUND */
  extents(layout: Layout, files: readonly Storage[], name: string): Iterable<ByteRange>
  /**
   * Makes a new one with nothing changed.
   * @param name undefined: the format chooses
   * @param granularity in bytes; undefined: the format's usual one
   * @returns its name
   * @throws EXISTS, USAGE, NO_SPACE
   */
  add(layout: Layout, files: readonly Storage[], name: string | undefined, granularity: number | undefined): string
  /** Says that nothing is changed. @throws NOT_FOUND */
  clear(layout: Layout, files: readonly Storage[], name: string): void
  /** @throws NOT_FOUND */
  remove(layout: Layout, files: readonly Storage[], name: string): void
}

/** One change of the file that an entry of its log makes. */
export interface LogChange {
  /** File offset and bytes. */
  readonly offset: number
  readonly length: number
  readonly zeros: boolean
  /** What lies there: `block allocation table`, `metadata region`, … */
  readonly where: string
}

export interface LogListingEntry {
  /** Offset in the log, and bytes. */
  readonly at: number
  readonly length: number
  /** Offset in the log of the oldest entry that a replay of this one begins with. */
  readonly tail: number
  /** In decimal: it may be too large for a number. */
  readonly sequenceNumber: string
  readonly logGuid: string
  readonly flushedFileOffset: number
  readonly lastFileOffset: number
  /** A replay applies it. */
  readonly active: boolean
  readonly changes: readonly LogChange[]
}

/** The log of metadata changes of an image. */
export interface LogListing {
  /** File offset and bytes of the log. */
  readonly offset: number
  readonly length: number
  /** The header's: a nil GUID means that the log is empty, whatever entries are in it. */
  readonly logGuid: string
  /** In the order of their place. */
  readonly entries: readonly LogListingEntry[]
}

/** A snapshot in an image. */
export interface SnapshotFacts {
  readonly id: string
  readonly name: string
  /** Bytes of the state of a running machine that are kept with it. */
  readonly vmStateSize: number
  /** When it was made: seconds since 1970, and nanoseconds. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  /** How long the machine had been running. */
  readonly clockSeconds: number
  readonly clockNanoseconds: number
  /** Bytes of the disk then; undefined: unknown. */
  readonly diskSize: number | undefined
  /** Instructions that a recorded machine had executed. */
  readonly icount: number | undefined
}

/** What can be done with the snapshots of an image that nobody else has open. `files` as in `LayerContext`. */
export interface SnapshotTools<Layout> {
  list(layout: Layout, files: readonly Storage[]): SnapshotFacts[]
  /** Keeps the disk as it is now. @returns the new snapshot's id. @throws EXISTS, USAGE, NO_SPACE, UNSUPPORTED */
  create(layout: Layout, files: readonly Storage[], name: string): string
  /** Makes the disk what it was then, in size too. @param wanted an id or a name. @throws NOT_FOUND */
  apply(layout: Layout, files: readonly Storage[], wanted: string): void
  /** @param wanted an id or a name. @throws NOT_FOUND */
  delete(layout: Layout, files: readonly Storage[], wanted: string): void
}
