/** Asking for a passphrase on the terminal: synchronously, and without showing it. */

import { closeSync, openSync, readSync, writeSync } from 'node:fs'

const TERMINAL = '/dev/tty'
const CTRL_C = 3
const CTRL_D = 4
const CTRL_U = 21
const BACKSPACE = 8
const DELETE = 127
const ENDS = [10, 13, CTRL_D]
const MAX_LENGTH = 4096
/** Begins a byte of a UTF-8 character that is not its first. */
const isContinuation = (byte: number | undefined) => byte !== undefined && (byte & 0xc0) === 0x80

/** Takes one byte that was typed; a character goes away whole. */
function type(bytes: number[], byte: number): void {
  if (byte === CTRL_U) bytes.length = 0
  else if (byte === BACKSPACE || byte === DELETE) {
    while (isContinuation(bytes.at(-1))) bytes.pop()
    bytes.pop()
  } else if (bytes.length < MAX_LENGTH) bytes.push(byte)
}

/** @returns what was typed; undefined where that is nothing, or there is no terminal. Ctrl-C ends the program. */
export function askOnTerminal(prompt: string): Uint8Array | undefined {
  let terminal: number
  try {
    terminal = openSync(TERMINAL, 'r+')
  } catch {
    return undefined
  }
  const bytes: number[] = []
  process.stdin.setRawMode(true)
  try {
    writeSync(terminal, prompt)
    const one = new Uint8Array(1)
    while (readSync(terminal, one, 0, 1, null) === 1 && !ENDS.includes(one[0]!) && one[0] !== CTRL_C)
      type(bytes, one[0]!)
    writeSync(terminal, '\n')
    if (one[0] !== CTRL_C) return bytes.length > 0 ? Uint8Array.from(bytes) : undefined
  } finally {
    process.stdin.setRawMode(false)
    closeSync(terminal)
  }
  process.kill(process.pid, 'SIGINT')
  return undefined
}
