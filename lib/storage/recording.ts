/**
 * Storages that remember every change and every sync, in one order for all of them, and that give back what a crash
 * at any moment could have left: the crash tests' world. For one thread.
 *
 * What a crash may do: whatever was changed before the last sync of its file is there. Of the later changes any subset
 * may be, and of a write any subset of its sectors, since hosts write back as they like. Only truncations stay in
 * order among themselves, because file systems journal them.
 */

import { VdiskError } from '../util/errors.js'
import { GiB } from '../util/sizes.js'
import { LARGEST_MEMORY, MemoryStorage } from './memory.js'
import { PassingStorage } from './passing.js'
import type { Storage, StorageHandle } from './storage.js'

type Change =
  | { readonly kind: 'write'; readonly offset: number; readonly data: Uint8Array }
  | { readonly kind: 'zero' | 'punch'; readonly offset: number; readonly length: number }
  | { readonly kind: 'truncate'; readonly size: number }

type Entry = { readonly file: number } & (Change | { readonly kind: 'sync' })

/** The unit of a torn write in bytes: it is there or not, as a whole; `none`: writes are there or not as a whole. */
export type Tearing = 512 | 4096 | 'none'

export class Recorder {
  readonly #log: Entry[] = []
  readonly #base: MemoryStorage[] = []

  /** Begins to record a storage. Its contents now are taken as durable. */
  record(storage: Storage): RecordingStorage {
    const file = this.#base.length
    this.#base.push(copyOf(storage))
    return new RecordingStorage(storage, (entry) => this.#log.push({ file, ...entry }))
  }

  /** Changes and syncs so far: the moments at which a crash can be had are 0 to this. */
  get length(): number {
    return this.#log.length
  }

  /** One line for each entry, for the messages of failing tests. */
  describe(from = 0, to = this.length): string[] {
    return this.#log.slice(from, to).map((entry, i) => {
      const { kind, file, data, ...rest } = entry as Entry & { data?: Uint8Array }
      return `${from + i}: file ${file} ${kind} ${JSON.stringify(data ? { ...rest, length: data.length } : rest)}`
    })
  }

  /** The files, in the order of `record`, with the first `count` entries done and nothing lost. */
  prefix(count: number): MemoryStorage[] {
    const files = this.#base.map(copyOf)
    for (const entry of this.#log.slice(0, count)) apply(files[entry.file]!, entry)
    return files
  }

  /**
   * The files after a crash behind the first `count` entries: each has what was done before its last sync, and of the
   * rest a choice that `seed` determines.
   */
  crash(count: number, seed: number, tearing: Tearing = 'none'): MemoryStorage[] {
    const random = randomFrom(seed)
    const keep = 0.1 + 0.8 * random()
    const log = this.#log.slice(0, count)
    const files = this.#base.map(copyOf)
    const durable = files.map((_, file) => log.findLastIndex((entry) => entry.file === file && entry.kind === 'sync'))
    const truncated = files.map(() => true)
    log.forEach((entry, i) => {
      const storage = files[entry.file]!
      if (i < durable[entry.file]!) apply(storage, entry)
      else if (entry.kind === 'truncate') {
        truncated[entry.file] &&= random() < keep
        if (truncated[entry.file]) apply(storage, entry)
      } else if (entry.kind !== 'sync') {
        for (const piece of tear(entry, tearing)) if (random() < keep) apply(storage, piece)
      }
    })
    return files
  }
}

/** A storage whose changes go into the log of a Recorder, and then to the storage that it was made around. */
export class RecordingStorage extends PassingStorage {
  readonly #log: (entry: Change | { readonly kind: 'sync' }) => void

  constructor(inner: Storage, log: (entry: Change | { readonly kind: 'sync' }) => void) {
    super(inner)
    this.#log = log
  }

  override write(buffer: Uint8Array, at: number, length: number, offset: number): void {
    super.write(buffer, at, length, offset)
    // A copy: slice() would be a view where it is a Buffer.
    this.#log({ kind: 'write', offset, data: new Uint8Array(buffer.subarray(at, at + length)) })
  }

  override truncate(size: number): void {
    super.truncate(size)
    this.#log({ kind: 'truncate', size })
  }

  override sync(): void {
    super.sync()
    this.#log({ kind: 'sync' })
  }

  override punch(offset: number, length: number): void {
    super.punch(offset, length)
    this.#log({ kind: 'punch', offset, length })
  }

  override zero(offset: number, length: number): void {
    super.zero(offset, length)
    this.#log({ kind: 'zero', offset, length })
  }

  override handle(): StorageHandle {
    throw new VdiskError('INTERNAL', `${this.path} is being recorded, which works in one thread only`)
  }
}

function apply(storage: MemoryStorage, entry: Change | { readonly kind: 'sync' }): void {
  if (entry.kind === 'write') storage.write(entry.data, 0, entry.data.length, entry.offset)
  else if (entry.kind === 'truncate') storage.truncate(entry.size)
  else if (entry.kind !== 'sync') storage[entry.kind](entry.offset, entry.length)
}

/** Cuts a change at multiples of the unit. */
function tear(entry: Exclude<Change, { kind: 'truncate' }>, unit: Tearing): Change[] {
  if (unit === 'none') return [entry]
  const end = entry.offset + (entry.kind === 'write' ? entry.data.length : entry.length)
  const pieces: Change[] = []
  for (let offset = entry.offset; offset < end; ) {
    const next = Math.min(end, (Math.floor(offset / unit) + 1) * unit)
    if (entry.kind === 'write') {
      pieces.push({ kind: 'write', offset, data: entry.data.subarray(offset - entry.offset, next - entry.offset) })
    } else pieces.push({ kind: entry.kind, offset, length: next - offset })
    offset = next
  }
  return pieces
}

const COPY_CHUNK = 1 << 20

function copyOf(storage: Storage): MemoryStorage {
  const size = storage.size()
  // As much room as there may be: how far the log goes on from here is not known yet.
  const copy = MemoryStorage.create({ path: storage.path, maxSize: size > GiB / 2 ? LARGEST_MEMORY : GiB })
  copy.truncate(size)
  const buffer = new Uint8Array(COPY_CHUNK)
  for (let at = storage.nextData(0); at < size; at = storage.nextData(at)) {
    const end = storage.nextHole(at)
    while (at < end) {
      const count = storage.read(buffer, 0, Math.min(COPY_CHUNK, end - at), at)
      copy.write(buffer, 0, count, at)
      at += count
    }
  }
  return copy
}

/** Numbers in [0, 1) that a seed determines (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = Math.imul(seed, 0x9e3779b1)
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let x = Math.imul(state ^ (state >>> 15), state | 1)
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
}
