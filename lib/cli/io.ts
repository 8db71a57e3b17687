/** Where the command line writes to, so that tests and other programs can run it without a process of its own. */

import { fromSystem, printable } from '../util/errors.js'
import { askOnTerminal } from './terminal.js'

export interface Io {
  /** Facts: what was asked for. */
  out(text: string): void
  /** Errors, warnings, what is going on. */
  err(text: string): void
  /** Columns of the terminal that `out` goes to; undefined where it is not a terminal. */
  readonly columns: number | undefined
  /** The same of `err`. */
  readonly errColumns?: number | undefined
  /** Waits until what was printed has been taken. @throws IO where it was not, as on a full disk */
  readonly end?: () => Promise<void>
  /** Asks the user for a passphrase; undefined where there is no terminal to do that. */
  readonly askSecret?: ((prompt: string) => Uint8Array | undefined) | undefined
}

const printableLines = (text: string): string => text.split('\n').map(printable).join('\n')

/**
 * The streams of this process. What is done is done to its end, whoever listens: a reader that goes away (`vdiskfs map …
 * | head`) is nothing to speak of, nor is a standard error that takes nothing. Facts that could not be printed are.
 */
export function processIo(): Io {
  let failure: NodeJS.ErrnoException | undefined
  process.stdout.on('error', (error) => {
    failure ??= error
  })
  process.stderr.on('error', () => {})
  return {
    // Names in images are strangers' texts.
    out(text) {
      if (!failure) process.stdout.write(printableLines(text))
    },
    async end() {
      if (!failure) await new Promise((resolve) => process.stdout.write('', resolve))
      if (failure && failure.code !== 'EPIPE') throw fromSystem(failure, 'standard output', 'write')
    },
    err: (text) => void process.stderr.write(text),
    columns: process.stdout.isTTY ? process.stdout.columns : undefined,
    errColumns: process.stderr.isTTY ? process.stderr.columns : undefined,
    askSecret: process.stdin.isTTY ? askOnTerminal : undefined,
  }
}
