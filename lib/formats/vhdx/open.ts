/** Opening a VHDX: the header, then the log, and only then all the rest. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { randomGuid } from '../../util/guid.js'
import type { OpenContext, Opened, ParentRequest, Probe } from '../driver.js'
import { type CurrentHeader, checkHeader, currentHeader, type Header, looksLikeVhdx, readIdentifier } from './header.js'
import { readItems } from './items.js'
import { ENTRY_BYTES, firstState, geometryOf, type LogState, logArea, type VhdxLayout } from './layout.js'
import { parentCandidates, parentLinks, shownParent } from './locator.js'
import { readRegions } from './regions.js'
import { activeLog, replayInMemory, replayIntoFile } from './replay.js'

export const VHDX = 'vhdx'

export function probeVhdx({ head }: Probe): boolean {
  return looksLikeVhdx(head)
}

export function openVhdx(context: OpenContext): Opened<VhdxLayout> {
  const { path } = context.storage
  const creator = readIdentifier(context.storage)
  const current = currentHeader(context.storage)
  if (current.otherFault !== undefined)
    context.warn(`its ${current.slot === 0 ? 'second' : 'first'} header is damaged: ${current.otherFault}`)
  checkHeader(current.header, path)
  const { storage, header, log, logEntries } = replay(context, current)
  const size = storage.size()
  const { bat, metadata, areas } = readRegions(storage, logArea(header), context.warn)
  const items = readItems(storage, metadata)
  const layout: VhdxLayout = {
    path,
    creator,
    header,
    nextDataWriteGuid: context.sameContent ? header.dataWriteGuid : randomGuid(),
    log,
    logEntries,
    ...geometryOf(items.size, items.blockSize, items.sectorSize, items.hasParent),
    physicalSectorSize: items.physicalSectorSize,
    diskId: items.diskId,
    leaveAllocated: items.leaveAllocated,
    tableOffset: bat.fileOffset,
    areas,
    locator: items.locator,
    ofDisk: items.ofDisk,
  }
  checkTable(layout, bat.length, size)
  const parent = layout.differencing ? parentRequest(layout, context.path) : undefined
  const { sectorSize } = layout
  const opened = { layout, size: layout.size, sectorSize, parent, state: firstState(size) }
  return storage === context.storage ? opened : { ...opened, storage }
}

interface Replayed {
  /** Where everything is read from. */
  readonly storage: Storage
  readonly header: Header
  readonly log: LogState
  readonly logEntries: number
}

/** Nothing but the header and the log may be believed before this. [MS-VHDX] 2.3.3 */
function replay({ storage, readOnly }: OpenContext, { header }: CurrentHeader): Replayed {
  const active = activeLog(storage, header)
  if (!active) return { storage, header, log: 'empty', logEntries: 0 }
  const logEntries = active.sequence.length
  if (readOnly) return { storage: replayInMemory(storage, active), header, log: 'replayed in memory', logEntries }
  return { storage, header: replayIntoFile(storage, active), log: 'replayed', logEntries }
}

function checkTable({ entries, tableOffset, path }: VhdxLayout, length: number, size: number): void {
  const needed = entries * ENTRY_BYTES
  const fail = (text: string) =>
    new VdiskError('CORRUPT', `VHDX block allocation table: ${text}`, { path, offset: tableOffset })
  if (needed > length) throw fail(`it is ${length} bytes: the disk needs ${needed}`)
  if (tableOffset + needed > size) throw fail(`it ends at ${tableOffset + needed}, and the file at ${size}`)
}

function parentRequest(layout: VhdxLayout, path: string): ParentRequest {
  const { locator, sectorSize } = layout
  const links = parentLinks(locator)
  if (links.length === 0)
    throw new VdiskError('CORRUPT', 'VHDX parent locator: it has no parent_linkage', { path: layout.path })
  return {
    name: shownParent(locator),
    candidates: parentCandidates(locator, path),
    format: VHDX,
    verify(parent) {
      const fail = (text: string) => new VdiskError('CORRUPT', text, { path: parent.path })
      if (parent.format !== VHDX) throw fail(`it is ${parent.format}, and the parent of a VHDX is a VHDX`)
      const { header, sectorSize: parentSectorSize } = parent.layout as VhdxLayout
      if (!links.includes(header.dataWriteGuid))
        throw fail(
          `its data has the GUID ${header.dataWriteGuid}, and the child was made over ${links.join(' or ')}: ` +
            'it was changed after the child was made, or it is another disk',
        )
      if (parentSectorSize !== sectorSize)
        throw fail(`its logical sectors are ${parentSectorSize} bytes, and those of the child ${sectorSize}`)
    },
  }
}
