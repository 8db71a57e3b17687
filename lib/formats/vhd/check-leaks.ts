/** Space of a disk with blocks that belongs to none of them: told, and given back where it is sure that nothing is lost. */

import type { Storage } from '../../storage/storage.js'
import { nextNonZero } from './check-bitmap.js'
import type { GrowingCheck } from './check-report.js'
import type { TableCheck } from './check-table.js'
import type { VhdLayout } from './layout.js'
import type { Range } from './table.js'

/** So much between the last block and the footer is no leak if it is zeros: Windows leaves some KiB there. */
const PADDING = 65536

/** Space that no block lies on. */
interface Leak extends Range {
  /** Room for so many blocks of it is in use. */
  readonly count: number
}

/** Gaps that hold something, and then what is in front of the footer. */
export function* findLeaks({ context, judged }: GrowingCheck, layout: VhdLayout, table: TableCheck): Generator<Leak> {
  const { storage } = context
  const { blockBytes } = layout.blocks!
  for (const gap of table.gaps()) {
    const count = filledPieces(storage, gap.start, gap.end, blockBytes)
    if (count > 0) yield { ...gap, count }
  }
  const [start, end] = [table.lastEnd, judged.offset]
  if (end - start < blockBytes && end - start <= PADDING) return
  const wanted = end - start > PADDING && !storage.fixedSize
  if (wanted || nextNonZero(storage, start, end) < end)
    yield { start, end, count: Math.ceil((end - start) / blockBytes) }
}

/** Leaked space is told, and given back where no fault of the table makes it likely that a lost block is in it. */
export function giveBack(check: GrowingCheck, layout: VhdLayout, table: TableCheck): void {
  const { context, report, repair } = check
  const now = context.repair !== 'none' && table.sound && !report.corrupt
  const why = table.sound ? 'the image has other faults' : 'the data of a block whose entry was wrong may be there'
  const hint = context.repair === 'none' || now ? '' : `; it is kept, as ${why}`
  let punched = false
  for (const { start, end, count } of findLeaks(check, layout, table)) {
    const tail = start === table.lastEnd
    const where = tail ? ", at the file's end," : ''
    const text = `${end - start} bytes from byte ${start} on${where} belong to no block: ${count} blocks' worth${hint}`
    report.add('leak', 'leak', text, table.sound, { offset: start, count, found: end - start, expected: 0 }, now)
    if (!now) continue
    // On a device that had no footer, it may have got one at the end.
    if (!tail || context.storage.fixedSize) repair.punch({ start, end: Math.min(end, repair.footerOffset) })
    else if (repair.footerOffset !== start) {
      if (punched) context.storage.sync()
      repair.cutTail(start)
    }
    punched = true
  }
  if (punched) context.storage.sync()
}

/** Pieces of a gap, each the size of a block, that hold something. Zeros are free space, not leaks. */
function filledPieces(storage: Storage, start: number, end: number, size: number): number {
  let count = 0
  for (let at = nextNonZero(storage, start, end); at < end; count++) {
    const next = start + (Math.floor((at - start) / size) + 1) * size
    at = next < end ? nextNonZero(storage, next, end) : end
  }
  return count
}
