/**
 * Images that end inside of their last block or cluster, as other programs make them, and images on devices, which keep
 * their size: seeded lives of them in memory, beside a plain buffer.
 */

import { layersOver, openStorages } from '../../lib/image/open.js'
import { resizeLayer } from '../../lib/image/resize.js'
import type { Storage } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'
import { askQemu, check, corruption } from '../crash/scenario.js'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import { cutShort, onDevice } from './cut-short.js'
import { randomBytes, secret, type Variant } from './variants.js'

const SECTOR = 512
const MiB = 2 ** 20

/** The file as it is, or a device: with no room behind it, or with some. */
export const PLACES = ['file', 'device', 'roomy device'] as const
export type Place = (typeof PLACES)[number]

/** @returns what is wrong, or undefined; `none` where this kind cannot be made so with this seed */
export function liveAtEnd(variant: Variant, place: Place, seed: number, steps: number): string | undefined | 'none' {
  const random = randomFrom(seed)
  const chain = cutShort(variant, random, place !== 'file')
  if (!chain) return 'none'
  const [memory, ...parents] = chain.storages
  const more = place === 'roomy device' ? SECTOR * Math.floor((random() * 5 * MiB) / SECTOR) : 0
  const top: Storage = place === 'file' ? memory! : onDevice(variant, memory!, more)
  const life = new Life(variant, [top, ...parents], chain.contents, random)
  for (let step = 0; step < steps; step++) {
    const wrong = life.step()
    if (wrong !== undefined) return `step ${step}, ${life.last}: ${wrong}`
  }
  const wrong = life.end()
  if (wrong !== undefined) return `at the end: ${wrong}`
  return place === 'file' ? askQemu({ ...variant, size: life.size }, [memory!, ...parents]) : undefined
}

class Life {
  last = ''
  readonly #variant: Variant
  readonly #storages: readonly Storage[]
  readonly #random: () => number
  #model: Uint8Array
  #image

  constructor(variant: Variant, storages: readonly Storage[], model: Uint8Array, random: () => number) {
    this.#variant = variant
    this.#storages = storages
    this.#model = model
    this.#random = random
    this.#image = openStorages(storages, { secret })
  }

  get size(): number {
    return this.#model.length
  }

  step(): string | undefined {
    const random = this.#random
    const { size } = this
    let length = Math.min(size, SECTOR * Math.ceil(random() * (random() < 0.3 ? 200 : 20)))
    let offset = Math.floor(random() * (size - length + 1))
    const where = random()
    if (where < 0.4) offset = size - length
    else if (where < 0.7) offset -= offset % SECTOR
    const dice = random()
    if (dice < 0.45) return this.#change('write', offset, randomBytes(length, random))
    if (dice < 0.65) {
      const unit = Math.max(this.#image.blockSize, SECTOR)
      offset -= offset % unit
      length = Math.min(size - offset, unit * Math.ceil(random() * 3))
      return this.#change(random() < 0.5 ? 'discard' : 'zero', offset, new Uint8Array(length))
    }
    if (dice < 0.75) return this.#flush()
    this.#image.close()
    const wrong = dice < 0.85 ? undefined : dice < 0.93 ? this.#repair() : this.#resize()
    if (wrong !== undefined) return wrong
    const { format } = this.#variant
    const bad = corruption({ ...this.#variant, unclean: undefined }, this.#storages[0]!)
    if (bad !== undefined) return `${format.name}: ${bad}`
    this.#image = openStorages(this.#storages, { secret })
    return this.#compare()
  }

  end(): string | undefined {
    this.#image.close()
    this.#image = openStorages(this.#storages, { secret, readOnly: true })
    const wrong = this.#compare()
    this.#image.close()
    return wrong ?? corruption({ ...this.#variant, unclean: undefined }, this.#storages[0]!)
  }

  #flush(): undefined {
    this.last = 'flush'
    this.#image.flush()
  }

  #change(how: 'write' | 'zero' | 'discard', offset: number, data: Uint8Array): string | undefined {
    this.last = `${how} of ${data.length} bytes at ${offset} of ${this.size}`
    const own = this.#image.own(offset, data.length)
    try {
      if (how === 'write') this.#image.write(data, 0, data.length, offset)
      else this.#image.zero(offset, data.length, how === 'discard')
    } catch (error) {
      if (!this.#isFull(error)) throw error
      // What has a place needs no other one.
      if (own.kind === 'data' && own.length >= data.length) return `it fails with ${(error as Error).message}`
      return this.#afterFailure(offset, data)
    }
    this.#model.set(data, offset)
    return this.#compare()
  }

  #isFull(error: unknown): boolean {
    return this.#storages[0]!.fixedSize === true && error instanceof VdiskError && error.code === 'NO_SPACE'
  }

  /** Every byte is what it was or what it was to be. */
  #afterFailure(offset: number, data: Uint8Array): string | undefined {
    const found = new Uint8Array(data.length)
    this.#image.read(found, 0, found.length, offset)
    for (let i = 0; i < data.length; i++)
      if (found[i] !== data[i] && found[i] !== this.#model[offset + i]) return `byte ${offset + i} after a full device`
    this.#model.set(found, offset)
    return this.#compare()
  }

  #repair(): undefined {
    const how = this.#random() < 0.5 ? 'leaks' : 'all'
    this.last = `repair of ${how}`
    check(this.#variant.format, this.#storages[0]!, how)
  }

  #resize(): string | undefined {
    const { sectorSize = SECTOR } = this.#variant
    const factor = [0.5, 0.9, 1.1, 1.7][Math.floor(this.#random() * 4)]!
    const size = Math.max(1, Math.round((this.size * factor) / sectorSize)) * sectorSize
    this.last = `resize from ${this.size} to ${size}`
    const [layer, ...parents] = layersOver(this.#storages, { secret })
    try {
      resizeLayer(layer!, size, () => parents)
    } catch (error) {
      if (!(error instanceof VdiskError) || !['USAGE', 'UNSUPPORTED', 'NO_SPACE'].includes(error.code)) throw error
      if (error.code === 'NO_SPACE' && !this.#isFull(error)) throw error
      return undefined
    }
    const image = openStorages(this.#storages, { secret, readOnly: true })
    const model = new Uint8Array(image.size)
    image.close()
    if (model.length < size) return `the disk has ${model.length} bytes, not ${size}`
    model.set(this.#model.subarray(0, model.length))
    this.#model = model
    return undefined
  }

  #compare(): string | undefined {
    if (this.#image.size !== this.size) return `the disk has ${this.#image.size} bytes, not ${this.size}`
    const found = new Uint8Array(this.size)
    this.#image.read(found, 0, this.size, 0)
    const at = found.findIndex((byte, i) => byte !== this.#model[i])
    return at < 0 ? undefined : `byte ${at} is ${found[at]}, not ${this.#model[at]}`
  }
}
