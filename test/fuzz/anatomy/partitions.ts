/** Partition tables of a raw disk: MBR with its chain of logical partitions, GPT. Source: UEFI specification 5.2 and 5.3. */

import { crc32 } from 'node:zlib'
import type { Pages } from '../pages.js'
import { type Anatomy, Plan, readNumber, writeNumber } from './anatomy.js'

const MBR_ENTRY = 'boot:1 -startChs:3 type:1 -endChs:3 start:4 size:4'
const ENTRIES_AT = 446
const SIGNATURE_AT = 510
const EXTENDED = [0x05, 0x0f, 0x85]
const MOST_RECORDS = 5

const GPT = `signature:8 revision:4 headerSize:4 headerCrc:4 reserved:4 myLba:8 alternateLba:8 firstUsable:8 lastUsable:8
  diskGuid:16 entriesLba:8 entries:4 entrySize:4 entriesCrc:4`
const GPT_ENTRY = 'partitionType:16 partitionGuid:16 firstLba:8 lastLba:8 attributes:8'
const GPT_ENTRY_BYTES = 128
const NAME_BYTES = 72
const SHOWN_ENTRIES = 4
const MOST_ENTRIES_BYTES = 2 ** 20

export function partitionAnatomy(bytes: Pages): Anatomy {
  const plan = new Plan(bytes, false)
  record(plan, 0)
  let link = extendedOf(plan, 0)
  const first = link
  for (let i = 0; i < MOST_RECORDS && link > 0; i++) {
    record(plan, link)
    const next = extendedOf(plan, link)
    link = next > 0 ? first + next : 0
  }
  for (const sector of [512, 4096])
    for (const at of [sector, bytes.size - sector]) if (plan.text(at, 8) === 'EFI PART') gpt(plan, at, sector)
  return plan.done([1, 512, 4096])
}

function record(plan: Plan, at: number): void {
  let next = at + ENTRIES_AT
  for (let i = 0; i < 4; i++) next = plan.structure(next, MBR_ENTRY)
  plan.structure(at + SIGNATURE_AT, 'signature:2')
}

/** Byte offset that the first extended entry of a record says; 0: it has none. */
function extendedOf(plan: Plan, at: number): number {
  for (let entry = at + ENTRIES_AT; entry < at + SIGNATURE_AT; entry += 16)
    if (EXTENDED.includes(plan.number(entry + 4, 1))) return plan.number(entry + 8, 4) * 512
  return 0
}

function gpt(plan: Plan, at: number, sector: number): void {
  plan.structure(at, GPT)
  const entries = plan.number(at + 72, 8) * sector
  for (let i = 0; i < SHOWN_ENTRIES; i++) {
    const name = plan.structure(entries + i * GPT_ENTRY_BYTES, GPT_ENTRY)
    plan.texts.push({ at: name, room: NAME_BYTES, encoding: 'utf16le' })
  }
  plan.seals.push((bytes) => {
    const of = (place: number, width: number) => Number(readNumber(bytes, place, width, false))
    const length = of(at + 80, 4) * of(at + 84, 4)
    if (length <= MOST_ENTRIES_BYTES)
      writeNumber(bytes, at + 88, 4, false, BigInt(crc32(bytes.get(of(at + 72, 8) * sector, length))))
    writeNumber(bytes, at + 16, 4, false, 0n)
    const size = Math.min(sector, of(at + 12, 4))
    writeNumber(bytes, at + 16, 4, false, BigInt(crc32(bytes.get(at, size))))
  })
}
