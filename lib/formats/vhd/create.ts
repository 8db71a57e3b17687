/** Making new VHDs: fixed, dynamic, differencing. */

import { VdiskError } from '../../util/errors.js'
import { NIL_GUID, randomGuid } from '../../util/guid.js'
import type { CreateContext } from '../driver.js'
import type { OptionSpec } from '../options.js'
import { encodeHeader, HEADER_BYTES, HEADER_COOKIE, LOCATORS, type Locator } from './dynamic-header.js'
import {
  DiskType,
  encodeFooter,
  FEATURE_RESERVED,
  FOOTER_BYTES,
  FOOTER_COOKIE,
  type Footer,
  timeStampOf,
  VERSION_1_0,
} from './footer.js'
import { type Geometry, geometryOf, MAX_DISK_SIZE, roundUpToGeometry, SECTOR } from './geometry.js'
import { bitmapBytesOf, ENTRY_BYTES, MAX_BLOCK_START, roundUp, type VhdLayout } from './layout.js'
import { encodeParentNames, type NewLocator } from './locators.js'

/** Smaller ones are in order, but QEMU reads blocks of less than 8 sectors as if they had no bitmap. */
const MIN_BLOCK_SIZE = 4096
const MAX_BLOCK_SIZE = 2 ** 31
const DEFAULT_BLOCK_SIZE = 2 * 2 ** 20

export const VHD_OPTIONS: readonly OptionSpec[] = [
  {
    name: 'subformat',
    help: 'dynamic (grows as it is written) or fixed (as large as the disk)',
    type: 'enum',
    values: ['dynamic', 'fixed'],
    default: 'dynamic',
  },
  {
    name: 'force_size',
    help: 'on: exactly the size that was asked for; off: the next larger one that cylinders, heads and sectors can say',
    type: 'boolean',
    default: true,
  },
  {
    name: 'block_size',
    help: 'bytes that are allocated together, a power of two; Windows knows 512K and 2M',
    type: 'size',
    default: DEFAULT_BLOCK_SIZE,
    min: MIN_BLOCK_SIZE,
    max: MAX_BLOCK_SIZE,
  },
]

/** Programs that go by this creator take the current size for the size of the disk, to the byte. */
const CREATOR_APPLICATION = 'win '
const CREATOR_VERSION = 0x000a_0000
const CREATOR_HOST_OS = 'Wi2k'

/** Where the parts of a new image that grows are: the copy of the footer first. */
const HEADER_OFFSET = FOOTER_BYTES
const TABLE_OFFSET = HEADER_OFFSET + HEADER_BYTES
const TABLE_CHUNK = 2 ** 20

export function createVhd(context: CreateContext): void {
  const { size, options, backing } = context
  const fixed = options.subformat === 'fixed'
  if (fixed && backing) throw new VdiskError('USAGE', 'a fixed VHD has no parent: leave subformat=fixed out')
  if (backing && backing.format !== 'vhd')
    throw new VdiskError('USAGE', `the parent of a VHD is a VHD, and ${backing.path} is ${backing.format}`)
  const asked = Math.ceil(size / SECTOR)
  const { sectors, geometry } =
    options.force_size === false ? roundUpToGeometry(asked) : { sectors: asked, geometry: geometryOf(asked) }
  const diskSize = sectors * SECTOR
  if (diskSize < SECTOR || diskSize > MAX_DISK_SIZE)
    throw new VdiskError('USAGE', `a VHD of ${size} bytes: expected ${SECTOR} bytes to 2040 GiB`)
  if (fixed) createFixed(context, diskSize, geometry)
  else createGrowing(context, diskSize, geometry)
}

function newFooter(diskType: number, size: number, geometry: Geometry): Footer {
  return {
    cookie: FOOTER_COOKIE,
    features: FEATURE_RESERVED,
    fileFormatVersion: VERSION_1_0,
    dataOffset: diskType === DiskType.FIXED ? undefined : HEADER_OFFSET,
    timeStamp: timeStampOf(Date.now()),
    creatorApplication: CREATOR_APPLICATION,
    creatorVersion: CREATOR_VERSION,
    creatorHostOs: CREATOR_HOST_OS,
    originalSize: size,
    currentSize: size,
    ...geometry,
    diskType,
    checksum: 0,
    uniqueId: randomGuid(),
    savedState: 0,
  }
}

function createFixed({ storage }: CreateContext, size: number, geometry: Geometry): void {
  storage.write(encodeFooter(newFooter(DiskType.FIXED, size, geometry)), 0, FOOTER_BYTES, size)
  storage.sync()
}

function createGrowing({ storage, path, options, backing }: CreateContext, size: number, geometry: Geometry): void {
  const blockSize = checkBlockSize(Number(options.block_size), size)
  const footer = encodeFooter(newFooter(backing ? DiskType.DIFFERENCING : DiskType.DYNAMIC, size, geometry))
  const maxTableEntries = Math.ceil(size / blockSize)
  const tableEnd = TABLE_OFFSET + roundUp(maxTableEntries * ENTRY_BYTES, SECTOR)
  const names = backing && encodeParentNames(path, backing.path)
  const { locators, end } = placeLocators(names?.locators ?? [], tableEnd)
  const parent = backing && (backing.layout as VhdLayout).footer
  const header = encodeHeader({
    cookie: HEADER_COOKIE,
    dataOffset: undefined,
    tableOffset: TABLE_OFFSET,
    headerVersion: VERSION_1_0,
    maxTableEntries,
    blockSize,
    checksum: 0,
    parentUniqueId: parent?.uniqueId ?? NIL_GUID,
    parentTimeStamp: backing ? timeStampOf(backing.mtimeMs) : 0,
    reserved: 0,
    parentUnicodeName: names?.unicodeName ?? new Uint8Array(0),
    parentLocators: locators,
  })
  storage.write(footer, 0, FOOTER_BYTES, 0)
  storage.write(header, 0, HEADER_BYTES, HEADER_OFFSET)
  const free = new Uint8Array(Math.min(TABLE_CHUNK, tableEnd - TABLE_OFFSET)).fill(0xff)
  for (let at = TABLE_OFFSET; at < tableEnd; at += free.length)
    storage.write(free, 0, Math.min(free.length, tableEnd - at), at)
  names?.locators.forEach(({ data }, i) => {
    storage.write(data, 0, data.length, locators[i]!.platformDataOffset)
  })
  storage.write(footer, 0, FOOTER_BYTES, end)
  storage.sync()
}

/** @throws USAGE */
function checkBlockSize(blockSize: number, size: number): number {
  if (!Number.isInteger(Math.log2(blockSize)))
    throw new VdiskError('USAGE', `option block_size=${blockSize}: expected a power of two`)
  const blocks = Math.ceil(size / blockSize)
  const full = TABLE_OFFSET + blocks * (ENTRY_BYTES + bitmapBytesOf(blockSize) + blockSize)
  if (full > MAX_BLOCK_START)
    throw new VdiskError(
      'USAGE',
      `option block_size=${blockSize}: a disk of ${size} bytes in such blocks would need a file of ${full} bytes, and a VHD can address 2 TiB`,
    )
  return blockSize
}

/** Lays locators down one after the other from `start` on, each in whole sectors. */
export function placeLocators(locators: readonly NewLocator[], start: number): { locators: Locator[]; end: number } {
  let end = start
  const placed = Array.from({ length: LOCATORS }, (_, i): Locator => {
    const locator = locators[i]
    const length = locator?.data.length ?? 0
    const sectors = Math.ceil(length / SECTOR)
    const offset = end
    end += sectors * SECTOR
    return {
      platformCode: locator?.code ?? '\0\0\0\0',
      platformDataSpace: sectors,
      platformDataLength: length,
      reserved: 0,
      platformDataOffset: locator ? offset : 0,
    }
  })
  return { locators: placed, end }
}
