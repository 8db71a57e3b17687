/**
 * Where the workers run. Left alone, the kernel moves them about with each request that wakes somebody, and puts two of
 * them on one core, and their client too, while another core has nothing to do: they make a tenth fewer small requests
 * then. So where many short ones wait for all workers, each gets cores of its own; as soon as that is no longer so, all
 * may run anywhere again.
 *
 * Only where there are few cores for so many workers: with more of them nobody is in another's way.
 */

import { availableParallelism } from 'node:os'
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

/** The scheduler, for tests to take its place. Both throw where a thread is not there any more. */
export interface PlacementMeans {
  readonly coresOf: (thread: number) => readonly number[]
  readonly setCores: (thread: number, cores: readonly number[]) => void
}

/** What each worker took between two looks, 50 ms, where requests are short. */
const MANY = 250
/** So many more looks must have been for giving them cores of their own than against it; and of no more account are. */
const ENOUGH = 3
const MOST = 6

interface Seen {
  readonly taken: number
  readonly waiting: number
}

/** Cores that a worker was given, and those that it had. */
interface Place {
  readonly own: readonly number[]
  readonly before: readonly number[]
}

export class Placement {
  readonly #means: PlacementMeans
  readonly #cores: number
  readonly #places = new Map<number, Place>()
  #seen = new Map<number, Seen>()
  #score = 0

  /** @param cores how many this process may use */
  constructor(means: PlacementMeans = { coresOf, setCores }, cores: number = availableParallelism()) {
    this.#means = means
    this.#cores = cores
  }

  /** Looks at all workers that serve, now and then. Never throws. */
  look(workers: readonly PlacedWorker[]): void {
    const crowded = this.#isCrowded(workers)
    this.#score = crowded ? Math.min(MOST, this.#score + 1) : Math.max(0, this.#score - 1)
    const placed = this.#places.size > 0
    if (!placed && this.#score >= ENOUGH) this.#spread(workers)
    else if (placed && (this.#score === 0 || workers.some(({ systemThread }) => !this.#places.has(systemThread))))
      this.#release()
  }

  /** True where all took many requests since the last look, and most had been waiting. */
  #isCrowded(workers: readonly PlacedWorker[]): boolean {
    const before = this.#seen
    this.#seen = new Map(workers.map(({ systemThread, taken, waiting }) => [systemThread, { taken, waiting }]))
    const { length } = workers
    if (length < 2 || length > this.#cores || length * 2 <= this.#cores) return false
    return workers.every(({ systemThread, taken, waiting }) => {
      const seen = before.get(systemThread)
      if (systemThread === 0 || seen === undefined) return false
      const since = (taken - seen.taken) >>> 0
      return since >= MANY && (waiting - seen.waiting) >>> 0 >= since / 2
    })
  }

  #spread(workers: readonly PlacedWorker[]): void {
    for (const [index, { systemThread }] of workers.entries()) {
      this.#try(() => {
        const before = this.#means.coresOf(systemThread)
        const own = before.filter((_, i) => i % workers.length === index)
        if (own.length === 0) return
        this.#means.setCores(systemThread, own)
        this.#places.set(systemThread, { own, before })
        trace('thread %d runs on cores %o', systemThread, own)
      })
    }
  }

  /** Who was given other cores meanwhile, by an administrator, keeps them. */
  #release(): void {
    for (const [systemThread, { own, before }] of this.#places) {
      this.#try(() => {
        if (`${this.#means.coresOf(systemThread)}` !== `${own}`) return
        this.#means.setCores(systemThread, before)
        trace('thread %d runs on any core', systemThread)
      })
    }
    this.#places.clear()
    this.#score = 0
  }

  /** Where a thread has ended, or the system does not allow it, nothing is lost. */
  #try(change: () => void): void {
    try {
      change()
    } catch (error) {
      trace('placing a thread: %o', error)
    }
  }
}
