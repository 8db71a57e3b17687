/**
 * An open image: one disk of bytes over a chain of layers. Drivers say what bytes are and where new ones may go; the
 * splitting at extents, zeros, parents, copy-on-write and the order of an allocating write are here, once.
 *
 * Every thread has its own Image over the same shared state.
 */

import { Allocation, type Driver, Extent, type FileRef, Kind } from '../formats/driver.js'
import { findFormat } from '../formats/registry.js'
import { PageMiss } from '../metadata/fill.js'
import { Metadata, type MetadataCounts } from '../metadata/metadata.js'
import type { SharedShape } from '../metadata/shared.js'
import { attachStorage } from '../storage/attach.js'
import type { Storage, StorageHandle } from '../storage/storage.js'
import { VdiskError } from '../util/errors.js'
import { Pieces } from '../util/pieces.js'
import { makeTrace } from '../util/trace.js'
import { EncryptedData, sectorEnd, sectorStart } from './encrypted.js'
import { describeExtent, type MapEntry, mapOne, seekExtent } from './map.js'

const trace = makeTrace('image')

/** Bytes that copy-on-write moves at a time. */
const COPY_CHUNK = 1 << 20
/** Guest bytes that one `release` is asked for at most, so that the lock is given away now and then. */
const RELEASE_CHUNK = 2 ** 40
/** Extents that one `seek` looks at: a disk can be nothing but small holes, and somebody waits for the answer. */
const SEEK_EXTENTS = 2 ** 18

export interface LayerHandle {
  readonly path: string
  readonly format: string
  readonly layout: unknown
  readonly size: number
  readonly sectorSize: number
  /** Numbers of its files among the image's. */
  readonly files: readonly number[]
  readonly stateStart: number
  readonly state: readonly number[]
}

/** What an open image is, but for its files. */
export interface ImageShape {
  readonly readOnly: boolean
  /** Top first. */
  readonly layers: readonly LayerHandle[]
  readonly shape: SharedShape
}

/** All that another thread of this process needs to work on the same open image. Structured-cloneable. */
export interface ImageHandle extends ImageShape {
  readonly files: readonly StorageHandle[]
}

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
  readonly #drivers: readonly Driver[]
  readonly #top: Driver
  readonly #metadata: Metadata
  readonly #locked: boolean
  /** Of the layers whose data is encrypted, top first. */
  readonly #encrypted: readonly (EncryptedData | undefined)[]
  readonly #extent = new Extent()
  readonly #allocation = new Allocation()
  readonly #traced = trace.enabled
  #depth = 0
  #scratch: Uint8Array | undefined
  #closed = false

  private constructor(handle: ImageShape, thread: number, storages: readonly Storage[]) {
    const top = handle.layers[0]!
    this.#shape = handle
    this.path = top.path
    this.size = top.size
    this.sectorSize = top.sectorSize
    this.readOnly = handle.readOnly
    this.format = top.format
    this.#files = storages.map((storage, index) => ({ index, storage }))
    const writable = handle.readOnly ? [] : top.files
    this.#metadata = new Metadata(handle.shape, thread, this.#files, writable, () => {
      const driver = this.#top
      return driver.writeOut ? (batch) => driver.writeOut!(batch) : undefined
    })
    this.#drivers = handle.layers.map((layer, depth) => this.#attachLayer(layer, depth))
    this.#top = this.#drivers[0]!
    this.#encrypted = this.#drivers.map(({ cipher }) => cipher && new EncryptedData(cipher))
    if (this.#top.dirtyLimit !== undefined) this.#metadata.limitDirty(this.#top.dirtyLimit)
    this.#locked = this.#drivers.some((driver) => driver.locked)
  }

  #attachLayer(layer: LayerHandle, depth: number): Driver {
    const writable = depth === 0 && !this.readOnly
    return findFormat(layer.format).attach(layer.layout, {
      files: layer.files.map((file) => this.#files[file]!),
      metadata: this.#metadata,
      state: this.#metadata.state(layer.stateStart, layer.state.length),
      space: writable ? this.#metadata.space : undefined,
      writable,
    })
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

  /** Those of the top layer. */
  get ownPaths(): readonly string[] {
    return this.#shape.layers[0]!.files.map((file) => this.#files[file]!.storage.path)
  }

  /**
   * Reads `length` bytes of the disk at `offset` into `buffer` from index `at` on.
   * @throws RANGE beyond the end, IO, CORRUPT
   */
  read(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#check(length, offset)
    const { epochs } = this.#metadata
    epochs.enter()
    try {
      this.#read(buffer, at, length, offset)
    } finally {
      epochs.leave()
    }
  }

  #read(buffer: Uint8Array, at: number, length: number, offset: number): void {
    for (let done = 0; done < length; ) {
      const e = this.#locate(offset + done, length - done)
      const n = e.length
      if (e.kind === Kind.DATA) {
        const { storage } = this.#files[e.file]!
        const encrypted = this.#encrypted[this.#depth]
        if (encrypted) encrypted.read(storage, buffer, at + done, n, offset + done, e.offset)
        else {
          const got = storage.read(buffer, at + done, n, e.offset)
          // A file may end inside its last block.
          if (got < n) buffer.fill(0, at + done + got, at + done + n)
        }
      } else if (e.kind === Kind.ZERO) buffer.fill(0, at + done, at + done + n)
      else this.#drivers[this.#depth]!.decode!(e, offset + done, buffer, at + done, n)
      done += n
    }
  }

  /**
   * Finds where in host files the bytes of a range are, and calls `use` while they cannot be put to another use there.
   * @returns what `use` returned; false where the bytes are not all simply in files, or in too many pieces.
   */
  lend(length: number, offset: number, pieces: Pieces, use: () => boolean): boolean {
    this.#check(length, offset)
    const { epochs } = this.#metadata
    epochs.enter()
    try {
      pieces.count = 0
      for (let done = 0; done < length; ) {
        const e = this.#locate(offset + done, length - done)
        const lendable = e.kind === Kind.DATA && !this.#encrypted[this.#depth]
        const descriptor = lendable ? this.#files[e.file]!.storage.descriptor : undefined
        if (descriptor === undefined || pieces.count === Pieces.MOST) return false
        pieces.add(descriptor, e.offset, e.length)
        done += e.length
      }
      return use()
    } finally {
      epochs.leave()
    }
  }

  /** What the guest bytes at `offset` are, through all layers: never PARENT. Sets `#depth`. */
  #locate(offset: number, length: number): Extent {
    if (!this.#locked) return this.#walk(offset, length)
    const { lock } = this.#metadata
    for (;;) {
      lock.acquireShared()
      try {
        return this.#walk(offset, length)
      } catch (error) {
        if (!(error instanceof PageMiss)) throw error
      } finally {
        lock.releaseShared()
      }
      this.#metadata.load()
    }
  }

  #walk(offset: number, length: number): Extent {
    const e = this.#walkFrom(0, offset, length, this.#extent)
    if (this.#traced) trace(describeExtent(e, this.#depth, offset))
    return e
  }

  #walkFrom(depth: number, offset: number, length: number, e: Extent): Extent {
    let left = length
    for (let d = depth; d < this.#drivers.length; d++) {
      const driver = this.#drivers[d]!
      if (offset >= driver.size) break
      e.explicit = false
      driver.map(offset, Math.min(left, driver.size - offset), e)
      this.#depth = d
      if (e.kind !== Kind.PARENT) return e
      left = e.length
    }
    // Behind the end of a shorter parent, or with no parent left.
    e.kind = Kind.ZERO
    e.explicit = false
    e.length = left
    return e
  }

  /**
   * Writes `length` bytes of `buffer` from index `at` on to the disk at `offset`. Not durable before `flush`.
   * @throws RANGE beyond the end, READ_ONLY, NO_SPACE, IO, CORRUPT
   */
  write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#checkWrite(length, offset)
    if (this.#top.record) this.#record(offset, length)
    for (let done = 0; done < length; ) {
      done += this.#overwrite(buffer, at + done, length - done, offset + done)
      if (done < length) done += this.#writeNew(buffer, at + done, length - done, offset + done)
    }
    this.#metadata.writeBack.written(length)
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
    if (this.#top.record) this.#record(offset, length)
    const encoded = this.#encode(buffer.subarray(at, at + length))
    if (!encoded || !this.#placeEncoded(encoded, offset, length)) this.write(buffer, at, length, offset)
  }

  /** What is behind the end of the disk is zeros. */
  #encode(data: Uint8Array): Uint8Array | undefined {
    const { blockSize } = this.#top
    if (data.length === blockSize) return this.#top.encode?.(data)
    const block = new Uint8Array(blockSize)
    block.set(data)
    return this.#top.encode?.(block)
  }

  /** @returns false where something is there already */
  #placeEncoded(encoded: Uint8Array, offset: number, length: number): boolean {
    const metadata = this.#metadata
    const driver = this.#top
    const a = this.#allocation
    return this.#changing(offset, length, () => {
      const { kind, length: nothing } = this.own(offset, length)
      if (kind === 'data' || nothing < length) return false
      this.#allocate(() => driver.allocateEncoded!(offset, encoded.length, a))
      if (a.encoded === 0) return false
      try {
        this.#files[a.file]!.storage.write(encoded, 0, encoded.length, a.offset)
        metadata.wrote(a.file)
        metadata.exclusive(() => driver.publish!(a))
      } catch (error) {
        metadata.exclusive(() => driver.abandon!(a))
        throw error
      }
      return true
    })
  }

  /** Has the driver record that a range changes, before anything of it does. */
  #record(offset: number, length: number): void {
    const metadata = this.#metadata
    const driver = this.#top
    for (let done = 0; done < length; ) {
      const left = length - done
      done += metadata.shared(() => driver.recorded!(offset + done, left))
      if (done < length) done += this.#change(() => driver.record!(offset + done, length - done))
    }
  }

  /** One change of metadata, with the room that it needs; `change` returns 0 where the image must grow first. */
  #change(change: () => number): number {
    const metadata = this.#metadata
    metadata.reserve(this.#top.changeSectors)
    try {
      return this.#withRoom(change, (done) => done === 0)
    } finally {
      metadata.unreserve()
    }
  }

  /** Makes a change under the exclusive lock. While its result says that there is no room for it, the image grows. */
  #withRoom<T>(change: () => T, lacksRoom: (result: T) => boolean): T {
    const metadata = this.#metadata
    for (;;) {
      const result = metadata.exclusive(change)
      if (!lacksRoom(result)) return result
      metadata.growth.acquire()
      try {
        // Somebody else may have made room while this thread waited for its turn.
        const again = metadata.exclusive(change)
        if (!lacksRoom(again)) return again
        this.#top.grow!()
      } finally {
        metadata.growth.release()
      }
    }
  }

  /** Writes what can be written in place, from the beginning on. @returns how many bytes that was. */
  #overwrite(buffer: Uint8Array, at: number, length: number, offset: number): number {
    const { epochs } = this.#metadata
    if (this.#encrypted[0]) return this.#overwriteEncrypted(this.#encrypted[0], buffer, at, length, offset)
    let done = 0
    epochs.enter()
    try {
      while (done < length) {
        const e = this.#locate(offset + done, length - done)
        if (e.kind !== Kind.DATA || !e.writable || this.#depth !== 0) break
        this.#files[e.file]!.storage.write(buffer, at + done, e.length, e.offset)
        this.#metadata.wrote(e.file)
        done += e.length
      }
    } finally {
      epochs.leave()
    }
    return done
  }

  /** As `#overwrite`, and zeros where `buffer` is undefined. Of two writers of one sector the second waits. */
  #overwriteEncrypted(
    encrypted: EncryptedData,
    buffer: Uint8Array | undefined,
    at: number,
    length: number,
    offset: number,
  ): number {
    const { epochs, ranges } = this.#metadata
    let done = 0
    ranges.acquire(sectorStart(offset), sectorEnd(offset + length))
    try {
      epochs.enter()
      try {
        while (done < length) {
          const e = this.#locate(offset + done, length - done)
          if (e.kind !== Kind.DATA || !e.writable || this.#depth !== 0) break
          encrypted.write(this.#files[e.file]!.storage, buffer, at + done, e.length, offset + done, e.offset)
          this.#metadata.wrote(e.file)
          done += e.length
        }
      } finally {
        epochs.leave()
      }
    } finally {
      ranges.release()
    }
    return done
  }

  /**
   * Allocates for the first of these bytes, and as many more as go with them, and writes them; zeros where `buffer` is
   * undefined. @returns how many bytes were written: 0 where somebody else allocated them meanwhile.
   */
  #writeNew(buffer: Uint8Array | undefined, at: number, length: number, offset: number): number {
    const driver = this.#top
    if (!driver.allocate)
      throw new VdiskError('INTERNAL', 'the format maps bytes that it cannot write', { path: this.path })
    return this.#changing(offset, length, () => {
      const e = this.#locate(offset, length)
      if (e.kind === Kind.DATA && e.writable && this.#depth === 0) return 0
      this.#allocation.encoded = 0
      this.#allocate(() => driver.allocate!(offset, length, this.#allocation))
      return this.#fill(buffer, at, length, offset)
    })
  }

  /** Runs work that changes what a range is mapped to; nobody else changes anything of it meanwhile. */
  #changing<T>(offset: number, length: number, work: () => T): T {
    const metadata = this.#metadata
    metadata.ranges.acquire(...this.#blocks(offset, length))
    try {
      metadata.reserve(this.#top.changeSectors)
      try {
        metadata.epochs.enter()
        try {
          return work()
        } finally {
          metadata.epochs.leave()
        }
      } finally {
        metadata.unreserve()
      }
    } finally {
      metadata.ranges.release()
    }
  }

  /** The whole blocks around a range. */
  #blocks(offset: number, length: number): readonly [start: number, end: number] {
    const { blockSize, blocks } = this.#top
    if (blocks) return this.#top.blocks!(offset, length)
    return [Math.floor(offset / blockSize) * blockSize, Math.ceil((offset + length) / blockSize) * blockSize]
  }

  /** Has the driver choose room, which is made where there is none. */
  #allocate(choose: () => boolean): void {
    this.#withRoom(choose, (chosen) => !chosen)
  }

  /** Writes the data of the allocation, with what surrounds it, and publishes it. */
  #fill(buffer: Uint8Array | undefined, at: number, length: number, offset: number): number {
    const metadata = this.#metadata
    const driver = this.#top
    const a = this.#allocation
    const end = Math.min(offset + length, a.guest + a.length)
    if (this.#traced) trace('allocated: %d+%d at %d of file %d', a.guest, a.length, a.offset, a.file)
    try {
      driver.prepare?.(a)
      if (this.#encrypted[0]) this.#placeEncrypted(this.#encrypted[0], buffer, at, offset, end)
      else this.#place(buffer, at, offset, end)
      metadata.wrote(a.file)
      metadata.exclusive(() => driver.publish!(a))
    } catch (error) {
      metadata.exclusive(() => driver.abandon!(a))
      throw error
    }
    return end - offset
  }

  /** Puts the guest bytes [offset, end) at their place in the allocation, and around them what is there now. */
  #place(buffer: Uint8Array | undefined, at: number, offset: number, end: number): void {
    const a = this.#allocation
    const { storage } = this.#files[a.file]!
    this.#copyOld(a.guest, offset)
    if (buffer) storage.write(buffer, at, end - offset, a.offset + (offset - a.guest))
    else if (!a.zeroed) storage.zero(a.offset + (offset - a.guest), end - offset)
    this.#copyOld(end, a.guest + a.length)
  }

  /** As `#place`. Sectors that the bytes fill in part get their old content first; nobody sees any of it yet. */
  #placeEncrypted(data: EncryptedData, buffer: Uint8Array | undefined, at: number, offset: number, end: number): void {
    const a = this.#allocation
    const { storage } = this.#files[a.file]!
    const before = sectorEnd(offset)
    const after = Math.max(before, sectorStart(end))
    this.#copyEncrypted(data, a.guest, before)
    this.#copyEncrypted(data, after, a.guest + a.length)
    data.write(storage, buffer, at, end - offset, offset, a.offset + (offset - a.guest))
  }

  /** As `#copyOld`, for whole sectors; zeros are encrypted too. */
  #copyEncrypted(data: EncryptedData, start: number, end: number): void {
    const a = this.#allocation
    const { storage } = this.#files[a.file]!
    this.#scratch ??= new Uint8Array(COPY_CHUNK)
    for (let offset = start; offset < end; ) {
      const n = Math.min(end - offset, COPY_CHUNK)
      this.#read(this.#scratch, 0, n, offset)
      data.writeSectors(storage, this.#scratch, n, offset, a.offset + (offset - a.guest))
      offset += n
    }
  }

  /** Copies the guest bytes [start, end) as they are now to their place in the allocation. */
  #copyOld(start: number, end: number): void {
    const a = this.#allocation
    const { storage } = this.#files[a.file]!
    for (let offset = start; offset < end; ) {
      const to = a.offset + (offset - a.guest)
      const e = this.#locate(offset, Math.min(end - offset, COPY_CHUNK))
      const n = e.length
      if (e.kind !== Kind.ZERO) {
        this.#scratch ??= new Uint8Array(COPY_CHUNK)
        this.#read(this.#scratch, 0, n, offset)
        storage.write(this.#scratch, 0, n, to)
      } else if (!a.zeroed) storage.zero(to, n)
      offset += n
    }
  }

  /**
   * Makes a range of the disk read as zeros. Whole blocks are freed where the format can do that.
   * @param unmap give space inside blocks back to the host as well, rather than keep it
   * @throws as `write`
   */
  zero(offset: number, length: number, unmap: boolean): void {
    this.#checkWrite(length, offset)
    if (this.#top.record) this.#record(offset, length)
    for (let done = 0; done < length; ) {
      const n = this.#release(offset + done, length - done)
      done += n > 0 ? n : this.#zeroInPlace(offset + done, length - done, unmap)
    }
  }

  /** Frees whole blocks from `offset` on. @returns the bytes that read as zeros now; 0 where it cannot be done so. */
  #release(offset: number, length: number): number {
    const { space } = this.#metadata
    const driver = this.#top
    const { releaseSize } = driver
    const [start, end] = releaseSize ? [offset - (offset % releaseSize), offset + releaseSize] : this.#blocks(offset, 1)
    const whole = offset === start && offset + length >= Math.min(end, driver.size)
    if (!driver.release || !whole) return 0
    const n = Math.min(length, RELEASE_CHUNK)
    return this.#changing(offset, n, () => {
      const { zero, length: below } = this.#below(offset, n)
      const done = this.#withRoom(
        () => driver.release!(offset, below, zero),
        (released) => released < 0,
      )
      space.punchDiscarded()
      return done
    })
  }

  /** Whether the layers below read as zeros from `offset` on, and how far that holds in whole blocks of the top. */
  #below(offset: number, length: number): { zero: boolean; length: number } {
    if (this.#drivers.length === 1) return { zero: true, length }
    const { blockSize } = this.#top
    const e = new Extent()
    const zeroAt = (at: number, max: number) => {
      this.#metadata.shared(() => this.#walkFrom(1, at, max, e))
      return e.kind === Kind.ZERO
    }
    let zeros = 0
    while (zeros < length && zeroAt(offset + zeros, length - zeros)) zeros += e.length
    if (zeros >= length) return { zero: true, length }
    if (zeros >= blockSize) return { zero: true, length: zeros - (zeros % blockSize) }
    return { zero: false, length: Math.min(length, blockSize) }
  }

  /** Zeroes from `offset` on, to the end of its extent or block, without freeing blocks. @returns the bytes done. */
  #zeroInPlace(offset: number, length: number, unmap: boolean): number {
    const metadata = this.#metadata
    const { blockSize, releaseSize = blockSize, release } = this.#top
    // Not beyond the block, where the next one could be freed.
    const max = release ? Math.min(length, releaseSize - (offset % releaseSize)) : length
    const done = this.#encrypted[0] ? this.#overwriteEncrypted(this.#encrypted[0], undefined, 0, max, offset) : 0
    if (done > 0) return done
    metadata.epochs.enter()
    try {
      const e = this.#locate(offset, max)
      if (e.kind === Kind.ZERO) return e.length
      if (e.kind === Kind.DATA && e.writable && this.#depth === 0 && !this.#encrypted[0]) {
        const { storage } = this.#files[e.file]!
        if (unmap) storage.punch(e.offset, e.length)
        else storage.zero(e.offset, e.length)
        metadata.wrote(e.file)
        return e.length
      }
    } finally {
      metadata.epochs.leave()
    }
    return this.#writeNew(undefined, 0, max, offset)
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
    return mapOne(this.#locate(offset, length), this.#depth, offset, this.#files, this.#drivers[this.#depth]!)
  }

  /** What the top layer alone says of the bytes from `offset` on. */
  own(offset: number, length: number): { readonly length: number; readonly kind: 'data' | 'zero' | 'parent' } {
    this.#check(length, offset)
    const e = this.#extent
    this.#metadata.shared(() => this.#top.map(offset, length, e))
    const kind = e.kind === Kind.PARENT ? 'parent' : e.kind === Kind.ZERO ? 'zero' : 'data'
    return { length: e.length, kind }
  }

  /**
   * The offset of the first data (or the first hole) at or behind `offset`; -1 where there is none. What takes too long
   * to find is taken to be data, as lseek(2) allows.
   */
  seek(offset: number, data: boolean): number {
    let at = offset
    for (let extents = 0; at < this.size; extents++) {
      if (extents === SEEK_EXTENTS) return data ? at : this.size
      const e = this.#locate(at, this.size - at)
      const found = seekExtent(e, at, data, this.#files, this.#drivers[this.#depth]!)
      if (found >= 0) return found
      at += e.length
    }
    // The end of the disk counts as a hole.
    return data || offset >= this.size ? -1 : this.size
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
    if (this.readOnly || !this.#metadata.begun) return
    this.#metadata.commit()
    this.#top.finish?.()
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
    if (!metadata.begun) this.#begin()
  }

  /** Before the first change of all: what the format does then, once. */
  #begin(): void {
    const metadata = this.#metadata
    metadata.growth.acquire()
    try {
      if (metadata.begun) return
      this.#top.beginWriting?.()
      metadata.begin()
    } finally {
      metadata.growth.release()
    }
  }
}
