/** A QCOW2 layer in one thread. */

import { VdiskError } from '../../util/errors.js'
import type { Driver, Extent, LayerContext } from '../driver.js'
import type { Qcow2Layout } from './layout.js'
import { Mapping } from './mapping.js'
import { Tables } from './tables.js'

export class Qcow2Driver implements Driver {
  readonly size: number
  readonly blockSize: number
  readonly locked = true
  readonly changeSectors = 64
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #mapping: Mapping

  constructor(layout: Qcow2Layout, context: LayerContext) {
    this.size = layout.size
    this.blockSize = layout.clusterSize
    this.#layout = layout
    this.#context = context
    this.#mapping = new Mapping(layout, context, new Tables(layout, context))
  }

  map(offset: number, length: number, out: Extent): void {
    this.#mapping.map(offset, length, out)
  }

  decode(extent: Extent, offset: number, buffer: Uint8Array, at: number, length: number): void {
    void [extent, offset, buffer, at, length, this.#layout]
    throw new VdiskError('UNSUPPORTED', 'compressed clusters', { path: this.#context.files[0]!.storage.path })
  }
}
