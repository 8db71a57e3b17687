/** Folios: the pieces in which the kernel keeps a file in its cache. */

import { statfsSync } from 'node:fs'
import { beginWriteback } from './files.js'
import { kernelIsAtLeast } from './kernel.js'
import { declareLibc } from './libc.js'
import { giveWay } from './scheduling.js'

const mmap = declareLibc<[at: 0, length: number, protection: number, flags: number, fd: number, offset: number]>(
  'int64_t mmap(uintptr_t at, size_t length, int protection, int flags, int fd, int64_t offset)',
)
const munmap = declareLibc<[address: number, length: number]>('int munmap(uintptr_t address, size_t length)')
const madvise = declareLibc<[address: number, length: number, advice: number]>(
  'int madvise(uintptr_t address, size_t length, int advice)',
)

const PAGE = 4096
const PROT_READ = 1
const MAP_SHARED = 1
const MADV_COLD = 20
const MADV_POPULATE_READ = 22

const cachestat = declareLibc<
  [number: typeof SYS_CACHESTAT, fd: number, range: BigUint64Array, stat: BigUint64Array, flags: 0]
>('int64_t syscall(int64_t number, int fd, void *range, void *stat, unsigned int flags)')

/** Linux 6.5; the same on all machines. The C library has no function for it. */
const SYS_CACHESTAT = 451
/** struct cachestat_range. */
const range = new BigUint64Array(2)
/** struct cachestat: pages that are there, dirty, being written out, and others. */
const stat = new BigUint64Array(5)

/** Counts the pages of a range that are in the cache: in `stat`. */
function count(fd: number, offset: number, length: number): void {
  range[0] = BigInt(offset)
  range[1] = BigInt(length)
  cachestat(SYS_CACHESTAT, fd, range, stat, 0)
}

/**
 * Splits the folio that holds the byte at `offset` of a file into pages, where it is in the cache and nothing of it is dirty:
 * the kernel does that to a folio of which a program calls only a part cold. Promises nothing.
 */
export function splitFolio(fd: number, offset: number): void {
  try {
    const page = offset - (offset % PAGE)
    count(fd, page, PAGE)
    if (stat[0] === 0n) return
    const address = mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, page)
    try {
      // Into the page table without touching it: behind the end of the file that would be a SIGBUS, and here it is EFAULT.
      madvise(address, PAGE, MADV_POPULATE_READ)
      madvise(address, PAGE, MADV_COLD)
    } finally {
      munmap(address, PAGE)
    }
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
      count(fd, offset, length)
      if ((stat[1] === 0n && stat[2] === 0n) || performance.now() > end) return
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
