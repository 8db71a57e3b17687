/** Pipes and splice(2): moving bytes between descriptors inside the kernel, without copying them through the process. */

import { declareLibc } from './libc.js'

const F_SETPIPE_SZ = 1031
const O_CLOEXEC = 0o2000000

const pipe2 = declareLibc<[descriptors: Int32Array, flags: number]>('int pipe2(void *descriptors, int flags)')
const setPipeSize = declareLibc<[fd: number, command: number, size: number]>(
  'int fcntl(int fd, int command, int64_t size)',
)

/** Makes a pipe. @returns its ends, to be closed by the caller */
export function makePipe(): { readonly reader: number; readonly writer: number } {
  const ends = new Int32Array(2)
  pipe2(ends, O_CLOEXEC)
  return { reader: ends[0]!, writer: ends[1]! }
}

/** Asks for room for `size` bytes in a pipe. @returns the room it has then. @throws EPERM above the user's limit */
export function resizePipe(writer: number, size: number): number {
  return setPipeSize(writer, F_SETPIPE_SZ, size)
}

/**
 * splice(2): moves up to `length` bytes from one descriptor to another, one of them a pipe. `offset` is where to read
 * in a file, is moved on, and must be null for a pipe. @returns the bytes moved, 0 at the end of the file
 */
export const splice = declareLibc<
  [from: number, offset: BigInt64Array | null, to: number, toOffset: null, length: number, flags: number]
>('int64_t splice(int from, void *offset, int to, void *toOffset, size_t length, unsigned int flags)')
