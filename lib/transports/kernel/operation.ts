/** What a request's handler is. */

import type { Session } from './session.js'

/** What an operation returns where its request gets no reply now: it never does, or somebody else gives it. */
export const NO_REPLY = Number.MIN_SAFE_INTEGER
/** A reply of header alone. */
export const DONE = 0

/**
 * One kind of request. `run` puts the reply's body behind the header and returns its length in bytes, or a negative
 * errno, or NO_REPLY; it may throw, and is called only with requests of at least `size` bytes.
 */
export interface Operation {
  readonly name: string
  readonly size: number
  /** The kernel expects no reply, not even to a malformed one. */
  readonly silent?: boolean
  /** Offset and size are where READ and WRITE have them; said in traces. */
  readonly ranged?: boolean
  /**
   * Whoever asks for it waits for it, and the kernel never asks between an OPEN and the truncation of its O_TRUNC. A READ
   * may be read-ahead from before that OPEN, for which nobody waits.
   */
  readonly endsOpening?: boolean
  /** What it counts as in the statistics: a RequestKind, OTHER where nothing is said. */
  readonly kind?: number
  run(session: Session, length: number): number
}

export type OperationTable = readonly (readonly [opcode: number, operation: Operation])[]
