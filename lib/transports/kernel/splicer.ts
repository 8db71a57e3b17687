/**
 * Answers large READs without copying: the pages of the image file go through a pipe to the device as they are, and the
 * kernel copies them once, to whoever reads. With a buffer in between they are copied twice, and pinned page by page.
 */

import { closeSync } from 'node:fs'
import debug from 'debug'
import { makePipe, resizePipe, splice } from '../../native/pipes.js'
import { writeNext } from '../../native/transfer.js'
import { Pieces } from '../../util/pieces.js'
import { MAX_TRANSFER, OUT_HEADER_SIZE } from './protocol.js'

const trace = debug('vdiskfs:transport')

const PAGE = 4096
/** A page for the header and, for each piece, one more than its length says, as it need not begin at a page. */
const PIPE_SIZE = 2 ** Math.ceil(Math.log2(MAX_TRANSFER + PAGE * (1 + Pieces.MOST)))
/** The calls never wait for room in the pipe: there is enough, and if not, it is better to hear of it. */
const SPLICE_F_NONBLOCK = 2
/** Below this, two more system calls cost more than copying does. */
export const SPLICE_LEAST = 32768

/** One a worker. */
export class Splicer {
  readonly pieces = new Pieces()
  readonly #device: number
  readonly #offset = new BigInt64Array(1)
  #reader: number
  #writer: number

  private constructor(device: number, reader: number, writer: number) {
    this.#device = device
    this.#reader = reader
    this.#writer = writer
  }

  /** A splicer for replies on `device`; undefined where the system gives no pipe of the size that is needed. */
  static make(device: number): Splicer | undefined {
    try {
      const { reader, writer } = makeLargePipe()
      return new Splicer(device, reader, writer)
    } catch (error) {
      trace('no splicing: %o', error)
      return undefined
    }
  }

  /**
   * Sends a reply: the header in the first bytes of `header`, then `length` bytes, which are those of `pieces`.
   * @returns false where that cannot be done; nothing was sent then.
   */
  send(header: Uint8Array, length: number): boolean {
    if (this.#reader < 0) return false
    try {
      writeNext(this.#writer, header, OUT_HEADER_SIZE)
      if (this.#fill()) {
        splice(this.#reader, null, this.#device, null, OUT_HEADER_SIZE + length, SPLICE_F_NONBLOCK)
        return true
      }
    } catch (error) {
      trace('splicing %d bytes: %o', length, error)
      this.#renew()
      // The request was given up meanwhile: nobody waits for a reply.
      return (error as NodeJS.ErrnoException).code === 'ENOENT'
    }
    this.#renew()
    return false
  }

  /** Puts all pieces into the pipe. @returns false where a file ends before its piece does. */
  #fill(): boolean {
    const { pieces } = this
    for (let i = 0; i < pieces.count; i++) {
      this.#offset[0] = BigInt(pieces.offsets[i]!)
      for (let left = pieces.lengths[i]!; left > 0; ) {
        const moved = splice(pieces.descriptors[i]!, this.#offset, this.#writer, null, left, SPLICE_F_NONBLOCK)
        if (moved === 0) return false
        left -= moved
      }
    }
    return true
  }

  /** Takes a new pipe in place of one that holds what nobody wants; where there is none, all is copied from now on. */
  #renew(): void {
    this.close()
    try {
      const { reader, writer } = makeLargePipe()
      this.#reader = reader
      this.#writer = writer
    } catch (error) {
      trace('no splicing any more: %o', error)
    }
  }

  close(): void {
    if (this.#reader < 0) return
    closeSync(this.#reader)
    closeSync(this.#writer)
    this.#reader = this.#writer = -1
  }
}

function makeLargePipe(): { readonly reader: number; readonly writer: number } {
  const ends = makePipe()
  try {
    resizePipe(ends.writer, PIPE_SIZE)
    return ends
  } catch (error) {
    closeSync(ends.reader)
    closeSync(ends.writer)
    throw error
  }
}
