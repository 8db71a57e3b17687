/** Where the command line writes to, so that tests and other programs can run it without a process of its own. */

import { printable } from '../util/errors.js'
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
  /** Asks the user for a passphrase; undefined where there is no terminal to do that. */
  readonly askSecret?: ((prompt: string) => Uint8Array | undefined) | undefined
}

const printableLines = (text: string): string => text.split('\n').map(printable).join('\n')

/** The streams of this process. A reader that goes away (`vdiskfs map … | head`) ends the process quietly. */
export function processIo(): Io {
  const quiet = (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    process.exit(0)
  }
  process.stdout.on('error', quiet)
  process.stderr.on('error', quiet)
  return {
    // Names in images are strangers' texts.
    out: (text) => void process.stdout.write(printableLines(text)),
    err: (text) => void process.stderr.write(text),
    columns: process.stdout.isTTY ? process.stdout.columns : undefined,
    errColumns: process.stderr.isTTY ? process.stderr.columns : undefined,
    askSecret: process.stdin.isTTY ? askOnTerminal : undefined,
  }
}
