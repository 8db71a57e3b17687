/** The host's disk is full, again and again: writes fail, and no commit does; what was written before is there. */

import t from 'tap'
import type { Format } from '../../lib/formats/driver.js'
import type { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import type { Storage } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'
import { check } from '../crash/scenario.js'
import { contents, randomFrom } from '../metadata/fixtures/metadata.js'
import { createInMemory, randomBytes, secret, type Variant, variants } from '../model/variants.js'
import { SmallHost } from '../support/small-host.js'

const SECTOR = 512
const PAGE = 4096
const SEEDS = 3
const ROUNDS = 12
const CHANGES = 8
/** For a copy of the image, in bytes. */
const ROOM = 2 ** 28
/** Pages that the host has left at the beginning of a round. */
const LEFT = [0, 1, 2, 3, 5, 9, 17, 40, Number.POSITIVE_INFINITY]

/** As a program leaves it that copies files and makes every page of zeros a hole, also those of tables. */
function sparseCopy(original: MemoryStorage): MemoryStorage {
  const bytes = contents(original)
  const copy = MemoryStorage.create({ maxSize: ROOM })
  copy.truncate(bytes.length)
  for (let at = 0; at < bytes.length; at += PAGE) {
    const page = bytes.subarray(at, at + PAGE)
    if (page.some((byte) => byte !== 0)) copy.write(page, 0, page.length, at)
  }
  return copy
}

function addBitmap({ format }: Variant, storage: Storage, granularity: number): void {
  const { path } = storage
  const { layout } = format.open({ storage, path, readOnly: false, secret: () => secret, warn: () => {} })
  format.bitmaps!.add(layout, [storage], undefined, granularity)
}

class FullDisk {
  /** Changes that the host had no room for. */
  refused = 0
  readonly #host: SmallHost
  readonly #storages: readonly Storage[]
  readonly #random: () => number
  readonly #disk: Uint8Array
  readonly #format: Format
  #image: Image

  constructor(variant: Variant, seed: number, bitmaps: readonly number[]) {
    this.#format = variant.format
    this.#random = randomFrom(seed)
    const { storages, contents: disk } = createInMemory(variant, this.#random)
    const [top, ...parents] = storages
    for (const granularity of bitmaps) addBitmap(variant, top!, granularity)
    this.#host = new SmallHost(sparseCopy(top!))
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
    this.#image.close()
    const found = check(this.#format, this.#host, 'none')
    if (found.length > 0) throw new Error(`a check finds: ${found[0]!.message}`)
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

/** Granularities of dirty bitmaps that are kept meanwhile: one that has its bits in several clusters, and one in few. */
const BITMAPS = [512, 65536]
const keepsBitmaps = ({ format, options }: Variant): boolean =>
  format.bitmaps !== undefined && !options.includes('compat=0.10')

for (const variant of variants)
  for (const bitmaps of keepsBitmaps(variant) ? [[], BITMAPS] : [[]])
    t.test(`a full disk under ${variant.name}, ${bitmaps.length} bitmaps`, async (t) => {
      let refused = 0
      for (let seed = 1; seed <= SEEDS; seed++) {
        const disk = new FullDisk(variant, seed, bitmaps)
        try {
          disk.run()
        } catch (error) {
          t.fail(`seed ${seed}: ${(error as Error).stack}`)
        }
        refused += disk.refused
      }
      t.ok(refused > 10, `${refused} changes were refused`)
    })
