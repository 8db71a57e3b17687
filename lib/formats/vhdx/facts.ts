/** What `info` says of a VHDX. */

import type { Storage } from '../../storage/storage.js'
import type { Facts } from '../driver.js'
import { readHeader } from './header.js'
import { Payload, type VhdxLayout } from './layout.js'
import { eachEntry } from './scan.js'

/** Text of the file as it may be shown on a terminal. */
const shown = (text: string) => text.replace(/[^\x20-\x7e]/g, '.').trimEnd()

const STATES: readonly (readonly [name: string, state: number])[] = [
  ['undefined', Payload.UNDEFINED],
  ['zero', Payload.ZERO],
  ['unmapped', Payload.UNMAPPED],
  ['fully-present', Payload.FULLY_PRESENT],
  ['partially-present', Payload.PARTIALLY_PRESENT],
]

/** Blocks by their states. */
function countBlocks(layout: VhdxLayout, storage: Storage): Facts {
  const counts = new Array<number>(8).fill(0)
  let bitmaps = 0
  let notPresent = layout.payloadBlocks
  eachEntry(layout, storage, ({ block, isBitmap, state }) => {
    if (isBitmap) bitmaps += state === Payload.FULLY_PRESENT ? 1 : 0
    else if (block < layout.payloadBlocks && state !== Payload.NOT_PRESENT) {
      counts[state]!++
      notPresent--
    }
  })
  counts[Payload.UNMAPPED]! += counts[Payload.UNMAPPED_DRAFT]!
  const named = STATES.map(([name, state]) => [name, counts[state]!] as const)
  return { 'not-present': notPresent, ...Object.fromEntries(named), 'sector-bitmaps': bitmaps }
}

function headerFacts(storage: Storage, slot: number): Facts | string {
  const read = readHeader(storage, slot)
  if ('fault' in read) return `damaged: ${read.fault}`
  const { sequenceNumber, fileWriteGuid, dataWriteGuid, logGuid } = read.header
  return {
    'sequence-number': String(sequenceNumber),
    'file-write-guid': fileWriteGuid,
    'data-write-guid': dataWriteGuid,
    'log-guid': logGuid,
  }
}

function subformat({ differencing, leaveAllocated }: VhdxLayout): string {
  if (differencing) return 'differencing'
  return leaveAllocated ? 'fixed' : 'dynamic'
}

/** Facts of an open image. Reads the whole table, in chunks. */
export function vhdxFacts(layout: VhdxLayout, storage: Storage): Facts {
  const { header, log, logEntries } = layout
  return {
    subformat: subformat(layout),
    creator: shown(layout.creator),
    'block-size': layout.blockSize,
    'logical-sector-size': layout.sectorSize,
    'physical-sector-size': layout.physicalSectorSize,
    'virtual-disk-id': layout.diskId,
    'data-write-guid': header.dataWriteGuid,
    'file-write-guid': header.fileWriteGuid,
    'header-1': headerFacts(storage, 0),
    'header-2': headerFacts(storage, 1),
    log: log === 'empty' ? 'empty' : `${logEntries} ${logEntries === 1 ? 'entry' : 'entries'} to replay`,
    'log-size': header.logLength,
    blocks: countBlocks(layout, storage),
    ...(layout.differencing && {
      'parent-locator': layout.locator.map(({ key, value }) => `${key}: ${shown(value)}`),
    }),
  }
}
