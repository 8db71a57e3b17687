/**
 * The shared metadata of an open image as one thread sees it: the cached pages, the lock around them, the room for
 * changes, and how a page that is missing is read.
 *
 * Rules that keep it free of deadlock: the lock is never held over I/O; nobody waits for a commit, for a guest range or
 * for growth while inside an epoch, but for growth, which waits for nothing; a commit waits for epochs only.
 */

import type { FileRef } from '../formats/driver.js'
import { VdiskError } from '../util/errors.js'
import { makeTrace } from '../util/trace.js'
import { NONE, PageCache, sectorMask } from './cache.js'
import { type BatchWriter, Committer } from './commit.js'
import { Epochs, Mutex, Ranges, RwLock } from './lock.js'
import { Control, HITS_STRIDE, PAGE, type SharedShape, type SharedViews, viewShared } from './shared.js'
import { SpaceList } from './space.js'

const trace = makeTrace('metadata')

/** Bytes to sectors. */
const SECTOR_SHIFT = 9

/** How long a thread sleeps before it looks again whether another has filled the page that it wants. */
const FILL_NAP_MS = 100

/** Where no more than this is written between commits, the next one is expected soon. Sectors: 64 MiB. */
const OFTEN = 2 ** 17
/** Then write-back begins whenever so much was written: 2 to this power sectors, 1 MiB. */
const EARLY_SHIFT = 11

/** Thrown where metadata is needed that is not cached: the caller lets go of the lock, calls `load`, tries again. */
export class PageMiss {
  file: FileRef | undefined
  page = 0
  /** The structure's bounds: only its sectors become valid. */
  start = 0
  end = 0
}

/** What `Metadata.counts` tells, since the image was opened. */
export interface MetadataCounts {
  /** Fields that were found in the cache, and pages that were not there and had to be read. */
  readonly hits: number
  readonly misses: number
  /** Room for pages; those that hold something; sectors in them that are not written out yet. */
  readonly pages: number
  readonly cached: number
  readonly dirty: number
  readonly evictions: number
  readonly commits: number
}

export class Metadata {
  readonly thread: number
  readonly threads: number
  readonly lock: RwLock
  readonly epochs: Epochs
  readonly ranges: Ranges
  readonly growth: Mutex
  readonly cache: PageCache
  readonly space: SpaceList
  readonly miss = new PageMiss()
  readonly shape: SharedShape
  /** This thread's count of what it found in the cache, at index 0. */
  readonly hits: Float64Array
  readonly #views: SharedViews
  readonly #writable: readonly FileRef[]
  readonly #committer: Committer
  readonly #scratch = new Uint8Array(PAGE)
  #sectorLimit: number
  readonly #pageLimit: number
  #changes = 0

  /**
   * @param files all files of the chain by number
   * @param writable the numbers of those that may be written: they are synced at barriers
   * @param writeOut the top layer's way to write a batch out; undefined: in order of classes
   */
  constructor(
    shape: SharedShape,
    thread: number,
    files: readonly FileRef[],
    writable: readonly number[],
    writeOut: () => BatchWriter | undefined,
  ) {
    const views = viewShared(shape)
    this.shape = shape
    this.#views = views
    this.thread = thread
    this.hits = views.hits.subarray(thread * HITS_STRIDE, (thread + 1) * HITS_STRIDE)
    this.threads = shape.threads
    this.lock = new RwLock(views.lock, thread)
    this.epochs = new Epochs(views.epochs, thread, shape.threads)
    this.ranges = new Ranges(views.rangeWords, views.rangeBounds, thread, shape.threads, this.lock)
    this.growth = new Mutex(views.control, Control.GROWTH_MUTEX, thread, this.lock)
    this.cache = new PageCache(shape, views)
    this.space = new SpaceList(views, this.lock, files, writable[0] ?? 0)
    this.#writable = writable.map((file) => files[file]!)
    this.#committer = new Committer(this, views, files, writable, writeOut)
    this.#sectorLimit = views.stagedFile.length
    this.#pageLimit = shape.pages / 2
  }

  /** The layer's numbers, shared by all threads. */
  state(first: number, count: number): Float64Array {
    return this.#views.state.subarray(first, first + count)
  }

  /**
   * Runs `change` under the exclusive lock; where it misses a page, loads that and runs it again. A `change` that
   * throws after it has changed something poisons the image: nobody could say what is on disk.
   */
  exclusive<T>(change: () => T): T {
    for (;;) {
      this.lock.acquireExclusive()
      this.#changes = 0
      try {
        return change()
      } catch (error) {
        if (this.#changes !== 0) {
          this.lock.poison()
          throw error instanceof PageMiss
            ? new VdiskError('INTERNAL', 'a change of metadata missed a page half way')
            : error
        }
        if (!(error instanceof PageMiss)) throw error
      } finally {
        this.lock.releaseExclusive()
      }
      this.load()
    }
  }

  /** Runs `look` under the shared lock; where it misses a page, loads that and runs it again. */
  shared<T>(look: () => T): T {
    for (;;) {
      this.lock.acquireShared()
      try {
        return look()
      } catch (error) {
        if (!(error instanceof PageMiss)) throw error
      } finally {
        this.lock.releaseShared()
      }
      this.load()
    }
  }

  /** Called by every method that changes a cached page, before it does. */
  changed(): void {
    this.#changes++
  }

  /**
   * Reads the page that the last miss was about. No lock held. Other threads that want the same page wait for the one
   * that came first.
   * @throws IO where the file cannot be read.
   */
  load(): void {
    const { file, page, start, end } = this.miss
    const slot = this.#beginFill(file!, page, start, end)
    if (slot === NONE) return
    let filled = false
    try {
      const got = file!.storage.read(this.#scratch, 0, PAGE, page * PAGE)
      if (trace.enabled) trace('read page %d of file %d', page, file!.index)
      if (got < PAGE) this.#scratch.fill(0, got)
      filled = true
    } finally {
      this.#endFill(slot, filled)
    }
  }

  /** Claims a slot for filling; NONE where somebody else has filled it or is filling it (then it has waited). */
  #beginFill(file: FileRef, page: number, start: number, end: number): number {
    const { valid, fillMask, fillBusy, control, filling } = this.#views
    this.lock.acquireExclusive()
    let event: number
    try {
      const slot = this.cache.claim(file.index, page)
      const wanted = sectorMask(page, start, end) & ~valid[slot]!
      if (wanted === 0) return NONE
      // Busy also where all that the other reads was forgotten meanwhile: what it has read may be out of date.
      if (fillBusy[slot] === 0) {
        fillBusy[slot] = 1
        fillMask[slot] = wanted
        filling[this.thread] = 1
        control[Control.MISSES] = control[Control.MISSES]! + 1
        return slot
      }
      event = Atomics.load(control, Control.FILL_EVENT)
    } finally {
      this.lock.releaseExclusive()
    }
    Atomics.wait(control, Control.FILL_EVENT, event, FILL_NAP_MS)
    return NONE
  }

  #endFill(slot: number, filled: boolean): void {
    const { data, valid, fillMask, fillBusy, control, filling } = this.#views
    this.lock.acquireExclusive()
    try {
      // What was made or forgotten meanwhile is out of the mask, or valid.
      const mask = fillMask[slot]! & ~valid[slot]!
      fillMask[slot] = 0
      fillBusy[slot] = 0
      if (filled) {
        if (mask === 0xff) data.set(this.#scratch, slot * PAGE)
        else
          for (let s = 0; s < 8; s++)
            if ((mask >> s) & 1) data.set(this.#scratch.subarray(512 * s, 512 * s + 512), slot * PAGE + 512 * s)
        valid[slot] = valid[slot]! | mask
      }
      filling[this.thread] = 0
    } finally {
      this.lock.releaseExclusive()
    }
    Atomics.add(control, Control.FILL_EVENT, 1)
    Atomics.notify(control, Control.FILL_EVENT)
  }

  /** A commit of the top layer can take at most so many sectors. Every thread says so before it changes anything. */
  limitDirty(sectors: number): void {
    this.#sectorLimit = Math.min(this.#sectorLimit, sectors)
  }

  /**
   * Secures room for `sectors` more dirty sectors; commits until there is some. Outside of epochs and locks. Given back
   * with `unreserve`.
   */
  reserve(sectors: number): void {
    if (sectors > this.#sectorLimit || sectors > this.#pageLimit)
      throw new VdiskError('INTERNAL', `a change of ${sectors} sectors does not fit into the metadata cache`)
    const c = this.#views.control
    for (;;) {
      this.lock.acquireExclusive()
      const reserved = c[Control.RESERVED]! + sectors
      const fits =
        c[Control.COMMIT_WANTED] === 0 &&
        c[Control.DIRTY_SECTORS]! + reserved <= this.#sectorLimit &&
        c[Control.DIRTY_PAGES]! + reserved <= this.#pageLimit
      if (fits) {
        c[Control.RESERVED] = reserved
        this.#views.reserved[this.thread] = sectors
      }
      this.lock.releaseExclusive()
      if (fits) return
      this.commit()
    }
  }

  /** Gives back what was reserved. Never hides the error that ended the change. */
  unreserve(): void {
    if (this.lock.poisoned) return
    this.lock.acquireExclusive()
    this.#unreserve(this.thread)
    this.lock.releaseExclusive()
  }

  #unreserve(thread: number): void {
    const v = this.#views
    v.control[Control.RESERVED] = v.control[Control.RESERVED]! - v.reserved[thread]!
    v.reserved[thread] = 0
  }

  /** Has the next change begin with a commit, because a list of what waits for one is filling. Exclusive lock. */
  wantCommit(): void {
    this.#views.control[Control.COMMIT_WANTED] = 1
  }

  /** The number of a commit that takes a change with it which is made now, under the exclusive lock. */
  get nextCommit(): number {
    return Atomics.load(this.#views.control, Control.COMMITS_STARTED) + 1
  }

  /** The number of the newest commit that is durable. */
  get lastCommit(): number {
    return Atomics.load(this.#views.control, Control.COMMITS_DONE)
  }

  /** Writes all metadata that is dirty now out, in order, and makes it and all data durable. See `Committer`. */
  commit(): void {
    this.#committer.commit()
  }

  /** Makes what was written to the image's files durable. A failure ends writing: the host may have dropped pages. */
  barrier(): void {
    this.#committer.barrier()
  }

  /** To be called after every write to a file of the top layer, before anybody is told that it is done. */
  wrote(file: number): void {
    if (Atomics.load(this.#views.unsynced, file) === 0) Atomics.store(this.#views.unsynced, file, 1)
  }

  /**
   * To be called after every write of guest data. Where syncs come often, the host is told early to bring the data to its
   * disk, so that the next sync has less to wait for.
   */
  written(bytes: number): void {
    const c = this.#views.control
    const before = Atomics.add(c, Control.WRITTEN, bytes >> SECTOR_SHIFT)
    if (c[Control.SYNCED_OFTEN] === 0 || before > OFTEN) return
    if (before >> EARLY_SHIFT === (before + (bytes >> SECTOR_SHIFT)) >> EARLY_SHIFT) return
    for (const { storage } of this.#writable) storage.startWriteBack?.()
  }

  /** A commit begins. One before which nobody wrote, such as the one that marks an image as open, tells nothing. */
  countSync(): void {
    const c = this.#views.control
    const written = Atomics.exchange(c, Control.WRITTEN, 0)
    if (written > 0) c[Control.SYNCED_OFTEN] = written <= OFTEN ? 1 : 0
  }

  /** True where something that was written may not be durable yet: also while a commit is under way. */
  get uncommitted(): boolean {
    const { control, unsynced } = this.#views
    if (control[Control.DIRTY_SECTORS] !== 0 || unsynced.some((u) => u !== 0)) return true
    return Atomics.load(control, Control.COMMIT_MUTEX) !== 0
  }

  /** True where metadata is dirty. */
  get dirty(): boolean {
    return this.#views.control[Control.DIRTY_SECTORS] !== 0
  }

  /** True after a failed sync: nothing may be written any more. */
  get failed(): boolean {
    return this.#views.control[Control.FAILED] !== 0
  }

  /** Why that is so; undefined where no sync failed. */
  get failure(): VdiskError | undefined {
    return this.#committer.failure
  }

  /** True once the first change was prepared (`Driver.beginWriting`). */
  get begun(): boolean {
    return this.#views.control[Control.BEGUN] !== 0
  }

  /** Says that the first change was prepared. Held: the growth mutex. */
  begin(): void {
    Atomics.store(this.#views.control, Control.BEGUN, 1)
  }

  /** Counts since opening, for `statistics`. */
  counts(): MetadataCounts {
    const { control: c, hits } = this.#views
    return {
      hits: hits.reduce((sum, n) => sum + n, 0),
      pages: this.cache.pages,
      cached: c[Control.USED_PAGES]!,
      dirty: c[Control.DIRTY_SECTORS]!,
      misses: c[Control.MISSES]!,
      evictions: c[Control.EVICTIONS]!,
      commits: c[Control.COMMITS_DONE]!,
    }
  }

  /** Cleans up behind a thread that ended without being told to. Poisons the image where it was changing something. */
  threadDied(thread: number): void {
    const v = this.#views
    const clean =
      this.lock.died(thread) &&
      !this.growth.heldBy(thread) &&
      !this.#committer.heldBy(thread) &&
      v.filling[thread] === 0 &&
      v.reserved[thread] === 0
    if (!clean) this.lock.poison()
    this.epochs.died(thread)
    this.ranges.died(thread)
  }
}
