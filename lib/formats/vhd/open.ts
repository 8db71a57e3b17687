/** Opening a VHD: finding a sound footer, checking the header, describing the parent. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Place } from '../../util/struct.js'
import type { OpenContext, Opened, ParentRequest } from '../driver.js'
import { type BatmapHeader, readBatmapHeader } from './batmap.js'
import { type DynamicHeader, decodeHeader, HEADER_BYTES } from './dynamic-header.js'
import {
  DiskType,
  decodeFooter,
  FOOTER_BYTES,
  type Footer,
  footerFault,
  looksLikeFooter,
  OLD_FOOTER_BYTES,
  timeStampOf,
} from './footer.js'
import { diskSize, MAX_DISK_SIZE, SECTOR } from './geometry.js'
import { blocksOf, COPY_AREA, ENTRY_BYTES, firstState, type Reserved, roundUp, type VhdLayout } from './layout.js'
import { type ParentName, parentCandidates, readParentNames, shownParentName } from './locators.js'
import { isBetween } from './two-footers.js'

export const VHD = 'vhd'

/** The footer that an image is opened with, and where it was found. */
interface FoundFooter {
  readonly footer: Footer
  readonly bytes: Uint8Array
  readonly offset: number
  readonly length: number
}

const REPAIR = 'vdiskfs check --repair all'

export function openVhd(context: OpenContext): Opened<VhdLayout> {
  const { storage, warn } = context
  const found = findFooter(context)
  const { footer } = found
  if (footer.savedState !== 0)
    warn('it belongs to a virtual machine in saved state, which does not expect the disk to change')
  const layout = footer.diskType === DiskType.FIXED ? fixedLayout(storage.path, found) : growingLayout(context, found)
  if (found.length === 0 && !context.readOnly)
    throw new VdiskError(
      'CORRUPT',
      `its footer is lost, so it is opened read-only at most; repair it: ${REPAIR} ${storage.path}`,
      { path: storage.path },
    )
  if (layout.blocks && !context.readOnly) completeCopy(storage, found)
  const parent = layout.type === 'differencing' ? parentRequest(layout, context.path) : undefined
  return { layout, size: layout.size, parent, state: layout.blocks ? firstState(layout) : [] }
}

/** Looks for a sound footer at the end, then for its copy at the beginning. */
function findFooter({ storage, warn }: OpenContext): FoundFooter {
  const { path } = storage
  const size = storage.size()
  const bytes = new Uint8Array(FOOTER_BYTES)
  let fault = 'missing (the file may have been cut short)'
  for (const length of [FOOTER_BYTES, OLD_FOOTER_BYTES]) {
    const offset = size - length
    if (offset < 0) continue
    bytes.fill(0)
    storage.read(bytes, 0, length, offset)
    if (!looksLikeFooter(bytes, 0)) continue
    const wrong = footerFault(bytes)
    if (!wrong) {
      const footer = decodeFooter(bytes, { path, offset })
      if (footer.diskType !== DiskType.FIXED) checkCopy(storage, footer, warn)
      return { footer, bytes, offset, length }
    }
    // A fixed disk has no copy: what is at its beginning is the guest's.
    const copy = typeOf(bytes) === DiskType.FIXED ? undefined : readCopy(storage)
    if (!copy) throw new VdiskError('CORRUPT', `VHD footer: ${wrong}`, { path, offset })
    fault = `damaged: its ${wrong}`
  }
  const copy = readCopy(storage)
  if (!copy) throw noFooter(storage)
  warn(`its footer is ${fault}; the copy at the beginning is used. Repair it: ${REPAIR} ${path}`)
  return { ...copy, offset: size, length: 0 }
}

function typeOf(footer: Uint8Array): number {
  return new DataView(footer.buffer).getUint32(60)
}

/** The copy of the footer at the beginning of a disk that grows, where it is sound. */
function readCopy(storage: Storage): { footer: Footer; bytes: Uint8Array } | undefined {
  const bytes = new Uint8Array(FOOTER_BYTES)
  if (storage.read(bytes, 0, FOOTER_BYTES, 0) < FOOTER_BYTES) return undefined
  if (!looksLikeFooter(bytes, 0) || footerFault(bytes) || typeOf(bytes) === DiskType.FIXED) return undefined
  return { footer: decodeFooter(bytes, { path: storage.path, offset: 0 }), bytes }
}

function noFooter(storage: Storage): VdiskError {
  const { path } = storage
  const head = new Uint8Array(FOOTER_BYTES)
  if (storage.read(head, 0, FOOTER_BYTES, 0) < FOOTER_BYTES || !looksLikeFooter(head, 0))
    return new VdiskError('FORMAT', "not a VHD: no footer ('conectix') in its last 512 bytes", { path })
  const wrong = footerFault(head)
  const text = wrong ? `and the ${wrong} in its copy` : 'and a fixed disk has no copy of it'
  return new VdiskError('CORRUPT', `VHD footer: missing at the end, ${text}`, { path, offset: 0 })
}

/** Other programs read the copy first, so a user should know that it is wrong. */
function checkCopy(storage: Storage, footer: Footer, warn: (message: string) => void): void {
  const copy = readCopy(storage)
  if (copy?.footer.uniqueId === footer.uniqueId) return
  warn(`the copy of its footer at the beginning is damaged. Repair it: ${REPAIR} ${storage.path}`)
}

/** Ends a change that was interrupted between the footer and its copy. */
function completeCopy(storage: Storage, { footer, bytes, length }: FoundFooter): void {
  const copy = length > 0 ? readCopy(storage) : undefined
  if (!copy || !isBetween(footer, copy.footer)) return
  storage.write(bytes, 0, FOOTER_BYTES, 0)
  storage.sync()
}

/** The size of the disk, of which no field can be believed before it is checked. */
function checkedSize({ footer, offset }: FoundFooter, path: string): number {
  const size = diskSize(footer.creatorApplication, footer.currentSize, footer)
  if (size <= 0 || size > MAX_DISK_SIZE) {
    const text = `VHD footer: the disk's size is ${size}: expected ${SECTOR} to ${MAX_DISK_SIZE} bytes`
    throw new VdiskError('CORRUPT', text, { path, offset })
  }
  return size
}

function common(path: string, found: FoundFooter) {
  const { footer, bytes, offset, length } = found
  return {
    path,
    size: checkedSize(found, path),
    footer,
    footerBytes: bytes,
    footerOffset: offset,
    footerLength: length,
  }
}

/** @throws CORRUPT where the footer is not that of such a disk */
export function fixedLayout(path: string, found: FoundFooter): VhdLayout {
  const layout = common(path, found)
  if (layout.size > found.offset) {
    const text = `VHD footer: the disk's size is ${layout.size}: the file holds ${found.offset} bytes of it`
    throw new VdiskError('CORRUPT', text, { path, offset: found.offset })
  }
  return { ...layout, type: 'fixed', header: undefined, blocks: undefined, parentNames: [], batmap: false }
}

function growingLayout({ storage }: OpenContext, found: FoundFooter): VhdLayout {
  const { path } = storage
  const { footer, offset: end } = found
  if (footer.diskType !== DiskType.DYNAMIC && footer.diskType !== DiskType.DIFFERENCING) {
    const text = `VHD footer: disk type is ${footer.diskType}: expected 2 (fixed), 3 (dynamic) or 4 (differencing)`
    throw new VdiskError('CORRUPT', text, { path, offset: end })
  }
  const layout = common(path, found)
  // What there is of a header says more than that it is cut off.
  const headerOffset = checkDataOffset(footer, end, path, SECTOR)
  const place: Place = { path, offset: headerOffset }
  const bytes = new Uint8Array(HEADER_BYTES)
  storage.read(bytes, 0, HEADER_BYTES, headerOffset)
  const header = decodeHeader(bytes, { diskSize: layout.size, end }, place)
  checkDataOffset(footer, end, path)
  const differencing = footer.diskType === DiskType.DIFFERENCING
  const parentNames: ParentName[] = differencing ? readParentNames(storage, header, place) : []
  const batmap = readBatmapHeader(storage, header, end)
  const reserved = reservedAreas(header, headerOffset, differencing, batmap)
  refuseOverlap(reserved, place)
  const type = differencing ? ('differencing' as const) : ('dynamic' as const)
  const blocks = blocksOf(header, reserved)
  return { ...layout, type, header, blocks, parentNames, batmap: batmap !== undefined }
}

/** @param room bytes that must be there from the offset on */
export function checkDataOffset(footer: Footer, end: number, path: string, room: number = HEADER_BYTES): number {
  const { dataOffset } = footer
  const right = dataOffset !== undefined && dataOffset % SECTOR === 0 && dataOffset >= FOOTER_BYTES
  if (right && dataOffset + room <= end) return dataOffset
  const expected = `expected a multiple of ${SECTOR} from ${FOOTER_BYTES} on, with ${room} bytes up to ${end}`
  throw new VdiskError('CORRUPT', `VHD footer: Data Offset is ${dataOffset ?? 'none'}: ${expected}`, {
    path,
    offset: end,
  })
}

/** Place of the block allocation table among the reserved areas. */
export const TABLE_AREA = 2

export function reservedAreas(
  header: DynamicHeader,
  headerOffset: number,
  differencing: boolean,
  batmap: BatmapHeader | undefined,
): Reserved[] {
  const { tableOffset, maxTableEntries } = header
  const areas: Reserved[] = [
    COPY_AREA,
    { name: 'dynamic disk header', start: headerOffset, end: headerOffset + HEADER_BYTES },
    {
      name: 'block allocation table',
      start: tableOffset,
      end: tableOffset + roundUp(maxTableEntries * ENTRY_BYTES, SECTOR),
    },
  ]
  if (batmap) areas.push(...batmap.areas)
  if (!differencing) return areas
  header.parentLocators.forEach((locator, i) => {
    const { platformDataOffset: start, platformDataLength: length } = locator
    if (length > 0) areas.push({ name: `parent locator ${i + 1}`, start, end: start + length })
  })
  return areas
}

/** Writing the table must not write over a header. Locators are only read: they do no harm wherever they lie. */
export function refuseOverlap(areas: readonly Reserved[], place: Place): void {
  const [copy, header, table] = areas
  for (const [a, b] of [
    [copy!, header!],
    [copy!, table!],
    [header!, table!],
  ] as const) {
    if (a.start >= b.end || b.start >= a.end) continue
    const text = `the VHD ${b.name} at bytes ${b.start} to ${b.end} lies over the ${a.name} at ${a.start} to ${a.end}`
    throw new VdiskError('CORRUPT', text, place)
  }
}

/** A parent's time stamp says the same where it is the file's time or that of the footer, to within this. */
const TIME_STAMP_TOLERANCE_S = 2

export function parentRequest(layout: VhdLayout, path: string): ParentRequest {
  const { header, parentNames } = layout
  const { parentUniqueId, parentTimeStamp } = header!
  return {
    name: shownParentName(parentNames, parentUniqueId),
    candidates: parentCandidates(parentNames, path),
    // Never detected: a fixed disk begins with what its guest wrote.
    format: VHD,
    verify(parent, warn) {
      if (parent.format !== VHD)
        throw new VdiskError('CORRUPT', `it is ${parent.format}, and the parent of a VHD is a VHD`, {
          path: parent.path,
        })
      const { footer } = parent.layout as VhdLayout
      if (footer.uniqueId !== parentUniqueId) {
        const text = `its unique id is ${footer.uniqueId}: the child was made over ${parentUniqueId}`
        throw new VdiskError('CORRUPT', text, { path: parent.path })
      }
      // Hyper-V writes 0.
      if (parentTimeStamp === 0) return
      const times = [timeStampOf(parent.mtimeMs), footer.timeStamp]
      if (times.some((time) => Math.abs(time - parentTimeStamp) <= TIME_STAMP_TOLERANCE_S)) return
      warn(`its parent ${parent.path} was changed after the child was made, so the disk may hold a mixture`)
    },
  }
}
