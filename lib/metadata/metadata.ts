/**
 * The shared metadata of an open image as one thread sees it: the cached pages, the lock around them, and the room
 * for changes.
 *
 * Rules that keep it free of deadlock: the lock is never held over I/O; nobody waits for a commit, for a guest range or
 * for growth while inside an epoch, but for growth, which waits for nothing; a commit waits for epochs only.
 */

import type { FileRef } from '../formats/driver.js'
import { VdiskError } from '../util/errors.js'
import { PageCache } from './cache.js'
import { type BatchWriter, Committer } from './commit.js'
import { Filler, PageMiss } from './fill.js'
import { Epochs, Mutex, nap, Ranges, RwLock } from './lock.js'
import { Control, HITS_STRIDE, type SharedShape, type SharedViews, viewShared } from './shared.js'
import { SpaceList } from './space.js'
import { Turns } from './turns.js'
import { WriteBack } from './write-back.js'

/**
 * Of the pages so many may be dirty, or about to be. The largest change of a format is 130 sectors, which could lie in as
 * many pages (the bitmap of a VHDX block of 256 MiB, and its entries), and the smallest cache has 256 pages.
 */
const DIRTY_PART = 5 / 8

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
  readonly writeBack: WriteBack
  readonly turns: Turns
  /** Filled in by who throws it. */
  readonly miss: PageMiss
  readonly shape: SharedShape
  /** This thread's count of what it found in the cache, at index 0. */
  readonly hits: Float64Array
  readonly #views: SharedViews
  readonly #filler: Filler
  readonly #committer: Committer
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
    this.#filler = new Filler(views, thread, this.lock, this.cache)
    this.miss = this.#filler.miss
    this.space = new SpaceList(views, this.lock, files, writable[0] ?? 0)
    this.writeBack = new WriteBack(
      views.control,
      writable.map((file) => files[file]!),
    )
    this.turns = new Turns(views.turns, thread)
    this.#committer = new Committer(this, views, files, writable, writeOut)
    this.#sectorLimit = views.stagedFile.length
    this.#pageLimit = shape.pages * DIRTY_PART
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

  /** True while the change under way has changed nothing yet: it may still miss. */
  get unchanged(): boolean {
    return this.#changes === 0
  }

  /** Reads the page that the last miss was about. No lock held. @throws IO where the file cannot be read */
  load(): void {
    this.#filler.load()
  }

  /** A commit of the top layer can take at most so many sectors. Every thread says so before it changes anything. */
  limitDirty(sectors: number): void {
    this.#sectorLimit = Math.min(this.#sectorLimit, sectors)
  }

  /**
   * Secures room for `sectors` more dirty sectors; commits until there is some, or waits where others have reserved so
   * much that no commit would make any. Outside of epochs and locks. Given back with `unreserve`.
   */
  reserve(sectors: number): void {
    if (sectors > this.#sectorLimit || sectors > this.#pageLimit)
      throw new VdiskError('INTERNAL', `a change of ${sectors} sectors does not fit into the metadata cache`)
    const c = this.#views.control
    for (let naps = 0; ; ) {
      this.lock.acquireExclusive()
      const taken = c[Control.RESERVED]!
      const reserved = taken + sectors
      const fits =
        c[Control.COMMIT_WANTED] === 0 &&
        // Those under way come back where their commit fails.
        c[Control.DIRTY_SECTORS]! + c[Control.IN_FLIGHT]! + reserved <= this.#sectorLimit &&
        c[Control.DIRTY_PAGES]! + reserved <= this.#pageLimit
      if (fits) {
        c[Control.RESERVED] = reserved
        this.#views.reserved[this.thread] = sectors
      }
      this.lock.releaseExclusive()
      if (fits) return
      if (reserved > this.#sectorLimit || reserved > this.#pageLimit)
        naps = nap(c, Control.RESERVED, taken, this.thread, naps)
      else this.commit()
    }
  }

  /** Gives back what was reserved. Never hides the error that ended the change. */
  unreserve(): void {
    if (this.lock.poisoned) return
    const { control, reserved } = this.#views
    this.lock.acquireExclusive(true)
    Atomics.store(control, Control.RESERVED, control[Control.RESERVED]! - reserved[this.thread]!)
    reserved[this.thread] = 0
    this.lock.releaseExclusive()
    Atomics.notify(control, Control.RESERVED)
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
   * True where something that was written may not be durable yet: also while a commit or a sync is under way, which has
   * taken note of it already. Hence the order in which these are looked at.
   */
  get uncommitted(): boolean {
    const { control, unsynced } = this.#views
    if (Atomics.load(control, Control.DIRTY_SECTORS) !== 0) return true
    for (let file = 0; file < unsynced.length; file++) if (Atomics.load(unsynced, file) !== 0) return true
    if (Atomics.load(control, Control.COMMIT_MUTEX) !== 0 || Atomics.load(control, Control.BARRIER_MUTEX) !== 0)
      return true
    // What failed in between is not under way any more, and is dirty again.
    return this.failed || Atomics.load(control, Control.DIRTY_SECTORS) !== 0
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
    this.turns.died(thread)
    this.epochs.died(thread)
    this.ranges.died(thread)
  }
}
