/**
 * Data that gets a place of its own. The driver chooses it, the data goes there with what surrounds it, and only then is
 * the place published: nobody ever sees one that is not filled (see "The life of a WRITE that allocates" in
 * ARCHITECTURE.md).
 */

import { Allocation, type Driver, type FileRef, Kind } from '../formats/driver.js'
import type { Metadata } from '../metadata/metadata.js'
import { VdiskError } from '../util/errors.js'
import { makeTrace } from '../util/trace.js'
import type { Changes } from './changes.js'
import { type EncryptedData, sectorEnd, sectorStart } from './encrypted.js'
import type { Reader } from './reader.js'
import type { Stack } from './stack.js'

const trace = makeTrace('image')

/** Bytes that copy-on-write moves at a time. */
const COPY_CHUNK = 1 << 20

/** One object a thread. */
export class NewData {
  readonly #path: string
  readonly #reader: Reader
  readonly #changes: Changes
  readonly #files: readonly FileRef[]
  readonly #top: Driver
  readonly #metadata: Metadata
  readonly #encrypted: EncryptedData | undefined
  readonly #allocation = new Allocation()
  readonly #traced = trace.enabled
  #scratch: Uint8Array | undefined

  constructor({ path, files, top, metadata, encrypted }: Stack, reader: Reader, changes: Changes) {
    this.#path = path
    this.#reader = reader
    this.#changes = changes
    this.#files = files
    this.#top = top
    this.#metadata = metadata
    this.#encrypted = encrypted[0]
  }

  /**
   * Allocates for the first of these bytes, and as many more as go with them, and writes them; zeros where `buffer` is
   * undefined. @returns how many bytes were written: 0 where somebody else allocated them meanwhile.
   */
  write(buffer: Uint8Array | undefined, at: number, length: number, offset: number, past = false): number {
    const driver = this.#top
    if (!driver.allocate)
      throw new VdiskError('INTERNAL', 'the format maps bytes that it cannot write', { path: this.#path })
    return this.#changes.changing(offset, length, () => {
      const e = this.#reader.locate(offset, length)
      if (e.kind === Kind.DATA && e.writable && this.#reader.depth === 0) return 0
      this.#allocation.encoded = 0
      this.#allocate(() => driver.allocate!(offset, length, this.#allocation))
      return this.#fill(buffer, at, length, offset, past)
    })
  }

  /** Places one encoded block. @returns false where something is there already, or it cannot be encoded there */
  writeEncoded(encoded: Uint8Array, offset: number, length: number): boolean {
    const metadata = this.#metadata
    const driver = this.#top
    const a = this.#allocation
    return this.#changes.changing(offset, length, () => {
      const { kind, length: nothing } = this.#reader.own(offset, length)
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

  /** Has the driver choose room, which is made where there is none. */
  #allocate(choose: () => boolean): void {
    this.#changes.withRoom(choose, (chosen) => !chosen)
  }

  /** Writes the data of the allocation, with what surrounds it, and publishes it. */
  #fill(buffer: Uint8Array | undefined, at: number, length: number, offset: number, past: boolean): number {
    const metadata = this.#metadata
    const driver = this.#top
    const a = this.#allocation
    const end = Math.min(offset + length, a.guest + a.length)
    if (this.#traced) trace('allocated: %d+%d at %d of file %d', a.guest, a.length, a.offset, a.file)
    try {
      driver.prepare?.(a)
      if (this.#encrypted) this.#placeEncrypted(this.#encrypted, buffer, at, offset, end)
      else this.#place(buffer, at, offset, end, past)
      metadata.wrote(a.file)
      metadata.exclusive(() => driver.publish!(a))
    } catch (error) {
      metadata.exclusive(() => driver.abandon!(a))
      throw error
    }
    return end - offset
  }

  /** Puts the guest bytes [offset, end) at their place in the allocation, and around them what is there now. */
  #place(buffer: Uint8Array | undefined, at: number, offset: number, end: number, past: boolean): void {
    const a = this.#allocation
    const { storage } = this.#files[a.file]!
    const host = a.offset + (offset - a.guest)
    this.#copyOld(a.guest, offset)
    if (!buffer) {
      if (!a.zeroed) storage.zero(host, end - offset)
    } else if (storage.writeData) storage.writeData(buffer, at, end - offset, host, past)
    else storage.write(buffer, at, end - offset, host)
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
      this.#reader.readInside(this.#scratch, 0, n, offset)
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
      const e = this.#reader.locate(offset, Math.min(end - offset, COPY_CHUNK))
      const n = e.length
      if (e.kind !== Kind.ZERO) {
        this.#scratch ??= new Uint8Array(COPY_CHUNK)
        this.#reader.readInside(this.#scratch, 0, n, offset)
        storage.write(this.#scratch, 0, n, to)
      } else if (!a.zeroed) storage.zero(to, n)
      offset += n
    }
  }
}
