/**
 * Writes another header with its extensions and the backing file's name into an image. They can take more than one
 * sector, and a crash may leave any of the sectors; so each step is made by the write of the first one:
 *
 * 1. the extensions without the table of feature names, where they reach into another sector; barrier
 * 2. the new name, at a place that nothing uses; barrier
 * 3. the new header, which refers to it, without that table; barrier
 * 4. where the table reaches into other sectors: these; barrier; the header with it; barrier
 *
 * The table only helps error messages: without it the header is as good. Where all that is in the first sector, or the
 * first cluster has no room for both names, it is written at once.
 */

import type { Storage } from '../../storage/storage.js'
import { ExtensionType } from './extensions.js'
import { encodeHeader, encodeWithoutName, FIELD, type Header, readHeader } from './header.js'

const SECTOR = 512

/** @throws USAGE where it does not fit into a cluster */
export function changeHeader(storage: Storage, next: Header): void {
  const whole = encodeHeader(next, storage.path)
  const steps = whole.length <= SECTOR ? undefined : plan(storage, next)
  for (const { bytes, offset } of steps ?? [{ bytes: whole, offset: 0 }]) {
    storage.write(bytes, 0, bytes.length, offset)
    storage.sync()
  }
}

interface Step {
  readonly bytes: Uint8Array
  readonly offset: number
}

/** @returns undefined where there is no room for it */
function plan(storage: Storage, next: Header): readonly Step[] | undefined {
  const old = readHeader(storage)
  const oldName = placeOfName(storage, old)
  const bareOld = encodeWithoutName(withoutTable(old), oldName.start)
  const end = encodeWithoutName(next, 0).length
  const name = next.backingName ?? new Uint8Array(0)
  const nameAt = freePlace(name.length, Math.max(end, bareOld.length), oldName)
  const full = encodeWithoutName(next, nameAt)
  const bareNext = encodeWithoutName(withoutTable(next), nameAt)
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

const withoutTable = (header: Header): Header => ({
  ...header,
  extensions: header.extensions.filter(({ type }) => type !== ExtensionType.FEATURE_NAMES),
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
