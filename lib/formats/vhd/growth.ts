/**
 * The end of a VHD that grows: where the footer is, which space behind and between the blocks is free.
 *
 * A sound footer is at the end of the file at every moment. To grow:
 *
 * 1. write the footer at the new end, far behind the old one, with a hole between them
 * 2. barrier
 * 3. zero the old footer: blocks may lie there now
 *
 * and to end writing:
 *
 * 1. write the footer behind the last block
 * 2. barrier
 * 3. truncate the file behind it
 * 4. barrier
 *
 * On a block device the footer stays at the end of the device. What is between it and the last block may hold anything,
 * and making all of that zeros can take hours: so it is done piece by piece, before blocks are put there.
 */

import { VdiskError } from '../../util/errors.js'
import type { LayerContext } from '../driver.js'
import { FOOTER_BYTES } from './footer.js'
import { SECTOR } from './geometry.js'
import {
  alignBlock,
  type Blocks,
  CLEAR_STEP,
  MAX_BLOCK_START,
  MAX_STEP,
  roundUp,
  State,
  type VhdLayout,
} from './layout.js'
import { type Range, scanTable } from './table.js'

export class Growth {
  readonly #layout: VhdLayout
  readonly #blocks: Blocks
  readonly #context: LayerContext

  constructor(layout: VhdLayout, context: LayerContext) {
    this.#layout = layout
    this.#blocks = layout.blocks!
    this.#context = context
  }

  get #storage() {
    return this.#context.files[0]!.storage
  }

  /**
   * Looks through the table once, before anything is changed: where blocks end, which space between them is free.
   * Space is lost where a crash came between writing a block and publishing it, and where a session freed more than the
   * list of free space holds.
   * @throws CORRUPT where a block lies outside of the file, or over something else
   */
  begin(): void {
    const { state, metadata, files } = this.#context
    const limit = state[State.LIMIT]!
    const { allocated, end, gaps } = scanTable(this.#layout, this.#storage, limit)
    const cleared = this.#storage.fixedSize ? end : limit
    if (cleared > end) {
      // A crash may have left data there that was never published.
      this.#storage.punch(end, cleared - end)
      metadata.wrote(files[0]!.index)
    }
    metadata.exclusive(() => {
      state[State.NEXT] = end
      state[State.CLEARED] = cleared
      state[State.ALLOCATED] = allocated
    })
    // Last: where something fails, all of this comes again, and no gap may be in the list twice.
    for (const gap of gaps) this.#addGap(gap)
  }

  /** Takes room for a block, which reads as zeros: its offset and length, or undefined. Exclusive lock. */
  take(): [offset: number, length: number] | undefined {
    const { state, space } = this.#context
    const { stride, blockBytes } = this.#blocks
    for (const length of stride === blockBytes ? [stride] : [stride, blockBytes]) {
      const offset = space!.take(length)
      if (offset >= 0) return [offset, length]
    }
    const start = alignBlock(this.#blocks, state[State.NEXT]!)
    const limit = Math.min(state[State.LIMIT]!, state[State.CLEARED]!)
    if (start >= MAX_BLOCK_START || start + blockBytes > limit) return undefined
    state[State.NEXT] = start + blockBytes
    return [start, blockBytes]
  }

  #addGap({ start, end }: Range): void {
    const { stride, blockBytes } = this.#blocks
    const space = this.#context.space!
    const aligned = alignBlock(this.#blocks, start)
    const count = Math.floor((end - aligned) / stride)
    if (count > 0) space.add(aligned, count * stride)
    else if (aligned + blockBytes <= end) space.add(aligned, blockBytes)
    else if (start + blockBytes <= end) space.add(roundUp(start, SECTOR), blockBytes)
  }

  /**
   * Makes room for at least one block behind the others. Where the host has no room for a large step, a smaller one is
   * tried, down to one block. No lock, one thread at a time.
   */
  extend(): void {
    const { state, metadata } = this.#context
    const { blockBytes, stride, maxTableEntries } = this.#blocks
    const [limit, next, step, allocated] = metadata.exclusive(
      () => [state[State.LIMIT]!, state[State.NEXT]!, state[State.STEP]!, state[State.ALLOCATED]!] as const,
    )
    const start = alignBlock(this.#blocks, next)
    if (start >= MAX_BLOCK_START) {
      const text = 'no more blocks can be allocated: the file has reached the 2 TiB that a VHD can address'
      throw new VdiskError('NO_SPACE', text, { path: this.#storage.path })
    }
    if (start + blockBytes <= limit) {
      this.#clear(start + blockBytes, limit)
      return
    }
    const least = Math.max(start + blockBytes, roundUp(limit + FOOTER_BYTES, SECTOR))
    const most = Math.min(start + Math.max(1, maxTableEntries - allocated) * stride, MAX_BLOCK_START + blockBytes)
    let target = roundUp(Math.max(least, Math.min(limit + step, most)), SECTOR)
    while (!this.#moveFooter(limit, target, target === least))
      target = Math.max(least, roundUp(limit + (target - limit) / 2, SECTOR))
    metadata.exclusive(() => {
      state[State.LIMIT] = target
      state[State.CLEARED] = target
      state[State.STEP] = Math.min(MAX_STEP, 2 * step)
    })
  }

  /** Makes zeros of what is in front of the footer, to `least` or somewhat further. */
  #clear(least: number, limit: number): void {
    const { state, metadata, files } = this.#context
    const from = metadata.exclusive(() => state[State.CLEARED]!)
    const to = Math.min(limit, Math.max(least, from + CLEAR_STEP))
    this.#storage.punch(from, to - from)
    metadata.wrote(files[0]!.index)
    metadata.exclusive(() => {
      state[State.CLEARED] = to
    })
  }

  /** @returns false where the host has no room for it and `last` is false; then nothing is changed. */
  #moveFooter(from: number, to: number, last: boolean): boolean {
    const { metadata, files } = this.#context
    const storage = this.#storage
    const length = storage.size() - from
    try {
      storage.write(this.#layout.footerBytes, 0, FOOTER_BYTES, to)
      metadata.wrote(files[0]!.index)
      metadata.barrier()
      storage.zero(from, Math.min(FOOTER_BYTES, to - from))
      return true
    } catch (error) {
      const full = error instanceof VdiskError && error.code === 'NO_SPACE'
      if (storage.size() > from + length) storage.truncate(from + length)
      if (!full || last) throw error
      return false
    }
  }

  /** Ends the file behind its last block. No other thread is at work; everything is committed. */
  finish(): void {
    const { state } = this.#context
    const storage = this.#storage
    if (state[State.CHANGED] === 0 || storage.fixedSize) return
    const limit = state[State.LIMIT]!
    const { end } = scanTable(this.#layout, storage, limit)
    // Nothing to gain, or so little that the two footers would lie over each other.
    if (storage.size() === end + FOOTER_BYTES || (end !== limit && end + FOOTER_BYTES > limit)) return
    try {
      storage.write(this.#layout.footerBytes, 0, FOOTER_BYTES, end)
    } catch (error) {
      // On a full disk the file keeps its length, and the footer that is at its end.
      if (error instanceof VdiskError && error.code === 'NO_SPACE') return
      throw error
    }
    storage.sync()
    storage.truncate(end + FOOTER_BYTES)
    storage.sync()
  }
}
