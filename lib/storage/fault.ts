/**
 * A storage whose operations fail when they are told to, for tests of what is left behind. The orders and the counts
 * are in shared memory: they hold for all threads that have a view of it.
 */

import { constants } from 'node:os'
import { systemCallError } from '../native/libc.js'
import { fromSystem } from '../util/errors.js'
import type { Storage, StorageHandle } from './storage.js'

/** Operations that can fail; `seek` is nextData and nextHole. */
export const FAULT_KINDS = ['read', 'write', 'truncate', 'sync', 'punch', 'zero', 'reserve', 'seek'] as const
export type FaultKind = (typeof FAULT_KINDS)[number]

export interface Fault {
  /** The operations that are counted, and of which one fails; all of them where it is not given. */
  readonly kinds?: readonly FaultKind[]
  /** The first that fails, from 1 on, counted from now. */
  readonly nth: number
  readonly errno: 'EIO' | 'ENOSPC'
  /** True: every later one of these kinds fails too, until `heal`. */
  readonly persistent?: boolean
  /** Bytes that a failing write still writes first. */
  readonly shortWrite?: number
}

/** Words of the shared memory. */
const KIND_MASK = 0
const COUNTDOWN = 1
const ERRNO = 2
const PERSISTENT = 3
const SHORT_WRITE = 4
const FIRED = 5
const COUNTS = 6
const WORDS = COUNTS + FAULT_KINDS.length

export class FaultStorage implements Storage {
  readonly path: string
  readonly readOnly: boolean
  readonly #inner: Storage
  readonly #control: SharedArrayBuffer
  readonly #words: Int32Array

  /** @param control that of another view of the same storage. */
  constructor(inner: Storage, control: SharedArrayBuffer = new SharedArrayBuffer(4 * WORDS)) {
    this.path = inner.path
    this.readOnly = inner.readOnly
    this.#inner = inner
    this.#control = control
    this.#words = new Int32Array(control)
  }

  get fixedSize(): boolean {
    return this.#inner.fixedSize ?? false
  }

  /** Orders one fault; it replaces an earlier one. */
  fail(fault: Fault): void {
    this.heal()
    const w = this.#words
    Atomics.store(w, COUNTDOWN, fault.nth)
    Atomics.store(w, ERRNO, constants.errno[fault.errno])
    Atomics.store(w, PERSISTENT, fault.persistent ? 1 : 0)
    Atomics.store(w, SHORT_WRITE, fault.shortWrite ?? 0)
    Atomics.store(w, KIND_MASK, maskOf(fault.kinds ?? FAULT_KINDS))
  }

  /** Nothing fails any more. */
  heal(): void {
    Atomics.store(this.#words, KIND_MASK, 0)
  }

  /** Operations since the storage was made, of one kind or of all, those that failed included. */
  count(kind?: FaultKind): number {
    const counts = this.#words.subarray(COUNTS, COUNTS + FAULT_KINDS.length)
    if (kind !== undefined) return Atomics.load(counts, FAULT_KINDS.indexOf(kind))
    return counts.reduce((sum, count) => sum + count, 0)
  }

  /** Operations that were made to fail since the storage was made. */
  get fired(): number {
    return Atomics.load(this.#words, FIRED)
  }

  read(buffer: Uint8Array, at: number, length: number, offset: number): number {
    this.#check('read', 'read', offset)
    return this.#inner.read(buffer, at, length, offset)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#check('write', 'write', offset, () => {
      const part = Math.min(length, Atomics.load(this.#words, SHORT_WRITE))
      if (part > 0) this.#inner.write(buffer, at, part, offset)
    })
    this.#inner.write(buffer, at, length, offset)
  }

  size(): number {
    return this.#inner.size()
  }

  allocated(): number {
    return this.#inner.allocated()
  }

  truncate(size: number): void {
    this.#check('truncate', 'resize')
    this.#inner.truncate(size)
  }

  sync(): void {
    this.#check('sync', 'sync')
    this.#inner.sync()
  }

  punch(offset: number, length: number): void {
    this.#check('punch', 'punch a hole into', offset)
    this.#inner.punch(offset, length)
  }

  zero(offset: number, length: number): void {
    this.#check('zero', 'write zeros to', offset)
    this.#inner.zero(offset, length)
  }

  reserve(offset: number, length: number): void {
    this.#check('reserve', 'reserve space in', offset)
    this.#inner.reserve(offset, length)
  }

  nextData(offset: number): number {
    this.#check('seek', 'find the holes of', offset)
    return this.#inner.nextData(offset)
  }

  nextHole(offset: number): number {
    this.#check('seek', 'find the holes of', offset)
    return this.#inner.nextHole(offset)
  }

  handle(): StorageHandle {
    return { kind: 'fault', inner: this.#inner.handle(), control: this.#control }
  }

  close(): void {
    this.#inner.close()
  }

  #check(kind: FaultKind, doing: string, offset?: number, before?: () => void): void {
    const w = this.#words
    Atomics.add(w, COUNTS + FAULT_KINDS.indexOf(kind), 1)
    if ((Atomics.load(w, KIND_MASK) & maskOf([kind])) === 0) return
    const left = Atomics.sub(w, COUNTDOWN, 1)
    if (left > 1 || (left < 1 && Atomics.load(w, PERSISTENT) === 0)) return
    Atomics.add(w, FIRED, 1)
    before?.()
    throw fromSystem(systemCallError(Atomics.load(w, ERRNO), kind), this.path, doing, offset)
  }
}

function maskOf(kinds: readonly FaultKind[]): number {
  return kinds.reduce((mask, kind) => mask | (1 << FAULT_KINDS.indexOf(kind)), 0)
}
