/**
 * Bundles: a folder with DiskDescriptor.xml. The disk is cut into storages that lie side by side, and has a file for every
 * storage and every snapshot. A snapshot is one layer, made of a part for each storage; its parent is another snapshot of
 * the same bundle.
 */

import { basename, dirname, isAbsolute, join } from 'node:path'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { formatGuid, NIL_GUID, parseGuid } from '../../util/guid.js'
import type { Facts, OpenContext, Opened, OpenedFile } from '../driver.js'
import { type DescribedImage, type DescribedStorage, type Descriptor, readDescriptor } from './descriptor.js'
import { imageFacts } from './facts.js'
import { openExpanding } from './image.js'
import { type BundleLayout, firstState, type PartLayout } from './layout.js'

/** As the descriptor writes them. */
export const braced = (guid: string) => `{${guid}}`

export const PLAIN_PARENT = 'a plain image cannot have a parent'

/** @throws CORRUPT, UNSUPPORTED, NOT_FOUND naming the missing part, GATE, IO */
export function openBundle(context: OpenContext): Opened<BundleLayout> {
  const descriptor = readDescriptor(context.storage)
  refuseTwice(descriptor, context.path)
  const snapshot = snapshotOf(descriptor, context)
  const parent = descriptor.parents.get(snapshot)!
  const parts: PartLayout[] = []
  const state: number[] = []
  for (const storage of descriptor.storages) {
    const part = openPart(storage, snapshot, parent !== NIL_GUID, context, state.length)
    parts.push(part.layout)
    state.push(...part.state)
  }
  const { size, top, parents } = descriptor
  const layout: BundleLayout = { kind: 'bundle', size, snapshot, top, snapshots: [...parents], parts }
  return { layout, size, state, ...(parent === NIL_GUID ? {} : { parent: parentRequest(context.path, parent) }) }
}

function snapshotOf({ parents, top }: Descriptor, { snapshot, path }: OpenContext): string {
  const wanted = snapshot === undefined ? top : guidOf(snapshot.replace(/^snapshot\.id=/, ''))
  if (wanted !== undefined && parents.has(wanted)) return wanted
  const known = [...parents.keys()].map(braced).join(', ')
  throw new VdiskError('NOT_FOUND', `no snapshot '${snapshot ?? braced(top)}'; it has: ${known}`, { path })
}

/** Of the images of all snapshots: what is written to the top must not change what it lies over. */
function refuseTwice({ storages }: Descriptor, path: string): void {
  const names = new Set<string>()
  for (const { images } of storages)
    for (const { file } of images) {
      if (names.has(file)) throw new VdiskError('CORRUPT', `it names '${file}' for two of its images`, { path })
      names.add(file)
    }
}

function guidOf(text: string): string | undefined {
  try {
    return formatGuid(parseGuid(text, 'big'), 'big')
  } catch {
    return undefined
  }
}

function parentRequest(path: string, guid: string) {
  return {
    name: braced(guid),
    candidates: [path],
    format: 'parallels',
    snapshot: guid,
    // It is the same bundle.
    verify: () => {},
  }
}

function openPart(
  storage: DescribedStorage,
  snapshot: string,
  hasParent: boolean,
  context: OpenContext,
  stateStart: number,
): { layout: PartLayout; state: readonly number[] } {
  const { start, end, images, clusterSize } = storage
  const described = images.find(({ guid }) => guid === snapshot)
  if (!described) throw new VdiskError('CORRUPT', lacksImage(storage, snapshot), { path: context.path })
  const file = openPartFile(described, context)
  const length = end - start
  const base = { start, length, file: file.index, stateStart, name: described.file }
  if (described.plain) {
    checkPlain(file, length, hasParent, context)
    return { layout: { ...base, stateEnd: stateStart, image: undefined }, state: [] }
  }
  const warn = (message: string) => context.warn(`${described.file}: ${message}`)
  const image = openExpanding(file.storage, { readOnly: context.readOnly, parent: hasParent, warn })
  const { size } = image.geometry
  if (size < length)
    throw new VdiskError('CORRUPT', `its disk has ${size} bytes, expected ${length} for ${whereIs(storage)}`, {
      path: file.storage.path,
    })
  if (image.geometry.clusterSize !== clusterSize)
    warn(`its clusters have ${image.geometry.clusterSize} bytes, where the descriptor says ${clusterSize}`)
  const state = firstState(image, file.storage.size())
  return { layout: { ...base, stateEnd: stateStart + state.length, image }, state }
}

export function whereIs({ start, end }: DescribedStorage): string {
  return `the storage of sectors ${start / 512} to ${end / 512}`
}

export function lacksImage(storage: DescribedStorage, snapshot: string): string {
  return `${whereIs(storage)} has no image of snapshot ${braced(snapshot)}`
}

export function openPartFile({ file }: DescribedImage, context: OpenContext): OpenedFile {
  if (!context.openFile) throw new VdiskError('INTERNAL', 'a bundle was opened without its files')
  return context.openFile(file, placesOf(file, dirname(context.path)))
}

/** Where a part may be: where the descriptor says, or beside it, for bundles that were moved or come from elsewhere. */
export function placesOf(file: string, folder: string): string[] {
  const slashed = file.replaceAll('\\', '/')
  const said = (name: string) => (isAbsolute(name) ? name : join(folder, name))
  return [...new Set([said(file), said(slashed), join(folder, basename(slashed))])]
}

function checkPlain({ storage }: OpenedFile, length: number, hasParent: boolean, { warn, readOnly }: OpenContext) {
  const { path } = storage
  if (hasParent) throw new VdiskError('CORRUPT', PLAIN_PARENT, { path })
  const size = storage.size()
  if (size >= length) return
  const message = `it has ${size} bytes, expected ${length}`
  if (!readOnly) throw new VdiskError('CORRUPT', `not opened for writing: ${message}`, { path })
  warn(`${path}: ${message}; what is missing reads as zeros`)
}

export function bundleFacts({ snapshot, top, snapshots, parts }: BundleLayout, files: readonly Facts[]): Facts {
  return {
    snapshot: braced(snapshot),
    'top-snapshot': braced(top),
    snapshots: snapshots.map(([guid, parent]) => braced(guid) + (parent === NIL_GUID ? '' : ` over ${braced(parent)}`)),
    storages: parts.map(({ start, length, name, image }, i) => ({
      start,
      length,
      file: name,
      type: image ? 'expanding' : 'plain',
      ...(files[i] && { image: files[i] }),
    })),
  }
}

/** Facts of every part, from its file. */
export function partFacts({ parts }: BundleLayout, files: readonly Storage[]): Facts[] {
  return parts.map(({ image, file }) => (image && files[file] ? imageFacts(files[file]) : {}))
}
