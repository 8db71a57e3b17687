/** Raw: the file is the disk. */

import type { CreateContext, Driver, Extent, Format, LayerContext } from './driver.js'
import { Kind } from './driver.js'

interface RawLayout {
  readonly size: number
}

class RawDriver implements Driver {
  readonly size: number
  readonly blockSize = 4096
  readonly locked = false
  readonly changeSectors = 0
  readonly #file: number
  readonly #writable: boolean

  constructor({ size }: RawLayout, context: LayerContext) {
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

function create({ storage, size, options }: CreateContext): void {
  storage.truncate(size)
  if (options.preallocation === 'falloc') storage.reserve(0, size)
  if (options.preallocation === 'full') {
    const zeros = new Uint8Array(1 << 20)
    for (let at = 0; at < size; at += zeros.length) storage.write(zeros, 0, Math.min(zeros.length, size - at), at)
  }
}

export const raw: Format<RawLayout> = {
  name: 'raw',
  aliases: [],
  title: 'the disk itself, with no header (a file or a block device)',
  extensions: ['.raw', '.img'],
  backing: false,
  createOptions: [
    {
      name: 'preallocation',
      help: 'host space for the whole disk: off (sparse), falloc (reserved), full (written with zeros)',
      type: 'enum',
      values: ['off', 'falloc', 'full'],
      default: 'off',
    },
  ],
  // Every file could be one: the registry takes it where nothing else matches.
  probe: () => true,
  open({ storage }) {
    const size = storage.size()
    return { layout: { size }, size, state: [] }
  },
  attach: (layout, context) => new RawDriver(layout, context),
  create,
  facts: () => ({}),
}
