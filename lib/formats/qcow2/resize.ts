/**
 * Another size for an image that nobody has open: a new L1 table, which leaves out what is behind the end, and with it the
 * new size; the order of writes is `Edit`'s. What is new reads as zeros, also where a backing file is larger; what of it
 * lies in a cluster of the disk as it was is made so before (see `tail.ts`).
 */

import { shorten } from '../../storage/shorten.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { ResizeHelp } from '../driver.js'
import { aroundChange, checkBitmaps } from './bitmap-tools.js'
import { Edit } from './edit.js'
import { COPIED, highOf, hostOffset, lowOf, ZERO } from './entries.js'
import { Autoclear, type Header, MAX_L1_BYTES, readHeader } from './header.js'
import { writeDiskFields } from './header-fields.js'
import type { Qcow2Layout } from './layout.js'
import { shapeOf } from './structure.js'
import { clearTail } from './tail.js'
import { l2EntrySize, l2Span } from './walk.js'

const SECTOR = 512
const ENTRY_BYTES = 8
const ALL_ZERO = 0xffffffff

export interface ResizeContext extends ResizeHelp {
  readonly layout: Qcow2Layout
  readonly storage: Storage
  /** Where the guest's data is, if that is another file. */
  readonly dataFile: Storage | undefined
}

/**
 * @param wanted bytes; rounded up to a sector
 * @throws USAGE, UNSUPPORTED, CORRUPT, NO_SPACE
 */
export function resizeQcow2(context: ResizeContext, wanted: number): void {
  const { storage, dataFile } = context
  const size = Math.ceil(wanted / SECTOR) * SECTOR
  const before = readHeader(storage)
  checkSize(before, size, storage.path)
  checkBitmaps(storage, size)
  const raw = before.autoclear.includes(Autoclear.RAW_DATA_FILE)
  if (dataFile?.fixedSize && dataFile.size() < size) throw tooSmall(dataFile, size)
  if (size > before.size) clearTail(context, size)
  if (dataFile && size > before.size) {
    // What a raw file has behind the disk's end would be a part of it.
    if (raw && !shorten(dataFile, before.size)) dataFile.punch(before.size, size - before.size)
    if (!dataFile.fixedSize) dataFile.truncate(size)
    dataFile.sync()
  }
  aroundChange(storage, false, () => new Resize(context, size).run(raw))
  if (dataFile && size < before.size && shorten(dataFile, size)) dataFile.sync()
}

function tooSmall(dataFile: Storage, size: number): VdiskError {
  const text = `it is a block device of ${dataFile.size()} bytes: expected ${size} or more for the disk's data`
  return new VdiskError('NO_SPACE', text, { path: dataFile.path })
}

function checkSize(header: Header, size: number, path: string): void {
  const entries = Math.ceil(size / l2Span(shapeOf(header)))
  if (entries * ENTRY_BYTES > MAX_L1_BYTES)
    throw new VdiskError(
      'USAGE',
      `a disk of ${size} bytes is too large for its clusters of ${2 ** header.clusterBits}`,
      {
        path,
      },
    )
  if (header.version < 3 && header.nbSnapshots > 0)
    throw new VdiskError(
      'UNSUPPORTED',
      'an image of version 2 with snapshots keeps its size: they do not know theirs',
      {
        path,
      },
    )
}

class Resize {
  readonly #context: ResizeContext
  readonly #storage: Storage
  readonly #edit: Edit
  readonly #header: Header
  readonly #size: number
  readonly #clusterSize: number
  readonly #entrySize: number
  readonly #perTable: number
  readonly #l1: Buffer

  constructor(context: ResizeContext, size: number) {
    this.#context = context
    this.#storage = context.storage
    this.#size = size
    this.#edit = new Edit(context.storage)
    const { header, shape } = this.#edit.structure
    this.#header = header
    this.#clusterSize = shape.clusterSize
    this.#entrySize = l2EntrySize(shape)
    this.#perTable = shape.clusterSize / this.#entrySize
    const entries = Math.max(1, Math.ceil(size / l2Span(shape)))
    const used = Math.ceil(header.size / l2Span(shape))
    this.#l1 = Buffer.alloc(entries * ENTRY_BYTES)
    this.#storage.read(this.#l1, 0, Math.min(entries, used) * ENTRY_BYTES, header.l1TableOffset)
  }

  run(raw: boolean): void {
    const { structure } = this.#edit
    this.#rewriteTables(raw)
    for (let at = 0; at < this.#l1.length; at += ENTRY_BYTES)
      this.#l1.writeUInt32BE((this.#l1.readUInt32BE(at) & ~COPIED) >>> 0, at)
    const header: Header = {
      ...this.#header,
      size: this.#size,
      l1Size: this.#l1.length / ENTRY_BYTES,
      l1TableOffset: this.#edit.place(this.#l1),
    }
    this.#edit.commit({ ...structure, header, shape: shapeOf(header) }, () => writeDiskFields(this.#storage, header))
  }

  #tableAt(index: number): number {
    const at = index * ENTRY_BYTES
    return hostOffset(this.#l1.readUInt32BE(at), this.#l1.readUInt32BE(at + 4))
  }

  #readTable(index: number): Buffer {
    const table = Buffer.alloc(this.#clusterSize)
    const offset = this.#tableAt(index)
    if (offset !== 0) this.#storage.read(table, 0, table.length, offset)
    return table
  }

  /** Takes away what is behind the end, and says what is new where that is not said by saying nothing. */
  #rewriteTables(raw: boolean): void {
    const { size } = this.#header
    const kept = Math.ceil(Math.min(size, this.#size) / this.#clusterSize)
    const filled = this.#fill(raw, kept)
    const last = Math.max(kept, filled?.end ?? 0)
    const first = Math.floor(kept / this.#perTable)
    for (let index = first; index * this.#perTable <= last && index * ENTRY_BYTES < this.#l1.length; index++) {
      const table = this.#readTable(index)
      const from = Math.max(0, kept - index * this.#perTable)
      let changed = false
      const rest = table.subarray(from * this.#entrySize)
      if (rest.some((byte) => byte !== 0)) {
        rest.fill(0)
        changed = true
      }
      const stop = Math.min(this.#perTable, (filled?.end ?? 0) - index * this.#perTable)
      for (let i = from; i < stop; i++) {
        filled!.entry(index * this.#perTable + i).copy(table, i * this.#entrySize)
        changed = true
      }
      if (!changed) continue
      const place = this.#edit.place(table)
      this.#l1.writeUInt32BE(highOf(place), index * ENTRY_BYTES)
      this.#l1.writeUInt32BE(lowOf(place), index * ENTRY_BYTES + 4)
    }
  }

  /** What the entries of new clusters, from `first` on, are; undefined: nothing. */
  #fill(raw: boolean, first: number): { end: number; entry(cluster: number): Buffer } | undefined {
    if (this.#size <= this.#header.size) return undefined
    // A raw data file is read without the tables, and so is what is new in it.
    if (raw)
      return {
        end: Math.ceil(this.#size / this.#clusterSize),
        entry: (cluster) => this.#entry(cluster * this.#clusterSize, COPIED, 0),
      }
    const end = Math.ceil(Math.min(this.#context.below(), this.#size) / this.#clusterSize)
    if (end <= first) return undefined
    if (this.#header.version >= 3) return { end, entry: () => this.#entry(0, 0, ZERO) }
    const base = this.#zeroClusters(end - first)
    return { end, entry: (cluster) => this.#entry(base + (cluster - first) * this.#clusterSize, 0, 0) }
  }

  /** Version 2 cannot say that something is zeros. */
  #zeroClusters(count: number): number {
    const length = count * this.#clusterSize
    const base = this.#edit.allocate(length)
    if (this.#storage.size() < base + length) this.#storage.truncate(base + length)
    this.#storage.zero(base, length)
    return base
  }

  #entry(host: number, flags: number, low: number): Buffer {
    const entry = Buffer.alloc(this.#entrySize)
    const extended = this.#entrySize > ENTRY_BYTES
    entry.writeUInt32BE((highOf(host) | flags) >>> 0, 0)
    entry.writeUInt32BE(lowOf(host) + (extended ? 0 : low), 4)
    if (extended) entry.writeUInt32BE(ALL_ZERO, (low & ZERO) !== 0 ? 8 : 12)
    return entry
  }
}
