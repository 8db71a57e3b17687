/** Runs a copy to its end: in this thread, and in as many more as pay for their start. */

import { statSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { setImmediate as breathe } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { entryPoint } from '../../util/entry.js'
import { VdiskError } from '../../util/errors.js'
import { MiB } from '../../util/sizes.js'
import type { Image } from '../image.js'
import { CopyControl, CopyJob, type CopySettings } from './job.js'
import type { CopyFailure, CopySetup } from './worker.js'

const ENTRY = entryPoint('image/convert/worker.js')

/** How far a copy is. */
export interface CopyProgress {
  /** Bytes of data that were read so far, and that there are; undefined while they are still being counted. */
  readonly copied: number
  readonly total: number | undefined
  /** Bytes of the disk that were looked at, and its size. */
  readonly position: number
  readonly size: number
}

export interface RunOptions {
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: CopyProgress) => void) | undefined
}

/** Disks with less data than this are copied by this thread. */
const SMALL = 48 * MiB
export const MAX_WORKERS = 8
const TICK_MS = 50
/** Time of a tick in which data is counted. */
const COUNT_MS = 10

/** What stat(2) counts in. */
const BLOCK = 512

/** How many threads besides this one a copy of so much data is worth. */
export function workersFor(allocated: number): number {
  return allocated < SMALL ? 0 : Math.min(MAX_WORKERS, Math.max(1, availableParallelism() - 1))
}

/** A first guess of that, before the image is opened: most of the data may lie in its parents. */
export function workersForFile(path: string): number {
  try {
    return workersFor(statSync(path).blocks * BLOCK)
  } catch {
    // Opening it says what is wrong.
    return 0
  }
}

export function aborted(): VdiskError {
  return new VdiskError('IO', 'interrupted')
}

/** Threads that help with a copy. They start while the images are opened, and wait then. */
export class Crew {
  readonly #helpers: Helper[] = []

  get size(): number {
    return this.#helpers.length
  }

  /** From now on there are at least so many. */
  grow(size: number): void {
    while (this.#helpers.length < size) this.#helpers.push(new Helper(this.#helpers.length + 1))
  }

  /**
   * Has all of them copy.
   * @param failed called when one could not
   * @returns for each: settles when it has ended, and how
   */
  copy(setup: Omit<CopySetup, 'thread'>, failed: () => void): Promise<void>[] {
    return this.#helpers.map((helper) => helper.copy(setup, failed))
  }

  /** Ends those that got nothing to do; the others have ended. */
  async dismiss(): Promise<void> {
    await Promise.all(this.#helpers.map((helper) => helper.dismiss()))
  }
}

class Helper {
  readonly #worker = new Worker(ENTRY)
  readonly #thread: number
  readonly #ended: Promise<void>
  #failure: unknown
  #failed: (() => void) | undefined

  /** @param thread its number in both images, and among the threads of the copy */
  constructor(thread: number) {
    this.#thread = thread
    const fail = (error: unknown) => {
      this.#failure ??= error
      this.#failed?.()
    }
    this.#worker.on('message', ({ code, message }: CopyFailure) => {
      fail(code ? new VdiskError(code, message) : new Error(message))
    })
    this.#worker.on('error', fail)
    this.#ended = new Promise((resolve) => this.#worker.on('exit', () => resolve()))
  }

  async copy(setup: Omit<CopySetup, 'thread'>, failed: () => void): Promise<void> {
    this.#failed = failed
    if (this.#failure === undefined) this.#worker.postMessage({ ...setup, thread: this.#thread } satisfies CopySetup)
    else failed()
    await this.#ended
    if (this.#failure !== undefined) throw this.#failure
  }

  async dismiss(): Promise<void> {
    await this.#worker.terminate()
  }
}

/**
 * Copies. Both images must have been opened for one thread more than the crew has.
 * @throws what a thread threw, or that it was interrupted; no thread is at work then.
 */
export async function runCopy(
  source: Image,
  target: Image,
  settings: CopySettings,
  crew: Crew,
  options: RunOptions,
): Promise<void> {
  const { signal } = options
  const control = CopyControl.allocate(crew.size + 1)
  const stop = () => control.stop()
  if (signal?.aborted) throw aborted()
  signal?.addEventListener('abort', stop)
  const watcher = new Watcher(source, target, settings, control, options)
  try {
    const here = copyHere(new CopyJob(source, target, settings, control, 0), watcher)
    const setup = { source: source.handle(), target: target.handle(), settings, control: control.shared }
    const others = crew.copy(setup, stop)
    const outcomes = await Promise.allSettled([stopping(here, stop), ...others])
    const failed = outcomes.find((outcome) => outcome.status === 'rejected')
    if (failed) throw failed.reason
  } finally {
    await watcher.end()
    signal?.removeEventListener('abort', stop)
  }
  if (signal?.aborted) throw aborted()
}

/** Between two chunks, this thread does what else it has to do. */
async function copyHere(job: CopyJob, watcher: Watcher): Promise<void> {
  while (job.step()) {
    watcher.tick()
    await breathe()
  }
}

async function stopping(work: Promise<void>, stop: () => void): Promise<void> {
  try {
    await work
  } catch (error) {
    stop()
    throw error
  }
}

/** What the first thread does meanwhile: it counts, reports, and has the host write out what was copied. */
class Watcher {
  readonly #source: Image
  readonly #target: Image
  readonly #settings: CopySettings
  readonly #control: CopyControl
  readonly #onProgress: ((progress: CopyProgress) => void) | undefined
  #counted = 0
  #total = 0
  #last = 0
  #writing: Promise<void> | undefined

  constructor(source: Image, target: Image, settings: CopySettings, control: CopyControl, options: RunOptions) {
    this.#source = source
    this.#target = target
    this.#settings = settings
    this.#control = control
    this.#onProgress = options.onProgress
  }

  tick(): void {
    const now = Date.now()
    if (now - this.#last < TICK_MS) return
    this.#last = now
    this.#writing ??= this.#target.writeBack().finally(() => {
      this.#writing = undefined
    })
    if (!this.#onProgress) return
    this.#count(now + COUNT_MS)
    this.#report()
  }

  /** The end: nothing is under way any more. */
  async end(): Promise<void> {
    await this.#writing
    if (this.#onProgress) this.#report()
  }

  #report(): void {
    const { size } = this.#settings
    this.#onProgress!({
      copied: this.#control.done,
      total: this.#counted < size ? undefined : this.#total,
      position: Math.min(size, this.#control.position),
      size,
    })
  }

  #count(until: number): void {
    const { size, ownLayer, sparse } = this.#settings
    while (this.#counted < size && Date.now() < until) {
      const run = this.#source.map(this.#counted, size - this.#counted)
      if ((!run.zero || sparse === 0) && !(ownLayer && run.depth > 0)) this.#total += run.length
      this.#counted += run.length
    }
  }
}
