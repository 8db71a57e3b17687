/**
 * The parent of a differencing VHD that nobody has open. The dynamic disk header, which names it, is two sectors, and the
 * footer, which says where the header is, is one; so the footer makes the change:
 *
 * 1. the footer as it is, behind what will be new; barrier; the names of the new parent, and the new header, in front of
 *    it; barrier
 * 2. the footer, then its copy, refer to the new header; barrier after each
 * 3. the new header again, at the place of the old one; barrier
 * 4. the footer, then its copy, refer to that place again, where other programs expect it; barrier after each
 * 5. the place of the header from step 1 is given back
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Backing, RebaseContext } from '../driver.js'
import { placeLocators } from './create.js'
import { type DynamicHeader, encodeHeader, HEADER_BYTES } from './dynamic-header.js'
import { encodeFooter, FOOTER_BYTES, timeStampOf } from './footer.js'
import { SECTOR } from './geometry.js'
import type { VhdLayout } from './layout.js'
import { encodeParentNames } from './locators.js'
import { footerPlace, moveFooter } from './resize.js'
import { scanTable } from './table.js'

/** @throws USAGE for a parent that it cannot have */
export function rebaseVhd(layout: VhdLayout, storage: Storage, context: RebaseContext): void {
  const parent = checkParent(layout, context)
  const header = { ...layout.header!, parentTimeStamp: timeStampOf(parent.mtimeMs) }
  // Its id stays; the time is in the first sector of the header.
  if (context.change === 'before') return
  if (context.change === undefined) {
    const names = encodeParentNames(context.path, parent.path)
    if (!context.look) nameParent(layout, storage, header, parent, names)
    return
  }
  storage.write(encodeHeader(header), 0, SECTOR, layout.footer.dataOffset!)
  storage.sync()
}

type Names = ReturnType<typeof encodeParentNames>

function nameParent(layout: VhdLayout, storage: Storage, old: DynamicHeader, parent: Backing, names: Names): void {
  const { end } = scanTable(layout, storage, layout.footerOffset)
  const placed = placeLocators(names.locators, end)
  const aside = placed.end
  const place = footerPlace(layout, aside + HEADER_BYTES)
  if (place !== layout.footerOffset) moveFooter(layout, storage, place)
  names.locators.forEach(({ data }, i) => {
    storage.write(data, 0, data.length, placed.locators[i]!.platformDataOffset)
  })
  const header = encodeHeader({
    ...old,
    parentUniqueId: (parent.layout as VhdLayout).footer.uniqueId,
    parentUnicodeName: names.unicodeName,
    parentLocators: placed.locators,
  })
  const { footer } = layout
  for (const dataOffset of [aside, footer.dataOffset!]) {
    storage.write(header, 0, HEADER_BYTES, dataOffset)
    storage.sync()
    for (const at of [place, 0]) {
      storage.write(encodeFooter({ ...footer, dataOffset }), 0, FOOTER_BYTES, at)
      storage.sync()
    }
  }
  storage.punch(aside, HEADER_BYTES)
  storage.sync()
}

function checkParent({ type, path }: VhdLayout, { backing }: RebaseContext): Backing {
  const fail = (text: string) => new VdiskError('USAGE', text, { path })
  if (type !== 'differencing') throw fail('it is no differencing VHD, and cannot become one')
  if (!backing) throw fail('a differencing VHD has a parent; convert makes an image without one')
  if (backing.format === 'vhd' && backing.layout !== undefined) return backing
  throw fail(`the parent of a VHD is a VHD, and ${backing.path} is ${backing.layout ? backing.format : 'not there'}`)
}
