/** What is said to the kernel's scheduler. */

import { declareLibc } from './libc.js'

const schedYield = declareLibc<[]>('int sched_yield()')

/** Lets another thread have this core, where one is waiting for it. */
export function giveWay(): void {
  schedYield()
}

const getAffinity = declareLibc<[thread: number, bytes: number, mask: Uint8Array]>(
  'int sched_getaffinity(int thread, size_t bytes, void *mask)',
)
const setAffinity = declareLibc<[thread: number, bytes: number, mask: Uint8Array]>(
  'int sched_setaffinity(int thread, size_t bytes, const void *mask)',
)

/** Room for as many cores as the kernel can be built for. */
const MASK_BYTES = 1024

/** The numbers of the cores that a thread of the system may run on, in order. @throws ESRCH where there is no such thread */
export function coresOf(thread: number): number[] {
  const mask = new Uint8Array(MASK_BYTES)
  getAffinity(thread, MASK_BYTES, mask)
  const cores: number[] = []
  for (let core = 0; core < MASK_BYTES * 8; core++) if (mask[core >> 3]! & (1 << (core & 7))) cores.push(core)
  return cores
}

/** Has a thread of the system run on some cores only. @throws ESRCH; EINVAL where it may run on none of them */
export function setCores(thread: number, cores: readonly number[]): void {
  const mask = new Uint8Array(MASK_BYTES)
  for (const core of cores) mask[core >> 3]! |= 1 << (core & 7)
  setAffinity(thread, MASK_BYTES, mask)
}
