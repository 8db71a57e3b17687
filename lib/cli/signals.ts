/** Ctrl-C and `kill` of a command that has something to clean up: it is asked to stop, and the exit code says why. */

import { constants } from 'node:os'

/** The shell's: 128 and the number of the signal. */
const SIGNALLED = 128
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/**
 * Runs work that an AbortSignal stops.
 * @returns the work's exit code; where it was stopped, the shell's for the signal, without a word about it
 */
export async function interruptible(work: (signal: AbortSignal) => Promise<number>): Promise<number> {
  const abort = new AbortController()
  let received: (typeof SIGNALS)[number] | undefined
  const handlers = SIGNALS.map((name) => {
    const handler = () => {
      received ??= name
      abort.abort()
    }
    process.on(name, handler)
    return [name, handler] as const
  })
  try {
    return await work(abort.signal)
  } catch (error) {
    if (received === undefined) throw error
    return SIGNALLED + constants.signals[received]
  } finally {
    for (const [name, handler] of handlers) process.off(name, handler)
  }
}
