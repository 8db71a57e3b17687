/**
 * The master boot record and the chain of extended boot records behind it (UEFI specification 5.2.1 has the layout; the
 * chain was never specified, and is as MS-DOS, Linux and fdisk have it).
 */

import { array, type RecordOf, reserved, Struct, u8, u16, u32 } from '../util/struct.js'
import { addPartition, type Disk, type Findings } from './partition.js'

const RECORD_BYTES = 512

const ENTRY = new Struct('MBR entry', 16, 'little', {
  bootIndicator: u8,
  startingChs: reserved(3),
  osType: u8,
  endingChs: reserved(3),
  startingLba: u32,
  sizeInLba: u32,
})

const BOOT_RECORD = new Struct('boot record', RECORD_BYTES, 'little', {
  bootCode: reserved(446),
  entries: array(4, ENTRY),
  signature: u16,
})

type Entry = RecordOf<typeof ENTRY>
export type BootRecord = RecordOf<typeof BOOT_RECORD>

const SIGNATURE = 0xaa55
const GPT_PROTECTIVE = 0xee
/** DOS, LBA, Linux. */
const EXTENDED: readonly number[] = [0x05, 0x0f, 0x85]
const INACTIVE = 0x00
const ACTIVE = 0x80

const FIRST_LOGICAL = 5
/** More than any program makes; the chain is also bounded by this. */
const MOST_LOGICAL = 256

function readRecord(disk: Disk, offset: number): BootRecord {
  const bytes = new Uint8Array(RECORD_BYTES)
  disk.read(bytes, 0, RECORD_BYTES, offset)
  return BOOT_RECORD.read(bytes)
}

/** The first 512 bytes of a disk. */
export const readMasterBootRecord = (disk: Disk): BootRecord => readRecord(disk, 0)

/** False for the boot sector of a file system that has the whole disk: it has the signature, too, but code at the table. */
export function isPartitioned({ signature, entries }: BootRecord): boolean {
  return (
    signature === SIGNATURE &&
    entries.every(({ bootIndicator }) => bootIndicator === INACTIVE || bootIndicator === ACTIVE) &&
    entries.some(isUsed)
  )
}

/** True where the table is there only to say that there is a GPT; or so that old systems find some of its partitions. */
export function isProtective({ entries }: BootRecord): boolean {
  return entries.some(({ osType }) => osType === GPT_PROTECTIVE)
}

const isUsed = ({ osType, sizeInLba }: Entry): boolean => osType !== 0 && sizeInLba !== 0
const isExtended = ({ osType }: Entry): boolean => EXTENDED.includes(osType)
const typeOf = ({ osType }: Entry): string => osType.toString(16)

/** Primary partitions, then logical ones. The extended partition itself holds nothing else, and is not shown. */
export function readMbrPartitions(findings: Findings, { entries }: BootRecord, sectorSize: number): void {
  entries.forEach((entry, index) => {
    if (!isUsed(entry) || isExtended(entry)) return
    const start = entry.startingLba * sectorSize
    addPartition(findings, { number: index + 1, start, size: entry.sizeInLba * sectorSize, type: typeOf(entry) })
  })
  let next = FIRST_LOGICAL
  for (const entry of entries)
    if (isUsed(entry) && isExtended(entry)) next = readLogicalPartitions(findings, entry, sectorSize, next)
}

/**
 * The chain of an extended partition: each record has a partition, placed from the record on, and a link to the next
 * record, placed from the beginning of the extended partition on.
 * @returns the number of the next logical partition
 */
function readLogicalPartitions(findings: Findings, extended: Entry, sectorSize: number, first: number): number {
  const { disk, warn } = findings
  const start = extended.startingLba * sectorSize
  const end = Math.min(start + extended.sizeInLba * sectorSize, disk.size)
  const visited = new Set<number>()
  let number = first
  for (let at = start; ; ) {
    const where = `the chain of logical partitions, at byte ${at},`
    let problem: string | undefined
    if (at < start || at + RECORD_BYTES > end) problem = 'leaves the extended partition'
    else if (visited.has(at)) problem = 'comes back to itself'
    else if (visited.size === MOST_LOGICAL) problem = `has more than ${MOST_LOGICAL} links`
    if (problem) {
      warn(`${where} ${problem}: what comes behind is left out`)
      return number
    }
    visited.add(at)
    const { signature, entries } = readRecord(disk, at)
    if (signature !== SIGNATURE) {
      const found = signature.toString(16).padStart(4, '0')
      warn(`${where} has no boot record: signature ${found}, expected aa55; what comes behind is left out`)
      return number
    }
    // The other two are unused, and have been seen to hold garbage.
    const used = entries.slice(0, 2).filter(isUsed)
    const partition = used.find((entry) => !isExtended(entry))
    if (partition) {
      const { startingLba, sizeInLba } = partition
      addPartition(findings, {
        number: number++,
        start: at + startingLba * sectorSize,
        size: sizeInLba * sectorSize,
        type: typeOf(partition),
      })
    }
    const link = used.find(isExtended)
    if (!link) return number
    at = start + link.startingLba * sectorSize
  }
}
