/**
 * Checks a VHD: footers, header, table, sector bitmaps, parent, leaked space; and has it mended (see `repair.ts`).
 * Looks at the file itself, and opens what `open` refuses. Here: footers and fixed disks; `check-growing.ts` has the
 * rest.
 */

import type { CheckContext, CheckTotals } from '../driver.js'
import { type JudgedFooter, judgeFooters } from './check-footer.js'
import { checkGrowing } from './check-growing.js'
import { VhdReport } from './check-report.js'
import { DiskType, FOOTER_BYTES, OLD_FOOTER_BYTES } from './footer.js'
import { diskSize, geometryAgrees, geometrySectors, MAX_DISK_SIZE, SECTOR } from './geometry.js'
import { VhdRepair } from './repair.js'

const NOTHING: CheckTotals = { imageEnd: 0, clusters: 0, allocated: 0, fragmented: 0, compressed: 0 }

/** @throws FORMAT, CORRUPT where there is no footer to begin with; UNSUPPORTED; IO */
export function checkVhd(context: CheckContext): CheckTotals {
  const { storage } = context
  const judged = judgeFooters(storage)
  const { footer, bytes, offset, length, faults } = judged
  const report = new VhdReport(context)
  const size = diskSize(footer.creatorApplication, footer.currentSize, footer)
  checkRemarks(judged, size, report)
  if (size <= 0 || size > MAX_DISK_SIZE) {
    const expected = `${SECTOR} to ${MAX_DISK_SIZE} bytes`
    report.stop('size', `the disk's size is ${size}: expected ${expected}`, faults, { found: size, expected })
    return NOTHING
  }
  const repair = new VhdRepair(storage, bytes, offset, length)
  if (footer.diskType === DiskType.FIXED) return checkFixed(judged, size, report, repair)
  return checkGrowing({ context, judged, size, report, repair }) ?? NOTHING
}

/** What is only worth knowing. */
function checkRemarks({ footer, offset, length, sound }: JudgedFooter, size: number, report: VhdReport): void {
  const { savedState, currentSize, creatorApplication } = footer
  if (savedState !== 0) {
    const text = 'the disk belongs to a virtual machine in saved state, which does not expect it to change'
    report.add('warning', 'saved-state', text, false, { offset, found: savedState, expected: 0 })
  }
  const said = geometrySectors(footer) * SECTOR
  if (size === said && !geometryAgrees(footer)) {
    const creator = creatorApplication.trim()
    const text = `the geometry says ${said} bytes and Current Size ${currentSize}: with the creator '${creator}' the geometry counts, and other programs may think otherwise`
    report.add('warning', 'geometry', text, false, { offset, found: said, expected: currentSize })
  }
  if (sound && length === OLD_FOOTER_BYTES) {
    const text = `the footer at byte ${offset} has ${length} bytes, as old programs wrote it: expected ${FOOTER_BYTES}`
    report.add('warning', 'footer-short', text, true, { offset, found: length, expected: FOOTER_BYTES })
  }
}

function checkFixed(judged: JudgedFooter, size: number, report: VhdReport, repair: VhdRepair): CheckTotals {
  const { offset, footer, faults, length } = judged
  const totals = { ...NOTHING, imageEnd: offset + FOOTER_BYTES }
  if (size > offset) {
    const text = `the disk's size is ${size}: the file holds ${offset} bytes of it`
    report.stop('size', text, faults, { found: offset, expected: size })
    return totals
  }
  if (offset !== size && offset !== footer.currentSize) {
    const text = `${offset - size} bytes between the end of the disk, at byte ${size}, and the footer belong to nothing`
    report.add('warning', 'size', text, false, { offset: size, found: offset, expected: size })
  }
  for (const fault of faults) report.addFooter(fault, true)
  const wrong = faults.length > 0 || length === OLD_FOOTER_BYTES
  if (report.all && wrong && !report.corrupt) repair.rewriteFooter()
  return totals
}
