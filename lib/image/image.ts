/**
 * An open image: one disk of bytes over a chain of layers. Drivers say what bytes are and where new ones may go; the
 * splitting at extents, zeros, parents, copy-on-write and the order of an allocating write are in `Reader` and `Writer`,
 * once. Here everything that is asked for is checked first.
 *
 * Every thread has its own Image over the same shared state.
 */

import type { Driver, FileRef } from '../formats/driver.js'
import type { Metadata, MetadataCounts } from '../metadata/metadata.js'
import { attachStorage } from '../storage/attach.js'
import type { Storage } from '../storage/storage.js'
import { VdiskError } from '../util/errors.js'
import type { Pieces } from '../util/pieces.js'
import { Changes } from './changes.js'
import type { MapEntry } from './map.js'
import { type OwnBytes, Reader } from './reader.js'
import { type ImageHandle, type ImageShape, Stack } from './stack.js'
import { Writer } from './writer.js'

export class Image {
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** Bytes of the disk's logical sectors. */
  readonly sectorSize: number
  readonly readOnly: boolean
  /** The top layer's format. */
  readonly format: string
  readonly #shape: ImageShape
  readonly #files: readonly FileRef[]
  readonly #top: Driver
  readonly #metadata: Metadata
  readonly #reader: Reader
  readonly #changes: Changes
  readonly #writer: Writer
  #closed = false

  private constructor(handle: ImageShape, thread: number, storages: readonly Storage[]) {
    const top = handle.layers[0]!
    this.#shape = handle
    this.path = top.path
    this.size = top.size
    this.sectorSize = top.sectorSize
    this.readOnly = handle.readOnly
    this.format = top.format
    const stack = new Stack(handle, thread, storages)
    this.#files = stack.files
    this.#top = stack.top
    this.#metadata = stack.metadata
    this.#reader = new Reader(stack)
    this.#changes = new Changes(stack)
    this.#writer = new Writer(stack, this.#reader, this.#changes)
  }

  /** The image as the thread that opens it works on it: number 0. Sets up the shared memory, owns the files. */
  static first(handle: ImageShape, storages: readonly Storage[]): Image {
    const image = new Image(handle, 0, storages)
    image.#metadata.cache.clear()
    for (const layer of handle.layers) image.#metadata.state(layer.stateStart, layer.state.length).set(layer.state)
    return image
  }

  /** The image as another thread works on it: number 1 to threads − 1, each used by one thread at a time. */
  static attach(handle: ImageHandle, thread: number): Image {
    return new Image(handle, thread, handle.files.map(attachStorage))
  }

  /** For other threads: see `attach`. */
  handle(): ImageHandle {
    const { readOnly, layers, shape } = this.#shape
    return { readOnly, layers, shape, files: this.#files.map(({ storage }) => storage.handle()) }
  }

  /** Path, format and size of every layer, top first. */
  get layers(): readonly { path: string; format: string; size: number }[] {
    return this.#shape.layers.map(({ path, format, size }) => ({ path, format, size }))
  }

  /** Every file that it is read from, that of the image itself first. */
  get paths(): readonly string[] {
    return this.#files.map(({ storage }) => storage.path)
  }

  /**
   * Reads `length` bytes of the disk at `offset` into `buffer` from index `at` on.
   * @throws RANGE beyond the end, IO, CORRUPT
   */
  read(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#check(length, offset)
    this.#reader.read(buffer, at, length, offset)
  }

  /**
   * Finds where in host files the bytes of a range are, and calls `use` while they cannot be put to another use there.
   * @returns what `use` returned; false where the bytes are not all simply in files, or in too many pieces.
   */
  lend(length: number, offset: number, pieces: Pieces, use: () => boolean): boolean {
    this.#check(length, offset)
    return this.#reader.lend(length, offset, pieces, use)
  }

  /**
   * Writes `length` bytes of `buffer` from index `at` on to the disk at `offset`. Not durable before `flush`.
   * @param past the host's cache need not keep it
   * @throws RANGE beyond the end, READ_ONLY, NO_SPACE, IO, CORRUPT
   */
  write(buffer: Uint8Array, at: number, length: number, offset: number, past = false): void {
    this.#checkWrite(length, offset)
    this.#writer.write(buffer, at, length, offset, past)
  }

  /** True where `writeEncoded` encodes: the format can compress. */
  get encodes(): boolean {
    return this.#top.encode !== undefined
  }

  /** Bytes that are allocated, and encoded, together. */
  get blockSize(): number {
    return this.#top.blockSize
  }

  /**
   * As `write` of one whole block (the last may be cut short), compressed where nothing of it is there yet and that makes
   * it smaller.
   */
  writeEncoded(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#checkWrite(length, offset)
    this.#writer.writeEncoded(buffer, at, length, offset)
  }

  /**
   * Makes a range of the disk read as zeros. Whole blocks are freed where the format can do that.
   * @param unmap give space inside blocks back to the host as well, rather than keep it
   * @throws as `write`
   */
  zero(offset: number, length: number, unmap: boolean): void {
    this.#checkWrite(length, offset)
    this.#writer.zero(offset, length, unmap)
  }

  /**
   * Makes everything that was written before durable, metadata in the order that the format needs.
   * @throws IO, NO_SPACE. After a sync that failed the image takes no more writes until it is opened again.
   */
  flush(): void {
    if (!this.readOnly) this.#metadata.commit()
  }

  /** Begins to bring written data to the disk, so that a later `flush` or `close` takes less time. */
  async writeBack(): Promise<void> {
    const files = this.readOnly ? [] : this.#shape.layers[0]!.files
    await Promise.all(files.map((file) => this.#files[file]!.storage.writeBack?.()))
  }

  /**
   * Where syncs come often, what this thread writes is brought to the disk early. From now on `ask` is called when it is
   * time for that, by whoever wrote, and somebody else is to call `writeBack`.
   */
  delegateWriteBack(ask: () => void): void {
    this.#metadata.writeBack.delegate(ask)
  }

  /** True where `flush` would have something to do. */
  get unflushed(): boolean {
    return !this.readOnly && this.#metadata.uncommitted
  }

  /** Why nothing is written any more until the image is opened again, where a sync of its files failed. */
  get failure(): VdiskError | undefined {
    return this.#metadata.failure
  }

  /** What the bytes from `offset` on are: one run, as `qemu-img map` tells it. */
  map(offset: number, length: number): MapEntry {
    this.#check(length, offset)
    return this.#reader.map(offset, length)
  }

  /** What the top layer alone says of the bytes from `offset` on. */
  own(offset: number, length: number): OwnBytes {
    this.#check(length, offset)
    return this.#reader.own(offset, length)
  }

  /**
   * The offset of the first data (or the first hole) at or behind `offset`; -1 where there is none. What takes too long
   * to find is taken to be data, as lseek(2) allows.
   */
  seek(offset: number, data: boolean): number {
    return this.#reader.seek(offset, data, this.size)
  }

  /** Bytes that the host has allocated for all files of the chain. */
  allocated(): number {
    return this.#files.reduce((sum, { storage }) => sum + storage.allocated(), 0)
  }

  /** Counts of the metadata cache since the image was opened. */
  statistics(): MetadataCounts {
    return this.#metadata.counts()
  }

  /** Says that another thread of this image ended without being told to; its requests were answered by somebody else. */
  threadDied(thread: number): void {
    this.#metadata.threadDied(thread)
  }

  /**
   * Commits, ends writing cleanly, closes every file. Thread 0 calls it, when no other thread works any more.
   * @throws what the commit threw; the files are closed all the same.
   */
  close(): void {
    if (this.#closed) return
    try {
      this.finish()
    } finally {
      for (const { storage } of this.#files) storage.close()
    }
  }

  /** As `close`, and the files stay open: for one over files that are somebody else's. */
  finish(): void {
    this.#closed = true
    if (this.readOnly || (!this.#metadata.begun && !this.#closesAnew())) return
    this.#metadata.commit()
    this.#top.finish?.()
  }

  /** Begins to write an image that nobody wrote to, where it is to be closed cleanly all the same, and there is room. */
  #closesAnew(): boolean {
    if (!this.#top.leftOpen) return false
    try {
      this.#changes.begin()
      return true
    } catch (error) {
      // It stays as it was found.
      if (error instanceof VdiskError && error.code === 'NO_SPACE') return false
      throw error
    }
  }

  /** Closes every file and commits nothing: for an image that is thrown away. */
  abandon(): void {
    if (this.#closed) return
    this.#closed = true
    for (const { storage } of this.#files) storage.close()
  }

  #check(length: number, offset: number): void {
    if (!(offset >= 0 && length >= 0 && offset + length <= this.size))
      throw new VdiskError('RANGE', `bytes ${offset} to ${offset + length} of a disk of ${this.size} bytes`, {
        path: this.path,
      })
  }

  #checkWrite(length: number, offset: number): void {
    this.#check(length, offset)
    const metadata = this.#metadata
    if (this.readOnly) throw new VdiskError('READ_ONLY', 'opened read-only', { path: this.path })
    if (metadata.failed) throw new VdiskError('READ_ONLY', metadata.failure!.message)
    if (!metadata.begun) this.#changes.begin()
  }
}
