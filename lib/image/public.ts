/** What the library gives to other programs, where that is less, or said otherwise, than what this program needs. */

import { setImmediate } from 'node:timers/promises'
import type { Format } from '../formats/driver.js'
import type { OptionValue } from '../formats/options.js'
import { formats as registry } from '../formats/registry.js'
import { type ConvertOptions as Conversion, convert as convertImage } from './convert/convert.js'
import { type CreateOptions as Creation, createImage as create } from './create.js'
import type { Image } from './image.js'
import { type MapEntry, runs } from './map.js'
import { openImage as open, type Secret } from './open.js'

/** After so long the async iterator of a disk lets others have a turn. */
const LONGEST_TURN_MS = 10

/** Options of a format: `{ block_size: '1M', subformat: 'fixed' }`, or `['block_size=1M']`. */
export type FormatOptions = readonly string[] | Readonly<Record<string, Exclude<OptionValue, undefined>>>

function textsOf(options: FormatOptions | undefined): readonly string[] {
  if (options === undefined || isList(options)) return options ?? []
  return Object.entries(options).map(([name, value]) => `${name}=${typeof value === 'boolean' ? onOff(value) : value}`)
}

const isList = (options: FormatOptions): options is readonly string[] => Array.isArray(options)
const onOff = (value: boolean) => (value ? 'on' : 'off')

export interface OpenOptions {
  /** Nothing is written to any file, not even to repair it. Default false. */
  readonly readOnly?: boolean
  /** The format, such as `vhdx`; default: found by looking at the content. */
  readonly format?: string
  /** A snapshot in the image, by name or id, instead of its newest state. It can be read only. */
  readonly snapshot?: string
  /** The passphrase of the image, where it is encrypted. */
  readonly secret?: Secret
  /** Folders besides the image's own from which files that it names (parents, data files) may be opened. */
  readonly backingDirs?: readonly string[]
  /** Bytes of the metadata cache; default 32 MiB, at least 1 MiB. */
  readonly cacheSize?: number
  /** Is told what one should know although the image opens: one line. Default: nothing is said. */
  readonly warn?: (message: string) => void
}

/**
 * An open disk image: what it shows as a disk, parents and all. All calls are synchronous, and do what they say before
 * they return. It holds descriptors and locks until it is closed; `using disk = openImage(…)` closes it.
 */
export class Disk {
  readonly #image: Image
  #closed = false

  /** By `openImage`. */
  constructor(image: Image) {
    this.#image = image
  }

  /** As it was given. */
  get path(): string {
    return this.#image.path
  }

  /** The name of its format. */
  get format(): string {
    return this.#image.format
  }

  /** Bytes of the disk. */
  get size(): number {
    return this.#image.size
  }

  /** Bytes of its logical sectors: 512 or 4096. Any range of bytes can be read and written all the same. */
  get sectorSize(): number {
    return this.#image.sectorSize
  }

  get readOnly(): boolean {
    return this.#image.readOnly
  }

  /** The image and its parents, top first. */
  get layers(): readonly { readonly path: string; readonly format: string; readonly size: number }[] {
    return this.#image.layers
  }

  /**
   * Reads `length` bytes at `offset`.
   * @throws RANGE beyond the end of the disk, IO, CORRUPT
   */
  read(offset: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length)
    this.#open.read(bytes, 0, length, offset)
    return bytes
  }

  /** Reads as many bytes at `offset` as the buffer has. @throws as `read` */
  readInto(buffer: Uint8Array, offset: number): void {
    this.#open.read(buffer, 0, buffer.length, offset)
  }

  /** Writes bytes at `offset`; they are durable after `flush` or `close`. @throws RANGE, READ_ONLY, NO_SPACE, IO, CORRUPT */
  write(data: Uint8Array, offset: number): void {
    this.#open.write(data, 0, data.length, offset)
  }

  /**
   * Makes a range read as zeros; its space goes back to the host as far as the format can do that.
   * @throws as `write`
   */
  zero(offset: number, length: number): void {
    this.#open.zero(offset, length, true)
  }

  /**
   * Makes everything that was written before durable, in the order that keeps the image valid whatever happens.
   * @throws IO, NO_SPACE
   */
  flush(): void {
    this.#open.flush()
  }

  /** What the parts of a range are, in order: data, zeros, where in which file. Default: the whole disk. */
  *map(offset = 0, length = this.size - offset): Generator<MapEntry, void, undefined> {
    yield* runs(this.#open, offset, offset + length)
  }

  /** The parts of the whole disk. */
  [Symbol.iterator](): Generator<MapEntry, void, undefined> {
    return this.map()
  }

  /**
   * The same, for `for await`: between two pieces of the map other work of the program goes on, as finding them may take
   * reading.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<MapEntry, void, undefined> {
    let asked = performance.now()
    for (const entry of this.map()) {
      if (performance.now() - asked > LONGEST_TURN_MS) {
        await setImmediate()
        asked = performance.now()
      }
      yield entry
    }
  }

  /**
   * Makes everything durable, ends the image cleanly, and closes its files. Closing it again does nothing.
   * @throws what making it durable throws; the files are closed all the same
   */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#image.close()
  }

  /** What `using` calls. */
  [Symbol.dispose](): void {
    this.close()
  }

  get #open(): Image {
    if (this.#closed) throw new TypeError(`${this.path} was closed`)
    return this.#image
  }
}

/**
 * Opens an image with all its parents, and locks every file of it: for writing against everybody, read-only against
 * writers.
 * @throws VdiskError with one line that names the file; nothing stays open or locked then
 */
export function openImage(path: string, options: OpenOptions = {}): Disk {
  return new Disk(open(path, options))
}

export interface CreateOptions extends Omit<Creation, 'options' | 'durable' | 'mode' | 'onMaking' | 'recordBacking'> {
  /** What `vdiskfs create --help` lists for the format. */
  readonly options?: FormatOptions
}

/**
 * Makes a new, empty image and makes it durable. Never touches a file that exists.
 * @returns the size of the new disk in bytes: some formats round it up
 * @throws USAGE, EXISTS, and what opening the parent throws; nothing stays behind then
 */
export function createImage(path: string, { options, ...rest }: CreateOptions): number {
  return create(path, { ...rest, options: textsOf(options) }).size
}

export interface ConvertOptions extends Omit<Conversion, 'options'> {
  /** What `vdiskfs create --help` lists for the target's format. */
  readonly options?: FormatOptions
}

/**
 * Copies the disk that one image shows into another image, sparsely, by several threads, and makes that durable. The
 * source is opened read-only. A target that exists is replaced when the new one is complete; one that is not completed,
 * because something failed or `signal` was aborted, is removed.
 * @throws VdiskError: USAGE where source and target are one file, and what opening, creating, reading and writing throw
 */
export function convert(source: string, target: string, options: ConvertOptions = {}): Promise<void> {
  return convertImage(source, target, { ...options, options: textsOf(options.options) })
}

/** A format that this program knows. */
export type FormatInfo = Pick<
  Format,
  'name' | 'aliases' | 'title' | 'extensions' | 'backing' | 'snapshots' | 'createOptions'
>

/** Every format, in the order of detection; `raw`, which everything is, comes last. */
export const formats: readonly FormatInfo[] = registry.map(
  ({ name, aliases, title, extensions, backing, snapshots = false, createOptions }) =>
    Object.freeze({ name, aliases, title, extensions, backing, snapshots, createOptions }),
)
