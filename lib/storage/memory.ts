/** A storage in shared memory, for tests and for images that need no file. Several threads can share one. */

import { VdiskError } from '../util/errors.js'
import { GiB, MiB } from '../util/sizes.js'
import type { Storage, StorageHandle } from './storage.js'

/** Holes are found, and space is counted, in pages of so many bytes, as common file systems do it. */
const PAGE = 4096
const DEFAULT_MAX_SIZE = GiB
/** The largest shared buffer of Node 20 is 4 GiB; this leaves room for what is in front of the data. */
export const LARGEST_MEMORY = 4 * GiB - 2 * MiB

/**
 * The shared buffer: a header of two 64-bit words; one byte a page, not 0 where the page was written; the pages. It
 * grows and never shrinks, hence the size in the header. What is behind the size is zeros.
 */
const SIZE = 0
const MAX_SIZE = 1
const HEADER = 4096

/** What the compiler's library does not declare before ES2024. */
interface GrowableBuffer extends SharedArrayBuffer {
  readonly maxByteLength: number
  grow(length: number): void
}
type GrowableConstructor = new (length: number, options: { maxByteLength: number }) => GrowableBuffer

export interface MemoryOptions {
  /** As messages show it. */
  readonly path?: string
  /** What it holds at first. */
  readonly contents?: Uint8Array
  /** Bytes (of address space, not of memory) beyond which it says NO_SPACE: 1 GiB, or up to LARGEST_MEMORY. */
  readonly maxSize?: number
}

export class MemoryStorage implements Storage {
  readonly path: string
  readonly readOnly: boolean
  readonly #shared: GrowableBuffer
  readonly #words: BigInt64Array
  readonly #maxSize: number
  readonly #written: Uint8Array
  readonly #data: number

  private constructor(shared: SharedArrayBuffer, path: string, readOnly: boolean) {
    this.#shared = shared as GrowableBuffer
    this.path = path
    this.readOnly = readOnly
    this.#words = new BigInt64Array(shared, 0, 2)
    this.#maxSize = Number(this.#words[MAX_SIZE])
    this.#written = new Uint8Array(shared, HEADER, Math.ceil(this.#maxSize / PAGE))
    this.#data = dataStart(this.#maxSize)
  }

  static create(options: MemoryOptions = {}): MemoryStorage {
    const { path = 'memory', contents, maxSize = DEFAULT_MAX_SIZE } = options
    const start = dataStart(maxSize)
    const Growable = SharedArrayBuffer as unknown as GrowableConstructor
    const shared = new Growable(start, { maxByteLength: start + maxSize })
    new BigInt64Array(shared, 0, 2)[MAX_SIZE] = BigInt(maxSize)
    const storage = new MemoryStorage(shared, path, false)
    if (contents) storage.write(contents, 0, contents.length, 0)
    return storage
  }

  /** Another view of the storage that `handle` describes, in this thread or another. */
  static attach(handle: StorageHandle & { kind: 'memory' }): MemoryStorage {
    return new MemoryStorage(handle.shared, handle.path, handle.readOnly)
  }

  read(buffer: Uint8Array, at: number, length: number, offset: number): number {
    const count = Math.max(0, Math.min(length, this.size() - offset))
    if (count > 0) buffer.set(this.#bytes(offset, count), at)
    return count
  }

  write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#checkWritable()
    if (length === 0) return
    this.#grow(offset + length)
    this.#bytes(offset, length).set(buffer.subarray(at, at + length))
    this.#written.fill(1, Math.floor(offset / PAGE), Math.ceil((offset + length) / PAGE))
    this.#raiseSize(offset + length)
  }

  size(): number {
    return Number(Atomics.load(this.#words, SIZE))
  }

  allocated(): number {
    let pages = 0
    for (const written of this.#written.subarray(0, Math.ceil(this.size() / PAGE))) if (written !== 0) pages++
    return pages * PAGE
  }

  truncate(size: number): void {
    this.#checkWritable()
    const before = this.size()
    if (size >= before) {
      this.#grow(size)
      this.#raiseSize(size)
    } else {
      this.punch(size, before - size)
      Atomics.store(this.#words, SIZE, BigInt(size))
    }
  }

  sync(): void {}

  punch(offset: number, length: number): void {
    this.#checkWritable()
    const size = this.size()
    const end = Math.min(offset + length, size)
    if (offset >= end) return
    this.#clear(offset, end - offset)
    const lastPage = end === size ? Math.ceil(end / PAGE) : Math.floor(end / PAGE)
    const firstPage = Math.ceil(offset / PAGE)
    if (firstPage < lastPage) this.#written.fill(0, firstPage, lastPage)
  }

  zero(offset: number, length: number): void {
    this.#checkWritable()
    const count = Math.min(length, this.size() - offset)
    if (count > 0) this.#clear(offset, count)
  }

  /** Pages that were never written are zeros, and stay untouched, so that they take up no memory. */
  #clear(offset: number, length: number): void {
    const end = offset + length
    for (let at = offset; at < end; ) {
      const page = Math.floor(at / PAGE)
      const next = Math.min(end, (page + 1) * PAGE)
      if (this.#written[page] !== 0) this.#bytes(at, next - at).fill(0)
      at = next
    }
  }

  reserve(offset: number, length: number): void {
    this.#checkWritable()
    if (offset + length > this.#maxSize) throw this.#full(offset + length)
  }

  nextData(offset: number): number {
    return this.#seek(offset, true)
  }

  nextHole(offset: number): number {
    return this.#seek(offset, false)
  }

  handle(): StorageHandle & { kind: 'memory' } {
    return { kind: 'memory', path: this.path, shared: this.#shared, readOnly: this.readOnly }
  }

  close(): void {}

  #seek(offset: number, data: boolean): number {
    const size = this.size()
    const pages = Math.ceil(size / PAGE)
    let page = Math.floor(offset / PAGE)
    while (page < pages && (this.#written[page] !== 0) !== data) page++
    return Math.min(size, Math.max(offset, page * PAGE))
  }

  #bytes(offset: number, length: number): Uint8Array {
    return new Uint8Array(this.#shared, this.#data + offset, length)
  }

  #grow(size: number): void {
    if (size > this.#maxSize) throw this.#full(size)
    const wanted = this.#data + size
    while (this.#shared.byteLength < wanted) {
      try {
        this.#shared.grow(wanted)
      } catch (error) {
        // Another thread has made it larger still in between, or there is no memory.
        if (this.#shared.byteLength < wanted) {
          throw new VdiskError('NO_SPACE', `cannot grow ${this.path} to ${size} bytes: no memory`, { cause: error })
        }
      }
    }
  }

  #raiseSize(size: number): void {
    const wanted = BigInt(size)
    let before = Atomics.load(this.#words, SIZE)
    while (before < wanted) {
      const found = Atomics.compareExchange(this.#words, SIZE, before, wanted)
      if (found === before) return
      before = found
    }
  }

  #full(size: number): VdiskError {
    return new VdiskError('NO_SPACE', `cannot grow ${this.path} to ${size} bytes: it is limited to ${this.#maxSize}`, {
      path: this.path,
      errno: 'ENOSPC',
    })
  }

  #checkWritable(): void {
    if (this.readOnly) {
      throw new VdiskError('READ_ONLY', `cannot change ${this.path}: it was opened read-only`, { path: this.path })
    }
  }
}

function dataStart(maxSize: number): number {
  return HEADER + Math.ceil(Math.ceil(maxSize / PAGE) / PAGE) * PAGE
}
