/** Folios: the pieces in which the kernel keeps a file in its cache. */

import { statfsSync } from 'node:fs'
import { beginWriteback } from './files.js'
import { kernelIsAtLeast } from './kernel.js'
import { declareLibc } from './libc.js'
import { madvise, PAGE, withMappedPage } from './mapping.js'
import { giveWay } from './scheduling.js'

const MADV_COLD = 20

const cachestat = declareLibc<
  [number: typeof SYS_CACHESTAT, fd: number, range: BigUint64Array, stat: BigUint64Array, flags: 0]
>('int64_t syscall(int64_t number, int fd, void *range, void *stat, unsigned int flags)')

/** Linux 6.5; the same on all machines. The C library has no function for it. */
const SYS_CACHESTAT = 451
/** struct cachestat_range. */
const range = new BigUint64Array(2)
/** struct cachestat: pages that are there, dirty, being written out, and others. */
const stat = new BigUint64Array(5)

/** The pages of a range of a file that are in the cache. */
export interface CachedPages {
  readonly present: number
  readonly dirty: number
  readonly writing: number
}

/** cachestat(2). */
export function cachedPages(fd: number, offset: number, length: number): CachedPages {
  range[0] = BigInt(offset)
  range[1] = BigInt(length)
  cachestat(SYS_CACHESTAT, fd, range, stat, 0)
  return { present: Number(stat[0]), dirty: Number(stat[1]), writing: Number(stat[2]) }
}

/**
 * Splits the folio that holds the byte at `offset` of a file into pages, where it is in the cache and nothing of it is dirty:
 * the kernel does that to a folio of which a program calls only a part cold. Promises nothing.
 */
export function splitFolio(fd: number, offset: number): void {
  try {
    const page = offset - (offset % PAGE)
    if (cachedPages(fd, page, PAGE).present === 0) return
    withMappedPage(fd, page, (address) => madvise(address, PAGE, MADV_COLD))
  } catch {
    // The write that comes next takes as long as before.
  }
}

/** How long `writeOut` waits. Milliseconds. */
const PATIENCE_MS = 2

/**
 * Writes out what is dirty in a range, and waits for it, but not for long. Promises nothing: a sync tells what went wrong. The
 * waits of sync_file_range(2) would take that word away from it, as an error is told once for each open file.
 */
export function writeOut(fd: number, offset: number, length: number): void {
  try {
    beginWriteback(fd, offset, length)
    const end = performance.now() + PATIENCE_MS
    for (;;) {
      const { dirty, writing } = cachedPages(fd, offset, length)
      if (dirty + writing === 0 || performance.now() > end) return
      giveWay()
    }
  } catch {
    // Whatever it is, it is not needed.
  }
}

const EXT4_SUPER_MAGIC = 0xef53

/** True where a file may be in folios that make small writes slow: ext4, since Linux 6.16. */
export function hasSlowFolios(fd: number): boolean {
  try {
    return kernelIsAtLeast(6, 16) && statfsSync(`/proc/self/fd/${fd}`).type === EXT4_SUPER_MAGIC
  } catch {
    return false
  }
}
