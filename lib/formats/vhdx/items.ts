/** The metadata region: a table of items, most of them the disk's properties. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { formatGuid } from '../../util/guid.js'
import { ascii, guid, type RecordOf, reserved, Struct, u16, u32, u64 } from '../../util/struct.js'
import { MAX_BLOCK_SIZE, MAX_DISK_SIZE, MIN_BLOCK_SIZE, SECTOR_SIZES } from './layout.js'
import { decodeLocator, type LocatorEntry } from './locator.js'
import type { RegionEntry } from './regions.js'

/** The table has so many bytes; items come behind it. */
export const TABLE_BYTES = 65536
const MAX_ITEMS = 2047
const MAX_USER_ITEMS = 1024
const MAX_ITEM_BYTES = 2 ** 20

// [MS-VHDX] 2.6.1.1
export const TABLE_HEADER = new Struct('VHDX metadata table', 32, 'little', {
  signature: ascii(8),
  reserved: reserved(2),
  entryCount: u16,
  reserved2: reserved(20),
})
// [MS-VHDX] 2.6.1.2
export const TABLE_ENTRY = new Struct('VHDX metadata table entry', 32, 'little', {
  itemId: guid('mixed'),
  offset: u32,
  length: u32,
  flags: u32,
  reserved: reserved(4),
})
export type TableEntry = RecordOf<typeof TABLE_ENTRY>

export const TABLE_SIGNATURE = 'metadata'

export const ItemFlag = { IS_USER: 1, IS_VIRTUAL_DISK: 2, IS_REQUIRED: 4 } as const

// [MS-VHDX] 2.6.2
export const Item = {
  FILE_PARAMETERS: 'caa16737-fa36-4d43-b3b6-33f0aa44e76b',
  VIRTUAL_DISK_SIZE: '2fa54224-cd1b-4876-b211-5dbed83bf4b8',
  VIRTUAL_DISK_ID: 'beca12ab-b2e6-4523-93ef-c309e000c746',
  LOGICAL_SECTOR_SIZE: '8141bf1d-a96f-4709-ba47-f233a8faab5f',
  PHYSICAL_SECTOR_SIZE: 'cda348c7-445d-4471-9cc9-e9885251c556',
  PARENT_LOCATOR: 'a8d35f2d-b30b-454d-abf7-d3d84834ab0c',
} as const

/** What is read of the items of the disk that are not known here: a child has to have room for them. */
const MAX_DISK_ITEM_BYTES = 2 ** 19
const MAX_DISK_ITEMS = 2000

/** Name and length of those that have one length. */
const KNOWN: Readonly<Record<string, readonly [name: string, length: number | undefined]>> = {
  [Item.FILE_PARAMETERS]: ['file parameters', 8],
  [Item.VIRTUAL_DISK_SIZE]: ['virtual disk size', 8],
  [Item.VIRTUAL_DISK_ID]: ['virtual disk id', 16],
  [Item.LOGICAL_SECTOR_SIZE]: ['logical sector size', 4],
  [Item.PHYSICAL_SECTOR_SIZE]: ['physical sector size', 4],
  [Item.PARENT_LOCATOR]: ['parent locator', undefined],
}

// [MS-VHDX] 2.6.2.1, .2
export const FILE_PARAMETERS = new Struct('VHDX file parameters', 8, 'little', { blockSize: u32, flags: u32 })
export const DISK_SIZE = new Struct('VHDX virtual disk size', 8, 'little', { size: u64 })
export const FileFlag = { LEAVE_ALLOCATED: 1, HAS_PARENT: 2 } as const

export interface Items {
  readonly size: number
  readonly blockSize: number
  readonly leaveAllocated: boolean
  readonly hasParent: boolean
  readonly diskId: string
  readonly sectorSize: number
  readonly physicalSectorSize: number
  readonly locator: readonly LocatorEntry[]
  /** Others that belong to the disk and not to the file, the user's too; undefined where they are too many to read. */
  readonly ofDisk: readonly NewItem[] | undefined
}

/**
 * Reads and checks all that the metadata region says of the disk.
 * @throws CORRUPT; UNSUPPORTED for an item that has to be known and is not
 */
export function readItems(storage: Storage, region: RegionEntry): Items {
  const { path } = storage
  const fail = (text: string) =>
    new VdiskError('CORRUPT', `VHDX metadata: ${text}`, { path, offset: region.fileOffset })
  const table = new Uint8Array(TABLE_BYTES)
  storage.read(table, 0, TABLE_BYTES, region.fileOffset)
  const { system, all } = checkTable(table, region, path)
  const dataOf = ({ itemId, offset, length }: TableEntry): Uint8Array => {
    const bytes = new Uint8Array(length)
    if (storage.read(bytes, 0, length, region.fileOffset + offset) < length)
      throw fail(`the file ends inside the ${KNOWN[itemId]?.[0] ?? `item ${itemId}`}`)
    return bytes
  }
  const read = (item: string): Uint8Array => {
    const entry = system.get(item)
    if (!entry) throw fail(`the ${KNOWN[item]![0]} is missing`)
    return dataOf(entry)
  }
  const u32At = (bytes: Uint8Array) => new DataView(bytes.buffer).getUint32(0, true)
  const { blockSize, flags } = FILE_PARAMETERS.read(read(Item.FILE_PARAMETERS))
  const hasParent = (flags & FileFlag.HAS_PARENT) !== 0
  const items: Items = {
    size: DISK_SIZE.read(read(Item.VIRTUAL_DISK_SIZE), 0, { path }).size,
    blockSize,
    leaveAllocated: !hasParent && (flags & FileFlag.LEAVE_ALLOCATED) !== 0,
    hasParent,
    diskId: formatGuid(read(Item.VIRTUAL_DISK_ID), 'mixed'),
    sectorSize: u32At(read(Item.LOGICAL_SECTOR_SIZE)),
    physicalSectorSize: u32At(read(Item.PHYSICAL_SECTOR_SIZE)),
    locator: hasParent ? decodeLocator(read(Item.PARENT_LOCATOR), path) : [],
    ofDisk: readOfDisk(all, dataOf),
  }
  checkItems(items, fail)
  return items
}

/** [MS-VHDX] 2.6.1.2, IsVirtualDisk */
function readOfDisk(all: readonly TableEntry[], dataOf: (entry: TableEntry) => Uint8Array): NewItem[] | undefined {
  const known = ({ itemId, flags }: TableEntry) => (flags & ItemFlag.IS_USER) === 0 && KNOWN[itemId] !== undefined
  const found = all.filter((entry) => (entry.flags & ItemFlag.IS_VIRTUAL_DISK) !== 0 && !known(entry))
  const bytes = found.reduce((sum, { length }) => sum + length, 0)
  if (found.length > MAX_DISK_ITEMS || bytes > MAX_DISK_ITEM_BYTES) return undefined
  return found.map((entry) => ({ itemId: entry.itemId, flags: entry.flags, data: dataOf(entry) }))
}

/** An item that two images do not both have, with the same content; undefined where there is none. */
export function differentItem(some: readonly NewItem[], others: readonly NewItem[]): NewItem | undefined {
  const isIn = (items: readonly NewItem[]) => (item: NewItem) =>
    items.some(
      ({ itemId, flags, data }) =>
        itemId === item.itemId && flags === item.flags && Buffer.compare(data, item.data) === 0,
    )
  return some.find((item) => !isIn(others)(item)) ?? others.find((item) => !isIn(some)(item))
}

/** Byte offset in the file of an item of the system's. @throws CORRUPT */
export function findItem(storage: Storage, region: RegionEntry, item: string): number {
  const table = new Uint8Array(TABLE_BYTES)
  storage.read(table, 0, TABLE_BYTES, region.fileOffset)
  const entry = checkTable(table, region, storage.path).system.get(item)
  if (!entry) throw new VdiskError('CORRUPT', `VHDX metadata: item ${item} is missing`, { path: storage.path })
  return region.fileOffset + entry.offset
}

/**
 * Finds a place for another content of an item of the system's: its own where that is long enough, else behind all
 * others.
 * @returns the item's new entry, and where in the file that entry is
 * @throws NO_SPACE, CORRUPT
 */
export function placeItem(
  storage: Storage,
  region: RegionEntry,
  item: string,
  length: number,
): { at: number; entry: TableEntry } {
  const { path } = storage
  const table = new Uint8Array(TABLE_BYTES)
  storage.read(table, 0, TABLE_BYTES, region.fileOffset)
  checkTable(table, region, path)
  const entries = Array.from({ length: TABLE_HEADER.read(table).entryCount }, (_, i) => {
    const at = TABLE_HEADER.size + i * TABLE_ENTRY.size
    return { at: region.fileOffset + at, entry: TABLE_ENTRY.read(table, at, { path }) }
  })
  const isUser = ({ flags }: TableEntry) => (flags & ItemFlag.IS_USER) !== 0
  const found = entries.find(({ entry }) => entry.itemId === item && !isUser(entry))
  if (!found) throw new VdiskError('CORRUPT', `VHDX metadata: the ${KNOWN[item]![0]} is missing`, { path })
  const end = Math.max(TABLE_BYTES, ...entries.map(({ entry }) => entry.offset + entry.length))
  const offset = length <= found.entry.length ? found.entry.offset : end
  if (length > MAX_ITEM_BYTES || offset + length > region.length)
    throw new VdiskError('NO_SPACE', `VHDX metadata: no room for ${length} bytes more`, { path })
  return { at: found.at, entry: { ...found.entry, offset, length } }
}

function checkItems(items: Items, fail: (text: string) => VdiskError): void {
  const { size, blockSize, sectorSize, physicalSectorSize } = items
  if (blockSize < MIN_BLOCK_SIZE || blockSize > MAX_BLOCK_SIZE || !Number.isInteger(Math.log2(blockSize)))
    throw fail(`block size is ${blockSize}: expected a power of two from 1 to 256 MiB`)
  for (const [name, value] of [
    ['logical', sectorSize],
    ['physical', physicalSectorSize],
  ] as const)
    if (!SECTOR_SIZES.includes(value)) throw fail(`${name} sector size is ${value}: expected 512 or 4096`)
  if (size === 0 || size > MAX_DISK_SIZE || size % sectorSize !== 0)
    throw fail(`virtual disk size is ${size}: expected a multiple of ${sectorSize} up to 64 TiB`)
}

interface CheckedTable {
  /** The system's items by their id. */
  readonly system: ReadonlyMap<string, TableEntry>
  readonly all: readonly TableEntry[]
}

function checkTable(table: Uint8Array, region: RegionEntry, path: string): CheckedTable {
  const place = { path, offset: region.fileOffset }
  const fail = (text: string) => new VdiskError('CORRUPT', `VHDX metadata table: ${text}`, place)
  const { signature, entryCount } = TABLE_HEADER.read(table)
  if (signature !== TABLE_SIGNATURE) throw fail(`it does not begin with '${TABLE_SIGNATURE}'`)
  if (entryCount > MAX_ITEMS) throw fail(`it has ${entryCount} entries: expected ${MAX_ITEMS} at most`)
  const system = new Map<string, TableEntry>()
  const user = new Set<string>()
  const all: TableEntry[] = []
  for (let i = 0; i < entryCount; i++) {
    const entry = TABLE_ENTRY.read(table, TABLE_HEADER.size + i * TABLE_ENTRY.size, place)
    const { itemId, flags } = entry
    const isUser = (flags & ItemFlag.IS_USER) !== 0
    if ((isUser ? user : system).has(itemId)) throw fail(`item ${itemId} is there twice`)
    checkItem(entry, isUser, region, fail, path)
    if (isUser) user.add(itemId)
    else system.set(itemId, entry)
    all.push(entry)
  }
  if (user.size > MAX_USER_ITEMS) throw fail(`${user.size} items are the user's: expected ${MAX_USER_ITEMS} at most`)
  const items = all.filter(({ length }) => length > 0).sort((a, b) => a.offset - b.offset)
  items.forEach((item, i) => {
    const before = items[i - 1]
    if (before && before.offset + before.length > item.offset)
      throw fail(`item ${item.itemId} at ${item.offset} lies over item ${before.itemId}`)
  })
  return { system, all }
}

function checkItem(
  entry: TableEntry,
  isUser: boolean,
  region: RegionEntry,
  fail: (text: string) => VdiskError,
  path: string,
): void {
  const { itemId, offset, length, flags } = entry
  const known = isUser ? undefined : KNOWN[itemId]
  if (!known && (flags & ItemFlag.IS_REQUIRED) !== 0)
    throw new VdiskError('UNSUPPORTED', `VHDX metadata item ${itemId} is required, and this program does not know it`, {
      path,
    })
  const name = known ? `the ${known[0]}` : `item ${itemId}`
  if (known?.[1] !== undefined && length !== known[1]) throw fail(`${name} is ${length} bytes: expected ${known[1]}`)
  if (length > MAX_ITEM_BYTES) throw fail(`${name} is ${length} bytes: expected ${MAX_ITEM_BYTES} at most`)
  const right = length === 0 ? offset === 0 : offset >= TABLE_BYTES && offset + length <= region.length
  if (!right) throw fail(`${name} is at ${offset} to ${offset + length}: expected ${TABLE_BYTES} to ${region.length}`)
}

export interface NewItem {
  readonly itemId: string
  readonly flags: number
  readonly data: Uint8Array
}

/** The table and its items, one behind the other, as they begin the metadata region. */
export function encodeItems(items: readonly NewItem[]): Uint8Array {
  const length = items.reduce((sum, { data }) => sum + data.length, 0)
  const buffer = new Uint8Array(TABLE_BYTES + length)
  TABLE_HEADER.write({ signature: TABLE_SIGNATURE, entryCount: items.length }, buffer)
  let offset = TABLE_BYTES
  items.forEach(({ itemId, flags, data }, i) => {
    const entry = { itemId, offset: data.length > 0 ? offset : 0, length: data.length, flags }
    TABLE_ENTRY.write(entry, buffer, TABLE_HEADER.size + i * TABLE_ENTRY.size)
    buffer.set(data, offset)
    offset += data.length
  })
  return buffer
}
