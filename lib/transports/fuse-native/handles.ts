/**
 * The open files of a mount, and which truncation belongs to an O_TRUNC.
 *
 * Opened with O_TRUNC the file keeps its size, as a block device does. libfuse gets that as an open, followed by a
 * truncation to 0 by name, and does not tell who asks. So an open for writing that was not used yet has a truncation
 * to 0 to its credit; anything done with its handle ends that.
 */

import { constants } from 'node:fs'

const ACCESS_MODE = 3

/** True where the flags of an open(2) ask for writing. */
export const opensForWriting = (flags: number): boolean =>
  (flags & ACCESS_MODE) !== constants.O_RDONLY || (flags & constants.O_TRUNC) !== 0

export class Handles {
  /** The inode of each handle, from 1 on; 0 for those that are free. */
  readonly #inodes: number[] = [0]
  readonly #free: number[] = []
  /** Handles that were opened for writing and not used since. */
  readonly #fresh = new Set<number>()
  /** Handles that cannot write. */
  readonly #readers = new Set<number>()
  /** Handles whose writes are to be durable when they return. */
  readonly #synchronous = new Set<number>()

  open(inode: number, writing: boolean, synchronous = false): number {
    const handle = this.#free.pop() ?? this.#inodes.length
    this.#inodes[handle] = inode
    if (writing) this.#fresh.add(handle)
    else this.#readers.add(handle)
    if (synchronous) this.#synchronous.add(handle)
    return handle
  }

  close(handle: number): void {
    if (!this.#inodes[handle]) return
    for (const kind of [this.#fresh, this.#readers, this.#synchronous]) kind.delete(handle)
    this.#inodes[handle] = 0
    this.#free.push(handle)
  }

  /** The inode of an open file; 0 where there is none. It counts as used. */
  use(handle: number): number {
    if (this.#fresh.size > 0) this.#fresh.delete(handle)
    return this.#inodes[handle] ?? 0
  }

  /** True of a handle that was opened for reading only. */
  reads(handle: number): boolean {
    return this.#readers.has(handle)
  }

  /** True of a handle that was opened with O_SYNC or O_DSYNC. */
  synchronous(handle: number): boolean {
    return this.#synchronous.has(handle)
  }

  /** True where a truncation of `inode` to 0, by name, belongs to an open. */
  truncates(inode: number): boolean {
    for (const handle of this.#fresh) if (this.#inodes[handle] === inode) return this.#fresh.delete(handle)
    return false
  }

  get size(): number {
    return this.#inodes.length - 1 - this.#free.length
  }
}
