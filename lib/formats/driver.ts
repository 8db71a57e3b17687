/**
 * The contract between a format and the engine, all of which can be imported from here: the drivers in this file, what is
 * opened in `opening.ts`, what tools do in `tools.ts`, and the format itself in `format.ts`.
 *
 * A format says what guest bytes *are* and where new ones may go; `Image` moves the bytes. A format is a `Format`
 * object (what can be done with a path: probe, open, create) and a `Driver` (what can be done with an open layer; see
 * `drivers.ts`), of which every thread has its own over the same shared state. What `open` finds out once, and never
 * changes while the image is open, is the layout: plain data that can be cloned to other threads. What does change lives
 * in the metadata cache and in the layer's record of shared numbers (`LayerContext.state`), never in a driver's fields.
 */

import type { DirtyBatch } from '../metadata/commit.js'
import type { Metadata } from '../metadata/metadata.js'
import type { SpaceList } from '../metadata/space.js'
import type { Storage } from '../storage/storage.js'

export type * from './format.js'
export type * from './opening.js'
export type * from './tools.js'

/** What guest bytes are. */
export const Kind = {
  /** They read as zeros. */
  ZERO: 0,
  /** They are in `file` at `offset`, encrypted where the driver has a `cipher`. */
  DATA: 1,
  /** They are what the parent says; zeros without a parent or behind its end. */
  PARENT: 2,
  /** They are encoded (compressed): `Driver.decode` knows how. */
  ENCODED: 3,
} as const

/** The answer of `Driver.map`, filled in by the driver; one object a thread is used again and again. */
export class Extent {
  /** One of `Kind`. */
  kind = 0
  /** Guest bytes from the asked offset on that this holds for, at least 1. */
  length = 0
  /** Number of the file among the image's files (`FileRef.index`); with DATA and ENCODED. */
  file = 0
  /** Byte offset in that file of the first of these bytes. With DATA. */
  offset = 0
  /** With ZERO: something says that they are, rather than that there is nothing. For `map`; may be left out. */
  explicit = false
  /** With DATA: they may be overwritten in place, with no change of metadata. */
  writable = false
  /** For the driver's own use between `map` and `decode`. */
  aux = 0
}

/** A place for new guest data: filled in by `Driver.allocate`, given back to `publish` or `abandon`. */
export class Allocation {
  /** The guest range that publishing maps. It holds the asked range's beginning and is filled whole before that. */
  guest = 0
  length = 0
  /** Where the byte at `guest` goes. */
  file = 0
  offset = 0
  /** The host range reads as zeros, so that zeros need not be written to it. */
  zeroed = false
  /** For the driver's own use between `allocate` and `publish`. */
  block = 0
  space = 0
  spaceLength = 0
  fresh = false
  /** Bytes of encoded data at `offset`; 0: the data is as the guest has it. */
  encoded = 0
}

/** Bytes of the sectors that are encrypted by themselves. */
export const CIPHER_SECTOR = 512

/**
 * How a layer's data is encrypted: whole sectors of 512 bytes, in place, `length` bytes of `buffer` from index `at` on,
 * which are the guest's from `guest` on and lie at `host` in their file. Both offsets are multiples of 512.
 */
export interface SectorCipher {
  encrypt(buffer: Uint8Array, at: number, length: number, guest: number, host: number): void
  decrypt(buffer: Uint8Array, at: number, length: number, guest: number, host: number): void
}

export interface FileRef {
  /** Number among all files of the chain; the key of the metadata cache. */
  readonly index: number
  readonly storage: Storage
}

/** What a thread's driver gets to work with. */
export interface LayerContext {
  /** The layer's files, in the order in which `open` named them; the first is the image itself. */
  readonly files: readonly FileRef[]
  readonly metadata: Metadata
  /** The layer's numbers that change while it is open, shared by all threads; touched under the lock only. */
  readonly state: Float64Array
  /** Host space that was freed and may be used again. Of the top layer, where it is writable. */
  readonly space: SpaceList | undefined
  /** True for the top layer of an image that was opened for writing. */
  readonly writable: boolean
}

/**
 * One layer of an image in one thread. `map` and what is said of it is called under the shared lock, other changes
 * under the exclusive one, as stated. Metadata that is not cached makes a call end with a `PageMiss`, which the caller
 * answers by loading the page and calling again; so a method first looks at all it needs and only then changes
 * anything. Ranges that reach a driver are checked: inside the disk, never empty.
 */
export interface Driver {
  /** Size of the disk in bytes. */
  readonly size: number
  /** Guest bytes that are allocated together; writers of new data in one block wait for each other. */
  readonly blockSize: number
  /**
   * The whole blocks around a guest range, where they do not lie at multiples of `blockSize`: disks of several parts.
   * Pure.
   */
  blocks?(offset: number, length: number): readonly [start: number, end: number]
  /** What `release` can free by itself, in bytes, where that is less than a block. */
  readonly releaseSize?: number | undefined
  /** False where `map` looks at nothing that can change, so that it needs no lock. */
  readonly locked: boolean
  /** The most 512-byte sectors of metadata that one `publish` or `release` makes dirty. */
  readonly changeSectors: number
  /** All DATA of this layer is encrypted so. Extents and allocations then begin and end at sectors in their file. */
  readonly cipher?: SectorCipher | undefined
  /** The most 512-byte sectors of metadata that one `writeOut` can take, where the format has such a limit. */
  readonly dirtyLimit?: number

  /** Says what the guest bytes from `offset` on are, for at most `length` bytes. Shared lock. */
  map(offset: number, length: number, out: Extent): void

  /** Reads `length` guest bytes from `offset` on, which `map` called ENCODED in `extent`. No lock. */
  decode?(extent: Extent, offset: number, buffer: Uint8Array, at: number, length: number): void

  /**
   * Chooses room for new data of the guest bytes from `offset` on, at most `length`, that `map` did not call writable.
   * Exclusive lock. Publishes nothing.
   * @returns false where room must be made by `grow` first.
   * @throws NO_SPACE where the format can hold no more.
   */
  allocate?(offset: number, length: number, out: Allocation): boolean

  /**
   * Encodes a whole block (compresses it), for `allocateEncoded`. Pure; no lock.
   * @returns undefined where that does not make it smaller
   */
  encode?(block: Uint8Array): Uint8Array | undefined

  /**
   * Chooses room for so many bytes of encoded data, which become those of the block at `offset`, of which `map` said that
   * this layer has nothing there. As `allocate`; `publish` and `abandon` go by `Allocation.encoded`, which is 0 where it
   * cannot be.
   */
  allocateEncoded?(offset: number, length: number, out: Allocation): boolean

  /** Makes room for at least one more block. No lock, but only one thread at a time; may do I/O with barriers. */
  grow?(): void

  /**
   * Writes what belongs to the new space besides data (a block's bitmap), straight to the file, and so secures host room
   * for it. No lock; nothing refers to the space yet. Data follows it.
   */
  prepare?(allocation: Allocation): void

  /** Makes the data of an allocation, by now written, the guest's. Exclusive lock. Changes cached metadata only. */
  publish?(allocation: Allocation): void

  /** Takes back an allocation whose data could not be written. Exclusive lock. */
  abandon?(allocation: Allocation): void

  /**
   * Makes guest bytes from `offset` on read as zeros by changing metadata alone, and frees their host space.
   * Exclusive lock. `belowZero` says that the layers below read as zeros for all of the range.
   * @returns how many bytes were so changed (or were zeros already); 0 where the driver cannot do the first of them
   * this way, for instance because the range does not cover a whole block: the engine then zeroes the data in place.
   * A negative number where room must be made by `grow` first.
   */
  release?(offset: number, length: number, belowZero: boolean): number

  /**
   * How many guest bytes from `offset` on, at most `length`, are recorded as changed already. Shared lock. With
   * `record`, for formats that keep dirty bitmaps.
   */
  recorded?(offset: number, length: number): number

  /**
   * Records that guest bytes from `offset` on are about to change, before they do. Exclusive lock; makes at most
   * `changeSectors` sectors dirty.
   * @returns for how many bytes that was done; 0 where room must be made by `grow` first.
   */
  record?(offset: number, length: number): number

  /**
   * Called before the first change of any kind (in-use marks, write GUIDs), and again before the next one where it threw.
   * No lock, one thread.
   */
  beginWriting?(): void

  /**
   * Writes a batch of dirty sectors out so that a crash at any moment leaves a valid image, and makes it and all data
   * written before durable. Without it the engine writes class after class in order, with a barrier before each and at
   * the end. No lock, one thread at a time.
   */
  writeOut?(batch: DirtyBatch): void

  /** Ends writing cleanly (trims the file, clears marks). After the last commit; no other thread is left. */
  finish?(): void
  /**
   * True where the file says that it was left open, and was found right when it was opened for writing: then it is closed
   * cleanly at the end even if nobody writes, so that the next program does not doubt it.
   */
  readonly leftOpen?: boolean
}
