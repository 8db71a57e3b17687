/**
 * Turns in writing to one file. File systems let only one thread at a time write to a file through their cache. Of two
 * that come at once their lock puts one to sleep, and waking it takes as long as a small write does; so that one waits
 * here, where it is there at once, and whoever wants its core has it.
 *
 * Nothing depends on having a turn: who waits in vain, since the other one waits for a disk or is gone, writes all the
 * same.
 */

import { giveWay } from '../native/scheduling.js'

/** How long a thread waits for its turn. */
const PATIENCE_MS = 0.1
/** After waiting in vain it does not wait so many times: what keeps the other one will keep it again. */
const WAITS_SKIPPED = 63

/** One object a thread. */
export class Turns {
  readonly #holders: Int32Array
  readonly #mine: number
  #skip = 0

  /** @param holders shared by all threads, a word a file: 0, or whose turn it is */
  constructor(holders: Int32Array, thread: number) {
    this.#holders = holders
    this.#mine = thread + 1
  }

  /** Before a write to the file of that number; `give` follows, also where it fails. */
  take(file: number): void {
    if (this.#tryTake(file)) return
    if (this.#skip > 0) {
      this.#skip--
      return
    }
    const end = performance.now() + PATIENCE_MS
    do {
      giveWay()
      if (Atomics.load(this.#holders, file) === 0 && this.#tryTake(file)) return
    } while (performance.now() < end)
    this.#skip = WAITS_SKIPPED
  }

  give(file: number): void {
    Atomics.compareExchange(this.#holders, file, this.#mine, 0)
  }

  /** Ends the turns of a thread that is gone. */
  died(thread: number): void {
    for (let file = 0; file < this.#holders.length; file++) Atomics.compareExchange(this.#holders, file, thread + 1, 0)
  }

  #tryTake(file: number): boolean {
    return Atomics.compareExchange(this.#holders, file, 0, this.#mine) === 0
  }
}
