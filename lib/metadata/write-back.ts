/**
 * Brings written data to the disk early, where syncs come often, so that the next one has less to wait for. How much is
 * written from sync to sync is counted in shared memory, for all threads together.
 */

import type { FileRef } from '../formats/driver.js'
import { Control, type SharedViews } from './shared.js'

/** Bytes to sectors. */
const SECTOR_SHIFT = 9

/** Where no more than this is written between commits, the next one is expected soon. Sectors: 64 MiB. */
const OFTEN = 2 ** 17
/** Then write-back begins whenever so much was written: 2 to this power sectors, 1 MiB. */
const EARLY_SHIFT = 11
/** And where another thread does it, so that nobody waits for that: 256 KiB. */
const DELEGATED_SHIFT = 9

/** What a thread wrote is counted when it is so much, 64 KiB: all threads count in one place, which costs them time. */
const COUNTED_TOGETHER = 2 ** 7

export class WriteBack {
  readonly #control: SharedViews['control']
  #uncounted = 0
  #start: () => void
  #shift = EARLY_SHIFT

  constructor(control: SharedViews['control'], writable: readonly FileRef[]) {
    this.#control = control
    this.#start = () => {
      for (const { storage } of writable) storage.startWriteBack?.()
    }
  }

  /** From now on `start` is called instead of beginning here: somebody else begins. */
  delegate(start: () => void): void {
    this.#start = start
    this.#shift = DELEGATED_SHIFT
  }

  /**
   * To be called after every write of guest data. Where syncs come often, the host is told early to bring the data to its
   * disk, so that the next sync has less to wait for.
   */
  written(bytes: number): void {
    const sectors = this.#uncounted + (bytes >> SECTOR_SHIFT)
    this.#uncounted = sectors < COUNTED_TOGETHER ? sectors : 0
    if (sectors < COUNTED_TOGETHER) return
    const c = this.#control
    const before = Atomics.add(c, Control.WRITTEN, sectors)
    if (c[Control.SYNCED_OFTEN] === 0 || before > OFTEN) return
    const shift = this.#shift
    if (before >> shift !== (before + sectors) >> shift) this.#start()
  }

  /** A commit begins. One before which nothing was counted tells nothing: nobody wrote, or little. */
  countSync(): void {
    const c = this.#control
    const written = Atomics.exchange(c, Control.WRITTEN, 0)
    if (written > 0) c[Control.SYNCED_OFTEN] = written <= OFTEN ? 1 : 0
  }
}
