/**
 * What the main thread must know of each worker without asking it, in shared memory: whether it works, and on which
 * request. A worker that dies cannot answer that request any more; the main thread does it then.
 */

import { readlinkSync } from 'node:fs'

/** A slot is a cache line, so that workers do not disturb each other. */
const WORDS_PER_SLOT = 16
const STATE = 0
const FIRST = 1
const SECOND = 2
const SYSTEM_THREAD = 3
const TAKEN = 4
const DISMISSED = 5
const WAITING = 6

export const WorkerState = {
  /** Nobody is here, or somebody who has not begun to serve. */
  ABSENT: 0,
  IDLE: 1,
  BUSY: 2,
  /** It ended because the file system was unmounted. */
  ENDED: 3,
  /** It ended because it was dismissed. */
  LEFT: 4,
  /** It does nothing until it is needed: see `Parking`. */
  PARKED: 5,
} as const

/** The slot of one worker; `thread` counts from 1. */
export class WorkerSlot {
  readonly #words: Int32Array

  static allocate(threads: number): SharedArrayBuffer {
    return new SharedArrayBuffer(threads * WORDS_PER_SLOT * Int32Array.BYTES_PER_ELEMENT)
  }

  constructor(shared: SharedArrayBuffer, thread: number) {
    const offset = (thread - 1) * WORDS_PER_SLOT * Int32Array.BYTES_PER_ELEMENT
    this.#words = new Int32Array(shared, offset, WORDS_PER_SLOT)
  }

  /** By the pool, before a worker starts, and after it died. What was counted stays. */
  clear(): void {
    const words = this.#words
    for (let word = 0; word < WORDS_PER_SLOT; word++)
      if (word !== TAKEN && word !== WAITING) Atomics.store(words, word, 0)
  }

  /** By the worker, before its first request. */
  begin(): void {
    this.#words[SYSTEM_THREAD] = systemThreadId()
    this.#words[STATE] = WorkerState.IDLE
  }

  /** By the worker, for every request. Plain stores: the main thread looks at them at leisure, or after the worker's end. */
  take(first: number, second: number, waited = false): void {
    const words = this.#words
    words[FIRST] = first
    words[SECOND] = second
    words[TAKEN]!++
    if (waited) words[WAITING]!++
    words[STATE] = WorkerState.BUSY
  }

  /** By the worker, when that request needs nothing more of it. */
  release(): void {
    this.#words[STATE] = WorkerState.IDLE
  }

  /** By the worker, between two requests. */
  park(parked: boolean): void {
    Atomics.store(this.#words, STATE, parked ? WorkerState.PARKED : WorkerState.IDLE)
  }

  /** By the pool: the worker is to end after its next request; or it is not, after all. */
  dismiss(dismissed: boolean): void {
    Atomics.store(this.#words, DISMISSED, dismissed ? 1 : 0)
  }

  get dismissed(): boolean {
    return this.#words[DISMISSED] !== 0
  }

  /** By the worker, when it ends: `ENDED` or `LEFT`. */
  end(state: number): void {
    this.#words[STATE] = state
  }

  get state(): number {
    return Atomics.load(this.#words, STATE)
  }

  get uniqueFirst(): number {
    return Atomics.load(this.#words, FIRST)
  }

  get uniqueSecond(): number {
    return Atomics.load(this.#words, SECOND)
  }

  /** True where a worker is here that takes requests. */
  get serving(): boolean {
    const { state } = this
    return state === WorkerState.IDLE || state === WorkerState.BUSY
  }

  /** The kernel's id of the thread, 0 where it is not known. */
  get systemThread(): number {
    return Atomics.load(this.#words, SYSTEM_THREAD)
  }

  /** Requests taken, modulo 2^32. */
  get taken(): number {
    return Atomics.load(this.#words, TAKEN) >>> 0
  }

  /** Those of them that had been waiting when this worker came for them, likewise. */
  get waiting(): number {
    return Atomics.load(this.#words, WAITING) >>> 0
  }
}

/** Requests that all workers together have taken, modulo 2^32; `words` are all slots. */
export function sumTaken(words: Int32Array): number {
  let sum = 0
  for (let at = TAKEN; at < words.length; at += WORDS_PER_SLOT) sum += Atomics.load(words, at)
  return sum >>> 0
}

/** How many workers are at a request; `words` are all slots. */
export function countBusy(words: Int32Array): number {
  let count = 0
  for (let at = STATE; at < words.length; at += WORDS_PER_SLOT)
    if (Atomics.load(words, at) === WorkerState.BUSY) count++
  return count
}

function systemThreadId(): number {
  try {
    return Number(readlinkSync('/proc/thread-self').split('/').at(-1)) || 0
  } catch {
    return 0
  }
}
