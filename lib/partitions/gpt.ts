/** The GUID partition table (UEFI specification 5.3): the primary one at the disk's beginning, its backup at the end. */

import { crc32 } from 'node:zlib'
import { VdiskError } from '../util/errors.js'
import { NIL_GUID } from '../util/guid.js'
import { ascii, bytes, guid, type RecordOf, reserved, Struct, u32, u64 } from '../util/struct.js'
import { addPartition, type Disk, type Findings } from './partition.js'

// 5.3.2, table 5-5
const HEADER = new Struct('GPT header', 92, 'little', {
  signature: ascii(8),
  revision: u32,
  headerSize: u32,
  headerCrc32: u32,
  reserved: reserved(4),
  myLba: u64,
  alternateLba: u64,
  firstUsableLba: u64,
  lastUsableLba: u64,
  diskGuid: guid('mixed'),
  partitionEntryLba: u64,
  numberOfPartitionEntries: u32,
  sizeOfPartitionEntry: u32,
  partitionEntryArrayCrc32: u32,
})

// 5.3.3, table 5-6
const ENTRY = new Struct('GPT entry', 128, 'little', {
  partitionTypeGuid: guid('mixed'),
  uniquePartitionGuid: guid('mixed'),
  startingLba: u64,
  endingLba: u64,
  attributes: reserved(8),
  partitionName: bytes(72),
})

type Header = RecordOf<typeof HEADER>

const SIGNATURE = 'EFI PART'
const REVISION_1_0 = 0x0001_0000
const CRC_FIELD = HEADER.offsetOf('headerCrc32')
const CRC_BYTES = 4
/** A table has 128 entries of 128 bytes nearly always. */
const MOST_ARRAY_BYTES = 1 << 20
/** The sizes that sectors have. */
const SECTOR_SIZES = [512, 4096] as const
const PRIMARY_LBA = 1

/** A table that is whole. */
interface Gpt {
  readonly sectorSize: number
  readonly header: Header
  readonly array: Uint8Array
}

const hex = (value: number) => `0x${value.toString(16)}`

/**
 * Finds a whole table and its partitions: the primary one, or else the backup.
 * @returns the size of its sectors, undefined where there is none
 */
export function readGpt(findings: Findings): number | undefined {
  const { disk, warn } = findings
  const primary = firstWhole(disk, () => PRIMARY_LBA)
  let found = primary.gpt
  if (found) {
    const { sectorSize, header } = found
    const backup = tryRead(disk, sectorSize, header.alternateLba)
    if (typeof backup === 'string') warn(`the backup GPT is broken (${backup}); the primary one is used`)
  } else {
    const backup = firstWhole(disk, (sectorSize) => Math.floor(disk.size / sectorSize) - 1)
    found = backup.gpt
    if (found) warn(`the primary GPT is broken (${primary.problem}); its backup at the end of the disk is used`)
    else warn(`the GPT is broken (${primary.problem}), its backup too (${backup.problem}): no partitions are shown`)
  }
  if (!found) return undefined
  addEntries(findings, found)
  return found.sectorSize
}

/** Tries both sizes of sectors. The problem is that of the size that looks most like it. */
function firstWhole(disk: Disk, lba: (sectorSize: number) => number): { gpt?: Gpt; problem?: string } {
  const problems: string[] = []
  for (const sectorSize of SECTOR_SIZES) {
    const result = tryRead(disk, sectorSize, lba(sectorSize))
    if (typeof result !== 'string') return { gpt: result }
    problems.push(result)
  }
  return { problem: problems.find((text) => !text.includes(NO_SIGNATURE)) ?? problems[0]! }
}

const NO_SIGNATURE = `no '${SIGNATURE}'`

/** @returns the table whose header is at an LBA, or what is wrong with it */
function tryRead(disk: Disk, sectorSize: number, lba: number): Gpt | string {
  const where = `at byte ${lba * sectorSize}: `
  try {
    return readWhole(disk, sectorSize, lba)
  } catch (error) {
    if (!(error instanceof VdiskError)) throw error
    return where + error.message
  }
}

const wrong = (message: string) => new VdiskError('CORRUPT', message)

/** @throws CORRUPT, IO */
function readWhole(disk: Disk, sectorSize: number, lba: number): Gpt {
  if (!(lba >= PRIMARY_LBA && (lba + 1) * sectorSize <= disk.size)) throw wrong('not in the disk')
  const sector = new Uint8Array(sectorSize)
  disk.read(sector, 0, sectorSize, lba * sectorSize)
  const header = HEADER.read(sector)
  checkHeader(header, sector, lba)
  const { partitionEntryLba, numberOfPartitionEntries, sizeOfPartitionEntry, partitionEntryArrayCrc32 } = header
  const length = numberOfPartitionEntries * sizeOfPartitionEntry
  if (length > MOST_ARRAY_BYTES) throw wrong(`entries of ${length} bytes, expected at most ${MOST_ARRAY_BYTES}`)
  const start = partitionEntryLba * sectorSize
  if (!(start + length <= disk.size)) throw wrong(`the entries at LBA ${partitionEntryLba} are not in the disk`)
  const array = new Uint8Array(length)
  disk.read(array, 0, length, start)
  const crc = crc32(array)
  if (crc !== partitionEntryArrayCrc32)
    throw wrong(`the CRC of the entries is ${hex(crc)}, expected ${hex(partitionEntryArrayCrc32)}`)
  return { sectorSize, header, array }
}

function checkHeader(header: Header, sector: Uint8Array, lba: number): void {
  const { signature, revision, headerSize, headerCrc32, myLba, sizeOfPartitionEntry: entrySize } = header
  if (signature !== SIGNATURE) throw wrong(NO_SIGNATURE)
  if (revision !== REVISION_1_0) throw wrong(`revision ${hex(revision)}, expected ${hex(REVISION_1_0)}`)
  if (headerSize < HEADER.size || headerSize > sector.length)
    throw wrong(`header size ${headerSize}, expected ${HEADER.size} to ${sector.length}`)
  // The field itself counts as zeros.
  const before = crc32(sector.subarray(0, CRC_FIELD))
  const field = crc32(new Uint8Array(CRC_BYTES), before)
  const crc = crc32(sector.subarray(CRC_FIELD + CRC_BYTES, headerSize), field)
  if (crc !== headerCrc32) throw wrong(`the CRC of the header is ${hex(crc)}, expected ${hex(headerCrc32)}`)
  if (myLba !== lba) throw wrong(`it says that it is at LBA ${myLba}, expected ${lba}`)
  if (entrySize < ENTRY.size || entrySize % 8 !== 0)
    throw wrong(`entries of ${entrySize} bytes, expected ${ENTRY.size} times a power of two`)
}

function addEntries(findings: Findings, { sectorSize, header, array }: Gpt): void {
  const { numberOfPartitionEntries: count, sizeOfPartitionEntry: width } = header
  for (let index = 0; index < count; index++) {
    const number = index + 1
    try {
      addEntry(findings, number, ENTRY.read(array, index * width), sectorSize)
    } catch (error) {
      if (!(error instanceof VdiskError)) throw error
      findings.warn(`partition ${number} is left out: ${error.message}`)
    }
  }
}

function addEntry(findings: Findings, number: number, entry: RecordOf<typeof ENTRY>, sectorSize: number): void {
  const { partitionTypeGuid: type, uniquePartitionGuid: uuid, startingLba, endingLba, partitionName } = entry
  if (type === NIL_GUID) return
  if (endingLba < startingLba) throw wrong(`it ends at LBA ${endingLba}, before it begins (${startingLba})`)
  addPartition(findings, {
    number,
    start: startingLba * sectorSize,
    size: (endingLba - startingLba + 1) * sectorSize,
    type: type.toUpperCase(),
    name: decodeName(partitionName),
    uuid: uuid.toUpperCase(),
  })
}

/** UTF-16LE, ended by a NUL where it does not take all room. */
function decodeName(bytes: Uint8Array): string {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf16le')
  const end = text.indexOf('\0')
  return end < 0 ? text : text.slice(0, end)
}
