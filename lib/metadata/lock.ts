/**
 * Locks in shared memory, for the threads of one process: a reader-writer lock that prefers a waiting writer, a mutex,
 * per-thread epochs, and a table of guest ranges in work. All sleep with Atomics.wait, none is held over file I/O except
 * the mutexes, which serialise slow work (commits, growth) and never stop a reader.
 *
 * A thread that dies is declared dead by `died`: what it held for reading is released; what it held for changing
 * poisons the lock, because nobody can know how far the change came. Every later attempt then fails.
 */

import { VdiskError } from '../util/errors.js'

/** Reads yield the processor to sleepers after this many looks; an exclusive section is a few microseconds long. */
const SPINS = 200
/** Sleepers look again after this many milliseconds, in case the thread that should wake them died. */
const NAP_MS = 250

function poisoned(): VdiskError {
  return new VdiskError('INTERNAL', 'a change of metadata ended half way; the image must be unmounted and checked')
}

/**
 * Thread 0 waits no longer than this while nothing happens: it is the one that is told, by its event loop, that another
 * thread died, and must get back to it. What it wanted (a commit, by a timer) it can try again.
 */
const PATIENCE_MS = 5_000
const PATIENT_NAPS = PATIENCE_MS / NAP_MS

export class WaitedTooLong extends VdiskError {
  constructor() {
    super('IO', `waited ${PATIENCE_MS / 1000} seconds for another thread; tried again later`)
  }
}

/**
 * Sleeps until `words[index]` is no longer `seen`, or somebody wakes it, at most one nap.
 * @param naps those of one waiting that nobody ended
 * @returns the same, with this one
 * @throws WaitedTooLong where thread 0 has had enough of them
 */
export function nap(words: Int32Array, index: number, seen: number, thread: number, naps: number): number {
  if (thread === 0 && naps >= PATIENT_NAPS) throw new WaitedTooLong()
  return Atomics.wait(words, index, seen, NAP_MS) === 'timed-out' ? naps + 1 : naps
}

/** Words of a cache line: what each thread writes all the time is on a line of its own, which then stays with its core. */
const LINE = 16

/** Added to PENDING by poisoning: no fast path is taken any more. */
const POISON = 1 << 20

/** Who changes, or is about to: the thread's number + 1; 0: nobody. */
const RW_WRITER = 0
/** Threads that change or want to. */
const RW_PENDING = 1
const RW_EVENT = 2
const RW_SLEEPERS = 3
/** What each thread does with it, a line a thread. */
const RW_HOLDS = LINE

const HOLDS_NOTHING = 0
const HOLDS_SHARED = 1
const HOLDS_EXCLUSIVE = 2
const WAITS_EXCLUSIVE = 3

/**
 * Reader-writer lock. Not recursive. Reading is what nearly always happens: a reader writes to its own line only, and looks
 * at one that seldom changes. Who wants to change says so there, and then looks at all readers. Of the two that do this at
 * the same moment one sees the other, at least, as each writes before it looks; a reader that does steps back.
 */
export class RwLock {
  readonly #words: Int32Array
  readonly #thread: number
  readonly #hold: number

  /** Number of 32-bit words that it needs for so many threads. */
  static words(threads: number): number {
    return RW_HOLDS + LINE * threads
  }

  /** @param words exactly as many as it needs */
  constructor(words: Int32Array, thread: number) {
    this.#words = words
    this.#thread = thread
    this.#hold = RW_HOLDS + LINE * thread
  }

  acquireShared(): void {
    const w = this.#words
    for (let naps = 0; ; ) {
      Atomics.store(w, this.#hold, HOLDS_SHARED)
      if (Atomics.load(w, RW_PENDING) === 0) return
      // It wakes the others, who may have seen it; so it comes back only when there is nobody to step back for.
      this.releaseShared()
      while (Atomics.load(w, RW_PENDING) !== 0) naps = this.#sleep(() => Atomics.load(w, RW_PENDING) !== 0, naps)
    }
  }

  releaseShared(): void {
    const w = this.#words
    Atomics.store(w, this.#hold, HOLDS_NOTHING)
    if (Atomics.load(w, RW_PENDING) !== 0) this.#wake()
  }

  /**
   * @param cleaningUp what is to be done now is done now or never: where thread 0 loses its patience, nothing can be relied
   * on any more
   */
  acquireExclusive(cleaningUp = false): void {
    const w = this.#words
    Atomics.store(w, this.#hold, WAITS_EXCLUSIVE)
    Atomics.add(w, RW_PENDING, 1)
    try {
      let naps = 0
      while (Atomics.compareExchange(w, RW_WRITER, 0, this.#thread + 1) !== 0)
        naps = this.#sleep(() => Atomics.load(w, RW_WRITER) !== 0, naps)
      for (let hold = RW_HOLDS; hold < w.length; hold += LINE)
        while (Atomics.load(w, hold) === HOLDS_SHARED)
          naps = this.#sleep(() => Atomics.load(w, hold) === HOLDS_SHARED, naps)
      if (this.poisoned) throw poisoned()
      Atomics.store(w, this.#hold, HOLDS_EXCLUSIVE)
    } catch (error) {
      this.releaseExclusive()
      if (cleaningUp) this.poison()
      throw error
    }
  }

  /** Also of who waits for it, having given up. */
  releaseExclusive(): void {
    const w = this.#words
    Atomics.compareExchange(w, RW_WRITER, this.#thread + 1, 0)
    Atomics.sub(w, RW_PENDING, 1)
    Atomics.store(w, this.#hold, HOLDS_NOTHING)
    this.#wake()
  }

  /** Makes every present and later attempt fail. */
  poison(): void {
    Atomics.or(this.#words, RW_PENDING, POISON)
    this.#wake()
  }

  get poisoned(): boolean {
    return Atomics.load(this.#words, RW_PENDING) >= POISON
  }

  /** Releases what a dead thread held. @returns false where it held the lock for changing: poison it then. */
  died(thread: number): boolean {
    const w = this.#words
    const hold = Atomics.exchange(w, RW_HOLDS + LINE * thread, HOLDS_NOTHING)
    if (hold === HOLDS_EXCLUSIVE) return false
    if (hold === WAITS_EXCLUSIVE) {
      Atomics.compareExchange(w, RW_WRITER, thread + 1, 0)
      Atomics.sub(w, RW_PENDING, 1)
    }
    if (hold !== HOLDS_NOTHING) this.#wake()
    return true
  }

  #wake(): void {
    const w = this.#words
    Atomics.add(w, RW_EVENT, 1)
    if (Atomics.load(w, RW_SLEEPERS) !== 0) Atomics.notify(w, RW_EVENT)
  }

  /**
   * Waits while `blocked`. The order (count in, look at the event, look at the state, sleep) loses no waking.
   * @returns `naps`, and the one that nobody ended
   */
  #sleep(blocked: () => boolean, naps: number): number {
    const w = this.#words
    for (let i = 0; i < SPINS; i++) if (!blocked()) return naps
    Atomics.add(w, RW_SLEEPERS, 1)
    try {
      const event = Atomics.load(w, RW_EVENT)
      if (!blocked()) return naps
      if (this.poisoned) throw poisoned()
      return nap(w, RW_EVENT, event, this.#thread, naps)
    } finally {
      Atomics.sub(w, RW_SLEEPERS, 1)
    }
  }
}

/** Mutual exclusion for slow work: one word, 0 or the owner's thread number + 1. */
export class Mutex {
  readonly #words: Int32Array
  readonly #index: number
  readonly #owner: number
  readonly #poisoned: () => boolean

  /** @param poisonedBy the lock whose poisoning ends waiting */
  constructor(words: Int32Array, index: number, thread: number, poisonedBy: RwLock) {
    this.#words = words
    this.#index = index
    this.#owner = thread + 1
    this.#poisoned = () => poisonedBy.poisoned
  }

  acquire(): void {
    for (let naps = 0; ; ) {
      const seen = Atomics.compareExchange(this.#words, this.#index, 0, this.#owner)
      if (seen === 0) return
      if (this.#poisoned()) throw poisoned()
      naps = nap(this.#words, this.#index, seen, this.#owner - 1, naps)
    }
  }

  release(): void {
    Atomics.store(this.#words, this.#index, 0)
    Atomics.notify(this.#words, this.#index, 1)
  }

  heldBy(thread: number): boolean {
    return Atomics.load(this.#words, this.#index) === thread + 1
  }
}

/** Where a thread's epoch is, behind the line of the number that counts them: on a line of its own. */
const slotOf = (thread: number) => LINE * (1 + thread)

/**
 * Says which threads may still be using a mapping that they looked up. A thread enters before it looks up and leaves
 * when its I/O is done; host space that was freed may be used again when every thread that was inside has left.
 */
export class Epochs {
  readonly #words: Int32Array
  readonly #slot: number
  readonly #threads: number

  static words(threads: number): number {
    return slotOf(threads)
  }

  constructor(words: Int32Array, thread: number, threads: number) {
    this.#words = words
    this.#slot = slotOf(thread)
    this.#threads = threads
  }

  enter(): void {
    Atomics.store(this.#words, this.#slot, Atomics.load(this.#words, 0) + 1)
  }

  leave(): void {
    Atomics.store(this.#words, this.#slot, 0)
  }

  /**
   * Waits until every other thread has left the epoch that it is in now. Must be called from outside one.
   * @returns false where thread 0 lost its patience
   */
  settle(): boolean {
    const w = this.#words
    const now = Atomics.add(w, 0, 1) + 2
    let waits = 0
    for (let thread = 0; thread < this.#threads; thread++) {
      const slot = slotOf(thread)
      if (slot === this.#slot) continue
      for (let seen = Atomics.load(w, slot); seen !== 0 && seen < now; seen = Atomics.load(w, slot)) {
        if (this.#slot === slotOf(0) && waits++ >= PATIENCE_MS) return false
        Atomics.wait(w, slot, seen, 1)
      }
    }
    return true
  }

  died(thread: number): void {
    Atomics.store(this.#words, slotOf(thread), 0)
  }
}

/**
 * The guest ranges that threads are allocating in, or reading to write back: one range a thread. A later one that
 * overlaps waits.
 */
export class Ranges {
  readonly #words: Int32Array
  readonly #bounds: Float64Array
  readonly #thread: number
  readonly #threads: number
  readonly #mutex: Mutex

  /** Words: the mutex and a counter a thread, odd while its range is held. */
  static words(threads: number): number {
    return 1 + threads
  }

  static bounds(threads: number): number {
    return 2 * threads
  }

  constructor(words: Int32Array, bounds: Float64Array, thread: number, threads: number, lock: RwLock) {
    this.#words = words
    this.#bounds = bounds
    this.#thread = thread
    this.#threads = threads
    this.#mutex = new Mutex(words, 0, thread, lock)
  }

  /** Enters [start, end); waits until no other thread holds a part of it. Never called from inside an epoch. */
  acquire(start: number, end: number): void {
    for (let naps = 0; ; ) {
      this.#mutex.acquire()
      const other = this.#overlapping(start, end)
      if (other < 0) {
        this.#bounds[2 * this.#thread] = start
        this.#bounds[2 * this.#thread + 1] = end
        Atomics.add(this.#words, 1 + this.#thread, 1)
        this.#mutex.release()
        return
      }
      const seen = Atomics.load(this.#words, 1 + other)
      this.#mutex.release()
      naps = nap(this.#words, 1 + other, seen, this.#thread, naps)
    }
  }

  release(): void {
    Atomics.add(this.#words, 1 + this.#thread, 1)
    Atomics.notify(this.#words, 1 + this.#thread)
  }

  died(thread: number): void {
    if ((Atomics.load(this.#words, 1 + thread) & 1) === 1) Atomics.add(this.#words, 1 + thread, 1)
    if (this.#mutex.heldBy(thread)) this.#mutex.release()
    Atomics.notify(this.#words, 1 + thread)
  }

  #overlapping(start: number, end: number): number {
    for (let t = 0; t < this.#threads; t++) {
      if (t === this.#thread || (Atomics.load(this.#words, 1 + t) & 1) === 0) continue
      if (start < this.#bounds[2 * t + 1]! && this.#bounds[2 * t]! < end) return t
    }
    return -1
  }
}
