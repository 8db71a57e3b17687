/** The two buffers of a worker, one request and one reply, with their fields as numbers. Nothing here allocates. */

import { InHeader, MAX_TRANSFER, OUT_HEADER_SIZE, OutHeader, REQUEST_HEADROOM } from './protocol.js'

const TWO_TO_32 = 2 ** 32

/** Which half of a 64-bit field comes first in memory. */
const BIG_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 0
const LOW = BIG_ENDIAN ? 1 : 0
const HIGH = BIG_ENDIAN ? 0 : 1

/** The first bytes of a request, without which it cannot even be answered: length, opcode, unique. */
export const ANSWERABLE_SIZE = 16

/** A request as it was read from the device. Fields are read at byte offsets that are multiples of their size. */
export class Request {
  readonly bytes: Buffer<ArrayBuffer>
  readonly #words: Uint32Array

  constructor(size: number = MAX_TRANSFER + REQUEST_HEADROOM) {
    this.bytes = Buffer.from(new ArrayBuffer(size))
    this.#words = new Uint32Array(this.bytes.buffer)
  }

  u32(at: number): number {
    return this.#words[at >> 2]!
  }

  /** A 64-bit field; above 2^53 it is rounded, and stays above Number.MAX_SAFE_INTEGER. */
  u64(at: number): number {
    const index = at >> 2
    return this.#words[index + LOW]! + this.#words[index + HIGH]! * TWO_TO_32
  }

  /** The text from `at` up to its NUL, which must come before `end`; undefined where there is none, or no text. */
  text(at: number, end: number): string | undefined {
    const nul = this.bytes.indexOf(0, at)
    return nul <= at || nul >= end ? undefined : this.bytes.toString('utf8', at, nul)
  }

  /** The unique's two words in the order of memory: it is only ever compared and given back. */
  get uniqueFirst(): number {
    return this.#words[InHeader.unique >> 2]!
  }

  get uniqueSecond(): number {
    return this.#words[(InHeader.unique >> 2) + 1]!
  }
}

/** A reply: `bytes` begins with the header, and the data of a READ is read into it behind that. */
export class Reply {
  readonly bytes: Buffer<ArrayBuffer>
  readonly #words: Uint32Array
  readonly #halves: Uint16Array

  constructor(size: number = MAX_TRANSFER + OUT_HEADER_SIZE) {
    this.bytes = Buffer.from(new ArrayBuffer(size))
    this.#words = new Uint32Array(this.bytes.buffer)
    this.#halves = new Uint16Array(this.bytes.buffer)
  }

  /** Negative numbers too (the error of a header). */
  putU32(at: number, value: number): void {
    this.#words[at >> 2] = value
  }

  putU16(at: number, value: number): void {
    this.#halves[at >> 1] = value
  }

  /** A whole number from −2^53 to 2^53. */
  putU64(at: number, value: number): void {
    const index = at >> 2
    this.#words[index + LOW] = value % TWO_TO_32
    this.#words[index + HIGH] = Math.floor(value / TWO_TO_32)
  }

  /** Zeros, so that padding and fields that nobody sets never show what an earlier reply held. */
  clear(at: number, length: number): void {
    this.bytes.fill(0, at, at + length)
  }

  /**
   * The header of a reply of `length` bytes; `errno` is positive, or 0, and `first` and `second` are the unique's words.
   * @returns `length`
   */
  header(length: number, errno: number, first: number, second: number): number {
    const words = this.#words
    words[OutHeader.len >> 2] = length
    words[OutHeader.error >> 2] = -errno
    words[OutHeader.unique >> 2] = first
    words[(OutHeader.unique >> 2) + 1] = second
    return length
  }
}
