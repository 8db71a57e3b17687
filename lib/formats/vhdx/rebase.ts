/**
 * The parent of a VHDX that nobody has open: another one, or one whose content changes. And taking its own data away.
 *
 * A child knows its parent by a GUID that changes with the parent's content. While that changes, "parent_linkage" holds
 * the GUID before and "parent_linkage2" the one after, so that the child opens whatever a crash leaves.
 *
 * Data is taken away in three steps: payload entries, barrier, sector bitmap entries, barrier, space. Each entry that is
 * cleared leaves a valid table, so they do not go through the log.
 */

import { cutOff } from '../../storage/shorten.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { NIL_GUID, randomGuid } from '../../util/guid.js'
import type { RebaseContext } from '../driver.js'
import { updateHeaders } from './header.js'
import { differentItem, Item, placeItem, TABLE_ENTRY } from './items.js'
import { ENTRY_BYTES, logArea, type VhdxLayout } from './layout.js'
import { encodeLocator, type LocatorEntry, newLocator } from './locator.js'
import { LoggedPages } from './logged-pages.js'
import { readRegions } from './regions.js'
import { scanTable } from './scan.js'

const CHUNK = 2 ** 18

/** @throws USAGE for a parent that it cannot have; NO_SPACE */
export function rebaseVhdx(layout: VhdxLayout, storage: Storage, context: RebaseContext): void {
  const { path } = layout
  const locator = encodeLocator(newEntries(layout, context))
  const { metadata } = readRegions(storage, logArea(layout.header), () => {})
  const { at, entry } = placeItem(storage, metadata, Item.PARENT_LOCATOR, locator.length)
  const pages = new LoggedPages(storage)
  pages.put(at, TABLE_ENTRY.encode(entry))
  pages.put(metadata.fileOffset + entry.offset, locator)
  pages.checkRoom(layout)
  if (context.look) return
  const barrier = () => storage.sync()
  const header = updateHeaders(storage, { fileWriteGuid: randomGuid() }, barrier)
  barrier()
  pages.commit({ header, path }, storage.size())
}

/** @throws USAGE */
function newEntries(layout: VhdxLayout, { path, backing, change }: RebaseContext): LocatorEntry[] {
  const fail = (text: string) => new VdiskError('USAGE', text, { path: layout.path })
  if (!layout.differencing) throw fail('it is no differencing VHDX, and cannot become one')
  if (!backing) throw fail('a differencing VHDX has a parent; convert makes an image without one')
  const parent = backing.layout as VhdxLayout | undefined
  if (backing.format !== 'vhdx' || !parent)
    throw fail(`the parent of a VHDX is a VHDX, and ${backing.path} is ${parent ? backing.format : 'not there'}`)
  if (parent.sectorSize !== layout.sectorSize)
    throw fail(`its logical sectors are ${layout.sectorSize} bytes, and those of ${backing.path} ${parent.sectorSize}`)
  if (change === 'before') checkOfDisk(layout, parent, backing.path)
  const { dataWriteGuid } = parent.header
  if (change === undefined) return newLocator(path, backing.path, dataWriteGuid)
  const links: LocatorEntry[] = [
    { key: 'parent_linkage', value: `{${dataWriteGuid}}` },
    { key: 'parent_linkage2', value: `{${change === 'before' ? parent.nextDataWriteGuid : NIL_GUID}}` },
  ]
  return [...links, ...layout.locator.filter(({ key }) => !links.some((link) => link.key === key))]
}

/**
 * A merge replaces the parent's items of the disk by the child's. [MS-VHDX] 2.6.1.2, IsVirtualDisk
 * @throws UNSUPPORTED where they are not the same
 */
function checkOfDisk(child: VhdxLayout, parent: VhdxLayout, parentPath: string): void {
  const fail = (what: string) => {
    const text = `${what} would have to be replaced in ${parentPath}, which this program cannot do`
    return new VdiskError('UNSUPPORTED', text, { path: child.path })
  }
  if (!child.ofDisk || !parent.ofDisk) throw fail('a great many metadata items of the disk')
  const item = differentItem(child.ofDisk, parent.ofDisk)
  if (item) throw fail(`metadata item ${item.itemId}, which belongs to the disk,`)
}

/** Makes a differencing disk show its parent and nothing else. */
export function emptyVhdx(layout: VhdxLayout, storage: Storage): void {
  const { tableOffset, entries } = layout
  const barrier = () => storage.sync()
  updateHeaders(storage, { fileWriteGuid: randomGuid() }, barrier)
  clearPayloads(layout, storage)
  barrier()
  storage.zero(tableOffset, entries * ENTRY_BYTES)
  barrier()
  const { end, gaps } = scanTable(layout, storage, storage.size())
  for (const gap of gaps) storage.punch(gap.start, gap.end - gap.start)
  cutOff(storage, end)
  barrier()
}

function clearPayloads({ tableOffset, entries, chunkRatio }: VhdxLayout, storage: Storage): void {
  const end = tableOffset + entries * ENTRY_BYTES
  const chunk = new Uint8Array(CHUNK)
  for (let at = tableOffset; at < end; at += CHUNK) {
    const length = Math.min(CHUNK, end - at)
    if (storage.nextData(at) >= at + length) continue
    storage.read(chunk, 0, length, at)
    for (let i = 0; i < length; i += ENTRY_BYTES) {
      const index = (at - tableOffset + i) / ENTRY_BYTES
      if (index % (chunkRatio + 1) !== chunkRatio) chunk.fill(0, i, i + ENTRY_BYTES)
    }
    storage.write(chunk, 0, length, at)
  }
}
