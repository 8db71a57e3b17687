/** Parallels, as the registry knows it: an expanding image (.hds), or a bundle of such and plain images (.hdd). */

import { basename } from 'node:path'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Format } from '../driver.js'
import { attach } from './attach.js'
import { bitmapTools } from './bitmap-tools.js'
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

/** A file of that name is a descriptor also where nothing in it says so: what is wrong with it is said then. */
function holdsDescriptor(storage: Storage): boolean {
  const head = new Uint8Array(HEAD)
  const got = storage.read(head, 0, HEAD, 0)
  const found = head.subarray(0, got)
  return isDescriptor(found) || (basename(storage.path) === DESCRIPTOR_NAME && !isParallels(found))
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
  bitmaps: bitmapTools,
  resize(layout, files, size) {
    if (layout.kind === 'bundle')
      throw new VdiskError('UNSUPPORTED', 'a bundle has the size that its descriptor says, and keeps it', {
        path: files[0]!.path,
      })
    resizeExpanding(files[0]!, size)
  },
}
