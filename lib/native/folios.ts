/** Folios: the pieces in which the kernel keeps a file in its cache. */

import { statfsSync } from 'node:fs'
import { kernelIsAtLeast } from './kernel.js'
import { declareLibc, syncFileRange } from './libc.js'

const mmap = declareLibc<[at: 0, length: number, protection: number, flags: number, fd: number, offset: number]>(
  'int64_t mmap(uintptr_t at, size_t length, int protection, int flags, int fd, int64_t offset)',
)
const munmap = declareLibc<[address: number, length: number]>('int munmap(uintptr_t address, size_t length)')
const mincore = declareLibc<[address: number, length: number, resident: Uint8Array]>(
  'int mincore(uintptr_t address, size_t length, void *resident)',
)
const madvise = declareLibc<[address: number, length: number, advice: number]>(
  'int madvise(uintptr_t address, size_t length, int advice)',
)

const PAGE = 4096
const PROT_READ = 1
const MAP_SHARED = 1
const MADV_COLD = 20
const MADV_POPULATE_READ = 22

const resident = new Uint8Array(1)

/**
 * Splits the folio that holds the byte at `offset` of a file into pages, where it is in the cache and nothing of it is dirty:
 * the kernel does that to a folio of which a program calls only a part cold. Promises nothing.
 */
export function splitFolio(fd: number, offset: number): void {
  try {
    const address = mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, offset - (offset % PAGE))
    try {
      mincore(address, PAGE, resident)
      if ((resident[0]! & 1) === 0) return
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

// sync_file_range(2): SYNC_FILE_RANGE_WAIT_BEFORE, WRITE and WAIT_AFTER
const WRITE_AND_WAIT = 7

/** Writes out what is dirty in a range, and waits for it. Promises nothing; a sync tells what went wrong. */
export function writeOut(fd: number, offset: number, length: number): void {
  try {
    syncFileRange(fd, offset, length, WRITE_AND_WAIT)
  } catch {
    // As a sync will say.
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
