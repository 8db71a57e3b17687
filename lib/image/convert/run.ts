/** Runs a copy to its end: in this thread, and in as many more as pay for their start. */

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

/** How many threads besides this one a copy of so much data is worth. */
export function workersFor(allocated: number): number {
  return allocated < SMALL ? 0 : Math.min(MAX_WORKERS, Math.max(1, availableParallelism() - 1))
}

export function aborted(): VdiskError {
  return new VdiskError('IO', 'interrupted')
}

/**
 * Copies. Both images must have been opened for `workers` threads more than this one.
 * @throws what a thread threw, or that it was interrupted; no thread is at work then.
 */
export async function runCopy(
  source: Image,
  target: Image,
  settings: CopySettings,
  workers: number,
  options: RunOptions,
): Promise<void> {
  const { signal } = options
  const control = CopyControl.allocate(workers + 1)
  const stop = () => control.stop()
  if (signal?.aborted) throw aborted()
  signal?.addEventListener('abort', stop)
  const watcher = new Watcher(source, target, settings, control, options)
  try {
    const here = copyHere(new CopyJob(source, target, settings, control, 0), watcher)
    const handles = { source: source.handle(), target: target.handle(), settings, control: control.shared }
    const others = Array.from({ length: workers }, (_, i) => runWorker({ ...handles, thread: i + 1 }, control))
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

/** Resolves when the worker has ended well. Where one fails, all stop. */
function runWorker(workerData: CopySetup, control: CopyControl): Promise<void> {
  const worker = new Worker(ENTRY, { workerData })
  return new Promise((resolve, reject) => {
    let failure: unknown
    const fail = (error: unknown) => {
      failure ??= error
      control.stop()
    }
    worker.on('message', ({ code, message }: CopyFailure) => {
      fail(code ? new VdiskError(code, message) : new Error(message))
    })
    worker.on('error', fail)
    worker.on('exit', () => (failure === undefined ? resolve() : reject(failure)))
  })
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
