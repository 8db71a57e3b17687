/**
 * The layers of an open image as one thread works on them: what the parts of `Image` have in common. And what another
 * thread needs to have the same.
 */

import type { Driver, FileRef } from '../formats/driver.js'
import { attachDriver } from '../formats/drivers.js'
import { Metadata } from '../metadata/metadata.js'
import type { SharedShape } from '../metadata/shared.js'
import type { Storage, StorageHandle } from '../storage/storage.js'
import { EncryptedData } from './encrypted.js'

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

export class Stack {
  /** Of the top layer. */
  readonly path: string
  readonly files: readonly FileRef[]
  /** Top first. */
  readonly drivers: readonly Driver[]
  readonly top: Driver
  readonly metadata: Metadata
  /** False where no driver's `map` looks at anything that can change. */
  readonly locked: boolean
  /** Of the layers whose data is encrypted, top first. */
  readonly encrypted: readonly (EncryptedData | undefined)[]
  readonly #readOnly: boolean

  /** @param storages all files of the image, by number */
  constructor({ readOnly, layers, shape }: ImageShape, thread: number, storages: readonly Storage[]) {
    this.path = layers[0]!.path
    this.#readOnly = readOnly
    this.files = storages.map((storage, index) => ({ index, storage }))
    const writable = readOnly ? [] : layers[0]!.files
    this.metadata = new Metadata(shape, thread, this.files, writable, () => {
      const driver = this.top
      return driver.writeOut ? (batch) => driver.writeOut!(batch) : undefined
    })
    this.drivers = layers.map((layer, depth) => this.#attach(layer, depth))
    this.top = this.drivers[0]!
    this.encrypted = this.drivers.map(({ cipher }) => cipher && new EncryptedData(cipher))
    if (this.top.dirtyLimit !== undefined) this.metadata.limitDirty(this.top.dirtyLimit)
    this.locked = this.drivers.some((driver) => driver.locked)
  }

  #attach(layer: LayerHandle, depth: number): Driver {
    const writable = depth === 0 && !this.#readOnly
    return attachDriver(layer.format, layer.layout, {
      files: layer.files.map((file) => this.files[file]!),
      metadata: this.metadata,
      state: this.metadata.state(layer.stateStart, layer.state.length),
      space: writable ? this.metadata.space : undefined,
      writable,
    })
  }
}
