/**
 * Real files, as a Recorder sees what this process does to them: for work that opens them by their paths, such as a
 * commit. Their changes and barriers have one order; a state is put into the very files, so that every path stays right.
 */

import { closeSync, ftruncateSync, openSync, readFileSync, realpathSync, writeSync } from 'node:fs'
import { FileStorage } from '../../lib/storage/file-storage.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import type { Storage } from '../../lib/storage/storage.js'
import { WholeSectors } from './sectors.js'

const ROOM = 2 ** 29
const PIECE = 2 ** 20

export class RecordedFiles {
  readonly recorder = new Recorder()
  readonly #paths: readonly string[]
  /** What the Recorder records, by real path: the same content as the files'. */
  readonly #shadows = new Map<string, Storage>()

  /** @param paths of files that exist, and hold what they are to begin with */
  constructor(paths: readonly string[]) {
    this.#paths = paths
    for (const path of paths) {
      const copy = MemoryStorage.create({ path, contents: readFileSync(path), maxSize: ROOM })
      this.#shadows.set(realpathSync(path), new WholeSectors(this.recorder.record(copy)))
    }
  }

  /** Does some work, of which every change to the files is recorded. Nothing waits for the host's disk meanwhile. */
  during(work: () => void): void {
    const own = FileStorage.prototype
    const { write, zero, punch, truncate, sync } = own
    const shadowOf = (file: FileStorage) => this.#shadows.get(realpathSync(file.path))
    // Where a host cannot zero it is written instead: one change all the same.
    let inside = false
    const whole = (change: () => void) => {
      inside = true
      try {
        change()
      } finally {
        inside = false
      }
    }
    own.write = function (buffer, at, length, offset) {
      write.call(this, buffer, at, length, offset)
      if (!inside) shadowOf(this)?.write(buffer, at, length, offset)
    }
    own.zero = function (offset, length) {
      whole(() => zero.call(this, offset, length))
      shadowOf(this)?.zero(offset, length)
    }
    own.punch = function (offset, length) {
      whole(() => punch.call(this, offset, length))
      shadowOf(this)?.punch(offset, length)
    }
    own.truncate = function (size) {
      truncate.call(this, size)
      shadowOf(this)?.truncate(size)
    }
    own.sync = function () {
      shadowOf(this)?.sync()
    }
    try {
      work()
    } finally {
      Object.assign(own, { write, zero, punch, truncate, sync })
    }
  }

  /** Puts a state into the files. */
  restore(state: readonly Storage[]): void {
    this.#paths.forEach((path, i) => {
      put(state[i]!, path)
    })
  }
}

function put(storage: Storage, path: string): void {
  const size = storage.size()
  const buffer = new Uint8Array(PIECE)
  const fd = openSync(path, 'w')
  try {
    for (let at = storage.nextData(0); at < size; at = storage.nextData(at)) {
      const end = storage.nextHole(at)
      while (at < end) {
        const count = storage.read(buffer, 0, Math.min(PIECE, end - at), at)
        writeSync(fd, buffer, 0, count, at)
        at += count
      }
    }
    ftruncateSync(fd, size)
  } finally {
    closeSync(fd)
  }
}
