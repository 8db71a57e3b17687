/** The region table: where the block allocation table and the metadata are. Two copies. */

import type { Storage } from '../../storage/storage.js'
import { crc32cWithoutField } from '../../util/checksum.js'
import { VdiskError } from '../../util/errors.js'
import { ascii, guid, type RecordOf, reserved, Struct, u32, u64 } from '../../util/struct.js'
import { hex32 } from './header.js'
import { type Area, HEADER_SECTION_END, UNIT } from './layout.js'

export const REGION_TABLE_BYTES = 65536
export const REGION_TABLE_OFFSETS = [196608, 262144] as const

// [MS-VHDX] 2.2.3.1
export const REGION_HEADER = new Struct('VHDX region table', 16, 'little', {
  signature: ascii(4),
  checksum: u32,
  entryCount: u32,
  reserved: reserved(4),
})
// [MS-VHDX] 2.2.3.2
export const REGION_ENTRY = new Struct('VHDX region table entry', 32, 'little', {
  guid: guid('mixed'),
  fileOffset: u64,
  length: u32,
  required: u32,
})
export type RegionEntry = RecordOf<typeof REGION_ENTRY>

export const REGION_SIGNATURE = 'regi'
const CHECKSUM_FIELD = REGION_HEADER.offsetOf('checksum')
const MAX_ENTRIES = 2047

export const BAT_REGION = '2dc27766-f623-4200-9d64-115e9bfd4a08'
export const METADATA_REGION = '8b7ca206-4790-4b9a-b8fe-575f050f886e'
const NAMES: Readonly<Record<string, string>> = {
  [BAT_REGION]: 'block allocation table',
  [METADATA_REGION]: 'metadata region',
}

/** One copy of the table: its 64 KiB, or what is wrong with it. */
export function readRegionTable(
  storage: Storage,
  copy: number,
): { readonly bytes: Uint8Array } | { readonly fault: string } {
  const buffer = new Uint8Array(REGION_TABLE_BYTES)
  if (storage.read(buffer, 0, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS[copy]!) < REGION_TABLE_BYTES)
    return { fault: 'the file ends before it does' }
  const { signature, checksum, entryCount } = REGION_HEADER.read(buffer)
  if (signature !== REGION_SIGNATURE) return { fault: `it does not begin with '${REGION_SIGNATURE}'` }
  const expected = crc32cWithoutField(buffer, CHECKSUM_FIELD)
  if (checksum !== expected) return { fault: `its checksum is ${hex32(checksum)}: expected ${hex32(expected)}` }
  if (entryCount > MAX_ENTRIES) return { fault: `it has ${entryCount} entries: expected ${MAX_ENTRIES} at most` }
  return { bytes: buffer }
}

export interface Regions {
  readonly bat: RegionEntry
  readonly metadata: RegionEntry
  /** All entries of the table. */
  readonly entries: readonly RegionEntry[]
  /** All regions, known or not, with the header section and the log: sorted. */
  readonly areas: readonly Area[]
}

/**
 * Reads the regions by the first sound copy of the table.
 * @param log where the log is
 * @throws CORRUPT; UNSUPPORTED for a region that has to be known and is not
 */
export function readRegions(storage: Storage, log: Area, warn: (message: string) => void): Regions {
  const { path } = storage
  const copies = [readRegionTable(storage, 0), readRegionTable(storage, 1)]
  const faults = copies.map((copy) => ('fault' in copy ? copy.fault : ''))
  const table = copies.find((copy) => 'bytes' in copy)
  if (!table || !('bytes' in table))
    throw new VdiskError('CORRUPT', `VHDX region tables: the first: ${faults[0]}; the second: ${faults[1]}`, { path })
  faults.forEach((fault, i) => {
    if (fault !== '') warn(`the ${i === 0 ? 'first' : 'second'} copy of its region table is damaged: ${fault}`)
  })
  return checkRegions(decodeRegions(table.bytes, path), log, path)
}

function decodeRegions(table: Uint8Array, path: string): RegionEntry[] {
  const { entryCount } = REGION_HEADER.read(table)
  return Array.from({ length: entryCount }, (_, i) =>
    REGION_ENTRY.read(table, REGION_HEADER.size + i * REGION_ENTRY.size, { path, offset: REGION_TABLE_OFFSETS[0] }),
  )
}

function checkRegions(entries: readonly RegionEntry[], log: Area, path: string): Regions {
  const fail = (code: 'UNSUPPORTED' | 'CORRUPT', text: string) =>
    new VdiskError(code, `VHDX region table: ${text}`, { path })
  const found = new Map<string, RegionEntry>()
  const areas: Area[] = [{ name: 'header section', start: 0, end: HEADER_SECTION_END }, log]
  for (const entry of entries) {
    const { guid, fileOffset, length, required } = entry
    const name = NAMES[guid]
    if (found.has(guid)) throw fail('CORRUPT', `region ${guid} is there twice`)
    if (name === undefined && (required & 1) !== 0)
      throw fail('UNSUPPORTED', `region ${guid} is required, and this program does not know it`)
    const right = fileOffset % UNIT === 0 && fileOffset >= UNIT && length % UNIT === 0 && length > 0
    if (!right) throw fail('CORRUPT', `region ${guid} is ${length} bytes at ${fileOffset}: expected multiples of 1 MiB`)
    found.set(guid, entry)
    areas.push({ name: name ?? `region ${guid}`, start: fileOffset, end: fileOffset + length })
  }
  const [bat, metadata] = [found.get(BAT_REGION), found.get(METADATA_REGION)]
  if (!bat || !metadata) throw fail('CORRUPT', `it has no ${NAMES[bat ? METADATA_REGION : BAT_REGION]}`)
  areas.sort((a, b) => a.start - b.start)
  areas.forEach((area, i) => {
    const before = areas[i - 1]
    if (!before || before.end <= area.start) return
    const text = `the ${area.name} at bytes ${area.start} to ${area.end} lies over the ${before.name}`
    throw fail('CORRUPT', `${text} at ${before.start} to ${before.end}`)
  })
  return { bat, metadata, entries, areas }
}

/** Where the regions are that a sound copy of the table names; nothing where there is none. Not checked. */
export function decodeRegionAreas(storage: Storage): Area[] {
  for (const copy of [0, 1]) {
    const table = readRegionTable(storage, copy)
    if (!('bytes' in table)) continue
    return decodeRegions(table.bytes, storage.path).map(({ guid, fileOffset, length }) => ({
      name: NAMES[guid] ?? `region ${guid}`,
      start: fileOffset,
      end: fileOffset + length,
    }))
  }
  return []
}

/** The 64 KiB of a table. */
export function encodeRegionTable(entries: readonly RegionEntry[]): Uint8Array {
  const buffer = new Uint8Array(REGION_TABLE_BYTES)
  const header = { signature: REGION_SIGNATURE, checksum: 0, entryCount: entries.length }
  REGION_HEADER.write(header, buffer)
  entries.forEach((entry, i) => {
    REGION_ENTRY.write(entry, buffer, REGION_HEADER.size + i * REGION_ENTRY.size)
  })
  new DataView(buffer.buffer).setUint32(CHECKSUM_FIELD, crc32cWithoutField(buffer, CHECKSUM_FIELD), true)
  return buffer
}
