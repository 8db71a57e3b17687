/** The life of an image on a host where one operation fails: nothing that was flushed is lost, and it goes on. */

import type { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import { type Fault, FaultStorage } from '../../lib/storage/fault.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { VdiskError } from '../../lib/util/errors.js'
import { History } from '../crash/history.js'
import { contents, randomFrom } from '../metadata/fixtures/metadata.js'
import { createInMemory, randomBytes, secret, type Variant } from '../model/variants.js'

const STEPS = 24
/** For a copy of the image, in bytes. */
const ROOM = 2 ** 28

/** An image that lives on a host where one operation fails. */
export class Life {
  /** The image's, and its parents'. */
  readonly storages: readonly FaultStorage[]
  history: History
  /** What the host's failure was told as. */
  readonly errors: VdiskError[] = []
  readonly #random: () => number
  readonly #variant: Variant
  #image: Image | undefined

  constructor(variant: Variant, seed: number, storages: readonly MemoryStorage[], disk: Uint8Array) {
    this.#variant = variant
    this.#random = randomFrom(seed)
    const [top, ...parents] = storages
    const copy = MemoryStorage.create({ contents: contents(top!), maxSize: ROOM })
    this.storages = [copy, ...parents].map((storage) => new FaultStorage(storage))
    this.history = new History(disk)
  }

  run(): void {
    for (let step = 0; step < STEPS; step++) this.#step()
    this.#twice(() => this.#open().flush())
    this.#look('at the end')
    this.#close()
    this.#look('when it was opened again')
    this.#close()
  }

  #open(): Image {
    this.#image ??= openStorages(this.storages, {
      secret,
      warn: (message) => {
        if (!this.#variant.unclean?.test(message)) throw new Error(message)
      },
    })
    return this.#image
  }

  #step(): void {
    const random = this.#random
    const dice = random()
    const { length: size } = this.history.contents
    const length = Math.ceil(random() * (random() < 0.3 ? size / 3 : 5000))
    let offset = Math.floor(random() * (size - length))
    const data = dice < 0.6 ? randomBytes(length, random) : new Uint8Array(length)
    if (dice < 0.6) this.#change(offset, data, (image) => image.write(data, 0, length, offset))
    else if (dice < 0.8) {
      offset -= offset % 65536
      this.#change(offset, data, (image) => image.zero(offset, length, dice < 0.7))
    } else if (dice < 0.95) {
      this.#twice(() => this.#open().flush())
      this.history.flushed(0)
    } else this.#close()
  }

  #change(offset: number, data: Uint8Array, work: (image: Image) => void): void {
    this.history.changed(0, offset, data)
    this.#twice(() => work(this.#open()))
  }

  /** Does something that may fail once, then works; where a sync failed, behind a new opening. */
  #twice(work: () => void): void {
    try {
      work()
    } catch (error) {
      this.#note(error)
      if (this.storages[0]!.count('sync') > 0 && this.#hasFailed()) this.#reopen()
      work()
    }
  }

  #hasFailed(): boolean {
    try {
      this.#image?.flush()
      return false
    } catch (error) {
      return /opened again/.test(String(error))
    }
  }

  #note(error: unknown): void {
    if (!(error instanceof VdiskError) || !['IO', 'NO_SPACE'].includes(error.code)) throw error
    this.errors.push(error)
  }

  /** Everything that was flushed is there; of the rest, sector by sector, what it was or what it became. */
  #reopen(): void {
    try {
      this.#image?.close()
    } catch (error) {
      if (!/opened again/.test(String(error))) throw error
    }
    this.#image = undefined
    const before = this.history
    const found = this.#read()
    const wrong = before.check(1, found)
    if (wrong) throw new Error(`behind a sync that failed: ${wrong}`)
    // What the change under way puts there comes again.
    const wanted = before.contents
    this.history = new History(found)
    this.history.contents.set(wanted)
    this.#rewrite(found, wanted)
  }

  /** Brings the disk back to what it should be, so that the rest of the life is the same. */
  #rewrite(found: Uint8Array, wanted: Uint8Array): void {
    const image = this.#open()
    for (let at = 0; at < wanted.length; at += 512) {
      const sector = wanted.subarray(at, at + 512)
      if (Buffer.compare(sector, found.subarray(at, at + 512)) !== 0) image.write(sector, 0, sector.length, at)
    }
    image.flush()
    this.history = new History(wanted)
  }

  #close(): void {
    try {
      this.#open().close()
      this.#image = undefined
      this.history.flushed(0)
    } catch (error) {
      this.#note(error)
      if (this.#image) {
        this.#image = undefined
        this.#reopen()
      }
    }
  }

  #read(): Uint8Array {
    const image = this.#open()
    const bytes = new Uint8Array(image.size)
    image.read(bytes, 0, image.size, 0)
    return bytes
  }

  #look(when: string): void {
    let found: Uint8Array | undefined
    this.#twice(() => {
      found = this.#read()
    })
    if (Buffer.compare(found!, this.history.contents) !== 0) throw new Error(`it holds something else ${when}`)
  }
}

/** How an operation fails. Encrypted sectors are not torn: half of one says nothing. */
const kindsFor = ({ options }: Variant) =>
  options.some((option) => option.startsWith('encrypt'))
    ? KINDS.filter(({ shortWrite = 0 }) => shortWrite % 512 === 0)
    : KINDS
const KINDS: readonly Pick<Fault, 'errno' | 'shortWrite'>[] = [
  { errno: 'EIO' },
  { errno: 'ENOSPC' },
  // Some of it is written before the host says so.
  { errno: 'EIO', shortWrite: 700 },
  { errno: 'ENOSPC', shortWrite: 4096 },
]

export interface FaultResult {
  /** Lives with one failing operation each. */
  lives: number
  /** Errors that callers got, of all lives. */
  told: number
  /** What went wrong, one text each. */
  readonly failures: string[]
}

/**
 * Has operations of one scenario fail, one by one, in every way.
 * @param most about so many operations of each of its files, from the first to the last
 */
export function faultsOf(variant: Variant, seed: number, most = Number.POSITIVE_INFINITY): FaultResult {
  const { storages, contents } = createInMemory(variant, randomFrom(seed))
  const newLife = () => new Life(variant, seed, storages, contents)
  const good = newLife()
  good.run()
  const result: FaultResult = { lives: 0, told: 0, failures: [] }
  if (good.errors.length > 0) result.failures.push(`without a fault: ${good.errors[0]!.message}`)
  for (const [file, { operations }] of good.storages.map((storage) => ({ operations: storage.count() })).entries())
    for (const nth of sample(operations, most))
      for (const kind of kindsFor(variant)) {
        const life = newLife()
        life.storages[file]!.fail({ nth, ...kind })
        result.lives++
        try {
          life.run()
          result.told += life.errors.length
        } catch (error) {
          const how = `${kind.errno}${kind.shortWrite ? ` after ${kind.shortWrite} bytes` : ''}`
          const where = `operation ${nth} of ${operations} of file ${file}, seed ${seed}`
          result.failures.push(`${variant.name}: ${how} at ${where}: ${(error as Error).stack}`)
        }
      }
  return result
}

/** From 1 to `count`, about `most` of them. */
function sample(count: number, most: number): number[] {
  const step = Math.max(1, count / most)
  const chosen: number[] = []
  for (let n = 1; n <= count; n += step) chosen.push(Math.floor(n))
  return chosen
}
