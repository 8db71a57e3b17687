/** Parallels, as the registry knows it: an expanding image (.hds), or a bundle of such and plain images (.hdd). */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { BitmapFacts, BitmapTools, ByteRange, Format } from '../driver.js'
import { attach } from './attach.js'
import { addBitmap, bitmapExtents, clearBitmap, listBitmaps, removeBitmap } from './bitmaps.js'
import { bundleFacts, openBundle, partFacts } from './bundle.js'
import { checkImage } from './check.js'
import { checkBundle } from './check-bundle.js'
import { createExpanding, createOptions } from './create.js'
import { DESCRIPTOR_NAME, isDescriptor } from './descriptor.js'
import { imageFacts } from './facts.js'
import { isParallels } from './header.js'
import { openExpanding } from './image.js'
import { firstState, type Layout, type SingleLayout } from './layout.js'
import { resizeExpanding } from './resize.js'

/** The descriptor's first bytes, enough to find its root element. */
const HEAD = 4096

function holdsDescriptor(storage: Storage): boolean {
  const head = new Uint8Array(HEAD)
  const got = storage.read(head, 0, HEAD, 0)
  return isDescriptor(head.subarray(0, got))
}

/** A part of the disk with bitmaps of its own. */
interface Place {
  readonly start: number
  readonly length: number
  readonly storage: Storage
}

function places(layout: Layout, files: readonly Storage[]): Place[] {
  if (layout.kind === 'image') return [{ start: 0, length: layout.geometry.size, storage: files[0]! }]
  return layout.parts.map(({ start, length, file, image, name }) => {
    if (!image)
      throw new VdiskError('UNSUPPORTED', `its part '${name}' is plain, and can have no bitmaps`, {
        path: files[0]!.path,
      })
    return { start, length, storage: files[file]! }
  })
}

/** Ranges of parts as ranges of the disk, joined at the seams. */
function* joined(parts: readonly Place[], name: string): Generator<ByteRange> {
  let last: ByteRange | undefined
  for (const { start: at, length: size, storage } of parts)
    for (const range of bitmapExtents(storage, name)) {
      const start = at + range.start
      const length = Math.min(range.length, size - range.start)
      if (length <= 0) continue
      if (last && last.start + last.length === start) last = { start: last.start, length: last.length + length }
      else {
        if (last) yield last
        last = { start, length }
      }
    }
  if (last) yield last
}

const bitmaps: BitmapTools<Layout> = {
  list(layout, files): BitmapFacts[] {
    const found = new Map<string, BitmapFacts>()
    if (layout.kind === 'bundle' && layout.parts.some(({ image }) => !image)) return []
    for (const { storage } of places(layout, files))
      for (const facts of listBitmaps(storage)) if (!found.has(facts.name)) found.set(facts.name, facts)
    return [...found.values()]
  },
  extents: (layout, files, name) => joined(places(layout, files), name),
  add(layout, files, name, granularity) {
    let id = name
    for (const { storage } of places(layout, files)) id = addBitmap(storage, id, granularity)
    return id!
  },
  clear(layout, files, name) {
    for (const { storage } of places(layout, files)) clearBitmap(storage, name)
  },
  remove(layout, files, name) {
    for (const { storage } of places(layout, files)) removeBitmap(storage, name)
  },
}

export const parallels: Format<Layout> = {
  name: 'parallels',
  aliases: [],
  title: 'Parallels Desktop, Virtuozzo (images .hds, bundles .hdd)',
  extensions: ['.hds', '.hdd'],
  backing: false,
  folder: DESCRIPTOR_NAME,
  snapshots: true,
  createOptions,
  probe: ({ head }) => isParallels(head) || isDescriptor(head),
  open(context) {
    const { storage, readOnly, warn, snapshot } = context
    if (holdsDescriptor(storage)) return openBundle(context)
    if (snapshot !== undefined)
      throw new VdiskError('USAGE', `no snapshot '${snapshot}': only bundles have some`, { path: storage.path })
    const layout: SingleLayout = { kind: 'image', ...openExpanding(storage, { readOnly, parent: false, warn }) }
    return { layout, size: layout.geometry.size, state: firstState(layout, storage.size()) }
  },
  attach,
  create: createExpanding,
  facts: (layout, storage, files = []) =>
    layout.kind === 'bundle' ? bundleFacts(layout, partFacts(layout, files)) : imageFacts(storage),
  check: (context) => (holdsDescriptor(context.storage) ? checkBundle(context) : checkImage(context.storage, context)),
  bitmaps,
  resize(layout, files, size) {
    if (layout.kind === 'bundle')
      throw new VdiskError('UNSUPPORTED', 'a bundle has the size that its descriptor says, and keeps it', {
        path: files[0]!.path,
      })
    resizeExpanding(files[0]!, size)
  },
}
