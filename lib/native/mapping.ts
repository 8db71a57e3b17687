/** mmap(2) of a page of a file, for what the kernel can be asked of pages in a mapping only. */

import { declareLibc } from './libc.js'

const mmap = declareLibc<[at: 0, length: number, protection: number, flags: number, fd: number, offset: number]>(
  'int64_t mmap(uintptr_t at, size_t length, int protection, int flags, int fd, int64_t offset)',
)
const munmap = declareLibc<[address: number, length: number]>('int munmap(uintptr_t address, size_t length)')

/** madvise(2). Throws as system calls do. */
export const madvise = declareLibc<[address: number, length: number, advice: number]>(
  'int madvise(uintptr_t address, size_t length, int advice)',
)

export const PAGE = 4096
const PROT_READ = 1
const MAP_SHARED = 1
const MADV_POPULATE_READ = 22

/**
 * Calls `work` with the address at which the page of a file at `offset`, a multiple of PAGE, is mapped. The page is in the page
 * table then, and nobody touched it for that: behind the end of the file that would be a SIGBUS, and here it throws EFAULT.
 */
export function withMappedPage<T>(fd: number, offset: number, work: (address: number) => T): T {
  const address = mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, offset)
  try {
    madvise(address, PAGE, MADV_POPULATE_READ)
    return work(address)
  } finally {
    munmap(address, PAGE)
  }
}
