/**
 * Lingering: a worker that has answered looks for the next request for a moment before it sleeps in read(2). A client
 * that makes one request at a time sends its next one some microseconds after the last was answered. In that time a core
 * goes to sleep, a virtual one above all, and waking it takes longer than the request.
 *
 * It is done where requests did come so of late, and stops where they do not: an idle mount costs nothing. Where they
 * wait already there is nothing to look for. Whoever else wants the core has it at once.
 */

import { availableParallelism } from 'node:os'
import { makeReadyProbe } from '../../native/descriptors.js'
import { giveWay } from '../../native/scheduling.js'

/** How long a worker looks. Milliseconds, as all times here. */
const LINGER_MS = 0.05
/** What comes earlier had been waiting. */
const AT_ONCE_MS = 0.003
/** What is taken later came too late to be found by looking: that much is for being woken. */
const SOON_MS = 0.15

/** A request that came soon counts 1 for lingering. */
const MOST = 16
/** From here on a worker lingers. */
const ENOUGH = 8
/** And one that came late so much against it. */
const LATE = 4

/** What it does itself with, for tests to take its place. */
export interface LingerMeans {
  /** Milliseconds, of a clock with a better resolution than one microsecond. */
  readonly now: () => number
  /** True where there is a request, or an end. Must not throw. */
  readonly ready: () => boolean
  /** Lets another thread have this core, where one wants it. */
  readonly giveWay: () => void
}

/** One a worker. */
export class Linger {
  readonly #means: LingerMeans
  readonly #possible: boolean
  #score = 0

  /** @param cores on a single one there is nobody to send a request while a worker looks for it */
  constructor(means: LingerMeans, cores: number = availableParallelism()) {
    this.#means = means
    this.#possible = cores > 1
  }

  /** For the requests of a device. */
  static at(fd: number): Linger {
    return new Linger({ now: () => performance.now(), ready: makeReadyProbe(fd), giveWay })
  }

  /** True where `wait` would look. */
  get pays(): boolean {
    return this.#possible && this.#score >= ENOUGH
  }

  /** Before a request is taken: returns when there is one, or none came soon enough. Never takes it. */
  wait(): void {
    if (!this.pays) return
    const { now, ready, giveWay } = this.#means
    const end = now() + LINGER_MS
    while (!ready() && now() < end) giveWay()
  }

  /** A request was taken so many milliseconds after this worker had answered its last one. @returns whether it had waited */
  took(ms: number): boolean {
    const waited = ms < AT_ONCE_MS
    if (waited) this.#score = Math.max(0, this.#score - 1)
    else if (ms < SOON_MS) this.#score = Math.min(MOST, this.#score + 1)
    else this.#score = Math.max(0, this.#score - LATE)
    return waited
  }
}
