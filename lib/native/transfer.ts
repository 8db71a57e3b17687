/**
 * read(2), write(2), pread(2) and pwrite(2), as `node:fs` has them, for where a request takes a few microseconds: each call
 * takes 0.15 µs less. All return the bytes that were moved, which may be fewer; of reading, 0 at the end.
 */

import { addressOf, bind, lastError } from './libc.js'

type Call = ReturnType<typeof bind>

// Bound one by one, and not by `declareLibc`: V8 calls at once what it has always found in one place.
let read: Call | undefined
let write: Call | undefined
let pread: Call | undefined
let pwrite: Call | undefined

/**
 * Addresses in buffers. The last buffer is remembered, and kept: callers use the same one again and again, and asking where
 * one is takes as long as a call.
 */
class Addresses {
  #buffer: Uint8Array | undefined
  #start = 0

  /** @throws RangeError where the buffer does not have those bytes */
  of(buffer: Uint8Array, at: number, length: number): number {
    if (
      !(
        Number.isSafeInteger(at) &&
        Number.isSafeInteger(length) &&
        at >= 0 &&
        length >= 0 &&
        at + length <= buffer.byteLength
      )
    )
      throw new RangeError(`bytes ${at} to ${at + length} of a buffer of ${buffer.byteLength}`)
    if (buffer !== this.#buffer) {
      this.#start = Number(addressOf(buffer))
      this.#buffer = buffer
    }
    return this.#start + at
  }
}

/** A fraction would be cut off, and what is no number taken for 0. @throws RangeError */
function checkOffset(offset: number): void {
  if (!Number.isSafeInteger(offset)) throw new RangeError(`an offset of ${offset}`)
}

/** What a call returned. @throws SystemCallError where that is a failure */
function moved(count: number, syscall: string): number {
  if (count < 0) throw lastError(syscall)
  return count
}

// One for each function: a worker uses two buffers by turns.
const readTo = new Addresses()
const writeFrom = new Addresses()
const preadTo = new Addresses()
const pwriteFrom = new Addresses()

/** Reads what comes next, at most as much as the buffer holds. */
export function readNext(fd: number, buffer: Uint8Array): number {
  read ??= bind('int64_t read(int fd, uintptr_t address, size_t length)')
  return moved(read(fd, readTo.of(buffer, 0, buffer.byteLength), buffer.byteLength), 'read')
}

/** Writes the first `length` bytes of a buffer. */
export function writeNext(fd: number, buffer: Uint8Array, length: number): number {
  write ??= bind('int64_t write(int fd, uintptr_t address, size_t length)')
  return moved(write(fd, writeFrom.of(buffer, 0, length), length), 'write')
}

/** Reads `length` bytes at `offset` into a buffer, from index `at` on. */
export function readAt(fd: number, buffer: Uint8Array, at: number, length: number, offset: number): number {
  pread ??= bind('int64_t pread(int fd, uintptr_t address, size_t length, int64_t offset)')
  checkOffset(offset)
  return moved(pread(fd, preadTo.of(buffer, at, length), length, offset), 'pread')
}

/** Writes `length` bytes of a buffer, from index `at` on, at `offset`. */
export function writeAt(fd: number, buffer: Uint8Array, at: number, length: number, offset: number): number {
  pwrite ??= bind('int64_t pwrite(int fd, uintptr_t address, size_t length, int64_t offset)')
  checkOffset(offset)
  return moved(pwrite(fd, pwriteFrom.of(buffer, at, length), length, offset), 'pwrite')
}
