/** Raw: the file is the disk. */

import { MiB } from '../util/sizes.js'
import type { CreateContext, Format } from './driver.js'
import { attach, type FlatLayout } from './flat.js'

function create({ storage, size, options }: CreateContext): void {
  storage.truncate(size)
  if (options.preallocation === 'falloc') storage.reserve(0, size)
  if (options.preallocation === 'full') {
    const zeros = new Uint8Array(MiB)
    for (let at = 0; at < size; at += zeros.length) storage.write(zeros, 0, Math.min(zeros.length, size - at), at)
  }
  storage.sync()
}

export const raw: Format<FlatLayout> = {
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
  attach,
  create,
  facts: () => ({}),
  resize(_layout, [storage], size) {
    storage!.truncate(size)
    storage!.sync()
  },
}
