/**
 * What the last cluster of a disk holds behind the disk's end: it becomes zeros, and that is durable, before a larger size
 * makes it a part of the disk. So no crash shows it.
 */

import { placesEnd } from '../../storage/shorten.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { ByteRange, ResizeHelp } from '../driver.js'
import { Edit } from './edit.js'
import { COPIED, hostOffset, isCompressed, ZERO } from './entries.js'
import { Crypt } from './header.js'
import type { Qcow2Layout } from './layout.js'
import { l2EntrySize, l2Span } from './walk.js'

const ENTRY_BYTES = 8

interface TailContext extends ResizeHelp {
  readonly layout: Qcow2Layout
  readonly storage: Storage
  readonly dataFile: Storage | undefined
}

/**
 * @param size bytes that the disk is to have, more than it has
 * @throws CORRUPT where the image has faults; NO_SPACE where a device ends too early; what writing to the disk throws
 */
export function clearTail(context: TailContext, size: number): void {
  const { layout, storage, dataFile } = context
  const { clusterSize } = layout
  const within = layout.size % clusterSize
  if (within === 0) return
  const left = { start: layout.size, length: Math.min(size - layout.size, clusterSize - within) }
  if (clearInPlace(context, left)) (dataFile ?? storage).sync()
  // What is behind the end is not of the disk, and so no change that a bitmap has to record.
  else context.zeroBehind({ ...layout, size: left.start + left.length, tracked: [], dropped: [] }, left)
}

/** @returns false where it has to be written as the disk's data is */
function clearInPlace(context: TailContext, { start, length }: ByteRange): boolean {
  const { storage, dataFile, layout } = context
  const { clusterSize } = layout
  const edit = new Edit(storage)
  const { header, shape } = edit.structure
  const within = start % clusterSize
  const { high, low } = lastEntry(storage, edit, start)
  const extended = l2EntrySize(shape) > ENTRY_BYTES
  const host = hostOffset(high, low)
  if (isCompressed(high)) return false
  const allocated = host !== 0 || (dataFile !== undefined && (high & COPIED) !== 0)
  const zeros = !extended && header.version >= 3 && (low & ZERO) !== 0
  // Parts that have no place show the backing file.
  if ((!allocated || extended) && !zeros && context.below() > start) return false
  if (!allocated) return true
  if (header.cryptMethod !== Crypt.NONE) return zeros
  const rest = clusterSize - within
  if (dataFile) dataFile.zero(start, Math.max(0, Math.min(dataFile.size(), start + rest) - start))
  else if (edit.references(host) === 1) {
    refuseCut(storage, host + within + length)
    storage.zero(host + within, rest)
  } else return zeros
  return true
}

/** What the disk gets of its last cluster has to be on the device: nobody could write it. */
function refuseCut(storage: Storage, end: number): void {
  const device = placesEnd(storage)
  if (end <= device) return
  const text = `its last cluster would be in use up to byte ${end}, and the device ends at ${device}`
  throw new VdiskError('NO_SPACE', text, { path: storage.path, errno: 'ENOSPC' })
}

/** The L2 entry of the cluster that has byte `at` of the disk in it. */
function lastEntry(storage: Storage, { structure }: Edit, at: number): { high: number; low: number } {
  const { header, shape } = structure
  const span = l2Span(shape)
  const entry = Buffer.alloc(ENTRY_BYTES)
  storage.read(entry, 0, ENTRY_BYTES, header.l1TableOffset + Math.floor(at / span) * ENTRY_BYTES)
  const table = hostOffset(entry.readUInt32BE(0), entry.readUInt32BE(4))
  if (table === 0) return { high: 0, low: 0 }
  const index = Math.floor((at % span) / shape.clusterSize)
  storage.read(entry, 0, ENTRY_BYTES, table + index * l2EntrySize(shape))
  return { high: entry.readUInt32BE(0), low: entry.readUInt32BE(4) }
}
