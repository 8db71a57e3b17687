/**
 * A file or a block device of the host. Nothing here keeps state but the descriptor, so that any number of threads can
 * have a view of one descriptor.
 */

import { closeSync, fdatasyncSync, fstatSync, ftruncateSync } from 'node:fs'
import {
  beginWriteback,
  beginWritebackAsync,
  hasUncachedWrites,
  isUnwritten,
  preallocate,
  punchHole,
  seekData,
  seekEnd,
  seekHole,
  uninterrupted,
  writeUncached,
  zeroRange,
} from '../native/files.js'
import { hasSlowFolios } from '../native/folios.js'
import { readAt, writeAt } from '../native/transfer.js'
import { fromSystem, VdiskError } from '../util/errors.js'
import { KiB, MiB } from '../util/sizes.js'
import { SMALL, SmallWrites } from './small-writes.js'
import type { Storage, StorageHandle } from './storage.js'

const SECTOR = 512
/** What is written at once where zeros have to be written. */
const ZERO_CHUNK = MiB
/** The host, or its file system, cannot do it at all. */
const CANNOT = new Set(['EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'ENODEV'])
/** It cannot do it here: a block device that is asked for part of a sector, a file system's own limits. */
const CANNOT_HERE = 'EINVAL'

/** Smaller writes, between which syncs may come often, are faster through the cache. */
const PAST_LEAST = 256 * KiB

/** After so many overwrites in a row, only one in so many is looked at. */
const OFTEN_WRITTEN = 4
const LOOK_EVERY = 16

let zeros: Uint8Array | undefined

export class FileStorage implements Storage {
  readonly path: string
  readonly readOnly: boolean
  #fd: number
  readonly #owned: boolean
  readonly #device: boolean
  readonly #syncAtClose: boolean
  readonly #small: SmallWrites | undefined
  #canPunch = true
  #canZero = true
  #canWriteBack = true
  #canProbe = true
  /** Large writes in a row that were no new data, as far as it was looked. */
  #overwrites = 0
  #canPass = hasUncachedWrites()

  /**
   * @param owned false for the view of another thread: `close` then leaves the descriptor open.
   * @param syncAtClose see OpenOptions in file.ts
   */
  constructor(fd: number, path: string, readOnly: boolean, owned = true, syncAtClose = false) {
    this.#fd = fd
    this.path = path
    this.readOnly = readOnly
    this.#owned = owned
    this.#syncAtClose = syncAtClose
    this.#device = fstatSync(fd).isBlockDevice()
    this.#small = !readOnly && !this.#device && hasSlowFolios(fd) ? SmallWrites.at(fd) : undefined
  }

  get descriptor(): number {
    return this.#fd
  }

  get fixedSize(): boolean {
    return this.#device
  }

  read(buffer: Uint8Array, at: number, length: number, offset: number): number {
    let done = 0
    while (done < length) {
      try {
        const count = readAt(this.#fd, buffer, at + done, length - done, offset + done)
        if (count === 0) break
        done += count
      } catch (error) {
        this.#retryOrThrow(error, 'read', offset + done)
      }
    }
    return done
  }

  write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    if (this.readOnly) this.#refuse('write')
    let done = 0
    while (done < length) {
      try {
        const count = writeAt(this.#fd, buffer, at + done, length - done, offset + done)
        if (count === 0) throw new VdiskError('IO', `cannot write ${this.path}: the host took no bytes`)
        done += count
      } catch (error) {
        this.#retryOrThrow(error, 'write', offset + done)
      }
    }
  }

  writeData(buffer: Uint8Array, at: number, length: number, offset: number, past: boolean): void {
    if (past && length >= PAST_LEAST && !this.readOnly && this.#unwritten(offset)) {
      this.#writePast(buffer, at, length, offset)
      return
    }
    const timed = length <= SMALL && this.#small?.begin(offset)
    this.write(buffer, at, length, offset)
    if (timed) this.#small!.end()
  }

  #writePast(buffer: Uint8Array, at: number, length: number, offset: number): void {
    const done = this.#canPass ? this.#pass(buffer, at, length, offset) : 0
    if (done === length) return
    this.write(buffer, at + done, length - done, offset + done)
    this.startWriteBack(offset, length)
  }

  /** True where nothing was written yet. Where all was of late it is not looked at each time: that waits for other writers. */
  #unwritten(offset: number): boolean {
    if (!this.#canProbe) return false
    const count = this.#overwrites++
    if (count >= OFTEN_WRITTEN && count % LOOK_EVERY !== 0) return false
    try {
      const unwritten = isUnwritten(this.#fd, offset)
      if (unwritten) this.#overwrites = 0
      return unwritten
    } catch (error) {
      this.#canProbe = (error as NodeJS.ErrnoException).code === 'EINTR'
      return false
    }
  }

  /** Writes past the cache. @returns the bytes written; whatever keeps the others from it, writing them tells. */
  #pass(buffer: Uint8Array, at: number, length: number, offset: number): number {
    try {
      return writeUncached(this.#fd, buffer, at, length, offset)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      // Without a code: the C library has no such function.
      this.#canPass = code !== undefined && code !== CANNOT_HERE && !CANNOT.has(code)
      return 0
    }
  }

  size(): number {
    return this.#try('find the size of', () => (this.#device ? seekEnd(this.#fd) : fstatSync(this.#fd).size))
  }

  allocated(): number {
    if (this.#device) return this.size()
    return this.#try('stat', () => fstatSync(this.#fd).blocks * SECTOR)
  }

  truncate(size: number): void {
    if (this.readOnly) this.#refuse('truncate')
    if (this.#device) this.#truncateDevice(size)
    else this.#try('resize', () => ftruncateSync(this.#fd, size))
  }

  #truncateDevice(size: number): void {
    const found = this.size()
    if (size === found) return
    throw new VdiskError(
      size > found ? 'NO_SPACE' : 'UNSUPPORTED',
      `cannot resize ${this.path} to ${size} bytes: it is a block device of ${found} bytes`,
      { path: this.path },
    )
  }

  sync(): void {
    if (!this.#syncAtClose) this.#sync()
  }

  async writeBack(): Promise<void> {
    if (!this.readOnly) await beginWritebackAsync(this.#fd)
  }

  startWriteBack(offset = 0, length = 0): void {
    if (!this.#canWriteBack) return
    try {
      beginWriteback(this.#fd, offset, length)
    } catch {
      // Whatever it is, the sync that follows says so to somebody who can do something about it.
      this.#canWriteBack = false
    }
  }

  #sync(): void {
    this.#try('sync', () => fdatasyncSync(this.#fd))
  }

  punch(offset: number, length: number): void {
    if (this.readOnly) this.#refuse('punch a hole into')
    const count = this.#clip(offset, length)
    if (count <= 0) return
    if (this.#canPunch) {
      const failure = this.#attempt('punch a hole into', offset, () => punchHole(this.#fd, offset, count))
      if (failure === undefined) return
      this.#canPunch = failure === CANNOT_HERE
    }
    this.#zero(offset, count)
  }

  zero(offset: number, length: number): void {
    if (this.readOnly) this.#refuse('write zeros to')
    const count = this.#clip(offset, length)
    if (count > 0) this.#zero(offset, count)
  }

  #zero(offset: number, length: number): void {
    if (this.#canZero) {
      const failure = this.#attempt('write zeros to', offset, () => zeroRange(this.#fd, offset, length))
      if (failure === undefined) return
      this.#canZero = failure === CANNOT_HERE
    }
    zeros ??= new Uint8Array(ZERO_CHUNK)
    for (let done = 0; done < length; done += ZERO_CHUNK) {
      this.write(zeros, 0, Math.min(ZERO_CHUNK, length - done), offset + done)
    }
  }

  reserve(offset: number, length: number): void {
    if (this.readOnly) this.#refuse('reserve space in')
    if (length > 0 && !this.#device) {
      this.#attempt('reserve space in', offset, () => preallocate(this.#fd, offset, length))
    }
  }

  nextData(offset: number): number {
    return this.#seek(seekData, offset, Math.min(offset, this.size()))
  }

  nextHole(offset: number): number {
    return this.#seek(seekHole, offset, this.size())
  }

  handle(): StorageHandle {
    const { path, readOnly } = this
    return { kind: 'file', path, fd: this.#fd, readOnly, syncAtClose: this.#syncAtClose }
  }

  close(): void {
    const fd = this.#fd
    if (fd < 0) return
    try {
      if (this.#owned && this.#syncAtClose) this.#sync()
    } finally {
      this.#fd = -1
      this.#close(fd)
    }
  }

  #close(fd: number): void {
    // Not repeated on EINTR: on Linux the descriptor is gone then.
    try {
      if (this.#owned) closeSync(fd)
    } catch (error) {
      throw fromSystem(error, this.path, 'close')
    }
  }

  /** The part of `length` bytes at `offset` that is in front of the end; 0 or less where none is. */
  #clip(offset: number, length: number): number {
    return Math.min(length, this.size() - offset)
  }

  /** Tries what a host may be unable to do. @returns undefined where it worked, else the errno that says it cannot. */
  #attempt(doing: string, offset: number, call: () => void): string | undefined {
    try {
      call()
      return undefined
    } catch (error) {
      const errno = (error as NodeJS.ErrnoException).code ?? ''
      if (errno === CANNOT_HERE || CANNOT.has(errno)) return errno
      throw this.#error(error, doing, offset)
    }
  }

  #seek(seek: typeof seekData, offset: number, withoutHoles: number): number {
    try {
      return seek(this.#fd, offset)
    } catch (error) {
      const errno = (error as NodeJS.ErrnoException).code ?? ''
      if (errno === 'ENXIO') return this.size()
      if (errno === CANNOT_HERE || CANNOT.has(errno)) return withoutHoles
      throw this.#error(error, 'find the holes of', offset)
    }
  }

  #try<T>(doing: string, call: () => T): T {
    try {
      return uninterrupted(call)
    } catch (error) {
      throw this.#error(error, doing)
    }
  }

  /** Returns where the transfer is to be tried again. */
  #retryOrThrow(error: unknown, doing: string, offset: number): void {
    const errno = (error as NodeJS.ErrnoException).code
    if (errno === 'EINTR') return
    // Only odd file systems say so, the descriptor being O_NONBLOCK; a short sleep, to leave the processor to them.
    if (errno === 'EAGAIN') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1)
    else throw this.#error(error, doing, offset)
  }

  #error(error: unknown, doing: string, offset?: number): VdiskError {
    if (this.#fd < 0) return new VdiskError('INTERNAL', `cannot ${doing} ${this.path}: it was closed`)
    return fromSystem(error, this.path, doing, offset)
  }

  #refuse(doing: string): never {
    throw new VdiskError('READ_ONLY', `cannot ${doing} ${this.path}: it was opened read-only`, { path: this.path })
  }
}
