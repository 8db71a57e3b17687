/**
 * The dirty bitmaps of an image or a bundle. A bitmap of a bundle is one of the same name in each of its parts: all of them
 * are looked at before the first is changed. What comes to an end half way all the same is taken back, or shown as
 * inconsistent: it can be removed then, and nothing else.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { BitmapFacts, BitmapTools, ByteRange } from '../driver.js'
import {
  addBitmap,
  bitmapExtents,
  clearBitmap,
  hasBitmap,
  listBitmaps,
  newBitmapId,
  refuseAdding,
  refuseChanging,
  removeBitmap,
} from './bitmaps.js'
import type { Layout } from './layout.js'

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

/** @throws NOT_FOUND where it is not in all of the parts */
function refuseIncomplete(parts: readonly Place[], name: string): void {
  const lacking = parts.filter(({ storage }) => !hasBitmap(storage, name))
  if (lacking.length === 0 || lacking.length === parts.length) return
  throw new VdiskError('NOT_FOUND', `it lacks the bitmap '${name}', which other parts have: it can only be removed`, {
    path: lacking[0]!.storage.path,
  })
}

/** Of bitmaps with one name in several parts, what holds for all of the disk. */
function list(parts: readonly Place[]): BitmapFacts[] {
  const found = new Map<string, { granularity: number; flags: Set<string>; parts: Set<Storage> }>()
  for (const { storage } of parts)
    for (const { name, granularity, flags } of listBitmaps(storage)) {
      const known = found.get(name) ?? { granularity, flags: new Set<string>(), parts: new Set<Storage>() }
      known.granularity = Math.max(known.granularity, granularity)
      for (const flag of flags) known.flags.add(flag)
      known.parts.add(storage)
      found.set(name, known)
    }
  return [...found].map(([name, { granularity, flags, parts: having }]) => ({
    name,
    granularity,
    flags: [...flags, ...(having.size < parts.length ? ['inconsistent'] : [])],
  }))
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

/** Of what was added. What cannot be taken back is listed as inconsistent. */
function takeBack(parts: readonly Place[], id: string): void {
  for (const { storage } of parts)
    try {
      if (hasBitmap(storage, id)) removeBitmap(storage, id)
    } catch (error) {
      if (!(error instanceof VdiskError)) throw error
    }
}

export const bitmapTools: BitmapTools<Layout> = {
  list(layout, files) {
    if (layout.kind === 'bundle' && layout.parts.some(({ image }) => !image)) return []
    return list(places(layout, files))
  },
  extents(layout, files, name) {
    const parts = places(layout, files)
    refuseIncomplete(parts, name)
    return joined(parts, name)
  },
  add(layout, files, name, granularity) {
    const parts = places(layout, files)
    const id = newBitmapId(name)
    for (const { storage } of parts) refuseAdding(storage, id, granularity)
    try {
      for (const { storage } of parts) addBitmap(storage, id, granularity)
    } catch (error) {
      takeBack(parts, id)
      throw error
    }
    return id
  },
  clear(layout, files, name) {
    const parts = places(layout, files)
    refuseIncomplete(parts, name)
    for (const { storage } of parts) refuseChanging(storage)
    for (const { storage } of parts) clearBitmap(storage, name)
  },
  remove(layout, files, name) {
    const parts = places(layout, files)
    for (const { storage } of parts) refuseChanging(storage)
    const having = parts.filter(({ storage }) => hasBitmap(storage, name))
    // Where none has it, the first one says so.
    for (const { storage } of having.length > 0 ? having : parts) removeBitmap(storage, name)
  },
}
