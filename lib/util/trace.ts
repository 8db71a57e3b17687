/** Traces for people who look inside: `DEBUG=vdiskfs:*`. Check `enabled` first, so that it costs nothing when off. */

import debug from 'debug'

/** A trace of one part: `vdiskfs:NAME`. */
export function makeTrace(name: string): debug.Debugger {
  return debug(`vdiskfs:${name}`)
}
