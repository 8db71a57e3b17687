/**
 * System calls on descriptors that Node does not offer: allocating and punching, finding holes, byte-range locks.
 * All throw a SystemCallError and say nothing about paths; `storage/` puts them in the project's terms.
 */

import { endianness } from 'node:os'
import { kernelIsAtLeast } from './kernel.js'
import {
  addressOf,
  declareLibc,
  fallocate,
  fcntl,
  ioctl,
  lseek,
  type SystemCallError,
  syncFileRange,
  syncFileRangeAsync,
} from './libc.js'

const LITTLE_ENDIAN = endianness() === 'LE'

// fallocate(2)
const FALLOC_FL_KEEP_SIZE = 0x01
const FALLOC_FL_PUNCH_HOLE = 0x02
const FALLOC_FL_ZERO_RANGE = 0x10

// lseek(2)
const SEEK_END = 2
const SEEK_DATA = 3
const SEEK_HOLE = 4

/** Repeats a call that a signal interrupted. */
export function uninterrupted<T>(call: () => T): T {
  for (;;) {
    try {
      return call()
    } catch (error) {
      if ((error as SystemCallError).code !== 'EINTR') throw error
    }
  }
}

/** Frees the blocks of a range, which then reads as zeros; the size stays. */
export function punchHole(fd: number, offset: number, length: number): void {
  uninterrupted(() => fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length))
}

/** Makes a range read as zeros without writing them, where the file system can; its blocks and the size stay. */
export function zeroRange(fd: number, offset: number, length: number): void {
  uninterrupted(() => fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length))
}

/** Allocates the blocks of a range, also behind the end; contents and size stay. */
export function preallocate(fd: number, offset: number, length: number): void {
  uninterrupted(() => fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length))
}

/** The offset of the first data at or behind `offset`. ENXIO where there is none. Moves the descriptor's position. */
export function seekData(fd: number, offset: number): number {
  return lseek(fd, offset, SEEK_DATA)
}

/** The offset of the first hole at or behind `offset`; the end is one. ENXIO where `offset` is at or behind the end. */
export function seekHole(fd: number, offset: number): number {
  return lseek(fd, offset, SEEK_HOLE)
}

/** The size, of a block device too (where fstat says 0). Moves the descriptor's position. */
export function seekEnd(fd: number): number {
  return lseek(fd, 0, SEEK_END)
}

// sync_file_range(2)
const SYNC_FILE_RANGE_WRITE = 2

/** Begins to write dirty pages of a file to its disk: those of a range, or all. Promises nothing. */
export function beginWriteback(fd: number, offset = 0, length = 0): void {
  syncFileRange(fd, offset, length, SYNC_FILE_RANGE_WRITE)
}

/** The same in another thread; never fails. */
export async function beginWritebackAsync(fd: number): Promise<void> {
  await syncFileRangeAsync(fd, 0, 0, SYNC_FILE_RANGE_WRITE)
}

const pwritev2 = declareLibc<[fd: number, vector: BigUint64Array, count: 1, offset: number, flags: number]>(
  'int64_t pwritev2(int fd, void *vector, int count, int64_t offset, int flags)',
)
const RWF_DONTCACHE = 0x80

/** Linux has it since 6.14, and without what was wrong with it (folios made dirty again meanwhile) since 6.16. */
export const hasUncachedWrites = (): boolean => kernelIsAtLeast(6, 16)

/** struct iovec. */
const vector = new BigUint64Array(2)

/**
 * Writes as pwrite(2) does, sends it to the disk at once, and leaves nothing in the cache that was not there before: uncached
 * buffered I/O. It can fail in ways that pwrite(2) does not. @returns the bytes written
 */
export function writeUncached(fd: number, buffer: Uint8Array, at: number, length: number, offset: number): number {
  vector[0] = addressOf(buffer) + BigInt(at)
  vector[1] = BigInt(length)
  return pwritev2(fd, vector, 1, offset, RWF_DONTCACHE)
}

/** struct fiemap with one struct fiemap_extent. */
const Fiemap = { start: 0, length: 8, mapped: 20, count: 24, extentFlags: 32 + 40, SIZE: 32 + 56 } as const
const FS_IOC_FIEMAP = 0xc020660b
const FIEMAP_EXTENT_UNWRITTEN = 0x800
const fiemap = new DataView(new ArrayBuffer(Fiemap.SIZE))

/** True where the byte at an offset of a file was never written: a hole, or set aside only. */
export function isUnwritten(fd: number, offset: number): boolean {
  fiemap.setBigUint64(Fiemap.start, BigInt(offset), LITTLE_ENDIAN)
  fiemap.setBigUint64(Fiemap.length, 1n, LITTLE_ENDIAN)
  fiemap.setUint32(Fiemap.count, 1, LITTLE_ENDIAN)
  ioctl(fd, FS_IOC_FIEMAP, fiemap)
  if (fiemap.getUint32(Fiemap.mapped, LITTLE_ENDIAN) === 0) return true
  return (fiemap.getUint32(Fiemap.extentFlags, LITTLE_ENDIAN) & FIEMAP_EXTENT_UNWRITTEN) !== 0
}

// fcntl(2), "Open file description locks"
const F_OFD_GETLK = 36
const F_OFD_SETLK = 37
const F_RDLCK = 0
const F_WRLCK = 1
const F_UNLCK = 2

/** struct flock of 64-bit Linux: type i16, whence i16, start i64, length i64, pid i32 (0 for these locks). */
const FLOCK_BYTES = 32
const FLOCK_TYPE = 0
const FLOCK_START = 8
const FLOCK_LENGTH = 16

function lockCall(fd: number, command: number, type: number, byte: number): Buffer {
  const flock = Buffer.alloc(FLOCK_BYTES)
  flock.writeInt16LE(type, FLOCK_TYPE)
  flock.writeBigInt64LE(BigInt(byte), FLOCK_START)
  flock.writeBigInt64LE(1n, FLOCK_LENGTH)
  uninterrupted(() => fcntl(fd, command, flock))
  return flock
}

/**
 * Takes a shared lock on one byte for the descriptor's open file description, without waiting. The descriptor must be
 * open for reading. EAGAIN where somebody holds an exclusive one.
 */
export function lockByteShared(fd: number, byte: number): void {
  lockCall(fd, F_OFD_SETLK, F_RDLCK, byte)
}

/** Releases what this open file description holds on one byte. */
export function unlockByte(fd: number, byte: number): void {
  lockCall(fd, F_OFD_SETLK, F_UNLCK, byte)
}

/** True where another open file description, of this process or of another, holds a lock on the byte. */
export function isByteLocked(fd: number, byte: number): boolean {
  return lockCall(fd, F_OFD_GETLK, F_WRLCK, byte).readInt16LE(FLOCK_TYPE) !== F_UNLCK
}
