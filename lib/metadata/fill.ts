/** Reads pages of metadata that are not cached yet, each by one thread; who wants the same page waits for that one. */

import type { FileRef } from '../formats/driver.js'
import { makeTrace } from '../util/trace.js'
import { NONE, type PageCache, sectorMask } from './cache.js'
import type { RwLock } from './lock.js'
import { Control, PAGE, type SharedViews } from './shared.js'

const trace = makeTrace('metadata')

/** How long a thread sleeps before it looks again whether another has filled the page that it wants. */
const FILL_NAP_MS = 100

/** Thrown where metadata is needed that is not cached: the caller lets go of the lock, calls `load`, tries again. */
export class PageMiss {
  file: FileRef | undefined
  page = 0
  /** The structure's bounds: only its sectors become valid. */
  start = 0
  end = 0
  /** It is to be changed: the host has to set room aside for it as well. */
  secure = false
}

export class Filler {
  readonly miss = new PageMiss()
  readonly #views: SharedViews
  readonly #thread: number
  readonly #lock: RwLock
  readonly #cache: PageCache
  readonly #scratch = new Uint8Array(PAGE)

  constructor(views: SharedViews, thread: number, lock: RwLock, cache: PageCache) {
    this.#views = views
    this.#thread = thread
    this.#lock = lock
    this.#cache = cache
  }

  /**
   * Reads the page that the last miss was about, and secures host room for it where it is to be changed: it may lie in a
   * hole, and a full host is to fail the change that wants it, not a later commit. No lock held. Other threads that want
   * the same page wait for the one that came first.
   * @throws IO where the file cannot be read, NO_SPACE
   */
  load(): void {
    this.#fill()
    if (this.miss.secure) this.#secure()
  }

  #secure(): void {
    const { file, page } = this.miss
    file!.storage.reserve(page * PAGE, PAGE)
    this.#lock.acquireExclusive()
    const slot = this.#cache.find(file!.index, page)
    if (slot !== NONE) this.#cache.secured[slot] = 1
    this.#lock.releaseExclusive()
  }

  #fill(): void {
    const { file, page, start, end } = this.miss
    const slot = this.#beginFill(file!, page, start, end)
    if (slot === NONE) return
    let filled = false
    try {
      const got = file!.storage.read(this.#scratch, 0, PAGE, page * PAGE)
      if (trace.enabled) trace('read page %d of file %d', page, file!.index)
      if (got < PAGE) this.#scratch.fill(0, got)
      filled = true
    } finally {
      this.#endFill(slot, filled)
    }
  }

  /** Claims a slot for filling; NONE where somebody else has filled it or is filling it (then it has waited). */
  #beginFill(file: FileRef, page: number, start: number, end: number): number {
    const { valid, fillMask, fillBusy, control, filling } = this.#views
    this.#lock.acquireExclusive()
    let event: number
    try {
      const slot = this.#cache.claim(file.index, page)
      const wanted = sectorMask(page, start, end) & ~valid[slot]!
      if (wanted === 0) return NONE
      // Busy also where all that the other reads was forgotten meanwhile: what it has read may be out of date.
      if (fillBusy[slot] === 0) {
        fillBusy[slot] = 1
        fillMask[slot] = wanted
        filling[this.#thread] = 1
        control[Control.MISSES] = control[Control.MISSES]! + 1
        return slot
      }
      event = Atomics.load(control, Control.FILL_EVENT)
    } finally {
      this.#lock.releaseExclusive()
    }
    Atomics.wait(control, Control.FILL_EVENT, event, FILL_NAP_MS)
    return NONE
  }

  #endFill(slot: number, filled: boolean): void {
    const { data, valid, fillMask, fillBusy, control, filling } = this.#views
    this.#lock.acquireExclusive(true)
    try {
      // What was made or forgotten meanwhile is out of the mask, or valid.
      const mask = fillMask[slot]! & ~valid[slot]!
      fillMask[slot] = 0
      fillBusy[slot] = 0
      if (filled) {
        if (mask === 0xff) data.set(this.#scratch, slot * PAGE)
        else
          for (let s = 0; s < 8; s++)
            if ((mask >> s) & 1) data.set(this.#scratch.subarray(512 * s, 512 * s + 512), slot * PAGE + 512 * s)
        valid[slot] = valid[slot]! | mask
      }
      filling[this.#thread] = 0
    } finally {
      this.#lock.releaseExclusive()
    }
    Atomics.add(control, Control.FILL_EVENT, 1)
    Atomics.notify(control, Control.FILL_EVENT)
  }
}
