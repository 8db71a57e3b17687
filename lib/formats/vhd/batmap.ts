/**
 * XenServer's own addition: a map of blocks whose sector bitmap is full, behind the block allocation table. It is left
 * as it is; what counts here is where it lies, so that nothing is put over it.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { ascii, reserved, Struct, u32, u64 } from '../../util/struct.js'
import type { DynamicHeader } from './dynamic-header.js'
import { SECTOR } from './geometry.js'
import { ENTRY_BYTES, type Reserved, roundUp } from './layout.js'

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
    const areas = [{ name: 'batmap header', start: at, end: at + SECTOR }]
    const mapEnd = batmapOffset + batmapSize * SECTOR
    if (mapEnd <= end) areas.push({ name: 'batmap', start: batmapOffset, end: mapEnd })
    return { areas }
  } catch (error) {
    // No part of the format, so its faults are not the image's.
    if (error instanceof VdiskError) return { areas: [{ name: 'batmap header', start: at, end: at + SECTOR }] }
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

/** Version 1.1 summed bytes with their sign. (blktap, vhd/lib/libvhd.c) */
const SIGNED_VERSION = 0x0001_0001

function checksumOf(map: Uint8Array, version: number): number {
  const bytes = version === SIGNED_VERSION ? new Int8Array(map.buffer, map.byteOffset, map.length) : map
  let sum = 0
  for (const byte of bytes) sum += byte
  return ~sum >>> 0
}
