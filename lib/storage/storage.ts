/** What the engine needs of a place that holds bytes: a file, memory, or one of these with faults injected. */

import type { ReplayIndex } from './replayed.js'

/** Structured-cloneable description from which another thread of this process makes its own view of a storage. */
export type StorageHandle =
  | {
      readonly kind: 'file'
      readonly path: string
      readonly fd: number
      readonly readOnly: boolean
      readonly syncAtClose: boolean
    }
  | { readonly kind: 'memory'; readonly path: string; readonly shared: SharedArrayBuffer; readonly readOnly: boolean }
  | { readonly kind: 'fault'; readonly inner: StorageHandle; readonly control: SharedArrayBuffer }
  | { readonly kind: 'replayed'; readonly inner: StorageHandle; readonly index: ReplayIndex }

/**
 * Bytes at offsets, synchronously. Offsets and lengths are bytes, safe integers, never negative.
 *
 * Every method throws a VdiskError that names `path` (`IO`, `NO_SPACE`, `READ_ONLY`); none leaves a short transfer
 * behind without saying so. A storage that was opened read-only throws `READ_ONLY` from every changing method.
 * Several threads may use views of one storage at once; single calls are not atomic against each other.
 */
export interface Storage {
  /** The path as messages show it. */
  readonly path: string
  readonly readOnly: boolean
  /** The file's descriptor, where there is one and its bytes are what `read` gives: for copying inside the kernel. */
  readonly descriptor?: number
  /** It can neither grow nor shrink: a block device. */
  readonly fixedSize?: boolean

  /**
   * Reads `length` bytes at `offset` into `buffer` from index `at` on. Repeats short reads and EINTR.
   * @returns the bytes read: `length`, or fewer where the storage ends before that (0 behind the end).
   */
  read(buffer: Uint8Array, at: number, length: number, offset: number): number

  /** Writes `length` bytes of `buffer` from index `at` on to `offset`. All or an error. Grows the storage if need be. */
  write(buffer: Uint8Array, at: number, length: number, offset: number): void

  /**
   * As `write`, for a guest's data: how the host's cache is best used for it is looked after.
   * @param past nobody is expected to read it soon. What is new in the file goes to the disk at once, and does not stay in
   * the cache, where the host can do that; nothing is promised about either.
   */
  writeData?(buffer: Uint8Array, at: number, length: number, offset: number, past: boolean): void

  /** Size in bytes. Of a block device: the device's. */
  size(): number

  /** Bytes that the host has allocated for it (`st_blocks` × 512); its size where the host cannot tell. */
  allocated(): number

  /** Makes it `size` bytes long; what is new reads as zeros. */
  truncate(size: number): void

  /** Makes all that was written durable (fdatasync, with the size). */
  sync(): void

  /**
   * Makes a range read as zeros and gives its space back to the host where the host can do that. Never changes the
   * size; a part behind the end is left out. Falls back to `zero`.
   */
  punch(offset: number, length: number): void

  /** Makes a range read as zeros and keeps its space; falls back to writing zeros. Never changes the size. */
  zero(offset: number, length: number): void

  /** Secures host space for a range, so that a later write of it cannot fail with NO_SPACE. Never changes what it
   * reads as, nor the size. Does nothing where the host cannot do that. */
  reserve(offset: number, length: number): void

  /** The offset of the first data at or behind `offset`; the size where there is none. */
  nextData(offset: number): number

  /** The offset of the first hole at or behind `offset`; the size where there is none (the end counts as one). */
  nextHole(offset: number): number

  /** Begins to bring what was written to the disk, so that a later sync takes less time. Resolves when it has begun. */
  writeBack?(): Promise<void>

  /** The same, for threads that wait for nothing: returns when it has begun. Promises nothing and throws nothing. */
  startWriteBack?(): void

  /** A description for other threads; see `attachStorage`. */
  handle(): StorageHandle

  /** Closes it, with its locks. A view made from a handle closes nothing. */
  close(): void
}
