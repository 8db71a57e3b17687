/** What a failure is called towards the guest: the only table from errors to errno. */

import { constants } from 'node:os'
import debug from 'debug'
import { type ErrorCode, VdiskError } from '../util/errors.js'

const trace = debug('vdiskfs:transport')

const { errno } = constants

/**
 * A VdiskError's code as an errno. A disk answers what a block device would: a write behind its end is ENOSPC, and
 * whatever is wrong with the image itself is EIO, since a reader of sectors can do nothing with the difference.
 */
const ERRNO_OF_CODE: Readonly<Record<ErrorCode, number>> = {
  USAGE: errno.EINVAL,
  NOT_FOUND: errno.ENOENT,
  EXISTS: errno.EEXIST,
  ACCESS: errno.EACCES,
  FORMAT: errno.EIO,
  CORRUPT: errno.EIO,
  UNSUPPORTED: errno.EOPNOTSUPP,
  GATE: errno.EACCES,
  IN_USE: errno.EBUSY,
  READ_ONLY: errno.EROFS,
  RANGE: errno.ENOSPC,
  NO_SPACE: errno.ENOSPC,
  IO: errno.EIO,
  INTERNAL: errno.EIO,
}

/** The host's own errno, where it says more to the guest than the code does. */
const HOST_ERRNOS: Readonly<Record<string, number>> = {
  ENOSPC: errno.ENOSPC,
  EDQUOT: errno.EDQUOT,
  EROFS: errno.EROFS,
}

/** The codes that say nothing is wrong but the request; not worth a line of log each. */
const ORDINARY: ReadonlySet<ErrorCode> = new Set(['USAGE', 'NOT_FOUND', 'EXISTS', 'READ_ONLY', 'RANGE'])

/**
 * The errno (positive) for whatever was thrown. What is no VdiskError is a fault of this program: EIO, logged with its
 * stack.
 */
export function errnoOf(error: unknown): number {
  if (!(error instanceof VdiskError)) {
    trace('unexpected error, answered with EIO: %O', error)
    return errno.EIO
  }
  if (!ORDINARY.has(error.code)) trace('%s: %s', error.code, error.message)
  return (error.errno && HOST_ERRNOS[error.errno]) || (ERRNO_OF_CODE[error.code] ?? errno.EIO)
}
