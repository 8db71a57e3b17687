/**
 * The end of a VHDX that grows, and the space that is free in front of it. The file is made longer in large steps, each
 * with a barrier, so that every log entry can say a length that is durable.
 *
 * A block device does not grow. What is behind its last block may hold anything, and making all of that zeros can take
 * hours: so it is done piece by piece, before blocks are put there.
 */

import { shorten } from '../../storage/shorten.js'
import { VdiskError } from '../../util/errors.js'
import { randomGuid } from '../../util/guid.js'
import type { LayerContext } from '../driver.js'
import type { Journal } from './journal.js'
import { CLEAR_STEP, MAX_STEP, roundUp, State, UNIT, type VhdxLayout } from './layout.js'
import { scanTable } from './scan.js'

export class Growth {
  readonly #layout: VhdxLayout
  readonly #context: LayerContext
  readonly #journal: Journal

  constructor(layout: VhdxLayout, context: LayerContext, journal: Journal) {
    this.#layout = layout
    this.#context = context
    this.#journal = journal
  }

  get #storage() {
    return this.#context.files[0]!.storage
  }

  /**
   * Before anything is changed: looks through the table once, which shows blocks that lie over each other and the space
   * that nothing uses; then says in the headers that the file and the disk are not what they were.
   * @throws CORRUPT
   */
  begin(): void {
    const { state, metadata, space, files } = this.#context
    const storage = this.#storage
    const size = storage.size()
    const { logOffset, logLength } = this.#layout.header
    // It may lie in a hole, where the file was copied; a commit is not to fail for that. Changes no byte and no length.
    storage.reserve(logOffset, logLength)
    const { end, gaps } = scanTable(this.#layout, storage, size)
    // The space of a block that the file ends inside of may become that of another one, which needs all of it. A device
    // has what it has: there such a block keeps its space (see `release`).
    const limit = storage.fixedSize ? size : Math.max(size, end)
    this.#journal.writeHeaders({ fileWriteGuid: randomGuid(), dataWriteGuid: this.#layout.nextDataWriteGuid })
    if (size < limit) storage.truncate(limit)
    const cleared = storage.fixedSize ? end : limit
    // A crash may have left data there that nothing refers to.
    if (cleared > end) storage.punch(end, cleared - end)
    metadata.wrote(files[0]!.index)
    metadata.barrier()
    metadata.exclusive(() => {
      state[State.LIMIT] = limit
      state[State.NEXT] = end
      state[State.CLEARED] = cleared
    })
    // Last: where something fails, all of this comes again, and no gap may be in the list twice.
    for (const gap of gaps) space!.add(gap.start, gap.end - gap.start)
  }

  /** Takes room that reads as zeros: its offset, or -1 where the file must grow. Exclusive lock. */
  take(length: number): number {
    const { state, space } = this.#context
    const freed = space!.take(length)
    if (freed >= 0) return freed
    const start = state[State.NEXT]!
    if (start + length > Math.min(state[State.LIMIT]!, state[State.CLEARED]!)) return -1
    state[State.NEXT] = start + length
    return start
  }

  /** Makes room for at least one block behind the others. No lock, one thread at a time. */
  extend(): void {
    const { state, metadata, files } = this.#context
    const [limit, next, step, cleared] = metadata.shared(
      () => [state[State.LIMIT]!, state[State.NEXT]!, state[State.STEP]!, state[State.CLEARED]!] as const,
    )
    const { blockSize, payloadBlocks, chunkRatio } = this.#layout
    // A block and the sector bitmap block that it may need; no more than all blocks of the disk.
    const least = next + blockSize + UNIT
    if (cleared < limit) {
      this.#clear(cleared, Math.min(limit, Math.max(least, cleared + CLEAR_STEP)))
      return
    }
    const most = next + payloadBlocks * blockSize + Math.ceil(payloadBlocks / chunkRatio) * UNIT
    const target = this.#lengthen(Math.max(least, roundUp(Math.min(limit + step, most), UNIT)), least)
    metadata.wrote(files[0]!.index)
    metadata.barrier()
    metadata.exclusive(() => {
      state[State.LIMIT] = target
      state[State.CLEARED] = target
      state[State.STEP] = Math.min(MAX_STEP, 2 * step)
    })
  }

  /** Makes zeros of a part of what is behind the last block. */
  #clear(from: number, to: number): void {
    const { state, metadata, files } = this.#context
    this.#storage.punch(from, to - from)
    metadata.wrote(files[0]!.index)
    metadata.exclusive(() => {
      state[State.CLEARED] = to
    })
  }

  /** Some file systems have a limit of their own. */
  #lengthen(wanted: number, least: number): number {
    try {
      this.#storage.truncate(wanted)
      return wanted
    } catch (error) {
      if (!(error instanceof VdiskError) || error.code !== 'NO_SPACE' || wanted <= least) throw error
      this.#storage.truncate(least)
      return least
    }
  }

  /** Ends the file behind its last block. No other thread is at work; everything is committed, the log is empty. */
  finish(): void {
    const { state, space } = this.#context
    if (state[State.CHANGED] === 0) return
    const storage = this.#storage
    let end = state[State.NEXT]!
    for (let at = space!.takeEndingAt(end); at >= 0; at = space!.takeEndingAt(end)) end = at
    if (shorten(storage, end)) storage.sync()
  }
}
