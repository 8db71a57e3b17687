/** Making new VHDX images: dynamic, fixed, differencing. Log, metadata and table lie as Windows lays them. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { NIL_GUID, parseGuid, randomGuid } from '../../util/guid.js'
import { formatSize, GiB, MiB, TiB } from '../../util/sizes.js'
import type { CreateContext } from '../driver.js'
import type { OptionSpec } from '../options.js'
import { encodeEntry } from './bat.js'
import {
  encodeHeader,
  HEADER_BYTES,
  HEADER_OFFSETS,
  HEADER_SIGNATURE,
  type Header,
  IDENTIFIER,
  IDENTIFIER_SIGNATURE,
} from './header.js'
import { DISK_SIZE, encodeItems, FILE_PARAMETERS, FileFlag, Item, ItemFlag, type NewItem } from './items.js'
import {
  ENTRY_BYTES,
  type Geometry,
  geometryOf,
  MAX_BLOCK_SIZE,
  MAX_DISK_SIZE,
  MIN_BLOCK_SIZE,
  Payload,
  payloadIndex,
  roundUp,
  SECTOR_SIZES,
  UNIT,
  type VhdxLayout,
} from './layout.js'
import { encodeLocator, newLocator } from './locator.js'
import { BAT_REGION, encodeRegionTable, METADATA_REGION, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS } from './regions.js'

/** The log's length is a number of 32 bits. */
const MAX_LOG_SIZE = 4 * GiB - UNIT

export const VHDX_OPTIONS: readonly OptionSpec[] = [
  {
    name: 'subformat',
    help: 'dynamic (grows as it is written) or fixed (as large as the disk)',
    type: 'enum',
    values: ['dynamic', 'fixed'],
    default: 'dynamic',
  },
  {
    name: 'block_size',
    help: 'bytes that are allocated together, a power of two from 1M to 256M; 0: by the size of the disk',
    type: 'size',
    default: 0,
    max: MAX_BLOCK_SIZE,
  },
  {
    name: 'log_size',
    help: 'bytes of the log, a multiple of 1M: metadata that one commit can take',
    type: 'size',
    default: MiB,
    min: MiB,
    max: MAX_LOG_SIZE,
  },
  {
    name: 'logical_sector_size',
    help: "512 or 4096; 0: the parent's, else 512",
    type: 'size',
    default: 0,
  },
  {
    name: 'block_state_zero',
    help: 'on: blocks of a dynamic disk begin as "zero" rather than as "not present", which reads as zeros as well',
    type: 'boolean',
    default: false,
  },
]

const CREATOR = 'vdiskfs'
const PHYSICAL_SECTOR_SIZE = 4096
const LOG_OFFSET = UNIT
const METADATA_BYTES = UNIT
const TABLE_CHUNK = MiB
/** What Windows takes for differencing disks, which are written here and there. */
const CHILD_BLOCK_SIZE = 2 * MiB
/** Larger blocks for larger disks, as qemu-img chooses them. */
const BLOCK_SIZES: readonly (readonly [above: number, blockSize: number])[] = [
  [32 * TiB, 64 * MiB],
  [100 * GiB, 32 * MiB],
  [GiB, 16 * MiB],
  [0, 8 * MiB],
]

export function createVhdx(context: CreateContext): void {
  const { storage, options, backing } = context
  const fixed = options.subformat === 'fixed'
  if (fixed && backing) throw new VdiskError('USAGE', 'a fixed VHDX has no parent: leave subformat=fixed out')
  if (backing && backing.format !== 'vhdx')
    throw new VdiskError('USAGE', `the parent of a VHDX is a VHDX, and ${backing.path} is ${backing.format}`)
  const geometry = newGeometry(context)
  const logLength = Number(options.log_size)
  if (logLength % UNIT !== 0) throw new VdiskError('USAGE', `option log_size=${logLength}: expected a multiple of 1M`)
  const metadataOffset = LOG_OFFSET + logLength
  const tableOffset = metadataOffset + METADATA_BYTES
  // Room for the table of a differencing disk, so that it can become one.
  const { entries } = geometryOf(geometry.size, geometry.blockSize, geometry.sectorSize, true)
  const tableBytes = roundUp(entries * ENTRY_BYTES, UNIT)
  const dataOffset = tableOffset + tableBytes
  storage.truncate(dataOffset + (fixed ? geometry.payloadBlocks * geometry.blockSize : 0))
  const metadata = encodeItems(newItems(context, geometry, fixed))
  storage.write(metadata, 0, metadata.length, metadataOffset)
  writeTable(storage, geometry, tableOffset, fixed ? dataOffset : -1, options.block_state_zero === true)
  const regions = encodeRegionTable([
    { guid: BAT_REGION, fileOffset: tableOffset, length: tableBytes, required: 1 },
    { guid: METADATA_REGION, fileOffset: metadataOffset, length: METADATA_BYTES, required: 1 },
  ])
  for (const offset of REGION_TABLE_OFFSETS) storage.write(regions, 0, REGION_TABLE_BYTES, offset)
  writeHeaders(storage, logLength)
  const creator = new Uint8Array(Buffer.from(CREATOR, 'utf16le'))
  storage.write(IDENTIFIER.encode({ signature: IDENTIFIER_SIGNATURE, creator }), 0, IDENTIFIER.size, 0)
  storage.sync()
}

/** @throws USAGE */
function newGeometry({ size, options, backing }: CreateContext): Geometry {
  const parent = backing?.layout as VhdxLayout | undefined
  const sectorSize = Number(options.logical_sector_size) || (parent?.sectorSize ?? 512)
  if (!SECTOR_SIZES.includes(sectorSize))
    throw new VdiskError('USAGE', `option logical_sector_size=${sectorSize}: expected 512 or 4096`)
  if (parent && parent.sectorSize !== sectorSize)
    throw new VdiskError('USAGE', `the parent has logical sectors of ${parent.sectorSize} bytes, so its child has too`)
  const diskSize = roundUp(size, sectorSize)
  if (diskSize < sectorSize || diskSize > MAX_DISK_SIZE)
    throw new VdiskError('USAGE', `a VHDX of ${size} bytes: expected 1 byte to ${formatSize(MAX_DISK_SIZE)}`)
  const auto = backing ? CHILD_BLOCK_SIZE : BLOCK_SIZES.find(([above]) => diskSize > above)![1]
  const blockSize = Number(options.block_size) || auto
  if (blockSize < MIN_BLOCK_SIZE || !Number.isInteger(Math.log2(blockSize)))
    throw new VdiskError('USAGE', `option block_size=${blockSize}: expected a power of two from 1M to 256M`)
  return geometryOf(diskSize, blockSize, sectorSize, backing !== undefined)
}

function newItems({ path, backing }: CreateContext, geometry: Geometry, fixed: boolean): NewItem[] {
  const { size, blockSize, sectorSize } = geometry
  const flags = (fixed ? FileFlag.LEAVE_ALLOCATED : 0) | (backing ? FileFlag.HAS_PARENT : 0)
  const number = (value: number) => new Uint8Array(Uint32Array.of(value).buffer)
  const ofFile = ItemFlag.IS_REQUIRED
  const ofDisk = ItemFlag.IS_REQUIRED | ItemFlag.IS_VIRTUAL_DISK
  // What belongs to the disk is the same in a parent and its child. [MS-VHDX] 2.6.1.2, IsVirtualDisk
  const parent = backing?.layout as VhdxLayout | undefined
  const items: NewItem[] = [
    { itemId: Item.FILE_PARAMETERS, flags: ofFile, data: FILE_PARAMETERS.encode({ blockSize, flags }) },
    { itemId: Item.VIRTUAL_DISK_SIZE, flags: ofDisk, data: DISK_SIZE.encode({ size }) },
    { itemId: Item.LOGICAL_SECTOR_SIZE, flags: ofDisk, data: number(sectorSize) },
    {
      itemId: Item.PHYSICAL_SECTOR_SIZE,
      flags: ofDisk,
      data: number(parent?.physicalSectorSize ?? PHYSICAL_SECTOR_SIZE),
    },
    { itemId: Item.VIRTUAL_DISK_ID, flags: ofDisk, data: parseGuid(parent?.diskId ?? randomGuid(), 'mixed') },
  ]
  if (!backing || !parent) return items
  if (!parent.ofDisk) {
    const text = 'its metadata has more items of the disk than a new child has room for'
    throw new VdiskError('UNSUPPORTED', text, { path: backing.path })
  }
  items.push(...parent.ofDisk)
  const locator = encodeLocator(newLocator(path, backing.path, parent.header.dataWriteGuid))
  return [...items, { itemId: Item.PARENT_LOCATOR, flags: ofFile, data: locator }]
}

/** @param dataOffset where the blocks of a fixed disk begin; -1: there are none */
function writeTable(
  storage: Storage,
  geometry: Geometry,
  tableOffset: number,
  dataOffset: number,
  zero: boolean,
): void {
  const { payloadBlocks, entries, blockSize, differencing } = geometry
  if (dataOffset < 0 && (!zero || differencing)) return
  const chunk = new Uint8Array(TABLE_CHUNK)
  const words = new DataView(chunk.buffer)
  const end = entries * ENTRY_BYTES
  let block = 0
  for (let from = 0; from < end; from += TABLE_CHUNK) {
    const to = Math.min(end, from + TABLE_CHUNK)
    chunk.fill(0)
    for (; block < payloadBlocks && payloadIndex(geometry, block) * ENTRY_BYTES < to; block++) {
      const at = payloadIndex(geometry, block) * ENTRY_BYTES - from
      const [low, high] =
        dataOffset < 0
          ? encodeEntry(Payload.ZERO, 0)
          : encodeEntry(Payload.FULLY_PRESENT, dataOffset + block * blockSize)
      words.setUint32(at, low, true)
      words.setUint32(at + 4, high, true)
    }
    storage.write(chunk, 0, to - from, tableOffset + from)
  }
}

function writeHeaders(storage: Storage, logLength: number): void {
  const header: Header = {
    signature: HEADER_SIGNATURE,
    checksum: 0,
    sequenceNumber: 0n,
    fileWriteGuid: randomGuid(),
    dataWriteGuid: randomGuid(),
    logGuid: NIL_GUID,
    logVersion: 0,
    version: 1,
    logLength,
    logOffset: LOG_OFFSET,
  }
  HEADER_OFFSETS.forEach((offset, i) => {
    storage.write(encodeHeader({ ...header, sequenceNumber: BigInt(i + 1) }), 0, HEADER_BYTES, offset)
  })
}
