/** Who may write which sector, and sectors that say who wrote them. */

export const SECTOR = 512

/** The sectors of a run that one thread owns: in the first half of the disk a part of a block, then several blocks. */
const FINE = 5
const COARSE = 384

/** The thread, 1 to `threads` − 1, that owns a sector. */
export function ownerOf(sector: number, sectors: number, threads: number): number {
  const run = sector < sectors / 2 ? FINE : COARSE
  return 1 + (Math.floor(sector / run) % (threads - 1))
}

const THREAD_BITS = 3
const SECTOR_BITS = 15

/** What every word of a sector is: thread, step and sector in one number, never 0. */
export function stamp(thread: number, step: number, sector: number): number {
  return (((step << SECTOR_BITS) | sector) << THREAD_BITS) | thread
}

/** What is wrong with a word of a sector; undefined for zero and for what somebody wrote there. */
export function stampFault(word: number, sector: number, progress: (thread: number) => number): string | undefined {
  if (word === 0) return undefined
  const thread = word & ((1 << THREAD_BITS) - 1)
  const of = (word >>> THREAD_BITS) & ((1 << SECTOR_BITS) - 1)
  const step = word >>> (THREAD_BITS + SECTOR_BITS)
  if (of !== sector) return `holds what was written to sector ${of}`
  return step <= progress(thread) ? undefined : `holds step ${step} of thread ${thread}, which is not there yet`
}
