/**
 * Commits: the dirty sectors of one moment are copied under the lock, then written in order without it. Commits do not
 * overlap; whoever asks while one runs shares the next.
 */

import { constants } from 'node:os'
import { getSystemErrorName } from 'node:util'
import type { FileRef } from '../formats/driver.js'
import { VdiskError } from '../util/errors.js'
import { makeTrace } from '../util/trace.js'
import { Mutex } from './lock.js'
import type { Metadata } from './metadata.js'
import { Control, PAGE, SECTOR, type SharedViews } from './shared.js'

const trace = makeTrace('commit')

/** What a format's own way of writing a batch out has to work with. */
export type BatchWriter = (batch: DirtyBatch) => void

/** Neighbouring sectors of one file that go to disk together. */
export interface DirtyRun {
  readonly file: number
  readonly order: number
  /** File offset and bytes, multiples of 512. */
  readonly offset: number
  readonly bytes: Uint8Array
}

/** A copy of the sectors that were dirty at one moment, sorted by order, file and offset. */
export class DirtyBatch {
  readonly count: number
  readonly #views: SharedViews

  constructor(views: SharedViews, count: number) {
    this.#views = views
    this.count = count
  }

  /** Runs of neighbouring sectors, in order. */
  *runs(): Generator<DirtyRun> {
    const { stagedOffset, stagedFile, stagedOrder, staging } = this.#views
    for (let first = 0; first < this.count; ) {
      const file = stagedFile[first]!
      const order = stagedOrder[first]!
      const offset = stagedOffset[first]!
      let n = 1
      while (
        first + n < this.count &&
        stagedFile[first + n] === file &&
        stagedOrder[first + n] === order &&
        stagedOffset[first + n] === offset + n * SECTOR
      )
        n++
      yield { file, order, offset, bytes: staging.subarray(first * SECTOR, (first + n) * SECTOR) }
      first += n
    }
  }
}

interface Staged {
  slot: number
  sector: number
  order: number
  file: number
  offset: number
}

export class Committer {
  readonly #metadata: Metadata
  readonly #views: SharedViews
  readonly #files: readonly FileRef[]
  readonly #writable: readonly number[]
  readonly #writeOut: () => BatchWriter | undefined
  readonly #mutex: Mutex
  readonly #barrierMutex: Mutex

  constructor(
    metadata: Metadata,
    views: SharedViews,
    files: readonly FileRef[],
    writable: readonly number[],
    writeOut: () => BatchWriter | undefined,
  ) {
    this.#metadata = metadata
    this.#views = views
    this.#files = files
    this.#writable = writable
    this.#writeOut = writeOut
    this.#mutex = new Mutex(views.control, Control.COMMIT_MUTEX, metadata.thread, metadata.lock)
    this.#barrierMutex = new Mutex(views.control, Control.BARRIER_MUTEX, metadata.thread, metadata.lock)
  }

  heldBy(thread: number): boolean {
    return this.#mutex.heldBy(thread) || this.#barrierMutex.heldBy(thread)
  }

  /**
   * Returns when everything that was changed before the call is durable, by a commit of its own or by one that somebody
   * else began after the call.
   * @throws what the write or the sync threw; the sectors are dirty again then.
   */
  commit(): void {
    const c = this.#views.control
    const ticket = Atomics.load(c, Control.COMMITS_STARTED) + 1
    this.#mutex.acquire()
    try {
      if (Atomics.load(c, Control.COMMITS_DONE) >= ticket) return
      this.#run(Atomics.add(c, Control.COMMITS_STARTED, 1) + 1)
    } finally {
      this.#mutex.release()
    }
  }

  #run(number: number): void {
    const metadata = this.#metadata
    metadata.writeBack.countSync()
    const staged = this.#snapshot()
    if (trace.enabled) trace('commit %d: %d sectors of metadata', number, staged.length)
    let written = false
    try {
      const batch = new DirtyBatch(this.#views, staged.length)
      const own = this.#writeOut()
      if (own) own(batch)
      else this.#writeInOrder(batch)
      written = true
    } finally {
      metadata.lock.acquireExclusive(true)
      for (const s of staged) metadata.cache.endWriting(s.slot, 1 << s.sector, s.order, written)
      Atomics.store(this.#views.control, Control.IN_FLIGHT, 0)
      metadata.lock.releaseExclusive()
      if (!written) metadata.space.unseal()
    }
    if (metadata.space.sealed) {
      if (metadata.epochs.settle()) metadata.space.settle()
      else metadata.space.unseal()
    }
    Atomics.store(this.#views.control, Control.COMMITS_DONE, number)
    if (trace.enabled) trace('commit %d is durable', number)
  }

  /** Copies what is dirty now into the staging memory, sorted, and seals the space that was freed until now. */
  #snapshot(): Staged[] {
    const metadata = this.#metadata
    const views = this.#views
    const { cache } = metadata
    const staged: Staged[] = []
    metadata.lock.acquireExclusive()
    try {
      metadata.space.seal()
      views.control[Control.COMMIT_WANTED] = 0
      const count = views.control[Control.DIRTY_SECTORS]!
      if (count === 0) return staged
      if (count > views.stagedFile.length)
        throw new VdiskError('INTERNAL', `${count} sectors were changed, more than were reserved`)
      cache.takeDirty((slot, sector, order) =>
        staged.push({ slot, sector, order, file: cache.fileOf(slot), offset: cache.offsetOf(slot) + sector * SECTOR }),
      )
      staged.sort((a, b) => a.order - b.order || a.file - b.file || a.offset - b.offset)
      staged.forEach((s, i) => {
        const from = s.slot * PAGE + s.sector * SECTOR
        views.staging.set(views.data.subarray(from, from + SECTOR), i * SECTOR)
        views.stagedOffset[i] = s.offset
        views.stagedFile[i] = s.file
        views.stagedOrder[i] = s.order
      })
      return staged
    } finally {
      metadata.lock.releaseExclusive()
    }
  }

  /** Data, barrier, then each order of metadata with a barrier behind it. */
  #writeInOrder(batch: DirtyBatch): void {
    let order = -1
    for (const run of batch.runs()) {
      if (run.order !== order) this.barrier()
      if (trace.enabled) trace('class %d: %d bytes at %d of file %d', run.order, run.bytes.length, run.offset, run.file)
      order = run.order
      this.#files[run.file]!.storage.write(run.bytes, 0, run.bytes.length, run.offset)
      this.#metadata.wrote(run.file)
    }
    this.barrier()
  }

  /**
   * Syncs every writable file that was written since its last sync. Where that fails, nothing may be written until the
   * image is opened again: the host may have dropped what it could not write.
   *
   * One at a time: that another thread has begun to sync a file does not mean that the file is synced.
   */
  barrier(): void {
    this.#barrierMutex.acquire()
    try {
      this.#syncAll()
    } finally {
      this.#barrierMutex.release()
    }
  }

  #syncAll(): void {
    const { unsynced, control } = this.#views
    const { failure } = this
    if (failure) throw failure
    for (const file of this.#writable) {
      if (Atomics.exchange(unsynced, file, 0) === 0) continue
      try {
        this.#files[file]!.storage.sync()
      } catch (error) {
        Atomics.store(unsynced, file, 1)
        Atomics.store(control, Control.FAILED, errnoNumber(error))
        throw error
      }
    }
  }

  /** Why nothing may be written until the image is opened again: a sync failed, of this thread or another. */
  get failure(): VdiskError | undefined {
    const errno = Atomics.load(this.#views.control, Control.FAILED)
    if (errno === 0) return undefined
    const name = getSystemErrorName(-errno)
    return new VdiskError('IO', `a sync failed (${name}), so nothing is written until the image is opened again`, {
      path: this.#files[this.#writable[0] ?? 0]?.storage.path,
    })
  }
}

function errnoNumber(error: unknown): number {
  const name = error instanceof VdiskError ? error.errno : undefined
  return (name && (constants.errno as Record<string, number>)[name]) || constants.errno.EIO
}
