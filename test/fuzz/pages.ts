/**
 * Bytes of a file that is mostly zeros, cheap to copy and to change: hundreds of thousands of damaged images are made
 * of a few seeds. `PagedStorage` shows them as a storage, and is suspicious of what it is asked for.
 */

import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs'
import type { Storage, StorageHandle } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'

const PAGE = 4096
const ZEROS = new Uint8Array(PAGE)

const isZero = (page: Uint8Array): boolean => Buffer.compare(page, ZEROS.subarray(0, page.length)) === 0

export class Pages {
  size: number
  readonly #pages: Map<number, Uint8Array>
  /** Pages that nobody else refers to. */
  readonly #own = new Set<number>()

  constructor(size = 0, pages: Map<number, Uint8Array> = new Map()) {
    this.size = size
    this.#pages = pages
  }

  static of(bytes: Uint8Array): Pages {
    const made = new Pages(bytes.length)
    for (let at = 0; at < bytes.length; at += PAGE) {
      const page = bytes.subarray(at, at + PAGE)
      if (!isZero(page)) made.put(at, page)
    }
    return made
  }

  /** The contents of a file, which is read page by page. */
  static ofFile(path: string): Pages {
    const fd = openSync(path, 'r')
    try {
      const made = new Pages(fstatSync(fd).size)
      const chunk = new Uint8Array(256 * PAGE)
      for (let at = 0; at < made.size; at += chunk.length) {
        const got = readSync(fd, chunk, 0, chunk.length, at)
        for (let i = 0; i < got; i += PAGE) {
          const page = chunk.subarray(i, Math.min(got, i + PAGE))
          if (!isZero(page)) made.put(at + i, page)
        }
      }
      return made
    } finally {
      closeSync(fd)
    }
  }

  /** Makes a file of them: at most as large as ext4 allows; the images of strangers come in files that exist. */
  toFile(path: string): void {
    const fd = openSync(path, 'wx')
    try {
      ftruncateSync(fd, Math.min(this.size, 2 ** 43))
      for (const page of this.used) {
        const bytes = this.get(page * PAGE, PAGE)
        writeSync(fd, bytes, 0, bytes.length, page * PAGE)
      }
    } finally {
      closeSync(fd)
    }
  }

  copy(): Pages {
    this.#own.clear()
    return new Pages(this.size, new Map(this.#pages))
  }

  /** Bytes of memory that the contents take up. */
  get held(): number {
    return this.#pages.size * PAGE
  }

  /** Numbers of the pages that are not zeros, in order. */
  get used(): number[] {
    return [...this.#pages.keys()].sort((a, b) => a - b)
  }

  get(at: number, length: number): Uint8Array {
    const bytes = new Uint8Array(Math.max(0, Math.min(length, this.size - at)))
    this.read(bytes, 0, bytes.length, at)
    return bytes
  }

  read(buffer: Uint8Array, to: number, length: number, offset: number): void {
    for (let done = 0; done < length; ) {
      const at = offset + done
      const inPage = at % PAGE
      const n = Math.min(length - done, PAGE - inPage)
      const page = this.#pages.get((at - inPage) / PAGE)
      if (page) buffer.set(page.subarray(inPage, inPage + n), to + done)
      else buffer.fill(0, to + done, to + done + n)
      done += n
    }
  }

  /** Writes; grows where need be. */
  put(offset: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const at = offset + done
      const inPage = at % PAGE
      const n = Math.min(bytes.length - done, PAGE - inPage)
      this.#writable((at - inPage) / PAGE).set(bytes.subarray(done, done + n), inPage)
      done += n
    }
    this.size = Math.max(this.size, offset + bytes.length)
  }

  zero(offset: number, length: number): void {
    const end = Math.min(offset + length, this.size)
    const first = Math.floor(offset / PAGE)
    for (const page of [...this.#pages.keys()]) {
      if (page < first || page * PAGE >= end) continue
      const from = Math.max(offset, page * PAGE)
      const to = Math.min(end, (page + 1) * PAGE)
      if (to - from === PAGE) this.#pages.delete(page)
      else this.#writable(page).fill(0, from - page * PAGE, to - page * PAGE)
    }
  }

  truncate(size: number): void {
    if (size < this.size) this.zero(size, this.size - size)
    this.size = size
  }

  /** The next page boundary (or `offset` itself) at which data, or a hole, begins; the size where there is none. */
  seek(offset: number, data: boolean): number {
    if (offset >= this.size) return this.size
    let page = Math.floor(offset / PAGE)
    if (data) {
      let least = Number.POSITIVE_INFINITY
      for (const used of this.#pages.keys()) if (used >= page && used < least) least = used
      page = least
    } else while (this.#pages.has(page)) page++
    return Math.min(this.size, Math.max(offset, page * PAGE))
  }

  #writable(page: number): Uint8Array {
    const found = this.#pages.get(page)
    if (found && this.#own.has(page)) return found
    const made = new Uint8Array(PAGE)
    if (found) made.set(found)
    this.#pages.set(page, made)
    this.#own.add(page)
    return made
  }
}

/** What a host's file system does not allow for any file: ext4 with 4 KiB blocks. */
const LARGEST = 16 * 2 ** 40
/** A full disk. */
const MOST_HELD = 64 * 2 ** 20

/** Something that no caller may do, whatever the image is. */
export class Misuse extends Error {
  override readonly name = 'Misuse'
}

export class PagedStorage implements Storage {
  readonly path: string
  readonly readOnly: boolean
  readonly #pages: Pages

  constructor(pages: Pages, path: string, readOnly: boolean) {
    this.#pages = pages
    this.path = path
    this.readOnly = readOnly
  }

  read(buffer: Uint8Array, at: number, length: number, offset: number): number {
    this.#check(offset, length)
    if (at + length > buffer.length) throw new Misuse(`a read of ${length} bytes into ${buffer.length} at ${at}`)
    const count = Math.max(0, Math.min(length, this.#pages.size - offset))
    this.#pages.read(buffer, at, count, offset)
    return count
  }

  write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#change(offset, length)
    if (at + length > buffer.length) throw new Misuse(`a write of ${length} bytes out of ${buffer.length} at ${at}`)
    if (this.#pages.held > MOST_HELD) throw this.#full('ENOSPC')
    this.#pages.put(offset, buffer.subarray(at, at + length))
  }

  size(): number {
    return this.#pages.size
  }

  allocated(): number {
    return this.#pages.held
  }

  truncate(size: number): void {
    this.#change(0, size)
    this.#pages.truncate(size)
  }

  sync(): void {}

  punch(offset: number, length: number): void {
    this.zero(offset, length)
  }

  zero(offset: number, length: number): void {
    this.#check(offset, length)
    this.#change(offset, 0)
    this.#pages.zero(offset, length)
  }

  reserve(offset: number, length: number): void {
    this.#change(offset, length)
  }

  nextData(offset: number): number {
    this.#check(offset, 0)
    return this.#pages.seek(offset, true)
  }

  nextHole(offset: number): number {
    this.#check(offset, 0)
    return this.#pages.seek(offset, false)
  }

  handle(): StorageHandle {
    throw new Misuse('another thread is told of it')
  }

  close(): void {}

  #check(offset: number, length: number): void {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0)
      throw new Misuse(`${length} bytes at ${offset}`)
  }

  #change(offset: number, length: number): void {
    this.#check(offset, length)
    if (this.readOnly) throw new Misuse('a change of what was opened read-only')
    if (offset + length > LARGEST) throw this.#full('EFBIG')
  }

  #full(errno: string): VdiskError {
    return new VdiskError('NO_SPACE', `${this.path}: no space left on the device`, { path: this.path, errno })
  }
}
