/**
 * A QCOW2 layer in one thread.
 *
 * Order of writes:
 * 1. before the first change: autoclear bits that are not kept, the dirty bit where refcounts are lazy → barrier
 * 2. room: refcounts of 1 for a run of clusters, before anything uses them; new refcount blocks. New data, copies of
 *    tables; new tables are zeros → barrier
 * 3. entries of the refcount table → barrier
 * 4. L2 entries → barrier
 * 5. L1 entries → barrier
 * 6. after that: clusters that nothing refers to any more are used again, or counted down with a later commit's step 2
 * 7. at a clean end: refcounts of what is free → barrier → the file's free tail is cut off, the dirty bit is cleared
 *
 * So a cluster is counted before it is referred to, and is no longer referred to before it is counted down: what a crash
 * leaves is counted too often at worst. A larger refcount table goes its own way: see `growth.ts`.
 */

import type { DirtyBatch } from '../../metadata/commit.js'
import type { Allocation, Driver, Extent, LayerContext, SectorCipher } from '../driver.js'
import { Clusters } from './clusters.js'
import { COMPRESSION_TYPES, compressCluster, prepareCodec } from './codec.js'
import { CompressedClusters } from './compressed.js'
import { dataCipher } from './encryption.js'
import { Growth } from './growth.js'
import { Guard } from './guard.js'
import { type Qcow2Layout, State } from './layout.js'
import { Mapping } from './mapping.js'
import { Packing } from './packing.js'
import { Refcounts } from './refcounts.js'
import { beginSession, endSession } from './session.js'
import { Order, Tables } from './tables.js'
import { beginTracking, endTracking, makeRecorder } from './tracker.js'
import { Writing } from './writing.js'
import { Zeroing } from './zeroing.js'

/**
 * A page of L2 entries, an L1 entry, a page of refcounts and an entry of their table for room, and two steps of refcounts
 * (see `clusters.ts`).
 */
const CHANGE_SECTORS = 8 + 1 + 8 + 1 + 2 * 32

export class Qcow2Driver implements Driver {
  readonly size: number
  readonly blockSize: number
  readonly releaseSize: number | undefined
  readonly locked = true
  readonly cipher: SectorCipher | undefined
  readonly changeSectors: number
  readonly record: ((offset: number, length: number) => number) | undefined
  readonly recorded: ((offset: number, length: number) => number) | undefined
  /** Not where the data is in another file, or encrypted: what is compressed lies at any byte. */
  readonly encode: ((block: Uint8Array) => Uint8Array | undefined) | undefined
  readonly allocateEncoded: ((offset: number, length: number, out: Allocation) => boolean) | undefined
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #mapping: Mapping
  readonly #refcounts: Refcounts
  readonly #clusters: Clusters
  readonly #growth: Growth
  readonly #writing: Writing
  readonly #packing: Packing
  readonly #zeroing: Zeroing
  #compressed: CompressedClusters | undefined

  constructor(layout: Qcow2Layout, context: LayerContext) {
    this.size = layout.size
    this.blockSize = layout.clusterSize
    this.releaseSize = layout.extendedL2 && !layout.dataFile ? layout.subclusterSize : undefined
    this.#layout = layout
    this.cipher = layout.encryption && dataCipher(layout.encryption, context.files[0]!.storage.path)
    this.#context = context
    const guard = new Guard(layout, context)
    const tables = new Tables(layout, context, guard)
    this.#mapping = new Mapping(layout, context, tables, guard)
    this.#refcounts = new Refcounts(layout, context)
    this.#clusters = new Clusters(layout, context, this.#refcounts, guard)
    this.#growth = new Growth(layout, context, tables, this.#refcounts, this.#clusters)
    this.#writing = new Writing(layout, context, tables, this.#clusters, this.#growth)
    this.#zeroing = new Zeroing(layout, tables, this.#refcounts, this.#clusters, this.#growth)
    this.#packing = new Packing(layout, context, tables, this.#refcounts, this.#clusters, this.#growth)
    if (!layout.dataFile && !layout.encryption) {
      const type = COMPRESSION_TYPES[layout.compressionType]!
      this.encode = (block) => {
        prepareCodec(type)
        return compressCluster(block, type)
      }
      this.allocateEncoded = (offset, length, out) => this.#packing.allocate(offset, length, out)
    }
    const recorder = makeRecorder(layout, context, () => this.#clusters.take(1))
    this.changeSectors = Math.max(CHANGE_SECTORS, recorder.changeSectors)
    if (context.writable && layout.tracked.length > 0) {
      this.record = (offset, length) => recorder.record(offset, length)
      this.recorded = (offset, length) => recorder.recorded(offset, length)
    }
  }

  map(offset: number, length: number, out: Extent): void {
    this.#mapping.map(offset, length, out)
  }

  allocate(offset: number, length: number, out: Allocation): boolean {
    return this.#writing.allocate(offset, length, out)
  }

  grow(): void {
    this.#growth.grow()
  }

  prepare(): void {
    this.#writing.prepare()
  }

  publish(allocation: Allocation): void {
    if (allocation.encoded > 0) this.#packing.publish(allocation)
    else this.#writing.publish(allocation)
  }

  abandon(allocation: Allocation): void {
    if (allocation.encoded > 0) this.#packing.abandon(allocation)
    else this.#writing.abandon(allocation)
  }

  release(offset: number, length: number, belowZero: boolean): number {
    return this.#zeroing.release(offset, length, belowZero)
  }

  beginWriting(): void {
    beginTracking(this.#layout, this.#context)
    beginSession(this.#session)
  }

  finish(): void {
    endSession(this.#session)
    endTracking(this.#layout, this.#context)
  }

  get #session() {
    return { layout: this.#layout, context: this.#context, refcounts: this.#refcounts, clusters: this.#clusters }
  }

  decode(extent: Extent, offset: number, buffer: Uint8Array, at: number, length: number): void {
    const within = offset % this.#layout.clusterSize
    this.#compressed ??= this.#openCompressed()
    this.#compressed.read(extent.offset, extent.aux, within, buffer, at, length)
  }

  #openCompressed(): CompressedClusters {
    const { clusterSize, compressionType } = this.#layout
    const { files, state } = this.#context
    const type = COMPRESSION_TYPES[compressionType]!
    return new CompressedClusters(files[0]!.storage, clusterSize, type, () => state[State.GENERATION]!)
  }

  /** Refcounts may go with the data: only what comes after them depends on them. */
  writeOut(batch: DirtyBatch): void {
    const { metadata, files } = this.#context
    const { storage, index } = files[0]!
    let order: number = Order.REFCOUNTS
    for (const run of batch.runs()) {
      if (run.order !== order) metadata.barrier()
      order = run.order
      storage.write(run.bytes, 0, run.bytes.length, run.offset)
      metadata.wrote(index)
    }
    metadata.barrier()
  }
}
