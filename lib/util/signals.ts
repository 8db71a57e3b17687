/** The signals that ask a program to end. */

/** Those of Ctrl-C, kill(1), and a terminal that goes away. */
export const ENDING_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/**
 * Holds back the signals that would end this process, while something is made that it must not leave behind.
 * @returns to be called when somebody else handles them, or nothing is left that matters: what came meanwhile, and only was
 * held back here, comes again then
 */
export function holdSignals(): () => void {
  let held: NodeJS.Signals | undefined
  const hold = (signal: NodeJS.Signals) => {
    if (process.listenerCount(signal) === 1) held ??= signal
  }
  for (const signal of ENDING_SIGNALS) process.on(signal, hold)
  return () => {
    for (const signal of ENDING_SIGNALS) process.off(signal, hold)
    if (held) process.kill(process.pid, held)
  }
}
