/**
 * The workers of one mount, seen from the main thread, which serves nothing itself: it starts them, starts more when all
 * of them wait for the disk, lets those go again that are not needed any more, answers for one that died and replaces it,
 * and knows when all have ended.
 */

import { readFileSync } from 'node:fs'
import { availableParallelism, constants } from 'node:os'
import { Worker } from 'node:worker_threads'
import debug from 'debug'
import { VdiskError } from '../../util/errors.js'
import { type RequestSummary, summarizeRequests } from '../statistics.js'
import { answerOn, SERVING, type WorkerContext } from './device.js'
import type { Negotiated } from './init.js'
import type { CachePolicy } from './opens.js'
import { Parking, ParkingWatch } from './parking.js'
import { Placement } from './placement.js'
import { type SharedState, shareState } from './session.js'
import { sumTaken, WorkerSlot, WorkerState } from './slots.js'
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
  /** Milliseconds in which more than `initial` workers must have been needed for them to stay. */
  readonly patience?: number | undefined
  /** A worker died. Called before it is replaced, when nothing runs under its number any more. */
  readonly onDeath?: ((thread: number, reason: Error) => void) | undefined
  /** The module that a worker runs posted a message of its own. */
  readonly onMessage?: (() => void) | undefined
}

const DEFAULT_INITIAL = 2
const DEFAULT_MAX = 16
const DEFAULT_PATIENCE_MS = 10_000
const SAMPLE_INTERVAL_MS = 50
/** How many more samples must have been for another worker than against it. */
const SAMPLES_OF_PRESSURE = 3
/** A worker looks idle between two requests too, so all of them are taken for busy when these parts of them are. */
const BUSY_PART = 3 / 4
const SLEEPING_PART = 1 / 2
/** After as many workers in a row that ended before they served anything no more are started. */
const MAX_FAILED_STARTS = 3
/** A request leaves next to nothing behind, and without a limit each worker would keep 16 MiB for that. */
const YOUNG_GENERATION_MB = 3

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
  readonly #initial: number
  readonly #max: number
  readonly #shared: SharedState
  readonly #slots: SharedArrayBuffer
  readonly #sharedParking = Parking.allocate()
  readonly #parking: Parking
  readonly #watch: ParkingWatch
  readonly #placement = new Placement()
  readonly #running = new Map<number, Running>()
  readonly #settle: { readonly resolve: () => void; readonly reject: (reason: Error) => void }
  #timer: NodeJS.Timeout | undefined
  #unmounted = false
  #failedStarts = 0
  #pressure = 0
  /** Samples since it was last decided who may go, the most workers that were busy in one of them, requests before. */
  #samples = 0
  #mostBusy = 0
  #servedBefore = 0

  constructor(options: PoolOptions) {
    this.#options = options
    this.#max = options.max ?? Math.max(options.initial ?? 0, DEFAULT_MAX)
    this.#initial = Math.min(options.initial ?? DEFAULT_INITIAL, this.#max)
    this.#shared = shareState(this.#max)
    this.#slots = WorkerSlot.allocate(this.#max)
    this.#parking = new Parking(this.#sharedParking, this.#slots)
    this.#watch = new ParkingWatch(this.#parking, this.#slots, options.fd)
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

  /** What all workers have counted so far, those that died included. */
  requests(): RequestSummary[] {
    return summarizeRequests(this.#shared.statistics)
  }

  /** Starts the first workers. Resolves when they serve; rejects where one cannot, with its error. */
  async start(): Promise<void> {
    const starts = Array.from({ length: this.#initial }, (_, index) => this.#startWorker(index + 1))
    this.#timer = setInterval(() => this.#sample(), SAMPLE_INTERVAL_MS).unref()
    await Promise.all(starts)
  }

  /** Starts a worker. Resolves when it serves, rejects where it ends before that. */
  #startWorker(thread: number): Promise<void> {
    const { entry, data, fd, negotiated, cachePolicy } = this.#options
    const slot = new WorkerSlot(this.#slots, thread)
    slot.clear()
    const shared = this.#shared
    const transport: WorkerContext = {
      fd,
      thread,
      negotiated,
      shared,
      slots: this.#slots,
      parking: this.#sharedParking,
      cachePolicy,
    }
    // A worker's pipes are made, and closed, outside of what Node keeps count of.
    const worker = new Worker(entry, {
      workerData: { ...data?.(thread), transport },
      trackUnmanagedFds: false,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    })
    const running: Running = { thread, slot, serving: false, error: undefined }
    this.#running.set(thread, running)
    trace('worker %d starts', thread)
    return new Promise((resolve, reject) => {
      worker.on('message', (message) => {
        if (message !== SERVING) {
          this.#options.onMessage?.()
          return
        }
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
    this.#placement.forget(slot.systemThread)
    this.#parking.unpark()
    if (slot.state === WorkerState.ENDED) this.#unmounted = true
    else if (slot.state === WorkerState.LEFT) trace('worker %d was not needed any more', thread)
    else this.#died(running, reason)
    if (this.#running.size > 0) return
    clearInterval(this.#timer)
    this.#watch.end()
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
    slot.clear()
    this.#options.onDeath?.(thread, reason)
    if (!serving) this.#failedStarts++
    if (!this.#unmounted && this.#failedStarts < MAX_FAILED_STARTS) this.#startWorker(thread).catch(() => {})
  }

  /** Starts half as many workers again where more would help, sample after sample; lets go whom nobody needs. */
  #sample(): void {
    if (this.#unmounted) return
    const workers = [...this.#running.values()].sort((a, b) => a.thread - b.thread)
    this.#watch.begin(workers.some(({ slot }) => slot.state === WorkerState.PARKED))
    const busy = workers.filter(({ slot }) => slot.state === WorkerState.BUSY)
    this.#placement.look(workers.filter(({ slot }) => slot.serving).map(({ slot }) => slot))
    this.#dismissIdle(workers, busy.length)
    const room = this.#max - workers.length
    if (room <= 0 || this.#failedStarts >= MAX_FAILED_STARTS) return
    this.#pressure = Math.max(0, this.#pressure + (needsMore(workers.length, busy) ? 1 : -1))
    if (this.#pressure < SAMPLES_OF_PRESSURE) return
    this.#pressure = 0
    for (const { slot } of workers) slot.dismiss(false)
    let starts = Math.min(room, Math.ceil(workers.length / 2))
    for (let thread = 1; thread <= this.#max && starts > 0; thread++) {
      if (this.#running.has(thread)) continue
      this.#startWorker(thread).catch(() => {})
      starts--
    }
  }

  /**
   * Now and then: dismisses those who would not have been needed, had twice as many been busy as were. They end one by
   * one, each after its next request; where there were none at all nobody is dismissed, for they would all go when there
   * is something to do again.
   */
  #dismissIdle(workers: readonly Running[], busy: number): void {
    this.#mostBusy = Math.max(this.#mostBusy, busy)
    const { patience = DEFAULT_PATIENCE_MS } = this.#options
    if (++this.#samples * SAMPLE_INTERVAL_MS < patience) return
    const served = sumTaken(new Int32Array(this.#slots))
    const keep = served === this.#servedBefore ? this.#max : Math.max(this.#initial, 2 * this.#mostBusy)
    for (const [i, { slot }] of workers.entries()) slot.dismiss(i >= keep)
    if (keep < workers.length) this.#parking.unpark()
    this.#samples = 0
    this.#mostBusy = 0
    this.#servedBefore = served
  }
}

/**
 * True where the workers are busy, and either sleep in their requests (the disk makes them wait, and could have more
 * requests under way) or leave cores idle. Two that read from the page cache keep two cores busy, and stay alone.
 */
function needsMore(workers: number, busy: readonly Running[]): boolean {
  if (busy.length < workers * BUSY_PART) return false
  if (workers * 2 < availableParallelism()) return true
  return busy.filter(({ slot }) => sleepsInRequest(slot)).length >= workers * SLEEPING_PART
}

/**
 * True where a worker sleeps in a request. Waiting for one is a sleep that signals end (S); waiting for a disk is none
 * (D). For a lock, or a file system that is slower than we look, it may be an S, but then the request is still the same.
 */
function sleepsInRequest(slot: WorkerSlot): boolean {
  const { taken } = slot
  const state = threadState(slot.systemThread)
  return state === 'D' || (state === 'S' && slot.state === WorkerState.BUSY && slot.taken === taken)
}

/** The state of a thread of this process, as in ps(1); undefined where it is not known. */
function threadState(systemThread: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/self/task/${systemThread}/stat`, 'latin1')
    // `pid (name) state …`, and the name may hold anything.
    return stat[stat.lastIndexOf(')') + 2]
  } catch {
    return undefined
  }
}
