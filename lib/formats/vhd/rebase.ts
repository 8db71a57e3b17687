/**
 * The parent of a differencing VHD that nobody has open.
 *
 * 1. the footer as it is, behind what will be new; barrier; the names of the new parent, in front of it; barrier
 * 2. the dynamic disk header, which refers to them; barrier
 *
 * The header is two sectors. A crash that leaves one of them is seen by its checksum, and mended by check.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Backing, RebaseContext } from '../driver.js'
import { placeLocators } from './create.js'
import { encodeHeader, HEADER_BYTES } from './dynamic-header.js'
import { timeStampOf } from './footer.js'
import { SECTOR } from './geometry.js'
import type { VhdLayout } from './layout.js'
import { encodeParentNames } from './locators.js'
import { footerPlace, moveFooter } from './resize.js'
import { scanTable } from './table.js'

/** @throws USAGE for a parent that it cannot have */
export function rebaseVhd(layout: VhdLayout, storage: Storage, context: RebaseContext): void {
  const parent = checkParent(layout, context)
  const header = { ...layout.header!, parentTimeStamp: timeStampOf(parent.mtimeMs) }
  const { dataOffset } = layout.footer
  // Its id stays; the time is in the first sector of the header.
  if (context.change === 'before') return
  if (context.change === 'after') storage.write(encodeHeader(header), 0, SECTOR, dataOffset!)
  else {
    const { uniqueId } = (parent.layout as VhdLayout).footer
    const names = encodeParentNames(context.path, parent.path)
    const { end } = scanTable(layout, storage, layout.footerOffset)
    const placed = placeLocators(names.locators, end)
    const place = footerPlace(layout, placed.end)
    if (place !== layout.footerOffset) moveFooter(layout, storage, place)
    names.locators.forEach(({ data }, i) => {
      storage.write(data, 0, data.length, placed.locators[i]!.platformDataOffset)
    })
    storage.sync()
    const { unicodeName } = names
    const bytes = encodeHeader({
      ...header,
      parentUniqueId: uniqueId,
      parentUnicodeName: unicodeName,
      parentLocators: placed.locators,
    })
    storage.write(bytes, 0, HEADER_BYTES, dataOffset!)
  }
  storage.sync()
}

function checkParent({ type, path }: VhdLayout, { backing }: RebaseContext): Backing {
  const fail = (text: string) => new VdiskError('USAGE', text, { path })
  if (type !== 'differencing') throw fail('it is no differencing VHD, and cannot become one')
  if (!backing) throw fail('a differencing VHD has a parent; convert makes an image without one')
  if (backing.format === 'vhd' && backing.layout !== undefined) return backing
  throw fail(`the parent of a VHD is a VHD, and ${backing.path} is ${backing.layout ? backing.format : 'not there'}`)
}
