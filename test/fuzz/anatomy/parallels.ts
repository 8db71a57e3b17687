/** Parallels. Source: QEMU's docs/interop/parallels.rst. The descriptor of a bundle is text, with no fields. */

import { createHash } from 'node:crypto'
import type { Pages } from '../pages.js'
import { type Anatomy, Plan } from './anatomy.js'

const HEADER = `magic:16 version:4 heads:4 cylinders:4 tracks:4 entries:4 sectors:8 inUse:4 dataStart:4 flags:4
  extension:8`
const EXTENSION = 'magic:8 md5:16'
const FEATURE = 'magic:8 flags:8 size:4 -unused:4'
const BITMAP = 'sectors:8 id:16 granularity:4 l1Size:4'
const SECTOR = 512

export function parallelsAnatomy(bytes: Pages): Anatomy {
  const plan = new Plan(bytes, false)
  if (!plan.text(0, 16).startsWith('Withou')) return plan.done([1])
  const table = plan.structure(0, HEADER)
  const tracks = plan.number(28, 4)
  const entries = plan.number(32, 4)
  plan.table('BAT', table, Math.min(entries, 4096), 4)
  const extension = plan.number(56, 8) * SECTOR
  if (extension > 0 && extension < bytes.size) {
    const cluster = tracks * SECTOR
    let at = plan.structure(extension, EXTENSION)
    for (let i = 0; i < 4 && plan.number(at, 8) !== 0; i++) {
      const data = plan.structure(at, FEATURE)
      const l1 = plan.structure(data, BITMAP)
      plan.table('L1', l1, Math.min(8, plan.number(data + 28, 4)), 8)
      at = Math.ceil((data + plan.number(at + 16, 4)) / 8) * 8
    }
    plan.seals.push((now) => {
      if (extension + cluster > now.size) return
      now.put(
        extension + 8,
        createHash('md5')
          .update(now.get(extension + 24, cluster - 24))
          .digest(),
      )
    })
  }
  return plan.done([1, SECTOR, tracks * SECTOR])
}
