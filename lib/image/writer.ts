/** Writing and zeroing: in place where that can be, freeing whole blocks, and with places of their own for the rest. */

import { type Driver, type Extent, type FileRef, Kind } from '../formats/driver.js'
import type { Metadata } from '../metadata/metadata.js'
import type { Changes } from './changes.js'
import { type EncryptedData, sectorEnd, sectorStart } from './encrypted.js'
import { NewData } from './new-data.js'
import type { Reader } from './reader.js'
import type { Stack } from './stack.js'

/** Guest bytes that one `release` is asked for at most, so that the lock is given away now and then. */
const RELEASE_CHUNK = 2 ** 40

/** Ranges that reach it lie on the disk, and the first change was prepared. One object a thread. */
export class Writer {
  readonly #reader: Reader
  readonly #changes: Changes
  readonly #newData: NewData
  readonly #files: readonly FileRef[]
  readonly #top: Driver
  readonly #metadata: Metadata
  readonly #encrypted: EncryptedData | undefined

  constructor(stack: Stack, reader: Reader, changes: Changes) {
    this.#reader = reader
    this.#changes = changes
    this.#newData = new NewData(stack, reader, changes)
    this.#files = stack.files
    this.#top = stack.top
    this.#metadata = stack.metadata
    this.#encrypted = stack.encrypted[0]
  }

  /** As `Image.write`. */
  write(buffer: Uint8Array, at: number, length: number, offset: number, past = false): void {
    if (this.#top.record) this.#changes.record(offset, length)
    for (let done = 0; done < length; ) {
      done += this.#overwrite(buffer, at + done, length - done, offset + done, past)
      if (done < length) done += this.#newData.write(buffer, at + done, length - done, offset + done, past)
    }
    this.#metadata.writeBack.written(length)
  }

  /** As `Image.writeEncoded`. */
  writeEncoded(buffer: Uint8Array, at: number, length: number, offset: number): void {
    if (this.#top.record) this.#changes.record(offset, length)
    const encoded = this.#encode(buffer.subarray(at, at + length))
    if (!encoded || !this.#newData.writeEncoded(encoded, offset, length)) this.write(buffer, at, length, offset)
  }

  /** What is behind the end of the disk is zeros. */
  #encode(data: Uint8Array): Uint8Array | undefined {
    const { blockSize } = this.#top
    if (data.length === blockSize) return this.#top.encode?.(data)
    const block = new Uint8Array(blockSize)
    block.set(data)
    return this.#top.encode?.(block)
  }

  /** Writes what can be written in place, from the beginning on. @returns how many bytes that was. */
  #overwrite(buffer: Uint8Array, at: number, length: number, offset: number, past: boolean): number {
    const { epochs } = this.#metadata
    if (this.#encrypted) return this.#overwriteEncrypted(this.#encrypted, buffer, at, length, offset)
    let done = 0
    epochs.enter()
    try {
      while (done < length) {
        const e = this.#reader.locate(offset + done, length - done)
        if (e.kind !== Kind.DATA || !e.writable || this.#reader.depth !== 0) break
        this.#inTurn(buffer, at + done, e, past)
        done += e.length
      }
    } finally {
      epochs.leave()
    }
    return done
  }

  #inTurn(buffer: Uint8Array, at: number, { file, length, offset }: Extent, past: boolean): void {
    const { turns } = this.#metadata
    const { storage } = this.#files[file]!
    turns.take(file)
    try {
      if (storage.writeData) storage.writeData(buffer, at, length, offset, past)
      else storage.write(buffer, at, length, offset)
    } finally {
      turns.give(file)
    }
    this.#metadata.wrote(file)
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
          const e = this.#reader.locate(offset + done, length - done)
          if (e.kind !== Kind.DATA || !e.writable || this.#reader.depth !== 0) break
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

  /** As `Image.zero`. */
  zero(offset: number, length: number, unmap: boolean): void {
    if (this.#top.record) this.#changes.record(offset, length)
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
    const [start, end] = releaseSize
      ? [offset - (offset % releaseSize), offset + releaseSize]
      : this.#changes.blocks(offset, 1)
    const whole = offset === start && offset + length >= Math.min(end, driver.size)
    if (!driver.release || !whole) return 0
    const n = Math.min(length, RELEASE_CHUNK)
    return this.#changes.changing(offset, n, () => {
      const { zero, length: below } = this.#reader.below(offset, n)
      const done = this.#changes.withRoom(
        () => driver.release!(offset, below, zero),
        (released) => released < 0,
      )
      space.punchDiscarded()
      return done
    })
  }

  /** Zeroes from `offset` on, to the end of its extent or block, without freeing blocks. @returns the bytes done. */
  #zeroInPlace(offset: number, length: number, unmap: boolean): number {
    const metadata = this.#metadata
    const { blockSize, releaseSize = blockSize, release } = this.#top
    // Not beyond the block, where the next one could be freed.
    const max = release ? Math.min(length, releaseSize - (offset % releaseSize)) : length
    const done = this.#encrypted ? this.#overwriteEncrypted(this.#encrypted, undefined, 0, max, offset) : 0
    if (done > 0) return done
    metadata.epochs.enter()
    try {
      const e = this.#reader.locate(offset, max)
      if (e.kind === Kind.ZERO) return e.length
      if (e.kind === Kind.DATA && e.writable && this.#reader.depth === 0 && !this.#encrypted) {
        const { storage } = this.#files[e.file]!
        if (unmap) storage.punch(e.offset, e.length)
        else storage.zero(e.offset, e.length)
        metadata.wrote(e.file)
        return e.length
      }
    } finally {
      metadata.epochs.leave()
    }
    return this.#newData.write(undefined, 0, max, offset)
  }
}
