/**
 * The workers of one mount, seen from the main thread, which serves nothing itself: it starts them, starts more when all
 * of them wait for the disk, answers for one that died and replaces it, and knows when all have ended.
 */

import { readFileSync } from 'node:fs'
import { availableParallelism, constants } from 'node:os'
import { Worker } from 'node:worker_threads'
import debug from 'debug'
import { VdiskError } from '../../util/errors.js'
import { answerOn, SERVING, type WorkerContext } from './device.js'
import type { Negotiated } from './init.js'
import type { CachePolicy } from './opens.js'
import { type SharedState, shareState } from './session.js'
import { WorkerSlot, WorkerState } from './slots.js'
import { Syncs } from './syncs.js'

const trace = debug('vdiskfs:transport')

export interface PoolOptions {
  /** The module that a worker runs. It makes a FileTree and calls `serve(workerData.transport, tree)`. */
  readonly entry: URL
  /** What a worker gets in its `workerData`, beside `transport`. */
  readonly data?: ((thread: number) => object) | undefined
  /** The mounted device. */
  readonly fd: number
  readonly negotiated: Negotiated
  readonly cachePolicy?: CachePolicy | undefined
  /** Workers at the beginning, and at most; they have the numbers 1 to `max`. */
  readonly initial?: number | undefined
  readonly max?: number | undefined
  /** A worker died. Called before it is replaced, when nothing runs under its number any more. */
  readonly onDeath?: ((thread: number, reason: Error) => void) | undefined
}

const DEFAULT_INITIAL = 2
const DEFAULT_MAX = 16
const SAMPLE_INTERVAL_MS = 50
/** In as many samples in a row all workers must have been waiting before one more is started. */
const SAMPLES_OF_PRESSURE = 2
/** After as many workers in a row that ended before they served anything no more are started. */
const MAX_FAILED_STARTS = 3

interface Running {
  readonly thread: number
  readonly slot: WorkerSlot
  serving: boolean
  error: Error | undefined
}

export class WorkerPool {
  /**
   * Settles when no worker runs any more: resolves after the file system was unmounted. Rejects where they died and no
   * other could be started; the file system is still mounted then, and whoever uses it waits until it is unmounted by
   * force.
   */
  readonly ended: Promise<void>
  readonly #options: PoolOptions
  readonly #max: number
  readonly #shared: SharedState = shareState()
  readonly #slots: SharedArrayBuffer
  readonly #running = new Map<number, Running>()
  readonly #settle: { readonly resolve: () => void; readonly reject: (reason: Error) => void }
  #timer: NodeJS.Timeout | undefined
  #unmounted = false
  #failedStarts = 0
  #pressure = 0

  constructor(options: PoolOptions) {
    this.#options = options
    this.#max = options.max ?? Math.max(options.initial ?? 0, DEFAULT_MAX)
    this.#slots = WorkerSlot.allocate(this.#max)
    let settle!: { resolve: () => void; reject: (reason: Error) => void }
    this.ended = new Promise<void>((resolve, reject) => {
      settle = { resolve, reject }
    })
    this.#settle = settle
    // Whoever calls start() hears of it there; who waits for the end hears of it then.
    this.ended.catch(() => {})
  }

  /** How many workers run at the moment. */
  get size(): number {
    return this.#running.size
  }

  /** Requests that were served so far by those who run now. */
  get served(): number {
    let sum = 0
    for (const { slot } of this.#running.values()) sum += slot.served
    return sum
  }

  /** Starts the first workers. Resolves when they serve; rejects where one cannot, with its error. */
  async start(): Promise<void> {
    const initial = Math.min(this.#options.initial ?? DEFAULT_INITIAL, this.#max)
    const starts = Array.from({ length: initial }, (_, index) => this.#startWorker(index + 1))
    this.#timer = setInterval(() => this.#sample(), SAMPLE_INTERVAL_MS).unref()
    await Promise.all(starts)
  }

  /** Starts a worker. Resolves when it serves, rejects where it ends before that. */
  #startWorker(thread: number): Promise<void> {
    const { entry, data, fd, negotiated, cachePolicy } = this.#options
    const slot = new WorkerSlot(this.#slots, thread)
    slot.clear()
    const shared = this.#shared
    const transport: WorkerContext = { fd, thread, negotiated, shared, slots: this.#slots, cachePolicy }
    const worker = new Worker(entry, { workerData: { ...data?.(thread), transport } })
    const running: Running = { thread, slot, serving: false, error: undefined }
    this.#running.set(thread, running)
    trace('worker %d starts', thread)
    return new Promise((resolve, reject) => {
      worker.on('message', (message) => {
        if (message !== SERVING) return
        running.serving = true
        this.#failedStarts = 0
        resolve()
      })
      worker.on('error', (error) => {
        running.error = error instanceof Error ? error : new Error(String(error))
      })
      worker.on('exit', (code) => {
        const reason = running.error ?? new VdiskError('INTERNAL', `worker ${thread} ended with code ${code}`)
        this.#exited(running, reason)
        // Of a worker that did serve this is nothing: it resolved long ago.
        if (slot.state === WorkerState.ENDED) resolve()
        else reject(reason)
      })
    })
  }

  #exited(running: Running, reason: Error): void {
    const { thread, slot } = running
    this.#running.delete(thread)
    if (slot.state === WorkerState.ENDED) this.#unmounted = true
    else this.#died(running, reason)
    if (this.#running.size > 0) return
    clearInterval(this.#timer)
    if (this.#unmounted) this.#settle.resolve()
    else this.#settle.reject(reason)
  }

  /** Answers for a dead worker, and replaces it. */
  #died({ thread, slot, serving }: Running, reason: Error): void {
    trace('worker %d died: %O', thread, reason)
    const answer = answerOn(this.#options.fd)
    const { EIO } = constants.errno
    if (slot.state === WorkerState.BUSY) answer(slot.uniqueFirst, slot.uniqueSecond, EIO)
    new Syncs(this.#shared.syncs, 0).abandon(thread, EIO, answer)
    this.#options.onDeath?.(thread, reason)
    if (!serving) this.#failedStarts++
    if (!this.#unmounted && this.#failedStarts < MAX_FAILED_STARTS) this.#startWorker(thread).catch(() => {})
  }

  /** Starts one more worker where all were busy, sample after sample, in a way that another one helps with. */
  #sample(): void {
    if (this.#unmounted || this.#running.size >= this.#max) return
    this.#pressure = this.#needsMore() ? this.#pressure + 1 : 0
    if (this.#pressure < SAMPLES_OF_PRESSURE) return
    this.#pressure = 0
    for (let thread = 1; thread <= this.#max; thread++) {
      if (this.#running.has(thread)) continue
      this.#startWorker(thread).catch(() => {})
      return
    }
  }

  /**
   * True where every worker is in the middle of a request and either sleeps in it (the disk makes it wait, so that
   * another worker could have another request under way) or has a core to itself with cores left over.
   */
  #needsMore(): boolean {
    const workers = [...this.#running.values()]
    if (!workers.every(({ slot }) => slot.state === WorkerState.BUSY)) return false
    const coresLeft = workers.length * 2 < availableParallelism()
    return coresLeft || workers.every(({ slot }) => sleepsInRequest(slot))
  }
}

/** True where a worker sleeps, and did not take another request while we looked. */
function sleepsInRequest(slot: WorkerSlot): boolean {
  const { served } = slot
  return isSleeping(slot.systemThread) && slot.state === WorkerState.BUSY && slot.served === served
}

/** True where a thread of this process neither runs nor waits for a core. */
function isSleeping(systemThread: number): boolean {
  try {
    const stat = readFileSync(`/proc/self/task/${systemThread}/stat`, 'latin1')
    // `pid (name) state …`, and the name may hold anything.
    return stat[stat.lastIndexOf(')') + 2] !== 'R'
  } catch {
    return false
  }
}
