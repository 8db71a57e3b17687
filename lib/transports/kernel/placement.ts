/**
 * Where the workers run. Left alone, the kernel moves them about with each request that wakes somebody, and puts two of
 * them on one core, and their client too, while another core has nothing to do: they make a tenth fewer small requests
 * then. So where many short ones wait for all workers, each gets cores of its own; as soon as that is no longer so, all
 * may run anywhere again.
 *
 * Only where there are few cores for so many workers: with more of them nobody is in another's way.
 */

import debug from 'debug'
import { coresOf, setCores } from '../../native/scheduling.js'

const trace = debug('vdiskfs:transport')

/** What was asked of one worker since it began to serve, as counts that only grow, modulo 2^32. */
export interface PlacedWorker {
  /** The kernel's id of its thread; 0: not known. */
  readonly systemThread: number
  /** Requests that it took. */
  readonly taken: number
  /** Those of them that had been waiting for it. */
  readonly waiting: number
}

/** The scheduler, for tests to take its place; 0 is the thread that asks. Both throw where a thread is not there any more. */
export interface PlacementMeans {
  readonly coresOf: (thread: number) => readonly number[]
  readonly setCores: (thread: number, cores: readonly number[]) => void
}

/** What each worker took between two looks, 50 ms, where requests are short. */
const MANY = 250
/** So many more looks must have been for giving them cores of their own than against it; and of no more account are. */
const ENOUGH = 3
const MOST = 6

/** The thread that asks, which is never given cores of its own: what it may use, all may. */
const MAIN = 0

interface Seen {
  readonly taken: number
  readonly waiting: number
}

export class Placement {
  readonly #means: PlacementMeans
  /** The cores of their own, by thread. */
  readonly #places = new Map<number, readonly number[]>()
  #seen = new Map<number, Seen>()
  #score = 0
  #refused = false

  constructor(means: PlacementMeans = { coresOf, setCores }) {
    this.#means = means
  }

  /** Looks at all workers that serve, now and then. Never throws. */
  look(workers: readonly PlacedWorker[]): void {
    if (this.#refused) return
    try {
      this.#look(workers)
    } catch (error) {
      trace('placing threads: %o', error)
      // One has just ended, or the system does not allow it.
      this.#refused = (error as NodeJS.ErrnoException).code !== 'ESRCH'
      this.#release()
    }
  }

  /** Says that a thread has ended: its number may be another's soon. */
  forget(systemThread: number): void {
    this.#places.delete(systemThread)
  }

  #look(workers: readonly PlacedWorker[]): void {
    const busy = this.#areBusy(workers)
    this.#score = busy ? Math.min(MOST, this.#score + 1) : Math.max(0, this.#score - 1)
    const { size } = this.#places
    const same = workers.length === size && workers.every(({ systemThread }) => this.#places.has(systemThread))
    if (size > 0 && (this.#score === 0 || !same)) this.#release()
    else if (size === 0 && busy && this.#score >= ENOUGH) this.#spread(workers)
  }

  /** True where all took many requests since the last look, and most had been waiting. */
  #areBusy(workers: readonly PlacedWorker[]): boolean {
    const before = this.#seen
    this.#seen = new Map(workers.map(({ systemThread, taken, waiting }) => [systemThread, { taken, waiting }]))
    return workers.every(({ systemThread, taken, waiting }) => {
      const seen = before.get(systemThread)
      if (systemThread === 0 || seen === undefined) return false
      const since = (taken - seen.taken) >>> 0
      return since >= MANY && (waiting - seen.waiting) >>> 0 >= since / 2
    })
  }

  /** Where somebody else has arranged where they run, it stays so. */
  #spread(workers: readonly PlacedWorker[]): void {
    const cores = this.#means.coresOf(MAIN)
    const { length } = workers
    if (length < 2 || length > cores.length || length * 2 <= cores.length) return
    if (workers.some(({ systemThread }) => !this.#runsOn(systemThread, cores))) return
    for (const [index, { systemThread }] of workers.entries()) {
      const own = cores.filter((_, i) => i % length === index)
      this.#places.set(systemThread, own)
      this.#means.setCores(systemThread, own)
      trace('thread %d runs on cores %o', systemThread, own)
    }
  }

  /** Who was given other cores meanwhile, by an administrator, keeps them. */
  #release(): void {
    const places = [...this.#places]
    this.#places.clear()
    this.#score = 0
    for (const [systemThread, own] of places) {
      try {
        const cores = this.#means.coresOf(MAIN)
        // On all cores it may be because its own were taken away, and would be given back one day.
        if (this.#runsOn(systemThread, own) || this.#runsOn(systemThread, cores))
          this.#means.setCores(systemThread, cores)
        trace('thread %d runs on any core', systemThread)
      } catch (error) {
        trace('thread %d: %o', systemThread, error)
      }
    }
  }

  #runsOn(systemThread: number, cores: readonly number[]): boolean {
    return `${this.#means.coresOf(systemThread)}` === `${cores}`
  }
}
