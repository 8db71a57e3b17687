/**
 * Parked workers. One client that writes and syncs in turn has one request at a time. With two workers it is always the
 * other one that the kernel wakes, on a core that went to sleep during the commit, and both have the same code to
 * compile: one worker alone is up to twice as fast. So when nobody took a request during several commits in a row, all
 * workers but the first park, until the main thread sees requests wait, or no more commits. Where it cannot look, because
 * it commits itself, those that are parked do.
 */

import { isReady } from '../../native/descriptors.js'
import { countBusy, sumTaken, WorkerSlot } from './slots.js'

/** The worker that is never parked. */
export const FIRST = 1

/** Commits in a row during which no request was taken. Below 0 after the workers were unparked. */
const ALONE = 0
/** Requests that had been taken when the last commit began. */
const TAKEN = 1
/** Counts up with each unparking, so that nobody parks after it for a reason from before. */
const UNPARKINGS = 2
/** What ALONE begins at after the next unparking, as a positive number; 0 stands for the least. */
const RELUCTANCE = 3
const WORDS = 4

const ENOUGH_COMMITS = 3
/** Nobody counts further. */
const MAX_COMMITS = 1 << 20
const LEAST_RELUCTANCE = 8
const MOST_RELUCTANCE = 1024
/** A parking was worth it when it lasted so many times the commits that were waited for it. */
const WORTH = 4
/** With more requests than these between two commits, commits are not what its client waits for. */
const REQUESTS_PER_COMMIT = 256

/** While workers are parked, a request waits about as long for one, if those that work are held up. */
const LOOK_INTERVAL_MS = 4
/** And as long where the main thread is held up too. */
const NAP_MS = 100

/** One view per thread of what all threads of a mount share. */
export class Parking {
  readonly #words: Int32Array
  readonly #slots: Int32Array
  readonly #first: WorkerSlot

  static allocate(): SharedArrayBuffer {
    return new SharedArrayBuffer(WORDS * Int32Array.BYTES_PER_ELEMENT)
  }

  /** `slots`: those of the workers. */
  constructor(shared: SharedArrayBuffer, slots: SharedArrayBuffer) {
    this.#words = new Int32Array(shared)
    this.#slots = new Int32Array(slots)
    this.#first = new WorkerSlot(slots, FIRST)
  }

  /** By a worker: runs a commit, and sees whether anything else is asked for, or being done, meanwhile. */
  during<T>(commit: () => T): T {
    const words = this.#words
    const taken = sumTaken(this.#slots)
    const before = Atomics.exchange(words, TAKEN, taken) >>> 0
    try {
      return commit()
    } finally {
      const nothingNew = sumTaken(this.#slots) === taken && (taken - before) >>> 0 <= REQUESTS_PER_COMMIT
      const commits = Atomics.load(words, ALONE)
      if (!nothingNew || countBusy(this.#slots) > 1) Atomics.store(words, ALONE, Math.min(0, commits))
      else if (commits < MAX_COMMITS) Atomics.add(words, ALONE, 1)
    }
  }

  /** True where one worker is enough, and there is one. */
  get oneIsEnough(): boolean {
    return Atomics.load(this.#words, ALONE) >= ENOUGH_COMMITS && this.#first.serving
  }

  /** By a worker that is not needed: returns when it is, or may be. `device`: where requests come from. */
  park(device: number): void {
    const unparkings = Atomics.load(this.#words, UNPARKINGS)
    const nap = (ms: number) => Atomics.wait(this.#words, UNPARKINGS, unparkings, ms) === 'timed-out'
    // The second look is for the next request of the only client, which is about to be taken.
    while (this.oneIsEnough && nap(NAP_MS))
      if (isReady(device) && nap(LOOK_INTERVAL_MS) && isReady(device)) this.unpark()
  }

  /** True where many requests were taken since the last commit. */
  get stale(): boolean {
    return (sumTaken(this.#slots) - Atomics.load(this.#words, TAKEN)) >>> 0 > REQUESTS_PER_COMMIT
  }

  /**
   * Lets all work again; nobody parks before some more commits. The shorter the parking was, the more of them: where all
   * are needed between the commits, they would come and go all the time.
   */
  unpark(): void {
    const words = this.#words
    const lasted = Atomics.load(words, ALONE) - ENOUGH_COMMITS
    let reluctance = Atomics.load(words, RELUCTANCE) || LEAST_RELUCTANCE
    Atomics.store(words, ALONE, -reluctance)
    Atomics.add(words, UNPARKINGS, 1)
    Atomics.notify(words, UNPARKINGS)
    if (lasted < 0) return
    reluctance = lasted < WORTH * reluctance ? Math.min(2 * reluctance, MOST_RELUCTANCE) : LEAST_RELUCTANCE
    Atomics.store(words, RELUCTANCE, reluctance)
  }
}

/** One look may find the next request of the only client, which is about to be taken. */
const LOOKS_IN_A_ROW = 3
/** Looks without anything happening after which looking stops. */
const IDLE_LOOKS = 250

/** The main thread's watch over those that are parked. */
export class ParkingWatch {
  readonly #parking: Parking
  readonly #slots: Int32Array
  readonly #device: number
  #timer: NodeJS.Timeout | undefined
  #taken = 0
  #waiting = 0
  #idle = 0

  /** `device`: where requests come from. */
  constructor(parking: Parking, slots: SharedArrayBuffer, device: number) {
    this.#parking = parking
    this.#slots = new Int32Array(slots)
    this.#device = device
  }

  /** Called now and then; looks more often by itself while workers are parked and requests come. */
  begin(parked: boolean): void {
    if (!parked) this.end()
    else if (this.#timer === undefined && (this.#moved() || isReady(this.#device))) {
      this.#idle = 0
      this.#timer = setInterval(() => this.#look(), LOOK_INTERVAL_MS).unref()
    }
  }

  end(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#waiting = 0
  }

  #look(): void {
    const moved = this.#moved()
    const waits = isReady(this.#device)
    this.#waiting = waits ? this.#waiting + 1 : 0
    this.#idle = moved || waits ? 0 : this.#idle + 1
    if ((waits && !moved) || this.#waiting >= LOOKS_IN_A_ROW || this.#parking.stale) {
      this.#parking.unpark()
      this.end()
    } else if (this.#idle >= IDLE_LOOKS) this.end()
  }

  /** True where requests were taken since the last look. */
  #moved(): boolean {
    const before = this.#taken
    this.#taken = sumTaken(this.#slots)
    return this.#taken !== before
  }
}
