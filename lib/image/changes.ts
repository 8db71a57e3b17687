/** Changes of metadata: what is taken before one, in which order, and how an image grows that has no room for it. */

import type { Driver } from '../formats/driver.js'
import type { Metadata } from '../metadata/metadata.js'
import type { Stack } from './stack.js'

/** One object a thread. */
export class Changes {
  readonly #metadata: Metadata
  readonly #top: Driver

  constructor({ metadata, top }: Stack) {
    this.#metadata = metadata
    this.#top = top
  }

  /** Before the first change of all: what the format does then, once. */
  begin(): void {
    const metadata = this.#metadata
    metadata.growth.acquire()
    try {
      if (metadata.begun) return
      // An attempt that failed may have said already what is free; said twice, it would be given out twice.
      metadata.space.forget()
      this.#top.beginWriting?.()
      metadata.begin()
    } finally {
      metadata.growth.release()
    }
  }

  /** Has the driver record that a range changes, before anything of it does. For drivers with `record`. */
  record(offset: number, length: number): void {
    const metadata = this.#metadata
    const driver = this.#top
    for (let done = 0; done < length; ) {
      const left = length - done
      done += metadata.shared(() => driver.recorded!(offset + done, left))
      if (done < length) done += this.#change(() => driver.record!(offset + done, length - done))
    }
  }

  /** One change of metadata, with the room that it needs; `change` returns 0 where the image must grow first. */
  #change(change: () => number): number {
    const metadata = this.#metadata
    metadata.reserve(this.#top.changeSectors)
    try {
      return this.withRoom(change, (done) => done === 0)
    } finally {
      metadata.unreserve()
    }
  }

  /** Runs work that changes what a range is mapped to; nobody else changes anything of it meanwhile. */
  changing<T>(offset: number, length: number, work: () => T): T {
    const metadata = this.#metadata
    metadata.ranges.acquire(...this.blocks(offset, length))
    try {
      metadata.reserve(this.#top.changeSectors)
      try {
        metadata.epochs.enter()
        try {
          return work()
        } finally {
          metadata.epochs.leave()
        }
      } finally {
        metadata.unreserve()
      }
    } finally {
      metadata.ranges.release()
    }
  }

  /** Makes a change under the exclusive lock. While its result says that there is no room for it, the image grows. */
  withRoom<T>(change: () => T, lacksRoom: (result: T) => boolean): T {
    const metadata = this.#metadata
    for (;;) {
      const result = metadata.exclusive(change)
      if (!lacksRoom(result)) return result
      metadata.growth.acquire()
      try {
        // Somebody else may have made room while this thread waited for its turn.
        const again = metadata.exclusive(change)
        if (!lacksRoom(again)) return again
        this.#top.grow!()
      } finally {
        metadata.growth.release()
      }
    }
  }

  /** The whole blocks around a range. */
  blocks(offset: number, length: number): readonly [start: number, end: number] {
    const { blockSize, blocks } = this.#top
    if (blocks) return this.#top.blocks!(offset, length)
    return [Math.floor(offset / blockSize) * blockSize, Math.ceil((offset + length) / blockSize) * blockSize]
  }
}
