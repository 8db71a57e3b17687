/**
 * Checks a VHDX: headers, log, region tables, metadata, every entry of the block allocation table, space that nothing
 * uses. Works on the file itself. Mends what can be mended without guessing: a copy that is damaged, a log that was not
 * emptied, entries that say more than they may, leaked space.
 */

import { shorten } from '../../storage/shorten.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { randomGuid } from '../../util/guid.js'
import { formatSize, MiB } from '../../util/sizes.js'
import { parentFindings } from '../check-parent.js'
import type { CheckContext, CheckTotals, Finding, ParentRequest, Severity } from '../driver.js'
import { encodeEntry } from './bat.js'
import { currentHeader, updateHeaders } from './header.js'
import {
  BITMAP_BYTES,
  Bitmap,
  bitmapIndex,
  checkPlace,
  ENTRY_BYTES,
  Payload,
  payloadIndex,
  UNIT,
  unknownState,
  usedOf,
  type VhdxLayout,
} from './layout.js'
import { openVhdx } from './open.js'
import { REGION_TABLE_BYTES, REGION_TABLE_OFFSETS, readRegionTable } from './regions.js'
import {
  contentFirst,
  type Entry,
  eachEntry,
  isExclusive,
  keptBytes,
  MAX_UNITS,
  nameOf,
  type Range,
  Units,
} from './scan.js'

const NOTHING: CheckTotals = { imageEnd: 0, clusters: 0, allocated: 0, fragmented: 0, compressed: 0 }

/** @throws FORMAT, UNSUPPORTED, IO; CORRUPT where there is no sound header */
export function checkVhdx(context: CheckContext): CheckTotals {
  const before = currentHeader(context.storage)
  const all = context.repair === 'all'
  let opened: ReturnType<typeof openVhdx>
  try {
    // Replays the log: into the file where that may be changed.
    opened = openVhdx({ ...context, warn: () => {} })
  } catch (error) {
    if (!(error instanceof VdiskError) || error.code !== 'CORRUPT') throw error
    const { message, offset } = error
    const text = message.replace(`${context.storage.path}: `, '')
    context.found({
      severity: 'corruption',
      what: 'structure',
      message: `${text}; it cannot be repaired without guessing`,
      repairable: false,
      repaired: false,
      ...(offset !== undefined && { offset }),
    })
    return NOTHING
  }
  const check = new Check(context, opened.layout, opened.storage ?? context.storage)
  check.copies(before.otherFault, all)
  const totals = check.table()
  if (opened.parent) check.parent(opened.parent)
  return totals
}

class Check {
  readonly #context: CheckContext
  readonly #layout: VhdxLayout
  /** The file, replayed. */
  readonly #storage: Storage
  readonly #used: Units
  readonly #size: number
  /** Chunks that have a sector bitmap block; undefined where none is needed. */
  readonly #bitmaps: Units | undefined
  #begun = false
  #corrupt = false
  #end = 0
  #allocated = 0
  #fragmented = 0
  #last = -1

  constructor(context: CheckContext, layout: VhdxLayout, storage: Storage) {
    this.#context = context
    this.#layout = layout
    this.#storage = storage
    this.#size = storage.size()
    this.#used = new Units(Math.min(MAX_UNITS, Math.ceil(this.#size / UNIT)))
    const chunks = Math.ceil(layout.payloadBlocks / layout.chunkRatio)
    this.#bitmaps = layout.differencing ? new Units(chunks) : undefined
  }

  /** Before the first change: the file is not what it was. [MS-VHDX] 2.2.2, FileWriteGuid */
  #begin(): Storage {
    const { storage } = this.#context
    if (!this.#begun) {
      updateHeaders(storage, { fileWriteGuid: randomGuid() }, () => storage.sync())
      storage.sync()
    }
    this.#begun = true
    return storage
  }

  #report(severity: Severity, what: string, message: string, repaired: boolean, more: Partial<Finding> = {}): void {
    this.#context.found({ severity, what, message, repairable: repaired, repaired, ...more })
    if (severity === 'corruption' && !repaired) this.#corrupt = true
  }

  /** Headers and region tables, of which there are two each, and the log. */
  copies(headerFault: string | undefined, all: boolean): void {
    const { repair } = this.#context
    const { log, logEntries } = this.#layout
    const repairable = true
    if (log !== 'empty') {
      const entries = logEntries === 1 ? 'entry' : 'entries'
      const message = `the log was not emptied: ${logEntries} ${entries} to replay`
      this.#report('warning', 'log', message, repair !== 'none', { repairable, count: 1 })
    }
    if (headerFault !== undefined) {
      if (all) this.#begin()
      this.#report('corruption', 'header', `one of the headers is damaged: ${headerFault}`, all, { repairable })
    }
    const tables = [readRegionTable(this.#storage, 0), readRegionTable(this.#storage, 1)]
    tables.forEach((table, copy) => {
      if (!('fault' in table)) return
      const other = tables[1 - copy]!
      const offset = REGION_TABLE_OFFSETS[copy]!
      if (all && 'bytes' in other) this.#begin().write(other.bytes, 0, REGION_TABLE_BYTES, offset)
      const message = `the ${copy === 0 ? 'first' : 'second'} copy of the region table is damaged: ${table.fault}`
      this.#report('corruption', 'region-table', message, all, { repairable, offset })
    })
  }

  table(): CheckTotals {
    const { areas, payloadBlocks } = this.#layout
    for (const { start, end } of areas) {
      this.#used.mark(start, end)
      this.#end = Math.max(this.#end, end)
    }
    if (this.#bitmaps)
      eachEntry(this.#layout, this.#storage, ({ isBitmap, block, state }) => {
        if (isBitmap && state === Bitmap.PRESENT) this.#bitmaps!.mark(block * UNIT, (block + 1) * UNIT)
      })
    const wrong: Entry[] = []
    contentFirst(this.#layout, this.#storage, (entry) => {
      const mended = this.#entry(entry)
      if (mended) wrong.push(mended)
      if (wrong.length >= MAX_WRONG) this.#mend(wrong)
    })
    this.#mend(wrong)
    if (!this.#corrupt) this.#leaks()
    return {
      imageEnd: this.#end,
      clusters: payloadBlocks,
      allocated: this.#allocated,
      fragmented: this.#fragmented,
      compressed: 0,
    }
  }

  /** That it is another disk changes nothing of what is found in this file. */
  parent(request: ParentRequest): void {
    for (const { severity, what, message } of parentFindings(this.#context, request))
      this.#report(severity, what, message, false)
  }

  /** @returns what an entry that says more than it may is to be */
  #entry(entry: Entry): Entry | undefined {
    const fault = this.#stateFault(entry)
    const guest = entry.isBitmap ? {} : { guest: entry.block * this.#layout.blockSize }
    if (fault !== undefined) {
      this.#report('corruption', 'block-state', fault, false, guest)
      return undefined
    }
    const kept = keptBytes(this.#layout, entry)
    const isOwn = kept === 0 || this.#place(entry, kept, guest)
    const tooMuch = this.#saysTooMuch(entry)
    if (isOwn) return tooMuch ? entry : undefined
    return { ...entry, place: 0 }
  }

  #stateFault(entry: Entry): string | undefined {
    const { isBitmap, block, state } = entry
    const { differencing, chunkRatio } = this.#layout
    if (isBitmap) {
      const known = state === Bitmap.NOT_PRESENT || (differencing && state === Bitmap.PRESENT)
      return known ? undefined : `${nameOf(entry)}: its state is ${state}: expected 0${differencing ? ' or 6' : ''}`
    }
    const partial = state === Payload.PARTIALLY_PRESENT
    const wrong = partial ? !this.#bitmaps?.isMarked(Math.floor(block / chunkRatio)) : state === 4
    return wrong ? withoutPath(unknownState(this.#layout, block, state)) : undefined
  }

  /** @returns false for an entry without content whose place is that of another block: it may not name it */
  #place(entry: Entry, kept: number, guest: Partial<Finding>): boolean {
    const { place, isBitmap, block } = entry
    const exclusive = isExclusive(entry)
    const needed = isBitmap ? BITMAP_BYTES : usedOf(this.#layout, block)
    try {
      checkPlace(this.#layout, nameOf(entry), place, needed, this.#size)
    } catch (error) {
      if (exclusive) this.#report('corruption', 'block-place', withoutPath(error), false, { ...guest, offset: place })
      return true
    }
    const shared = this.#used.mark(place, place + kept)
    if (shared) this.#shared(entry, { ...guest, offset: place })
    this.#end = Math.max(this.#end, Math.min(place + kept, Math.ceil(this.#size / UNIT) * UNIT))
    if (!exclusive) return !shared
    if (isBitmap) return true
    this.#allocated++
    if (this.#last >= 0 && place !== this.#last + kept) this.#fragmented++
    this.#last = place
    return true
  }

  #shared(entry: Entry, where: Partial<Finding>): void {
    const message = `${nameOf(entry)} is at byte ${entry.place}, where another block lies`
    const all = this.#context.repair === 'all'
    if (isExclusive(entry)) this.#report('corruption', 'shared-block', message, false, where)
    else this.#report('warning', 'block-entry', `${message}, and has no content`, all, { ...where, repairable: true })
  }

  /** Hyper-V refuses a file with a place in an entry that has none, and reserved bits are zeros. */
  #saysTooMuch(entry: Entry): boolean {
    const { state, place, reserved } = entry
    const placed = place !== 0 && (state === Payload.NOT_PRESENT || (state === Payload.ZERO && !entry.isBitmap))
    if (!placed && reserved === 0) return false
    const all = this.#context.repair === 'all'
    const text = placed
      ? `it has a place (byte ${place}) and is in state ${state}, which has none`
      : 'reserved bits are set'
    this.#report('warning', 'block-entry', `${nameOf(entry)}: ${text}`, all, { repairable: true })
    return true
  }

  /** Writes entries anew, without what they may not say. They mean the same. */
  #mend(entries: Entry[]): void {
    if (this.#context.repair === 'all')
      for (const entry of entries) {
        const { isBitmap, block, state, place } = entry
        const index = isBitmap ? bitmapIndex(this.#layout, block) : payloadIndex(this.#layout, block)
        const keeps = state !== Payload.NOT_PRESENT && state !== Payload.ZERO
        const bytes = new Uint8Array(Uint32Array.from(encodeEntry(state, keeps ? place : 0)).buffer)
        this.#begin().write(bytes, 0, ENTRY_BYTES, this.#layout.tableOffset + index * ENTRY_BYTES)
      }
    entries.length = 0
  }

  /** Space that nothing uses, and that holds something. Zeros are free space, not leaks. */
  #leaks(): void {
    const gaps = this.#used.gaps(Math.min(this.#size, MAX_UNITS * UNIT))
    if (this.#size > this.#end && gaps.at(-1)?.end !== this.#size)
      gaps.push({ start: Math.max(this.#end, Math.floor(this.#size / UNIT) * UNIT), end: this.#size })
    for (const gap of gaps) for (const leak of this.#dataIn(gap)) this.#leak(leak)
    // On a block device zeros are left there, which are free space.
    if (this.#context.repair !== 'none' && this.#size > this.#end) shorten(this.#begin(), this.#end)
  }

  #leak({ start, end }: Range): void {
    const now = this.#context.repair !== 'none'
    if (now) this.#begin().punch(start, end - start)
    const count = Math.ceil((end - start) / MiB)
    const message = `${formatSize(end - start)} at byte ${start} belong to nothing`
    this.#report('leak', 'leak', message, now, { repairable: true, offset: start, count })
  }

  /** The units of a gap that hold something, joined. */
  *#dataIn(gap: Range): Generator<Range> {
    let leak: Range | undefined
    const buffer = new Uint8Array(UNIT)
    for (let at = this.#storage.nextData(gap.start); at < gap.end; ) {
      const start = Math.max(gap.start, at - (at % UNIT))
      const end = Math.min(gap.end, start - (start % UNIT) + UNIT)
      const got = this.#storage.read(buffer, 0, end - start, start)
      if (buffer.subarray(0, got).some((byte) => byte !== 0)) {
        if (leak && leak.end === start) leak = { start: leak.start, end }
        else {
          if (leak) yield leak
          leak = { start, end }
        }
      }
      at = end < gap.end ? this.#storage.nextData(end) : end
    }
    if (leak) yield leak
  }
}

/** Entries that are mended in one go. */
const MAX_WRONG = 65536

function withoutPath(error: unknown): string {
  if (!(error instanceof VdiskError)) throw error
  return error.message.replace(`${error.path}: `, '')
}
