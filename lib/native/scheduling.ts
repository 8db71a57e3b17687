/** What a thread says to the kernel's scheduler. */

import { declareLibc } from './libc.js'

const schedYield = declareLibc<[]>('int sched_yield()')

/** Lets another thread have this core, where one is waiting for it. */
export function giveWay(): void {
  schedYield()
}
