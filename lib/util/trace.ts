/**
 * Traces for people who look inside: `DEBUG=vdiskfs:*`, or of some parts: `DEBUG=vdiskfs:fuse,vdiskfs:image`. What a
 * thread traces while it serves a request carries that request's number (FUSE's unique), whatever part it comes from, so
 * that a request can be followed through all of them.
 *
 * Check `enabled` first, so that nothing is put together when it is off; on the path of requests, once when an object is
 * made, and a boolean then.
 */

import { writeSync } from 'node:fs'
import { format } from 'node:util'
import debug from 'debug'

const PREFIX = 'vdiskfs:'
const SILENT = 0

let request = SILENT

/** A trace of one part: `vdiskfs:NAME`. */
export function makeTrace(name: string): debug.Debugger {
  return debug(PREFIX + name)
}

/** True where anything is traced: then it pays to say which request it is about. */
export const anyTrace = (): boolean => debug.names.length > 0

/** Says that this thread works on a request from now on; 0: on none. */
export function traceRequest(unique: number): void {
  request = unique
}

const STDERR = 2

/** From now on the traces of this thread are written at once, past its event loop. What cannot be written is lost. */
export function traceAtOnce(): void {
  debug.log = (...args: unknown[]) => {
    try {
      writeSync(STDERR, `${format(...args)}\n`)
    } catch {
      // No trace is worth a request.
    }
  }
}

const { formatArgs } = debug
debug.formatArgs = function (args) {
  if (request !== SILENT && this.namespace.startsWith(PREFIX)) args[0] = `#${request} ${args[0]}`
  formatArgs.call(this, args)
}
