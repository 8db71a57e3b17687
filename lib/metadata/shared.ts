/**
 * The shape of the shared memory of one open image: which part of the one SharedArrayBuffer is what. Made once by the
 * thread that opens the image; every other thread makes its own views from the same numbers.
 */

import { VdiskError } from '../util/errors.js'
import { GiB } from '../util/sizes.js'
import { Epochs, Ranges, RwLock } from './lock.js'

export const PAGE = 4096
export const SECTOR = 512
export const SECTORS_PER_PAGE = PAGE / SECTOR

/** Dirty sectors that one commit can take with it, for each page of the cache: an eighth of the cache is staging. */
const STAGED_PER_PAGE = 1
/** Ranges of freed host space that are remembered. */
const SPACE_ENTRIES = 16384
const MIN_PAGES = 256
/** Bytes of cached pages: so that all parts together fit into one buffer, and offsets into 32 bits. */
export const MAX_CACHE_SIZE = 2 * GiB
/** From one thread's count to the next's: a cache line, so that they do not disturb each other. */
export const HITS_STRIDE = 8

/** Words of the control area. */
export const Control = {
  /** Not 0: a sync failed, with this errno, and nothing may be written until the image is opened again. */
  FAILED: 0,
  /** 1 when `beginWriting` was done. */
  BEGUN: 1,
  /** Commits started, and the newest one that succeeded. */
  COMMITS_STARTED: 2,
  COMMITS_DONE: 3,
  COMMIT_MUTEX: 4,
  GROWTH_MUTEX: 5,
  DIRTY_SECTORS: 6,
  DIRTY_PAGES: 7,
  /** Sectors that changes under way may still make dirty. */
  RESERVED: 8,
  CLOCK_HAND: 9,
  USED_PAGES: 10,
  /** Counted up when a page was filled or its filling failed. */
  FILL_EVENT: 11,
  SPACE_PENDING: 12,
  SPACE_SEALED: 13,
  SPACE_READY: 14,
  /** Space that did not fit into the list and is leaked until it is looked for. */
  SPACE_FORGOTTEN: 15,
  MISSES: 16,
  EVICTIONS: 17,
  BARRIER_MUTEX: 18,
  /** Guest data in sectors that was written, and counted, since the last commit began: see `WriteBack`. */
  WRITTEN: 19,
  /** 1 where little was written between the last two commits: somebody syncs often. */
  SYNCED_OFTEN: 20,
  /** 1 where what waits for a commit should wait no longer: the next change begins with one. */
  COMMIT_WANTED: 21,
  /** Sectors that a commit is writing: dirty again where it fails. */
  IN_FLIGHT: 22,
  WORDS: 32,
} as const

export interface SharedShape {
  readonly buffer: SharedArrayBuffer
  readonly threads: number
  readonly pages: number
  readonly files: number
  readonly stateNumbers: number
}

/** Typed views on every part. */
export interface SharedViews {
  readonly control: Int32Array
  readonly lock: Int32Array
  readonly epochs: Int32Array
  readonly rangeWords: Int32Array
  readonly rangeBounds: Float64Array
  /** Sectors reserved, a thread. */
  readonly reserved: Int32Array
  /** 1 while a thread fills a page, a thread. */
  readonly filling: Int32Array
  /** Bytes and numbers found in the cache, a cache line a thread. */
  readonly hits: Float64Array
  /** 1 where a file was written since its last sync, a file. */
  readonly unsynced: Int32Array
  /** The thread that writes to a file, from 1 on; 0 for none, a file. */
  readonly turns: Int32Array
  readonly state: Float64Array
  /** Hash chains: first page slot of a bucket + 1, next slot + 1. */
  readonly heads: Int32Array
  readonly next: Int32Array
  readonly keyLow: Int32Array
  readonly keyHigh: Int32Array
  /** A byte of the four orders each, a bit a sector. */
  readonly dirty: Int32Array
  readonly valid: Uint8Array
  /** Sectors that a thread is reading from the file, and 1 while one does: they may all be forgotten meanwhile. */
  readonly fillMask: Uint8Array
  readonly fillBusy: Uint8Array
  readonly writing: Uint8Array
  readonly used: Uint8Array
  /** 1 where the host has set room aside for the page, a page. */
  readonly secured: Uint8Array
  readonly data: Uint8Array
  readonly staging: Uint8Array
  readonly stagedOffset: Float64Array
  readonly stagedFile: Int32Array
  readonly stagedOrder: Int32Array
  readonly pendingOffset: Float64Array
  readonly pendingLength: Float64Array
  readonly readyOffset: Float64Array
  readonly readyLength: Float64Array
  readonly pendingFile: Int32Array
  readonly readyFile: Int32Array
}

/** Hands out parts of a buffer one after the other; with no buffer it only counts. */
class Carver {
  offset = 0
  readonly #buffer: SharedArrayBuffer | undefined

  constructor(buffer?: SharedArrayBuffer) {
    this.#buffer = buffer
  }

  #take<T>(make: new (buffer: SharedArrayBuffer, offset: number, count: number) => T, count: number, width: number): T {
    const offset = Math.ceil(this.offset / 64) * 64
    this.offset = offset + count * width
    return this.#buffer ? new make(this.#buffer, offset, count) : (undefined as T)
  }

  i32(count: number): Int32Array {
    return this.#take(Int32Array, count, 4)
  }

  f64(count: number): Float64Array {
    return this.#take(Float64Array, count, 8)
  }

  u8(count: number): Uint8Array {
    return this.#take(Uint8Array, count, 1)
  }
}

function carve(shape: Omit<SharedShape, 'buffer'>, c: Carver): SharedViews {
  const { threads, pages, files, stateNumbers } = shape
  const staged = pages * STAGED_PER_PAGE
  return {
    control: c.i32(Control.WORDS),
    lock: c.i32(RwLock.words(threads)),
    epochs: c.i32(Epochs.words(threads)),
    rangeWords: c.i32(Ranges.words(threads)),
    rangeBounds: c.f64(Ranges.bounds(threads)),
    reserved: c.i32(threads),
    filling: c.i32(threads),
    hits: c.f64(threads * HITS_STRIDE),
    unsynced: c.i32(files),
    turns: c.i32(files),
    state: c.f64(stateNumbers),
    heads: c.i32(pages),
    next: c.i32(pages),
    keyLow: c.i32(pages),
    keyHigh: c.i32(pages),
    dirty: c.i32(pages),
    valid: c.u8(pages),
    fillMask: c.u8(pages),
    fillBusy: c.u8(pages),
    writing: c.u8(pages),
    used: c.u8(pages),
    secured: c.u8(pages),
    pendingOffset: c.f64(SPACE_ENTRIES),
    pendingLength: c.f64(SPACE_ENTRIES),
    readyOffset: c.f64(SPACE_ENTRIES),
    readyLength: c.f64(SPACE_ENTRIES),
    pendingFile: c.i32(SPACE_ENTRIES),
    readyFile: c.i32(SPACE_ENTRIES),
    stagedOffset: c.f64(staged),
    stagedFile: c.i32(staged),
    stagedOrder: c.i32(staged),
    data: c.u8(pages * PAGE),
    staging: c.u8(staged * SECTOR),
  }
}

export interface SharedSizes {
  /** Threads that may attach, the opening one included. */
  readonly threads: number
  /** Bytes of cached pages; rounded down to a power of two of pages, at least 1 MiB, at most `MAX_CACHE_SIZE`. */
  readonly cacheSize: number
  readonly files: number
  /** Numbers of all layers' `LayerContext.state`. */
  readonly stateNumbers: number
}

/** Makes the shared memory. The system gives it real memory page by page as it is used. @throws USAGE */
export function makeShared(sizes: SharedSizes): SharedShape {
  const { threads, files, stateNumbers, cacheSize } = sizes
  if (!(cacheSize <= MAX_CACHE_SIZE))
    throw new VdiskError('USAGE', `a metadata cache of ${cacheSize} bytes: expected at most ${MAX_CACHE_SIZE}`)
  const pages = Math.max(MIN_PAGES, 2 ** Math.floor(Math.log2(cacheSize / PAGE)))
  const shape = { threads, pages, files, stateNumbers }
  const count = new Carver()
  carve(shape, count)
  return { ...shape, buffer: new SharedArrayBuffer(Math.ceil(count.offset / PAGE) * PAGE) }
}

export function viewShared(shape: SharedShape): SharedViews {
  return carve(shape, new Carver(shape.buffer))
}
