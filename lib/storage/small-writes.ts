/**
 * Small writes into large folios. ext4 keeps a file in its cache in folios of up to 2 MiB since Linux 6.16, and looks at
 * every block of one for each write into it: 30 µs and more where a page of its own takes 2. So a folio that keeps being
 * written to in small pieces is split into pages, once.
 *
 * Nothing here is ever needed: it changes neither what is in the file nor what is on the disk, and no more time is spent on
 * it than slow writes have taken before.
 */

import { splitFolio, writeOut } from '../native/folios.js'

/** Writes up to here are small: for larger ones the time that a folio takes does not matter. */
export const SMALL = 16 * 1024
/** No folio is larger, and all lie at multiples of their size. */
const LARGEST = 2 * 1024 * 1024
/** In these steps it is remembered where writes are fast: a power of two. */
const REGION = 512 * 1024
/** Regions that are told apart, a byte each; 32 GiB. Others share theirs. */
const REGIONS = 65536
/** A write into pages takes less. Milliseconds, as all times here. */
const SLOW_MS = 0.008
/** Who waits longer does not wait because of a folio. */
const MOST_LOST_MS = 0.1
/** What one split takes at least. */
const SPLIT_MS = 0.15
/** Slow writes save up to so much for splits. */
const MOST_SAVED_MS = 100
/** Where so many splits in a row made nothing faster, there are no more. */
const MOST_IN_VAIN = 32
/** After so many writes all is looked at anew: folios are made anew when a file is read again. */
const FORGET = 1 << 17

const State = {
  UNKNOWN: 0,
  FAST: 1,
  /** Slow, and not clean: it must be written out before it can be split. */
  WRITTEN: 2,
} as const

/** What it does itself with, for tests to take its place. Nothing of it throws. */
export interface FolioMeans {
  /** Milliseconds. */
  readonly now: () => number
  /** Splits the folio that holds the byte at `offset`, where it is clean. */
  readonly split: (offset: number) => void
  /** Writes out what is dirty in a range, and waits for it, but not for long. */
  readonly writeOut: (offset: number, length: number) => void
}

/** One object a thread and file. */
export class SmallWrites {
  readonly #means: FolioMeans
  readonly #states = new Uint8Array(REGIONS)
  #writes = 0
  #saved = 0
  #inVain = 0
  /** Of the write that is under way: where its region's state is, when it began, whether a folio was split for it. */
  #at = 0
  #began = 0
  #split = false

  constructor(means: FolioMeans) {
    this.#means = means
  }

  /** For a regular file that is open for writing. */
  static at(fd: number): SmallWrites {
    return new SmallWrites({
      now: () => performance.now(),
      split: (offset) => splitFolio(fd, offset),
      writeOut: (offset, length) => writeOut(fd, offset, length),
    })
  }

  /** Before a small write of data at `offset`. @returns true where `end` is to be called behind it. */
  begin(offset: number): boolean {
    if (++this.#writes >= FORGET) this.#forget()
    const region = Math.floor(offset / REGION)
    this.#at = region % REGIONS
    const state = this.#states[this.#at]!
    if (state === State.FAST) return false
    const { now } = this.#means
    this.#began = now()
    this.#split = false
    if (this.#saved < SPLIT_MS || this.#inVain >= MOST_IN_VAIN) return true
    if (state === State.WRITTEN) this.#means.writeOut(offset - (offset % LARGEST), LARGEST)
    this.#means.split(offset)
    this.#split = true
    const end = now()
    this.#saved -= end - this.#began
    this.#began = end
    return true
  }

  /** Behind the write that `begin` was called for. */
  end(): void {
    const took = this.#means.now() - this.#began
    const fast = took < SLOW_MS
    const states = this.#states
    if (this.#split) this.#inVain = fast ? 0 : this.#inVain + 1
    states[this.#at] = fast ? State.FAST : State.WRITTEN
    if (!fast) this.#saved = Math.min(MOST_SAVED_MS, this.#saved + Math.min(took, MOST_LOST_MS))
  }

  #forget(): void {
    this.#writes = 0
    this.#inVain = 0
    this.#states.fill(State.UNKNOWN)
  }
}
