/** The driver of everything that is one run of bytes in one file: raw images, fixed VHDs. */

import { type Driver, type Extent, Kind, type LayerContext } from './driver.js'

/** Of no meaning to the format; writers of neighbouring bytes need not wait for each other. */
const BLOCK_SIZE = 4096

/** What is known of a raw image. */
export interface FlatLayout {
  readonly size: number
}

export function attach({ size }: FlatLayout, context: LayerContext): FlatDriver {
  return new FlatDriver(size, context)
}

export class FlatDriver implements Driver {
  readonly size: number
  readonly blockSize = BLOCK_SIZE
  readonly locked = false
  readonly changeSectors = 0
  readonly #file: number
  readonly #writable: boolean

  /** @param size bytes of the disk, which begins where the file does */
  constructor(size: number, context: LayerContext) {
    this.size = size
    this.#file = context.files[0]!.index
    this.#writable = context.writable
  }

  map(offset: number, length: number, out: Extent): void {
    out.kind = Kind.DATA
    out.length = length
    out.file = this.#file
    out.offset = offset
    out.writable = this.#writable
  }
}
