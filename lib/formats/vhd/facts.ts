/** What `info` says of a VHD. */

import type { Storage } from '../../storage/storage.js'
import type { Facts } from '../driver.js'
import { type Footer, timeOf } from './footer.js'
import { geometrySectors, SECTOR } from './geometry.js'
import type { VhdLayout } from './layout.js'
import { countBlocks } from './table.js'

const version = (value: number) => `${value >>> 16}.${value & 0xffff}`
const time = (timeStamp: number) => new Date(timeOf(timeStamp)).toISOString()
/** Text of the file as it may be shown on a terminal. */
const shown = (text: string) => text.replace(/[^\x20-\x7e]/g, '.').trimEnd()

const FOOTERS: Readonly<Record<number, string>> = { 512: 'at the end', 511: 'at the end, of 511 bytes', 0: 'lost' }

function footerFacts(footer: Footer, footerLength: number): Facts {
  const { cylinders, heads, sectorsPerTrack } = footer
  return {
    footer: FOOTERS[footerLength]!,
    'unique-id': footer.uniqueId,
    created: time(footer.timeStamp),
    creator: shown(footer.creatorApplication),
    'creator-version': version(footer.creatorVersion),
    'creator-host-os': shown(footer.creatorHostOs),
    'original-size': footer.originalSize,
    'current-size': footer.currentSize,
    geometry: `${cylinders}/${heads}/${sectorsPerTrack}`,
    'geometry-size': geometrySectors(footer) * SECTOR,
    'saved-state': footer.savedState !== 0,
    temporary: (footer.features & 1) !== 0,
  }
}

function parentFacts({ header, parentNames }: VhdLayout): Facts {
  const { parentUniqueId, parentTimeStamp } = header!
  return {
    'parent-unique-id': parentUniqueId,
    'parent-time-stamp': parentTimeStamp === 0 ? null : time(parentTimeStamp),
    'parent-names': parentNames.map(({ code, name }) => `${code}: ${name}`),
  }
}

/** Facts of an open image. Reads the whole table, in chunks. */
export function vhdFacts(layout: VhdLayout, storage: Storage): Facts {
  const { type, footer, footerLength, blocks } = layout
  const common = { subformat: type, ...footerFacts(footer, footerLength) }
  if (!blocks) return common
  return {
    ...common,
    'block-size': blocks.blockSize,
    'table-offset': blocks.tableOffset,
    'max-table-entries': blocks.maxTableEntries,
    'allocated-blocks': countBlocks(layout, storage),
    batmap: layout.batmap,
    ...(type === 'differencing' && parentFacts(layout)),
  }
}
