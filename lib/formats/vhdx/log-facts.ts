/** What is in the log, for `info --log`: every whole entry, old ones too, and what a replay would change. */

import type { Storage } from '../../storage/storage.js'
import type { VdiskError } from '../../util/errors.js'
import { NIL_GUID } from '../../util/guid.js'
import type { LogListing, LogListingEntry } from '../driver.js'
import { checkHeader, checkLogVersion, currentHeader } from './header.js'
import { type Area, HEADER_SECTION_END } from './layout.js'
import { findActiveSequence, LOG_SECTOR, type LogEntry, Ring, readEntry, writesOf } from './log.js'
import { decodeRegionAreas } from './regions.js'

/**
 * Lists a log. Changes nothing, and needs no more of the image than a header.
 * @throws CORRUPT where there is no sound header, UNSUPPORTED for one of another version, IO
 */
export function describeLog(storage: Storage): LogListing {
  const { header } = currentHeader(storage)
  checkHeader(header, storage.path)
  checkLogVersion(header, storage.path)
  const { logOffset, logLength, logGuid } = header
  const length = Math.min(logLength, Math.max(0, Math.floor((storage.size() - logOffset) / LOG_SECTOR) * LOG_SECTOR))
  const entries: LogListingEntry[] = []
  if (length < logLength || length === 0) return { offset: logOffset, length: logLength, logGuid, entries }
  const ring = new Ring(storage, header)
  const active = logGuid === NIL_GUID ? [] : (findActiveSequence(ring, logGuid) ?? [])
  const activeAt = new Set(active.map(({ at }) => at))
  const areas = areasOf(storage)
  for (let at = 0; at < length; ) {
    const entry = readEntry(ring, at, undefined)
    if (entry) entries.push(describe(ring, entry, activeAt.has(at) && entry.header.logGuid === logGuid, areas))
    at += entry ? entry.header.entryLength : LOG_SECTOR
  }
  return { offset: logOffset, length: logLength, logGuid, entries }
}

/** The regions, where their table can be read without a replay. */
function areasOf(storage: Storage): readonly Area[] {
  try {
    return decodeRegionAreas(storage)
  } catch (error) {
    if ((error as VdiskError).code === 'CORRUPT') return []
    throw error
  }
}

function describe(ring: Ring, entry: LogEntry, active: boolean, areas: readonly Area[]): LogListingEntry {
  const { header, at } = entry
  const where = (offset: number) => {
    if (offset < HEADER_SECTION_END) return 'header section'
    return areas.find(({ start, end }) => offset >= start && offset < end)?.name ?? 'block'
  }
  return {
    at,
    length: header.entryLength,
    tail: header.tail,
    sequenceNumber: String(header.sequenceNumber),
    logGuid: header.logGuid,
    flushedFileOffset: Number(header.flushedFileOffset),
    lastFileOffset: Number(header.lastFileOffset),
    active,
    changes: [...writesOf(ring, entry)].map(({ offset, length, source }) => ({
      offset,
      length,
      zeros: source < 0,
      where: where(offset),
    })),
  }
}
