/**
 * Writes another header with its extensions and the backing file's name into an image. They can take more than one
 * sector, and a crash may leave any of the sectors; so each step is made by the write of the first one:
 *
 * 1. the extensions without the table of feature names, where they reach into another sector; barrier
 * 2. the new name, at a place that nothing uses; barrier
 * 3. the new header, which refers to it, without that table; barrier
 * 4. where the table reaches into other sectors: these; barrier; the header with it; barrier
 *
 * The table only helps error messages: without it the header is as good. Where even without it the extensions do not fit
 * into the first sector, they are there twice for a while:
 *
 * 1. the new extensions with the new name, at a place that nothing uses; barrier
 * 2. the first sector, with an extension that means nothing and reaches up to them; barrier
 * 3. behind the first sector the new extensions, where they belong; barrier
 * 4. the first sector, with the first of them; barrier
 *
 * Where all that is in the first sector, or the first cluster has no room for both, it is written at once.
 */

import type { Storage } from '../../storage/storage.js'
import { ExtensionType, encodeExtensions } from './extensions.js'
import { encodeHeader, encodeWithoutName, FIELD, type Header, readHeader } from './header.js'

const SECTOR = 512
/** Extensions begin at multiples of this; so much is the type and the length of one. */
const EXTENSION_UNIT = 8

/** @throws USAGE where it does not fit into a cluster */
export function changeHeader(storage: Storage, wanted: Header): void {
  const next = without(wanted, ExtensionType.SKIPPED)
  const whole = encodeHeader(next, storage.path)
  const steps = whole.length <= SECTOR ? undefined : (plan(storage, next) ?? planTwice(storage, next))
  for (const { bytes, offset } of steps ?? [{ bytes: whole, offset: 0 }]) {
    storage.write(bytes, 0, bytes.length, offset)
    storage.sync()
  }
}

interface Step {
  readonly bytes: Uint8Array
  readonly offset: number
}

/** Extensions that fit into a sector. @returns undefined where they do not, or there is no room for it */
function plan(storage: Storage, next: Header): readonly Step[] | undefined {
  const old = readHeader(storage)
  const oldName = placeOfName(storage, old)
  const bareOld = encodeWithoutName(without(old, ExtensionType.FEATURE_NAMES), oldName.start)
  const end = encodeWithoutName(next, 0).length
  const name = next.backingName ?? new Uint8Array(0)
  const nameAt = freePlace(name.length, Math.max(end, bareOld.length), oldName)
  const full = encodeWithoutName(next, nameAt)
  const bareNext = encodeWithoutName(without(next, ExtensionType.FEATURE_NAMES), nameAt)
  if (nameAt + name.length > 2 ** next.clusterBits || Math.max(bareOld.length, bareNext.length) > SECTOR)
    return undefined
  const steps: Step[] = []
  if (encodeWithoutName(old, 0).length > SECTOR) steps.push({ bytes: bareOld, offset: 0 })
  if (name.length > 0) steps.push({ bytes: name, offset: nameAt })
  if (full.length <= SECTOR) return [...steps, { bytes: full, offset: 0 }]
  return [
    ...steps,
    { bytes: bareNext, offset: 0 },
    { bytes: full.subarray(SECTOR), offset: SECTOR },
    { bytes: full.subarray(0, SECTOR), offset: 0 },
  ]
}

/** Extensions that are larger than a sector. @returns undefined where there is no room to have them twice */
function planTwice(storage: Storage, next: Header): readonly Step[] | undefined {
  const old = readHeader(storage)
  const name = next.backingName ?? new Uint8Array(0)
  const extensions = encodeExtensions(next.extensions)
  const end = encodeWithoutName(next, 0).length
  const headerLength = end - extensions.length
  const copy = Buffer.concat([extensions, name])
  const first = Math.max(SECTOR, end, encodeWithoutName(old, 0).length)
  const place = freePlace(copy.length, first, placeOfName(storage, old))
  const copyAt = Math.ceil(place / EXTENSION_UNIT) * EXTENSION_UNIT
  if (copyAt + copy.length > 2 ** next.clusterBits || headerLength + EXTENSION_UNIT > SECTOR) return undefined
  const nameAt = copyAt + extensions.length
  const skipped = { type: ExtensionType.SKIPPED, data: new Uint8Array(copyAt - headerLength - EXTENSION_UNIT) }
  const between = encodeWithoutName({ ...next, extensions: [skipped] }, nameAt)
  const full = encodeWithoutName(next, nameAt)
  return [
    { bytes: copy, offset: copyAt },
    { bytes: between.subarray(0, SECTOR), offset: 0 },
    ...(full.length > SECTOR ? [{ bytes: full.subarray(SECTOR), offset: SECTOR }] : []),
    { bytes: full.subarray(0, SECTOR), offset: 0 },
  ]
}

const without = (header: Header, unwanted: number): Header => ({
  ...header,
  extensions: header.extensions.filter(({ type }) => type !== unwanted),
})

interface Range {
  readonly start: number
  readonly end: number
}

function placeOfName(storage: Storage, { backingName }: Header): Range {
  const bytes = Buffer.alloc(8)
  storage.read(bytes, 0, bytes.length, FIELD.backingFileOffset)
  const start = backingName ? Number(bytes.readBigUInt64BE()) : 0
  return { start, end: start + (backingName?.length ?? 0) }
}

/** The first place from `start` on that does not touch a range. */
function freePlace(length: number, start: number, taken: Range): number {
  return start < taken.end && start + length > taken.start ? taken.end : start
}
