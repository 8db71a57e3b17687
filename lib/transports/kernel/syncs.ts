/**
 * Fsyncs that wait for a commit. A worker that commits serves nobody meanwhile; if every fsync took one, a few of them
 * would stop all reading. So one worker commits, and the others leave their fsync here, in memory that all share, and
 * go on: whoever commits answers them.
 *
 * An fsync that arrives while a commit is running may speak of writes that this commit does not see: it is covered by
 * the next one only. Therefore a commit takes what is parked before it begins.
 */

/** The shared record, in 32-bit words. The fsyncs follow: those parked, then those of the running commit. */
const LOCK = 0
const COMMITTER = 1
const PARKED = 2
const TAKEN = 3
const ENTRIES = 4
/**
 * Of an fsync: the two words of its unique, the errno that it is answered with where its caller gives it up, and when it
 * came, in microseconds modulo 2^32.
 */
const WORDS_PER_ENTRY = 4
const INTERRUPTED = 2
const CAME = 3

const FREE = 0
const LOCK_SLEEP_MS = 1
/** Lock and committer are thread + 1, so that thread 0, the main thread, can hold them too. */
const owner = (thread: number): number => thread + 1

/**
 * Called for each fsync that is done: the unique's words, an errno (0 where it succeeded), and how long it took, where
 * that is known.
 */
export type Answer = (first: number, second: number, errno: number, waitedMs?: number) => void

/** A clock that all threads share (each has a `performance.now` of its own). */
const microseconds = (): number => ((performance.timeOrigin + performance.now()) * 1000) | 0
const millisecondsSince = (came: number): number => ((microseconds() - came) >>> 0) / 1000

/** What `sync` returns for an fsync that was answered already, or will be. */
export const SYNC_ANSWERED = -1
export const NOT_PARKED = -1

/** One view per thread of the shared record. */
export class Syncs {
  readonly #words: Int32Array
  readonly #capacity: number
  readonly #thread: number

  static allocate(capacity = 1024): SharedArrayBuffer {
    return new SharedArrayBuffer((ENTRIES + 2 * WORDS_PER_ENTRY * capacity) * Int32Array.BYTES_PER_ELEMENT)
  }

  constructor(shared: SharedArrayBuffer, thread: number) {
    this.#words = new Int32Array(shared)
    this.#capacity = (this.#words.length - ENTRIES) / (2 * WORDS_PER_ENTRY)
    this.#thread = thread
  }

  /** True while somebody commits: what was written before may not be durable yet, even if nothing is left to flush. */
  get committing(): boolean {
    return Atomics.load(this.#words, COMMITTER) !== FREE
  }

  /**
   * Handles one fsync: commits by calling `flush` (which returns an errno or 0), as often as fsyncs are parked
   * meanwhile, and answers those; or, where another thread is committing, parks it;
   * `interrupted` is what `cancel` is to return for it then.
   * @returns the errno with which the caller has to answer this fsync, or SYNC_ANSWERED: it was, or will be.
   */
  sync(first: number, second: number, interrupted: number, flush: () => number, answer: Answer): number {
    const came = microseconds()
    if (!this.#enter(first, second, interrupted, came)) return SYNC_ANSWERED
    // Somebody else commits and there is no room to wait: share its work, but take nobody else's fsync.
    if (Atomics.load(this.#words, COMMITTER) !== owner(this.#thread)) return flush()
    const errno = this.#round(flush, answer)
    if (this.#leave()) return errno
    answer(first, second, errno, millisecondsSince(came))
    do this.#round(flush, answer)
    while (!this.#leave())
    return SYNC_ANSWERED
  }

  /** Takes back a parked fsync that its caller gives up. @returns the errno to answer it with, NOT_PARKED where it is not here. */
  cancel(first: number, second: number): number {
    this.#acquire()
    const words = this.#words
    const count = words[PARKED]!
    const index = this.#find(first, second, count)
    let errno = NOT_PARKED
    if (index >= 0) {
      const from = ENTRIES + (index + 1) * WORDS_PER_ENTRY
      errno = words[from - WORDS_PER_ENTRY + INTERRUPTED]!
      words.copyWithin(from - WORDS_PER_ENTRY, from, ENTRIES + count * WORDS_PER_ENTRY)
      words[PARKED] = count - 1
    }
    this.#release()
    return errno
  }

  /**
   * After the death of `thread`, on any other: if it was committing, gives every fsync that waited for it to `answer`,
   * with `errno`, and lets the next one commit anew.
   */
  abandon(thread: number, errno: number, answer: Answer): void {
    // It may have died inside of one of the functions above.
    Atomics.compareExchange(this.#words, LOCK, owner(thread), FREE)
    this.#acquire()
    const words = this.#words
    const waiting: [number, number][] = []
    if (words[COMMITTER] === owner(thread)) {
      for (let i = 0; i < words[TAKEN]!; i++) waiting.push(this.#unique(this.#capacity + i))
      for (let i = 0; i < words[PARKED]!; i++) waiting.push(this.#unique(i))
      words[TAKEN] = words[PARKED] = 0
      Atomics.store(words, COMMITTER, FREE)
    }
    this.#release()
    for (const [first, second] of waiting) answer(first, second, errno)
  }

  /** Becomes the committer, or parks. @returns false where it was parked. */
  #enter(first: number, second: number, interrupted: number, came: number): boolean {
    this.#acquire()
    const words = this.#words
    let parked = false
    if (words[COMMITTER] === FREE) Atomics.store(words, COMMITTER, owner(this.#thread))
    else if (words[PARKED]! < this.#capacity) {
      const at = ENTRIES + words[PARKED]!++ * WORDS_PER_ENTRY
      words[at] = first
      words[at + 1] = second
      words[at + INTERRUPTED] = interrupted
      words[at + CAME] = came
      parked = true
    }
    this.#release()
    return !parked
  }

  /** One commit: takes what is parked, flushes, answers. */
  #round(flush: () => number, answer: Answer): number {
    this.#acquire()
    const words = this.#words
    const count = words[PARKED]!
    const to = ENTRIES + this.#capacity * WORDS_PER_ENTRY
    words.copyWithin(to, ENTRIES, ENTRIES + count * WORDS_PER_ENTRY)
    words[TAKEN] = count
    words[PARKED] = 0
    this.#release()
    const errno = flush()
    for (let i = 0; i < count; i++) {
      const [first, second] = this.#unique(this.#capacity + i)
      answer(first, second, errno, millisecondsSince(words[to + i * WORDS_PER_ENTRY + CAME]!))
    }
    words[TAKEN] = 0
    return errno
  }

  /** Gives up committing, unless there is more to do. @returns whether it did. */
  #leave(): boolean {
    this.#acquire()
    const done = this.#words[PARKED] === 0
    if (done) Atomics.store(this.#words, COMMITTER, FREE)
    this.#release()
    return done
  }

  #unique(index: number): [first: number, second: number] {
    const at = ENTRIES + index * WORDS_PER_ENTRY
    return [this.#words[at]!, this.#words[at + 1]!]
  }

  #find(first: number, second: number, count: number): number {
    for (let i = 0; i < count; i++) {
      const at = ENTRIES + i * WORDS_PER_ENTRY
      if (this.#words[at] === (first | 0) && this.#words[at + 1] === (second | 0)) return i
    }
    return -1
  }

  /** The lock is held for some hundred nanoseconds at a time; a short sleep is for a holder that lost its core. */
  #acquire(): void {
    for (;;) {
      const holder = Atomics.compareExchange(this.#words, LOCK, FREE, owner(this.#thread))
      if (holder === FREE) return
      Atomics.wait(this.#words, LOCK, holder, LOCK_SLEEP_MS)
    }
  }

  #release(): void {
    Atomics.store(this.#words, LOCK, FREE)
    Atomics.notify(this.#words, LOCK, 1)
  }
}
