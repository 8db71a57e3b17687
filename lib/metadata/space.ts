/**
 * Host space of the top layer that may be used again, shared by all threads; a layer of several files has one list, of
 * which each file sees its own part. What is freed waits for the commit that
 * removes its last reference and until no thread can still be on it; then it is punched, so that it reads as zeros, and
 * can be taken.
 *
 * The list is bounded. What does not fit is forgotten: leaked, until somebody looks for it again.
 */

import type { FileRef } from '../formats/driver.js'
import { makeTrace } from '../util/trace.js'
import type { RwLock } from './lock.js'
import { Control, type SharedViews } from './shared.js'

const trace = makeTrace('space')

export class SpaceList {
  readonly #v: SharedViews
  readonly #lock: RwLock
  readonly #files: readonly FileRef[]
  readonly #file: number
  readonly #capacity: number
  /** What this thread discarded just now, offset and length by turns. */
  #discarded: number[] = []

  /** @param file the number of the file whose space this is about: what is freed and taken here is that file's. */
  constructor(views: SharedViews, lock: RwLock, files: readonly FileRef[], file: number) {
    this.#v = views
    this.#lock = lock
    this.#files = files
    this.#file = file
    this.#capacity = views.pendingOffset.length
  }

  /** The same list as another file of the layer sees it. */
  of(file: FileRef): SpaceList {
    return new SpaceList(this.#v, this.#lock, this.#files, file.index)
  }

  /** Frees a range of the file. Exclusive lock. */
  free(offset: number, length: number): void {
    const v = this.#v
    const n = v.control[Control.SPACE_PENDING]!
    if (n === this.#capacity) {
      v.control[Control.SPACE_FORGOTTEN] = 1
      return
    }
    v.pendingOffset[n] = offset
    v.pendingLength[n] = length
    v.pendingFile[n] = this.#file
    v.control[Control.SPACE_PENDING] = n + 1
    if (n > this.#capacity / 2) v.control[Control.COMMIT_WANTED] = 1
  }

  /**
   * Frees a range that may lose its content at once, because what referred to it reads as zeros now and may do so after
   * a crash as well. Exclusive lock, inside of an epoch; `punchDiscarded` follows.
   */
  discard(offset: number, length: number): void {
    this.free(offset, length)
    this.#discarded.push(offset, length)
  }

  /**
   * Gives the host space of what was discarded back without waiting for the commit: nobody can take it before this thread
   * leaves its epoch. No lock held.
   */
  punchDiscarded(): void {
    const ranges = this.#discarded
    if (ranges.length === 0) return
    this.#discarded = []
    for (let i = 0; i < ranges.length; i += 2) this.#punch(this.#file, ranges[i]!, ranges[i + 1]!)
  }

  /** Takes exactly `length` bytes, which read as zeros. @returns their offset, or -1. Exclusive lock. */
  take(length: number): number {
    const v = this.#v
    for (let i = v.control[Control.SPACE_READY]! - 1; i >= 0; i--) {
      const has = v.readyLength[i]!
      if (has < length || v.readyFile[i] !== this.#file) continue
      const offset = v.readyOffset[i]!
      if (has === length) this.#removeReady(i)
      else {
        v.readyOffset[i] = offset + length
        v.readyLength[i] = has - length
      }
      return offset
    }
    return -1
  }

  /** Takes a ready range that ends exactly at `end`. @returns its offset, or -1. Exclusive lock. */
  takeEndingAt(end: number): number {
    const v = this.#v
    for (let i = 0; i < v.control[Control.SPACE_READY]!; i++) {
      const offset = v.readyOffset[i]!
      if (offset + v.readyLength[i]! !== end || v.readyFile[i] !== this.#file) continue
      this.#removeReady(i)
      return offset
    }
    return -1
  }

  /** How many ranges are ready, of how many that can be remembered. */
  get crowd(): { readonly ready: number; readonly capacity: number } {
    return { ready: this.#v.control[Control.SPACE_READY]!, capacity: this.#capacity }
  }

  /** Up to so many of the newest ready ranges of the file, which stay where they are. Exclusive lock. */
  newest(count: number): { readonly offset: number; readonly length: number }[] {
    const v = this.#v
    const found: { offset: number; length: number }[] = []
    for (let i = v.control[Control.SPACE_READY]! - 1; i >= 0 && found.length < count; i--)
      if (v.readyFile[i] === this.#file) found.push({ offset: v.readyOffset[i]!, length: v.readyLength[i]! })
    return found
  }

  /** Takes the first bytes of the ready range that begins at `offset`. Exclusive lock. */
  takeAt(offset: number, length: number): void {
    const v = this.#v
    for (let i = v.control[Control.SPACE_READY]! - 1; i >= 0; i--) {
      if (v.readyOffset[i] !== offset || v.readyFile[i] !== this.#file) continue
      v.readyOffset[i] = offset + length
      v.readyLength[i] = v.readyLength[i]! - length
      if (v.readyLength[i] === 0) this.#removeReady(i)
      return
    }
  }

  /** Gives back what was taken just now and not used: it reads as zeros still. Exclusive lock. */
  putBack(offset: number, length: number): void {
    this.#addReady(this.#file, offset, length)
  }

  /** Adds space that nothing refers to, found by a scan: punches it and makes it takeable. No lock held. */
  add(offset: number, length: number): void {
    if (!this.#punch(this.#file, offset, length)) return
    this.#lock.acquireExclusive()
    this.#addReady(this.#file, offset, length)
    this.#lock.releaseExclusive()
  }

  /** Forgets what is ready, before it is looked for once more. No lock held. */
  forget(): void {
    this.#lock.acquireExclusive()
    this.#v.control[Control.SPACE_READY] = 0
    this.#lock.releaseExclusive()
  }

  /** Calls back for every range that was freed and not taken again, whatever it waits for. No lock held. */
  each(visit: (offset: number, length: number) => void): void {
    const v = this.#v
    this.#lock.acquireExclusive()
    try {
      for (let i = 0; i < v.control[Control.SPACE_PENDING]!; i++)
        if (v.pendingFile[i] === this.#file) visit(v.pendingOffset[i]!, v.pendingLength[i]!)
      for (let i = 0; i < v.control[Control.SPACE_READY]!; i++)
        if (v.readyFile[i] === this.#file) visit(v.readyOffset[i]!, v.readyLength[i]!)
    } finally {
      this.#lock.releaseExclusive()
    }
  }

  /** True where space was forgotten since the last `looked`, so that looking for it may pay. */
  get forgotten(): boolean {
    return this.#v.control[Control.SPACE_FORGOTTEN] !== 0
  }

  /** Says that all free space was looked for. */
  looked(): void {
    this.#v.control[Control.SPACE_FORGOTTEN] = 0
  }

  /** A commit takes what is pending now with it. Exclusive lock. */
  seal(): void {
    this.#v.control[Control.SPACE_SEALED] = this.#v.control[Control.SPACE_PENDING]!
  }

  get sealed(): boolean {
    return this.#v.control[Control.SPACE_SEALED] !== 0
  }

  /** The commit failed: what was sealed waits for the next. Only the committer calls it. */
  unseal(): void {
    this.#v.control[Control.SPACE_SEALED] = 0
  }

  /** The commit is durable and nobody is on the sealed space any more: punches it and makes it takeable. */
  settle(): void {
    const v = this.#v
    const sealed = v.control[Control.SPACE_SEALED]!
    // Entries below `sealed` are the committer's alone: others only append.
    const punched: boolean[] = []
    for (let i = 0; i < sealed; i++)
      punched.push(this.#punch(v.pendingFile[i]!, v.pendingOffset[i]!, v.pendingLength[i]!))
    this.#lock.acquireExclusive()
    for (let i = 0; i < sealed; i++)
      if (punched[i]) this.#addReady(v.pendingFile[i]!, v.pendingOffset[i]!, v.pendingLength[i]!)
    const pending = v.control[Control.SPACE_PENDING]!
    v.pendingOffset.copyWithin(0, sealed, pending)
    v.pendingLength.copyWithin(0, sealed, pending)
    v.pendingFile.copyWithin(0, sealed, pending)
    v.control[Control.SPACE_PENDING] = pending - sealed
    v.control[Control.SPACE_SEALED] = 0
    this.#lock.releaseExclusive()
  }

  /** False where the range could not be made zeros: it stays leaked rather than show old data. */
  #punch(file: number, offset: number, length: number): boolean {
    try {
      this.#files[file]!.storage.punch(offset, length)
      // The next barrier must cover it: what is put here counts on the zeros.
      Atomics.store(this.#v.unsynced, file, 1)
      if (trace.enabled) trace('freed %d bytes at %d of file %d', length, offset, file)
      return true
    } catch (error) {
      if (trace.enabled) trace(`cannot free ${length} bytes at ${offset}: ${error}`)
      return false
    }
  }

  #addReady(file: number, offset: number, length: number): void {
    const v = this.#v
    const n = v.control[Control.SPACE_READY]!
    if (n === this.#capacity) {
      v.control[Control.SPACE_FORGOTTEN] = 1
      return
    }
    v.readyOffset[n] = offset
    v.readyLength[n] = length
    v.readyFile[n] = file
    v.control[Control.SPACE_READY] = n + 1
  }

  #removeReady(i: number): void {
    const v = this.#v
    const last = v.control[Control.SPACE_READY]! - 1
    v.readyOffset[i] = v.readyOffset[last]!
    v.readyLength[i] = v.readyLength[last]!
    v.readyFile[i] = v.readyFile[last]!
    v.control[Control.SPACE_READY] = last
  }
}
