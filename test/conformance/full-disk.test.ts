/** The host's disk is full, again and again: writes fail, and no commit does; what was written before is there. */

import t from 'tap'
import type { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import type { Storage } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'
import { contents, randomFrom } from '../metadata/fixtures/metadata.js'
import { createInMemory, randomBytes, secret, type Variant, variants } from '../model/variants.js'
import { SmallHost } from '../support/small-host.js'

const SECTOR = 512
const SEEDS = [1, 2, 3, 4, 5, 6]
const ROUNDS = 12
const CHANGES = 8
/** For a copy of the image, in bytes. */
const ROOM = 2 ** 28
/** Pages that the host has left at the beginning of a round. */
const LEFT = [0, 1, 2, 3, 5, 9, 17, 40, Number.POSITIVE_INFINITY]

class FullDisk {
  /** Changes that the host had no room for. */
  refused = 0
  readonly #host: SmallHost
  readonly #storages: readonly Storage[]
  readonly #random: () => number
  readonly #disk: Uint8Array
  #image: Image

  constructor(variant: Variant, seed: number) {
    this.#random = randomFrom(seed)
    const { storages, contents: disk } = createInMemory(variant, this.#random)
    const [top, ...parents] = storages
    this.#host = new SmallHost(MemoryStorage.create({ contents: contents(top!), maxSize: ROOM }))
    this.#storages = [this.#host, ...parents]
    this.#disk = disk.slice()
    this.#image = this.#open()
  }

  run(): void {
    for (let round = 0; round < ROUNDS; round++) {
      this.#host.free = LEFT[Math.floor(this.#random() * LEFT.length)]!
      for (let i = 0; i < CHANGES; i++) this.#change()
      if (this.#random() < 0.3) this.#host.free = 0
      this.#image.flush()
      this.#compare('behind a flush')
      if (this.#random() < 0.4) this.#reopen()
    }
    this.#host.free = 0
    this.#reopen()
  }

  #open(): Image {
    return openStorages(this.#storages, {
      secret,
      warn: (message) => {
        throw new Error(message)
      },
    })
  }

  #reopen(): void {
    this.#image.close()
    this.#image = this.#open()
    this.#compare('when it was opened again')
  }

  #change(): void {
    const random = this.#random
    const { size } = this.#image
    const length = Math.ceil(random() * (random() < 0.3 ? size / 3 : 5000))
    let offset = Math.floor(random() * (size - length))
    const dice = random()
    if (dice > 0.7) offset -= offset % 65536
    const data = dice < 0.7 ? randomBytes(length, random) : new Uint8Array(length)
    try {
      if (dice < 0.7) this.#image.write(data, 0, length, offset)
      else this.#image.zero(offset, length, dice < 0.85)
      this.#disk.set(data, offset)
    } catch (error) {
      if (!(error instanceof VdiskError) || error.code !== 'NO_SPACE') throw error
      this.refused++
      this.#adopt(offset, data)
    }
  }

  /** What a change that failed has left: of each sector the old or the new. */
  #adopt(offset: number, data: Uint8Array): void {
    const first = offset - (offset % SECTOR)
    const end = Math.min(this.#disk.length, Math.ceil((offset + data.length) / SECTOR) * SECTOR)
    const changed = this.#disk.slice(first, end)
    changed.set(data, offset - first)
    const found = new Uint8Array(end - first)
    this.#image.read(found, 0, found.length, first)
    for (let at = 0; at < found.length; at += SECTOR) {
      const sector = found.subarray(at, at + SECTOR)
      const old = this.#disk.subarray(first + at, Math.min(end, first + at + SECTOR))
      if (Buffer.compare(sector, old) !== 0 && Buffer.compare(sector, changed.subarray(at, at + SECTOR)) !== 0)
        throw new Error(`a change that failed leaves something else at byte ${first + at}`)
      old.set(sector)
    }
  }

  #compare(when: string): void {
    const found = new Uint8Array(this.#image.size)
    this.#image.read(found, 0, found.length, 0)
    const wrong = found.findIndex((byte, at) => byte !== this.#disk[at])
    if (wrong >= 0) throw new Error(`the disk holds something else at byte ${wrong} ${when}`)
  }
}

for (const variant of variants)
  t.test(`a full disk under ${variant.name}`, async (t) => {
    let refused = 0
    for (const seed of SEEDS) {
      const disk = new FullDisk(variant, seed)
      try {
        disk.run()
      } catch (error) {
        t.fail(`seed ${seed}: ${(error as Error).stack}`)
      }
      refused += disk.refused
    }
    t.ok(refused > 10, `${refused} changes were refused`)
  })
