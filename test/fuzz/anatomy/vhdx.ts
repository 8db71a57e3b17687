/** VHDX. Source: [MS-VHDX]. */

import { crc32c } from '../../../lib/util/checksum.js'
import type { Pages } from '../pages.js'
import { type Anatomy, Plan, readNumber } from './anatomy.js'

const KiB = 1024
const HEADERS = [64 * KiB, 128 * KiB]
const REGION_TABLES = [192 * KiB, 256 * KiB]
const HEADER = `signature:4 checksum:4 sequence:8 fileGuid:16 dataGuid:16 logGuid:16 logVersion:2 version:2 logLength:4
  logOffset:8`
const REGION_HEADER = 'signature:4 checksum:4 count:4 -reserved:4'
const REGION = 'guid:16 offset:8 length:4 required:4'
const METADATA_HEADER = 'signature:8 reserved:2 count:2'
const METADATA_ENTRY = 'guid:16 offset:4 length:4 flags:4 reserved:4'
const LOCATOR = 'type:16 reserved:2 count:2'
const LOCATOR_ENTRY = 'keyOffset:4 valueOffset:4 keyLength:2 valueLength:2'
const LOG_ENTRY = 'signature:4 checksum:4 length:4 tail:4 sequence:8 descriptors:4 reserved:4 guid:16 flushed:8 last:8'
const DESCRIPTOR = 'signature:4 trailing:4 leading:8 offset:8 sequence:8'
/** The first four bytes of the GUIDs, as they lie on disk. */
const BAT = '6677c22d'
const METADATA = '06a27c8b'
const PARENT_LOCATOR = '2d5fd3a8'

/** Of one structure that begins with a signature and its CRC. */
function seal(at: number, length: number | ((bytes: Pages) => number)): (bytes: Pages) => void {
  return (bytes) => {
    const count = typeof length === 'number' ? length : length(bytes)
    if (at + count > bytes.size || count < 8 || count > 2 ** 22) return
    const raw = bytes.get(at, count)
    const view = new DataView(raw.buffer)
    view.setUint32(4, 0, true)
    view.setUint32(4, crc32c(raw), true)
    bytes.put(at, raw)
  }
}

export function vhdxAnatomy(bytes: Pages): Anatomy {
  const plan = new Plan(bytes, false)
  for (const at of HEADERS) {
    plan.structure(at, HEADER)
    if (plan.text(at, 4) === 'head') log(plan, plan.number(at + 72, 8), plan.number(at + 68, 4))
  }
  for (const at of HEADERS) plan.seals.push(seal(at, 4 * KiB))
  for (const at of REGION_TABLES) {
    const first = plan.structure(at, REGION_HEADER)
    const count = Math.min(4, plan.number(at + 8, 4))
    for (let i = 0; i < count; i++) {
      plan.structure(first + 32 * i, REGION)
      if (at === REGION_TABLES[0]) region(plan, first + 32 * i)
    }
    plan.seals.push(seal(at, 64 * KiB))
  }
  return plan.done([1, 512, 4096, 2 ** 20])
}

function region(plan: Plan, entry: number): void {
  const id = plan.text(entry, 4, 'hex')
  const offset = plan.number(entry + 16, 8)
  if (id === BAT) plan.table('BAT', offset, 64, 8)
  if (id !== METADATA) return
  const first = offset + 32
  plan.structure(offset, METADATA_HEADER)
  const count = Math.min(16, plan.number(offset + 10, 2))
  for (let i = 0; i < count; i++) {
    const at = first + 32 * i
    plan.structure(at, METADATA_ENTRY)
    const item = offset + plan.number(at + 16, 4)
    const length = plan.number(at + 20, 4)
    if (plan.text(at, 4, 'hex') === PARENT_LOCATOR) locator(plan, item)
    else plan.structure(item, length >= 8 ? 'value:8' : 'value:4')
  }
}

function locator(plan: Plan, item: number): void {
  const first = plan.structure(item, LOCATOR)
  const count = Math.min(8, plan.number(item + 18, 2))
  for (let i = 0; i < count; i++) {
    const at = first + 12 * i
    plan.structure(at, LOCATOR_ENTRY)
    plan.texts.push({
      at: item + plan.number(at + 4, 4),
      room: plan.number(at + 10, 2),
      encoding: 'utf16le',
      length: { name: 'valueLength', at: at + 10, width: 2 },
    })
  }
}

/** Every entry that seems to begin at a sector of the log, though not more than a few of them. */
function log(plan: Plan, offset: number, length: number): void {
  let found = 0
  for (const page of plan.bytes.used) {
    const at = page * 4096
    if (at < offset || at >= offset + length || found === 8 || plan.text(at, 4) !== 'loge') continue
    found++
    plan.structure(at, LOG_ENTRY)
    const descriptors = Math.min(8, plan.number(at + 24, 4))
    for (let i = 0; i < descriptors; i++) plan.structure(at + 64 + 32 * i, DESCRIPTOR)
    plan.seals.push(seal(at, (bytes) => Number(readNumber(bytes, at + 8, 4, false))))
  }
}
