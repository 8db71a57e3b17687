/**
 * Copying from one image to another, a chunk at a time: what every thread of a conversion does. Threads take chunks in
 * the order of the disk, so that the target allocates nearly in that order.
 */

import { MiB } from '../../util/sizes.js'
import type { Image } from '../image.js'
import { eachRun, isZero, MAX_GRANULE } from './zeros.js'

/** What a thread takes at a time. */
const CHUNK = 2 * MiB
/**
 * What is read and written at a time. More would not stay in the processor's cache in between; with less, a copy is over
 * before its code was compiled well.
 */
const PIECE = MiB

export interface CopySettings {
  /** Bytes of the disk that are copied: all of the source. */
  readonly size: number
  /** The target reads as zeros where nothing was written to it. */
  readonly blank: boolean
  /** The target has a parent, which has what the source's parents have: only the source's own layer is copied. */
  readonly ownLayer: boolean
  /** Data is written compressed, in whole blocks of the target. */
  readonly compress: boolean
  /** Zeros are not written where at least so many are together; 0: everything is written. Divides MAX_GRANULE. */
  readonly sparse: number
}

/** Numbers that the threads of one copy share. */
export class CopyControl {
  readonly shared: SharedArrayBuffer
  readonly #words: Int32Array
  readonly #done: Float64Array

  static readonly #WORDS = 2
  static readonly #NEXT = 0
  static readonly #STOP = 1

  /** @param threads numbered from 0 on */
  static allocate(threads: number): CopyControl {
    return new CopyControl(new SharedArrayBuffer(4 * CopyControl.#WORDS + 8 * threads))
  }

  constructor(shared: SharedArrayBuffer) {
    this.shared = shared
    this.#words = new Int32Array(shared, 0, CopyControl.#WORDS)
    this.#done = new Float64Array(shared, 4 * CopyControl.#WORDS)
  }

  /** Makes all threads end after the chunk that they are at. */
  stop(): void {
    Atomics.store(this.#words, CopyControl.#STOP, 1)
  }

  /** The number of the next chunk; undefined when the copy was stopped. */
  take(): number | undefined {
    if (Atomics.load(this.#words, CopyControl.#STOP) !== 0) return undefined
    return Atomics.add(this.#words, CopyControl.#NEXT, 1)
  }

  /** Nothing needs to be done from chunk `from` up to `to`, which is left out where nobody has taken one of them. */
  skip(from: number, to: number): void {
    if (to > from) Atomics.compareExchange(this.#words, CopyControl.#NEXT, from, to)
  }

  /** The offset up to which chunks were taken. */
  get position(): number {
    return Atomics.load(this.#words, CopyControl.#NEXT) * CHUNK
  }

  add(thread: number, bytes: number): void {
    this.#done[thread]! += bytes
  }

  /** Bytes of data that were read so far. */
  get done(): number {
    return this.#done.reduce((sum, bytes) => sum + bytes, 0)
  }
}

export class CopyJob {
  readonly #source: Image
  readonly #target: Image
  readonly #settings: CopySettings
  readonly #control: CopyControl
  readonly #thread: number
  readonly #buffer: Buffer

  constructor(source: Image, target: Image, settings: CopySettings, control: CopyControl, thread: number) {
    this.#source = source
    this.#target = target
    this.#settings = settings
    this.#control = control
    this.#thread = thread
    const unit = settings.compress ? target.blockSize : settings.sparse
    this.#buffer = Buffer.allocUnsafeSlow(Math.max(PIECE, unit))
  }

  /** Copies the next chunk. @returns false at the end, or where the copy was stopped. */
  step(): boolean {
    const chunk = this.#control.take()
    if (chunk === undefined || chunk * CHUNK >= this.#settings.size) return false
    this.#copy(chunk)
    return true
  }

  #copy(chunk: number): void {
    const { size, blank, ownLayer, sparse } = this.#settings
    const end = Math.min((chunk + 1) * CHUNK, size)
    for (let at = chunk * CHUNK; at < end; ) {
      const run = this.#source.map(at, size - at)
      const runEnd = Math.min(at + run.length, end)
      const below = ownLayer && run.depth > 0
      const untouched = below || (run.zero && blank && sparse > 0)
      if (untouched) this.#control.skip(chunk + 1, Math.floor((at + run.length) / CHUNK))
      else if (run.zero && sparse > 0) this.#target.zero(at, runEnd - at, true)
      else if (this.#settings.compress) {
        const { blockSize } = this.#target
        const first = Math.max(chunk * CHUNK, at - (at % blockSize))
        const last = Math.min(end, Math.ceil(runEnd / blockSize) * blockSize)
        this.#copyBlocks(first, last)
        at = last
        continue
      } else this.#copyData(at, runEnd)
      at = runEnd
    }
  }

  /** Whole blocks, each compressed by itself. */
  #copyBlocks(start: number, end: number): void {
    const { blockSize } = this.#target
    const buffer = this.#buffer
    for (let at = start; at < end; ) {
      const next = Math.min(end, at + buffer.length - (at % buffer.length))
      this.#source.read(buffer, 0, next - at, at)
      this.#control.add(this.#thread, next - at)
      for (let from = 0; from < next - at; from += blockSize) {
        const length = Math.min(blockSize, next - at - from)
        if (this.#settings.sparse === 0 || !isZero(buffer, from, length))
          this.#target.writeEncoded(buffer, from, length, at + from)
        else if (!this.#settings.blank) this.#target.zero(at + from, length, true)
      }
      at = next
    }
  }

  #copyData(start: number, end: number): void {
    const { sparse, blank } = this.#settings
    const buffer = this.#buffer
    for (let at = start; at < end; ) {
      const next = Math.min(end, at + buffer.length - (at % buffer.length))
      this.#source.read(buffer, 0, next - at, at)
      this.#control.add(this.#thread, next - at)
      const write = (from: number, length: number, zero: boolean) => {
        if (!zero) this.#target.write(buffer, from, length, at + from, true)
        else if (!blank) this.#target.zero(at + from, length, true)
      }
      if (sparse > 0) eachRun(buffer, next - at, at, Math.min(sparse, MAX_GRANULE), write)
      else write(0, next - at, false)
      at = next
    }
  }
}
