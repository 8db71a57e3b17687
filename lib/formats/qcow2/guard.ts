/**
 * What happens where a table says what cannot be: an error, and in an image that may be written the corrupt bit, so that
 * nobody writes to it before it was repaired.
 */

import { VdiskError } from '../../util/errors.js'
import type { LayerContext } from '../driver.js'
import { Incompatible, readFeatures, writeFeatures } from './header.js'
import { ENTRY_BYTES, type Qcow2Layout, State } from './layout.js'

export class Guard {
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #l1End: number

  constructor(layout: Qcow2Layout, context: LayerContext) {
    this.#layout = layout
    this.#context = context
    this.#l1End = layout.l1Offset + layout.l1Size * ENTRY_BYTES
  }

  /** Whether a cluster is the header's, or one of the L1 table or the refcount table: what is written must not go there. */
  covers(offset: number): boolean {
    const { l1Offset, clusterSize } = this.#layout
    const { state } = this.#context
    const table = state[State.TABLE_OFFSET]!
    return (
      offset < clusterSize ||
      (offset >= l1Offset && offset < this.#l1End) ||
      (offset >= table && offset < table + state[State.TABLE_CLUSTERS]! * clusterSize)
    )
  }

  /** The error to throw. @param offset of the entry in the file */
  corrupt(message: string, offset: number): VdiskError {
    const { path } = this.#context.files[0]!.storage
    if (this.#context.writable && this.#layout.header.version > 2) this.#mark()
    return new VdiskError('CORRUPT', `${message}: vdiskfs check --repair all`, { path, offset })
  }

  #mark(): void {
    const { files, metadata } = this.#context
    const { storage, index } = files[0]!
    try {
      const bits = readFeatures(storage, 'incompatible')
      if (bits.includes(Incompatible.CORRUPT)) return
      writeFeatures(storage, 'incompatible', [...bits, Incompatible.CORRUPT])
      metadata.wrote(index)
    } catch {
      // What cannot be marked is told all the same.
    }
  }
}
