/**
 * The part of a check that only disks with blocks need. What is data stays data: a block that lies over another one is
 * copied; an entry is taken out of the table only where the place that it says can hold no data of a block.
 */

import { onesComplementByteSum } from '../../util/checksum.js'
import { VdiskError } from '../../util/errors.js'
import { parentFindings } from '../check-parent.js'
import type { CheckTotals } from '../driver.js'
import { readBatmapHeader } from './batmap.js'
import { checkBitmaps } from './check-bitmap.js'
import { findLeaks, giveBack } from './check-leaks.js'
import type { GrowingCheck } from './check-report.js'
import { type FaultKind, TableCheck, type TableFault } from './check-table.js'
import { decodeHeader, HEADER_BYTES, HEADER_CHECKSUM } from './dynamic-header.js'
import { DiskType, FOOTER_BYTES, hex32, OLD_FOOTER_BYTES } from './footer.js'
import { geometryAgrees, SECTOR } from './geometry.js'
import { blocksOf, ENTRY_BYTES, type VhdLayout } from './layout.js'
import { readParentNames } from './locators.js'
import { checkDataOffset, parentRequest, refuseOverlap, reservedAreas, TABLE_AREA } from './open.js'
import { COPIED, planCopies } from './repair.js'

/** @returns undefined where the header tells nothing that could be gone by */
export function checkGrowing(check: GrowingCheck): CheckTotals | undefined {
  const { judged, report, context } = check
  const header = readSealed(check)
  const layout = tryTo(() => layoutOf(check, header))
  if (layout instanceof VdiskError) {
    const { offset } = layout
    report.stop('header', textOf(layout), judged.faults, offset === undefined ? {} : { offset })
    return undefined
  }
  const table = new TableCheck(layout, context.storage)
  decideTrust(check, layout, header, table)
  mendHeader(check, header)
  mendFooters(check, table)
  mendTable(check, layout, table)
  mendBitmaps(check, layout)
  checkParent(check, layout)
  giveBack(check, layout, table)
  return {
    imageEnd: table.lastEnd + FOOTER_BYTES,
    clusters: Math.ceil(layout.size / layout.blocks!.blockSize),
    allocated: table.allocated,
    fragmented: table.fragmented,
    compressed: 0,
  }
}

function tryTo<T>(action: () => T): T | VdiskError {
  try {
    return action()
  } catch (error) {
    if (error instanceof VdiskError && error.code === 'CORRUPT') return error
    throw error
  }
}

/** Without the file's name. */
function textOf({ message, path }: VdiskError): string {
  const prefix = `${path}: `
  return message.startsWith(prefix) ? message.slice(prefix.length) : message
}

/** A header with a checksum that was made right. */
interface SealedHeader {
  readonly offset: number
  readonly bytes: Uint8Array
  readonly found: number
  readonly expected: number
}

function readSealed({ context, judged }: GrowingCheck): SealedHeader {
  const offset = judged.footer.dataOffset ?? 0
  const bytes = new Uint8Array(HEADER_BYTES)
  context.storage.read(bytes, 0, HEADER_BYTES, offset)
  const view = new DataView(bytes.buffer)
  const found = view.getUint32(HEADER_CHECKSUM)
  const expected = onesComplementByteSum(bytes, HEADER_CHECKSUM)
  view.setUint32(HEADER_CHECKSUM, expected)
  return { offset, bytes, found, expected }
}

/** As opening would find it, but for checksums, locators and the number of the footer's bytes. @throws CORRUPT */
function layoutOf({ context, judged, size, report }: GrowingCheck, { bytes, offset }: SealedHeader): VhdLayout {
  const { storage } = context
  const { path } = storage
  const { footer, offset: end } = judged
  const { diskType } = footer
  if (diskType !== DiskType.DYNAMIC && diskType !== DiskType.DIFFERENCING) {
    const text = `the disk type is ${diskType}: expected 2 (fixed), 3 (dynamic) or 4 (differencing)`
    throw new VdiskError('CORRUPT', text, { path, offset: end })
  }
  const differencing = diskType === DiskType.DIFFERENCING
  checkDataOffset(footer, end, path)
  const place = { path, offset }
  const header = decodeHeader(bytes, { diskSize: size, end }, place)
  const batmap = readBatmapHeader(storage, header, end)
  const names = differencing ? tryTo(() => readParentNames(storage, header, place)) : []
  if (names instanceof VdiskError) report.add('corruption', 'parent-locator', textOf(names), false, { offset })
  // Locators that lie outside of the file cover nothing in it. Header and table, which come first, are in it.
  const areas = reservedAreas(header, offset, differencing, batmap)
  const reserved = areas.filter((area, i) => i <= TABLE_AREA || area.end <= end)
  refuseOverlap(reserved, place)
  return {
    path,
    type: differencing ? 'differencing' : 'dynamic',
    size,
    footer,
    footerBytes: judged.bytes,
    footerOffset: end,
    footerLength: judged.length,
    header,
    blocks: blocksOf(header, reserved),
    parentNames: names instanceof VdiskError ? [] : names,
    batmap: batmap !== undefined,
  }
}

/**
 * A wrong checksum is mended where nothing contradicts the fields: the table that they lead to is without fault, and
 * there is no data that it does not account for. Nothing is mended by fields that are in doubt.
 */
function decideTrust(check: GrowingCheck, layout: VhdLayout, header: SealedHeader, table: TableCheck): void {
  const { judged, report } = check
  const { proven, faults } = judged
  const headerSound = header.found === header.expected
  const consistent = (proven && headerSound) || (table.sound && findLeaks(check, layout, table).next().done === true)
  const confirmed = proven || (headerSound && consistent && sizeConfirmed(layout))
  const headerConfirmed = headerSound || (proven && consistent)
  if (!confirmed || !headerConfirmed || faults.some(({ certain }) => !certain)) report.all = false
  for (const fault of faults) report.addFooter(fault, confirmed)
  if (headerSound) return
  const [found, expected] = [hex32(header.found), hex32(header.expected)]
  const hint = headerConfirmed ? '' : '; the footer or the table does not confirm its fields, so it is not repaired'
  const text = `the dynamic disk header's checksum is ${found}: expected ${expected}${hint}`
  report.add('corruption', 'header-checksum', text, headerConfirmed, { offset: header.offset, found, expected })
}

/** The footer's sizes and geometry agree, or the header says the same size. */
function sizeConfirmed({ size, footer, header }: VhdLayout): boolean {
  if (Math.ceil(size / header!.blockSize) === header!.maxTableEntries) return true
  return geometryAgrees(footer)
}

function mendHeader({ report, repair }: GrowingCheck, { found, expected, bytes, offset }: SealedHeader): void {
  if (report.all && found !== expected) repair.write(bytes, offset)
}

function mendFooters({ context, judged, report, repair }: GrowingCheck, table: TableCheck): void {
  const { offset, length, faults, sound } = judged
  if (offset % SECTOR !== 0 && length > 0) {
    const text = `the footer is at byte ${offset}: expected a multiple of ${SECTOR}`
    report.add('warning', 'footer-alignment', text, true, { offset })
  }
  const warnings = faults.length > 0 && faults.every(({ severity, certain }) => severity === 'warning' && certain)
  if (context.repair === 'leaks' && warnings) repair.writeCopy()
  if (!report.all) return
  const copy = faults.some(({ mend }) => mend === 'copy')
  const end = faults.some(({ mend }) => mend === 'end')
  if (copy && !end) repair.writeCopy()
  if (end && length === 0) repair.restoreFooter(table.lastEnd, !table.sound)
  else if (end || (sound && length === OLD_FOOTER_BYTES)) repair.rewriteFooter()
  if (copy && end) repair.writeCopy()
  if (repair.footerOffset % SECTOR === 0) return
  // Where there is room in front of it, it goes there with the leak; see `giveBack`.
  repair.growTo(Math.ceil(repair.footerOffset / SECTOR) * SECTOR)
}

/** The finding's name, and what is said of a block behind "block 7, at byte 1234, ". */
const FAULTS: Readonly<Record<FaultKind, readonly [what: string, text: (fault: TableFault, end: number) => string]>> = {
  outside: ['bat-range', (_, end) => `is not in the file, where blocks end at byte ${end}: there is no data of it`],
  metadata: ['bat-overlap', ({ over }) => `would lie over the ${over!.name}: there can be no data of it`],
  area: ['bat-overlap', ({ over }) => `lies over the ${over!.name} at bytes ${over!.start} to ${over!.end}`],
  shared: ['shared-block', () => 'lies over the block of another entry'],
  cut: ['block-cut', (_, end) => `ends behind byte ${end}, where blocks must end: the rest of it is lost`],
}

function mendTable(check: GrowingCheck, layout: VhdLayout, table: TableCheck): void {
  const { judged, report, repair, context } = check
  const { blockSize, tableOffset } = layout.blocks!
  const device = context.storage.fixedSize
  const copies = planCopies(layout, table, device ? repair.footerOffset : Infinity)
  const room = device ? 'on the device' : 'in the 2 TiB of a VHD'
  for (const fault of table.faults) {
    const { kind, block, count, start } = fault
    const [what, text] = FAULTS[kind]
    const others = count > 1 ? `; so with ${count - 1} more entries behind it` : ''
    const full = !copies && COPIED.includes(kind) ? `; there is no room for a copy ${room}` : ''
    report.add(
      'corruption',
      what,
      `block ${block}, at byte ${start}, ${text(fault, judged.offset)}${others}${full}`,
      copies !== undefined,
      {
        offset: tableOffset + block * ENTRY_BYTES,
        guest: block * blockSize,
        found: start,
        ...(count > 1 && { count }),
      },
    )
  }
  if (table.overflow > 0) {
    const text = `${table.overflow} more entries of the table are wrong; they can be repaired when the others are`
    report.add('corruption', 'bat-more', text, false, { offset: tableOffset, count: table.overflow })
  }
  if (table.behind > 0) {
    const text = `${table.behind} blocks behind the end of the disk are allocated`
    report.add('warning', 'bat-unused', text, false, { offset: tableOffset, count: table.behind })
  }
  if (report.all && !table.sound && copies) repair.mendTable(layout, table.faults, copies, table.lastEnd)
  // What is the bitmap of a block may be the data of another one as long as they lie over each other.
  if (!copies || table.overflow > 0) report.all = false
}

function mendBitmaps({ context, report, repair }: GrowingCheck, layout: VhdLayout): void {
  const { storage } = context
  let changed = false
  let behind = 0
  let first = 0
  checkBitmaps(layout, storage, repair.footerOffset, {
    unmarked(block, sectors, offset, guest) {
      const text = `block ${block}: ${sectors} sectors hold data, the first at byte ${guest} of the disk, and their bits say that they were never written: this program, Windows and QEMU show the data, programs that go by the bits show zeros`
      const mended = report.add('warning', 'bitmap', text, true, { offset, guest })
      changed ||= mended
      return mended
    },
    behindEnd(block) {
      if (behind++ === 0) first = block
      changed ||= report.all
      return report.all
    },
  })
  if (behind > 0) {
    const text = `${behind} blocks, the first of them block ${first}, have bits set for sectors behind their end`
    report.add('warning', 'bitmap-end', text, true, { guest: first * layout.blocks!.blockSize, count: behind })
  }
  if (changed) storage.sync()
}

function checkParent({ context, report }: GrowingCheck, layout: VhdLayout): void {
  if (layout.type !== 'differencing') return
  const expected = layout.header!.parentUniqueId
  for (const { severity, what, message } of parentFindings(context, parentRequest(layout, context.path)))
    report.add(severity, what, message, false, what === 'parent-changed' ? {} : { expected })
}
