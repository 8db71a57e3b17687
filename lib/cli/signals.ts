/** Ctrl-C and `kill` of a command that has something to clean up: it is asked to stop, and the exit code says why. */

import { constants } from 'node:os'
import { ENDING_SIGNALS } from '../util/signals.js'

/** The shell's: 128 and the number of the signal. */
const SIGNALLED = 128

export interface Interruption {
  readonly signal: AbortSignal
  /** From now on a signal asks the work to stop. Before, it ends the process at once, as there is nothing to clean up. */
  arm(): void
}

/**
 * Runs work that an AbortSignal stops.
 * @returns the work's exit code; where it was stopped, the shell's for the signal, without a word about it
 */
export async function interruptible(work: (interruption: Interruption) => Promise<number>): Promise<number> {
  const abort = new AbortController()
  let received: (typeof ENDING_SIGNALS)[number] | undefined
  const handlers = ENDING_SIGNALS.map((name) => {
    const handler = () => {
      received ??= name
      abort.abort()
    }
    return [name, handler] as const
  })
  const arm = () => {
    for (const [name, handler] of handlers) process.on(name, handler)
  }
  try {
    return await work({ signal: abort.signal, arm })
  } catch (error) {
    if (received === undefined) throw error
    return SIGNALLED + constants.signals[received]
  } finally {
    for (const [name, handler] of handlers) process.off(name, handler)
  }
}
