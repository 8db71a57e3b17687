/**
 * What a disk may hold after a crash: what was there at the last flush that had ended, and, sector by sector, what any
 * later change put there. Moments are those of a Recorder: the number of entries in its log.
 */

const SECTOR = 512

interface Change {
  readonly began: number
  /** Guest bytes, whole sectors, as they were when it had ended. */
  readonly offset: number
  readonly after: Uint8Array
}

interface Flush {
  readonly ended: number
  readonly contents: Uint8Array
  /** How many changes came before. */
  readonly changes: number
}

export class History {
  /** What the disk holds now. */
  readonly contents: Uint8Array
  readonly #changes: Change[] = []
  readonly #flushes: Flush[]

  constructor(contents: Uint8Array) {
    this.contents = contents.slice()
    this.#flushes = [{ ended: 0, contents, changes: 0 }]
  }

  /** Notes a change of the disk that began at a moment, whether or not it has ended. */
  changed(began: number, offset: number, bytes: Uint8Array): void {
    this.contents.set(bytes, offset)
    const first = offset - (offset % SECTOR)
    const last = Math.min(this.contents.length, Math.ceil((offset + bytes.length) / SECTOR) * SECTOR)
    this.#changes.push({ began, offset: first, after: this.contents.slice(first, last) })
  }

  flushed(ended: number): void {
    this.#flushes.push({ ended, contents: this.contents.slice(), changes: this.#changes.length })
  }

  /** Looks at what the disk holds after a crash at a moment. @returns what is wrong, or undefined */
  check(moment: number, found: Uint8Array): string | undefined {
    const flush = this.#flushes.findLast(({ ended }) => ended <= moment)!
    const { contents } = flush
    if (found.length !== contents.length) return `the disk has ${found.length} bytes`
    if (Buffer.compare(found, contents) === 0) return undefined
    const changes = this.#changes.slice(flush.changes).filter(({ began }) => began < moment)
    for (let at = 0; at < found.length; at += SECTOR) {
      const sector = found.subarray(at, at + SECTOR)
      if (Buffer.compare(sector, contents.subarray(at, at + SECTOR)) === 0) continue
      const right = changes.some(
        ({ offset, after }) =>
          at >= offset &&
          at < offset + after.length &&
          Buffer.compare(sector, after.subarray(at - offset, at - offset + SECTOR)) === 0,
      )
      if (right) continue
      const zeros = sector.every((byte) => byte === 0) ? ' (zeros)' : ''
      const touched = changes.filter(({ offset, after }) => at >= offset && at < offset + after.length).length
      return `the sector at byte ${at} holds what was never there${zeros}; ${touched} changes since the flush at ${flush.ended} touched it`
    }
    return undefined
  }
}
