/**
 * XenServer's own addition: a map of blocks whose sector bitmap is full, behind the block allocation table. It is left
 * as it is, and nothing is put over it; only blocks that leave the table leave it too.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { ascii, reserved, Struct, u32, u64 } from '../../util/struct.js'
import type { DynamicHeader } from './dynamic-header.js'
import { SECTOR } from './geometry.js'
import { ENTRY_BYTES, type Reserved, roundUp, type VhdLayout } from './layout.js'

// xapi-project/blktap, include/vhd.h
const BATMAP_HEADER = new Struct('VHD batmap header', SECTOR, 'big', {
  cookie: ascii(8),
  batmapOffset: u64,
  /** Sectors. */
  batmapSize: u32,
  batmapVersion: u32,
  checksum: u32,
  reserved: reserved(484),
})

const COOKIE = 'tdbatmap'
const CHECKSUM = BATMAP_HEADER.offsetOf('checksum')
const [HEADER_AREA, MAP_AREA] = ['batmap header', 'batmap']

export interface BatmapHeader {
  readonly areas: readonly Reserved[]
}

/** The map's header, where there is one and the map lies inside of the file. */
export function readBatmapHeader(storage: Storage, header: DynamicHeader, end: number): BatmapHeader | undefined {
  const at = header.tableOffset + roundUp(header.maxTableEntries * ENTRY_BYTES, SECTOR)
  if (at + SECTOR > end) return undefined
  const bytes = new Uint8Array(SECTOR)
  storage.read(bytes, 0, SECTOR, at)
  if (String.fromCharCode(...bytes.subarray(0, COOKIE.length)) !== COOKIE) return undefined
  try {
    const { batmapOffset, batmapSize } = BATMAP_HEADER.read(bytes)
    const areas = [{ name: HEADER_AREA, start: at, end: at + SECTOR }]
    const mapEnd = batmapOffset + batmapSize * SECTOR
    if (mapEnd <= end) areas.push({ name: MAP_AREA, start: batmapOffset, end: mapEnd })
    return { areas }
  } catch (error) {
    // No part of the format, so its faults are not the image's.
    if (error instanceof VdiskError) return { areas: [{ name: HEADER_AREA, start: at, end: at + SECTOR }] }
    throw error
  }
}

/**
 * The header and the map for a table that grows, and lies elsewhere from now on.
 * @param kept blocks whose bits stay as they are
 * @param entries of the new table
 * @param offset where the header will be, behind the new table
 */
export function encodeBatmap(
  storage: Storage,
  header: DynamicHeader,
  kept: number,
  entries: number,
  offset: number,
): Uint8Array {
  const bytes = new Uint8Array(SECTOR)
  storage.read(bytes, 0, SECTOR, header.tableOffset + roundUp(header.maxTableEntries * ENTRY_BYTES, SECTOR))
  const old = BATMAP_HEADER.read(bytes)
  const map = new Uint8Array(roundUp(Math.ceil(entries / 8), SECTOR))
  const known = Math.min(Math.ceil(kept / 8), old.batmapSize * SECTOR)
  storage.read(map, 0, known, old.batmapOffset)
  // A clear bit says "look at the block's bitmap", which is always right.
  if (kept % 8 !== 0) map[(kept - (kept % 8)) / 8]! &= 0xff00 >> (kept % 8)
  const next = { ...old, batmapOffset: offset + SECTOR, batmapSize: map.length / SECTOR }
  return Buffer.concat([BATMAP_HEADER.encode({ ...next, checksum: checksumOf(map, old.batmapVersion) }), map])
}

/**
 * Takes blocks out of the map before they leave the table, and makes that durable: what is put there later need not be
 * full, and XenServer would show zeros where its bitmap says that the parent counts. After a crash the map may not be
 * what its checksum says; then it is not gone by.
 */
export function clearInBatmap({ blocks, header }: VhdLayout, storage: Storage, ranges: readonly BlockRange[]): void {
  const { reserved } = blocks!
  const head = reserved.find(({ name }) => name === HEADER_AREA)
  const area = reserved.find(({ name }) => name === MAP_AREA)
  if (!head || !area || reserved.some((other) => other !== area && other.start < area.end && other.end > area.start))
    return
  const bytes = new Uint8Array(SECTOR)
  storage.read(bytes, 0, SECTOR, head.start)
  // Bits behind those of the table mean nothing, and are cleared with the others.
  const map = new Uint8Array(Math.min(area.end - area.start, Math.ceil(header!.maxTableEntries / 8)))
  storage.read(map, 0, map.length, area.start)
  for (const range of ranges) clearBits(map, range)
  storage.write(map, 0, map.length, area.start)
  storage.zero(area.start + map.length, area.end - area.start - map.length)
  new DataView(bytes.buffer).setUint32(CHECKSUM, checksumOf(map, BATMAP_HEADER.read(bytes).batmapVersion))
  storage.write(bytes, 0, SECTOR, head.start)
  storage.sync()
}

export interface BlockRange {
  readonly block: number
  readonly count: number
}

function clearBits(map: Uint8Array, { block, count }: BlockRange): void {
  const end = Math.min(block + count, 8 * map.length)
  for (let bit = block; bit < end; )
    if (bit % 8 === 0 && end - bit >= 8) {
      map.fill(0, bit / 8, Math.floor(end / 8))
      bit = end - (end % 8)
    } else {
      map[bit >> 3]! &= ~(0x80 >> (bit & 7))
      bit++
    }
}

/** Version 1.1 summed bytes with their sign. (blktap, vhd/lib/libvhd.c) */
const SIGNED_VERSION = 0x0001_0001

function checksumOf(map: Uint8Array, version: number): number {
  const bytes = version === SIGNED_VERSION ? new Int8Array(map.buffer, map.byteOffset, map.length) : map
  let sum = 0
  for (const byte of bytes) sum += byte
  return ~sum >>> 0
}
