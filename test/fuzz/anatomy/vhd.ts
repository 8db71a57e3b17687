/** VHD. Source: Virtual Hard Disk Image Format Specification 1.0; the batmap: XenServer's. */

import type { Pages } from '../pages.js'
import { type Anatomy, Plan } from './anatomy.js'

const FOOTER = `cookie:8 features:4 version:4 dataOffset:8 time:4 creator:4 creatorVersion:4 creatorHost:4 originalSize:8
  currentSize:8 cylinders:2 heads:1 sectors:1 type:4 checksum:4 id:16 saved:1`
const HEADER = `cookie:8 dataOffset:8 tableOffset:8 version:4 entries:4 blockSize:4 checksum:4 parentId:16 parentTime:4
  -reserved:4`
const LOCATOR = 'code:4 space:4 length:4 -reserved:4 offset:8'
const BATMAP = 'cookie:8 offset:8 length:4 version:4 checksum:4 marker:1'

const NAME_AT = 64
const LOCATORS_AT = 576
const LOCATORS = 8

/** The one's complement of the sum of all bytes but the checksum's own. */
function sealAt(at: number, length: number, field: number): (bytes: Pages) => void {
  return (bytes) => {
    if (at < 0 || at + length > bytes.size) return
    const raw = bytes.get(at, length)
    const view = new DataView(raw.buffer)
    view.setUint32(field, 0)
    view.setUint32(field, ~raw.reduce((sum, byte) => sum + byte, 0))
    bytes.put(at, raw)
  }
}

/** At the end, wherever that is now. */
function sealFooter(bytes: Pages): void {
  sealAt(bytes.size - 512, 512, 64)(bytes)
}

export function vhdAnatomy(bytes: Pages): Anatomy {
  const plan = new Plan(bytes, true)
  const end = bytes.size - 512
  plan.structure(end, FOOTER)
  plan.seals.push(sealFooter)
  if (plan.text(0, 8) === 'conectix') {
    plan.structure(0, FOOTER)
    plan.seals.push(sealAt(0, 512, 64))
    const header = plan.number(16, 8)
    if (plan.text(header, 8) === 'cxsparse') growing(plan, header)
  }
  return plan.done([1, 512, 4096, 2 ** 21])
}

function growing(plan: Plan, header: number): void {
  plan.structure(header, HEADER)
  plan.texts.push({ at: header + NAME_AT, room: 512, encoding: 'utf16be' })
  for (let i = 0; i < LOCATORS; i++) {
    const at = header + LOCATORS_AT + 24 * i
    plan.structure(at, LOCATOR)
    const code = plan.text(at, 4)
    if (code === '\0\0\0\0') continue
    plan.texts.push({
      at: plan.number(at + 16, 8),
      room: 512,
      encoding: code.startsWith('W2') ? 'utf16le' : 'utf8',
      length: { name: 'length', at: at + 8, width: 4 },
    })
  }
  plan.seals.push(sealAt(header, 1024, 36))
  const table = plan.number(header + 16, 8)
  const entries = plan.number(header + 28, 4)
  plan.table('BAT', table, entries, 4)
  const first = plan.number(table, 4)
  // The first block's bitmap.
  if (first > 0 && first < 2 ** 32 - 1) plan.table('bitmap', first * 512, 64, 4)
  const batmap = table + Math.ceil((entries * 4) / 512) * 512
  if (plan.text(batmap, 8) === 'tdbatmap') {
    plan.structure(batmap, BATMAP)
    plan.table('batmap', plan.number(batmap + 8, 8), 64, 1)
  }
}
