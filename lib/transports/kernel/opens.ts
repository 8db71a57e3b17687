/** What opening `disk.raw` means: how the kernel shall cache it, and which truncation belongs to an O_TRUNC. */

import { constants } from 'node:fs'
import type { Negotiated } from './init.js'
import { OpenFlag } from './protocol.js'

const ACCESS_MODE = 3

/** True where the flags of an open(2) ask for writing, or for throwing the content away. */
export const opensForWriting = (flags: number): boolean =>
  (flags & ACCESS_MODE) !== constants.O_RDONLY || (flags & constants.O_TRUNC) !== 0

/** True where the flags of an open file, or of one write, ask for data to be durable when a write returns. */
export const isSynchronous = (flags: number): boolean => (flags & constants.O_DSYNC) !== 0

/** True where the flags of one write say that its program opened the file with O_DIRECT. */
export const isDirect = (flags: number): boolean => (flags & constants.O_DIRECT) !== 0

/**
 * How the kernel is to treat the pages of an open file.
 *
 * - `cached`: the page cache stands in front of it; direct I/O (O_DIRECT) goes past it, writes one at a time
 * - `direct`: every read and write comes here as it was made; writes of several programs run in parallel. Shared
 *   writable mappings (mmap) need Linux 6.6 (DIRECT_IO_ALLOW_MMAP), and are cached all the same
 */
export type CachePolicy = 'cached' | 'direct'

/** The flags that OPEN answers for a file that was opened with `flags`. */
export function openFlags(policy: CachePolicy, negotiated: Negotiated, flags: number): number {
  // A descriptor that cannot write has nothing to flush when it is closed.
  const reading = opensForWriting(flags) || negotiated.writeback ? 0 : OpenFlag.NOFLUSH
  if (policy === 'direct') return reading | OpenFlag.DIRECT_IO | OpenFlag.PARALLEL_DIRECT_WRITES
  return reading | OpenFlag.KEEP_CACHE
}

/** Power of two; as many threads that differ in their id's lowest bits are told apart. */
const THREADS = 4096

/**
 * Remembers who opened a file for writing and did nothing since, for all workers.
 *
 * O_TRUNC arrives as an OPEN, followed by a SETATTR of size 0 from the same thread, without a file handle. It is to
 * succeed and change nothing, as on a block device. `ftruncate(fd, 0)` carries a handle, and is refused. What is left
 * is `truncate(path, 0)`, which looks exactly like an O_TRUNC but has no OPEN in front of it, or something between them. A
 * thread that opens a file for writing, at most reads, and truncates it by name within the second for which the kernel
 * keeps the attributes cannot be told from an O_TRUNC.
 */
export class RecentOpens {
  readonly #threads: Int32Array

  static allocate(): SharedArrayBuffer {
    return new SharedArrayBuffer(THREADS * Int32Array.BYTES_PER_ELEMENT)
  }

  constructor(shared: SharedArrayBuffer) {
    this.#threads = new Int32Array(shared)
  }

  /** Notes an OPEN by the thread `pid`. */
  opened(pid: number, writing: boolean): void {
    const slot = pid % THREADS
    if (writing) Atomics.store(this.#threads, slot, pid)
    else Atomics.compareExchange(this.#threads, slot, pid, 0)
  }

  /** Notes that the thread `pid` did something else, so that the next truncation is none of its open. */
  used(pid: number): void {
    const slot = pid % THREADS
    // On the path of each WRITE, and hardly ever so.
    if (Atomics.load(this.#threads, slot) === pid) Atomics.compareExchange(this.#threads, slot, pid, 0)
  }

  /** True where a truncation to 0 by the thread `pid` belongs to its open. The kernel gives 0 for foreign pid namespaces. */
  truncates(pid: number): boolean {
    return pid === 0 || Atomics.compareExchange(this.#threads, pid % THREADS, pid, 0) === pid
  }
}
