/**
 * The C library, for system calls that Node has no function for, or too slow a one. koffi is loaded by the first call in a thread
 * (7 ms), not by importing this file, so that a thread that needs none of them pays nothing.
 *
 * The declarations are not variadic where C's are (fcntl, ioctl): on Linux, arguments of both kinds travel alike on
 * x86-64 and on arm64. Types are those of 64-bit Linux: `off_t` and `ssize_t` are `int64_t` (koffi has no `ssize_t`).
 */

import { createRequire } from 'node:module'
import { constants } from 'node:os'

type Koffi = typeof import('koffi')
type Library = ReturnType<Koffi['load']>

let koffi: Koffi | undefined
let library: Library | undefined

/** What C functions take here: numbers, text (`const char *`), buffers (`void *`), null. */
export type NativeArgument = number | bigint | string | ArrayBufferView | null

/** What a failed call throws; like the errors of `node:fs`, so that code for one works for the other. */
export interface SystemCallError extends Error {
  /** Name of the errno, such as `ENOSPC`. */
  readonly code: string
  /** The errno, negated as Node does it. */
  readonly errno: number
  readonly syscall: string
}

/** Two names of one number: the one that manuals use here. */
const PREFERRED_NAMES = ['EAGAIN', 'EOPNOTSUPP', 'EDEADLK']
const NAME_OF_ERRNO = new Map<number, string>()
for (const [name, number] of Object.entries(constants.errno)) {
  if (!NAME_OF_ERRNO.has(number) || PREFERRED_NAMES.includes(name)) NAME_OF_ERRNO.set(number, name)
}

/** The name of an errno (28 → `ENOSPC`); `errno 524` for those that no header names. */
export function errnoName(errno: number): string {
  return NAME_OF_ERRNO.get(errno) ?? `errno ${errno}`
}

/** The error that a system call that failed with `errno` (positive) throws. */
export function systemCallError(errno: number, syscall: string): SystemCallError {
  const code = errnoName(errno)
  return Object.assign(new Error(`${code}: ${syscall}`), { code, errno: -errno, syscall })
}

/** The error of a call that has just failed, and was the last one of anything: koffi's errno is that of the last call. */
export function lastError(syscall: string): SystemCallError {
  return systemCallError(koffi!.errno(), syscall)
}

/**
 * Declares a function of the C library, such as `int fallocate(int fd, int mode, int64_t offset, int64_t length)`.
 * Nothing is loaded or looked up before its first call.
 * @returns the function; a negative result throws a SystemCallError.
 */
export function declareLibc<Arguments extends NativeArgument[]>(prototype: string): (...args: Arguments) => number {
  const name = /(\w+)\s*\(/.exec(prototype)![1]!
  let call: ((...args: Arguments) => number | bigint) | undefined
  return (...args) => {
    call ??= bind(prototype)
    const result = call(...args)
    if (result < 0) throw lastError(name)
    return Number(result)
  }
}

/**
 * As `declareLibc`, for a function that may wait for long: it runs in one of libuv's threads, and this one goes on.
 * What it failed with is not told; the result is given as it is. Buffers are kept until it has returned.
 */
export function declareLibcAsync<Arguments extends NativeArgument[]>(
  prototype: string,
): (...args: Arguments) => Promise<number> {
  let call: ReturnType<Library['func']> | undefined
  return (...args) => {
    call ??= bind(prototype)
    const { async: start } = call
    return new Promise((resolve, reject) => {
      start(...args, (error: Error | null, result: number | bigint) => {
        if (error) reject(error)
        else resolve(Number(result))
      })
    })
  }
}

/** Where a buffer is, for C structs that hold pointers. It must be kept as long as C uses that. */
export function addressOf(buffer: ArrayBufferView): bigint {
  return loadKoffi().address(buffer)
}

function loadKoffi(): Koffi {
  koffi ??= createRequire(import.meta.url)('koffi') as Koffi
  return koffi
}

/** A function of the C library as it is: who calls it looks at its result, and at once at `lastError`. Loads koffi. */
export function bind(prototype: string): ReturnType<Library['func']> {
  const koffi = loadKoffi()
  // The program itself: its libc, whatever its file is called (glibc, musl).
  library ??= koffi.load(null)
  return library.func(prototype)
}

/** A shared library that may be there or not: binds its functions by their prototypes. Undefined: it is not there. */
export function openLibrary(file: string): ((prototype: string) => ReturnType<Library['func']>) | undefined {
  try {
    const library = loadKoffi().load(file)
    return (prototype) => library.func(prototype)
  } catch {
    return undefined
  }
}

export const fcntl = declareLibc<[fd: number, command: number, argument: ArrayBufferView | null]>(
  'int fcntl(int fd, int command, void *argument)',
)

export const fallocate = declareLibc<[fd: number, mode: number, offset: number, length: number]>(
  'int fallocate(int fd, int mode, int64_t offset, int64_t length)',
)

export const lseek = declareLibc<[fd: number, offset: number, whence: number]>(
  'int64_t lseek(int fd, int64_t offset, int whence)',
)

export const ioctl = declareLibc<[fd: number, request: number, argument: ArrayBufferView | null]>(
  'int ioctl(int fd, unsigned long request, void *argument)',
)

const SYNC_FILE_RANGE = 'int sync_file_range(int fd, int64_t offset, int64_t length, unsigned int flags)'
type SyncFileRange = [fd: number, offset: number, length: number, flags: number]
export const syncFileRange = declareLibc<SyncFileRange>(SYNC_FILE_RANGE)
export const syncFileRangeAsync = declareLibcAsync<SyncFileRange>(SYNC_FILE_RANGE)
