/** The one error class of the project: a code for programs, one line of text for people. */

/**
 * What went wrong, coarsely enough to decide on. `transports/errno.ts` maps each to an errno, `cli/` to an exit code.
 *
 * - `USAGE`: the caller asked for something that makes no sense (an option, a size, a range)
 * - `NOT_FOUND`, `EXISTS`, `ACCESS`: of a file or folder
 * - `FORMAT`: the file is not of the format that was asked for, or of none that is known
 * - `CORRUPT`: the file is of the format, and a field of it is wrong
 * - `UNSUPPORTED`: the file is right and uses something that this program cannot do
 * - `GATE`: an image names a file that it may not open
 * - `IN_USE`: somebody else holds the image, the mount point or the device
 * - `READ_ONLY`: a change of something that was opened read-only
 * - `RANGE`: beyond the end of the disk
 * - `NO_SPACE`: the host file system, or the format, has no more room
 * - `IO`: the host refused a read, a write or a sync
 * - `INTERNAL`: a fault of this program
 */
export type ErrorCode =
  | 'USAGE'
  | 'NOT_FOUND'
  | 'EXISTS'
  | 'ACCESS'
  | 'FORMAT'
  | 'CORRUPT'
  | 'UNSUPPORTED'
  | 'GATE'
  | 'IN_USE'
  | 'READ_ONLY'
  | 'RANGE'
  | 'NO_SPACE'
  | 'IO'
  | 'INTERNAL'

export interface ErrorDetails {
  /** The file that the error is about. Put in front of the message where the message does not name it. */
  path?: string | undefined
  /** Byte offset in that file. */
  offset?: number | undefined
  /** The host's errno name (`ENOSPC`), where a system call failed. */
  errno?: string | undefined
  cause?: unknown
}

/** Control characters, and those that change the direction of text: an image could play tricks with a terminal. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: those are what is looked for
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g

/** Nobody reads more; names in images can be as long as they like. */
const LONGEST = 5000

/** A name as one line that does nothing to a terminal: what is not printable, newlines too, becomes `\\u000a`. */
export function escaped(text: string): string {
  return text.replace(UNPRINTABLE, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** One line that does nothing to a terminal: what is not printable becomes `\u001b`. */
export function printable(text: string): string {
  const clean = escaped(text.slice(0, LONGEST + 1).replace(/\s*[\r\n]+\s*/g, ' '))
  return clean.length > LONGEST ? `${clean.slice(0, LONGEST)}…` : clean
}

/** Whether a message has a path in it as a word, and not as a part of other words, as `d` is in `directory`. */
function names(message: string, path: string): boolean {
  for (let at = message.indexOf(path); at >= 0; at = message.indexOf(path, at + 1)) {
    const [before, after] = [message[at - 1] ?? '', message.slice(at + path.length)]
    if (!/[\w./-]/.test(before) && !/^(\w|[./-]\w)/.test(after)) return true
  }
  return false
}

/** An error whose message is one line, made for the user: it names the file, what was found and what was expected. */
export class VdiskError extends Error {
  override readonly name = 'VdiskError'
  readonly code: ErrorCode
  readonly path: string | undefined
  readonly offset: number | undefined
  readonly errno: string | undefined

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    const { path, offset, errno, cause } = details
    super(printable(path === undefined || names(message, path) ? message : `${path}: ${message}`), { cause })
    this.code = code
    this.path = path
    this.offset = offset
    this.errno = errno
  }
}

const CODE_OF_ERRNO: Record<string, ErrorCode> = {
  ENOENT: 'NOT_FOUND',
  ENOTDIR: 'NOT_FOUND',
  EEXIST: 'EXISTS',
  EACCES: 'ACCESS',
  EPERM: 'ACCESS',
  EROFS: 'READ_ONLY',
  ENOSPC: 'NO_SPACE',
  EDQUOT: 'NO_SPACE',
  EFBIG: 'NO_SPACE',
  EBUSY: 'IN_USE',
  ETXTBSY: 'IN_USE',
}

const TEXT_OF_ERRNO: Record<string, string> = {
  ENOENT: 'no such file or directory',
  ENOTDIR: 'not a directory',
  EISDIR: 'is a directory',
  EEXIST: 'exists already',
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EROFS: 'read-only file system',
  ENOSPC: 'no space left on the device',
  EBUSY: 'in use: it is mounted, or another program has it for itself',
  ETXTBSY: 'it is a program that is running',
  EIO: 'input/output error',
}

/** Turns whatever a Node or native call threw into a VdiskError about `path`; a VdiskError is returned as it is. */
export function fromSystem(error: unknown, path: string, doing: string, offset?: number): VdiskError {
  if (error instanceof VdiskError) return error
  const errno = (error as NodeJS.ErrnoException | undefined)?.code
  const code = (errno && CODE_OF_ERRNO[errno]) || 'IO'
  const text = (errno && TEXT_OF_ERRNO[errno]) || errno || String(error)
  const where = offset === undefined ? '' : ` at byte ${offset}`
  return new VdiskError(code, `cannot ${doing} ${path}${where}: ${text}`, { path, offset, errno, cause: error })
}
