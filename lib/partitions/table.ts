/**
 * What a disk's partition table says: MBR with logical partitions (`mbr.ts`) or GPT (`gpt.ts`). A table that is broken is
 * not an error: what can be used of it is used, and the rest is told in warnings.
 */

import { VdiskError } from '../util/errors.js'
import { readGpt } from './gpt.js'
import { isPartitioned, isProtective, readMasterBootRecord, readMbrPartitions } from './mbr.js'
import type { Disk, Findings, Partition } from './partition.js'

export interface PartitionTable {
  /** `none`: nothing there looks like a table. `unknown`: it could not be read. */
  readonly label: 'dos' | 'gpt' | 'none' | 'unknown'
  /** Bytes of a sector, in which the table counts. */
  readonly sectorSize: number
  readonly partitions: readonly Partition[]
  /** One line each. */
  readonly warnings: readonly string[]
}

export const DEFAULT_SECTOR_SIZE = 512

/**
 * Reads the partition table of a disk.
 * @param sectorSize bytes in which an MBR counts, as it does not say so; a GPT is found at either size.
 */
export function readPartitionTable(disk: Disk, sectorSize: number = DEFAULT_SECTOR_SIZE): PartitionTable {
  const warnings: string[] = []
  const findings: Findings = { disk, partitions: [], warn: (text) => void warnings.push(text) }
  const table = (label: PartitionTable['label'], size = sectorSize): PartitionTable => ({
    label,
    sectorSize: size,
    partitions: findings.partitions,
    warnings,
  })
  try {
    const record = disk.size < DEFAULT_SECTOR_SIZE ? undefined : readMasterBootRecord(disk)
    if (!record || !isPartitioned(record)) return table('none')
    if (isProtective(record)) {
      const found = readGpt(findings)
      return found === undefined ? table('unknown') : table('gpt', found)
    }
    readMbrPartitions(findings, record, sectorSize)
    return table('dos')
  } catch (error) {
    if (!(error instanceof VdiskError)) throw error
    findings.warn(`the partition table could not be read: ${error.message}`)
    return table('unknown')
  }
}
