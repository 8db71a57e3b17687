/**
 * Room for a layer that is written: clusters that nobody uses are looked for among those of the file, then secured behind
 * its end, a run at a time. On a block device there is nothing behind the end, and all of it is looked through. Only one
 * thread is ever in here.
 */

import { VdiskError } from '../../util/errors.js'
import { makeTrace } from '../../util/trace.js'
import type { LayerContext } from '../driver.js'
import { metadataAreas } from './areas.js'
import type { Clusters } from './clusters.js'
import { type Qcow2Layout, State } from './layout.js'
import { RefcountRoom } from './refcount-room.js'
import type { Refcounts } from './refcounts.js'
import type { Tables } from './tables.js'

const trace = makeTrace('qcow2')

/** Bytes that are secured at a time. */
const CLAIM = 2 ** 24
const CHUNK = 1 << 20
/** Pages of refcounts that are looked through for free clusters before the file's end is taken instead. */
const SEARCH_PAGES = 64
/** Pages of refcounts behind the file's end that may say that what they count is used. */
const MAX_LEAKED_PAGES = 4096

export class Growth {
  readonly #layout: Qcow2Layout
  readonly #context: LayerContext
  readonly #tables: Tables
  readonly #refcounts: Refcounts
  readonly #clusters: Clusters
  /** The cluster of the disk whose L2 table this thread wants to be its own. */
  #wanted = -1
  readonly #room: RefcountRoom

  constructor(layout: Qcow2Layout, context: LayerContext, tables: Tables, refcounts: Refcounts, clusters: Clusters) {
    this.#layout = layout
    this.#context = context
    this.#tables = tables
    this.#refcounts = refcounts
    this.#clusters = clusters
    this.#room = new RefcountRoom(layout, context, refcounts, clusters)
  }

  get #storage() {
    return this.#context.files[0]!.storage
  }

  /** What the next `grow` of this thread is for: the L2 table of this cluster of the disk must be there and be its own. */
  want(cluster: number): void {
    this.#wanted = cluster
  }

  /** As `Driver.grow`. */
  grow(): void {
    const cluster = this.#wanted
    this.#wanted = -1
    if (cluster >= 0) this.#ownTable(cluster)
    else this.#makeRoom()
  }

  /** Gives the disk around a cluster an L2 table that nothing else uses. */
  #ownTable(cluster: number): void {
    const { metadata } = this.#context
    const tables = this.#tables
    const now = metadata.shared(() => {
      tables.select(cluster)
      return { table: tables.table, copied: tables.copied }
    })
    if (now.table !== 0 && now.copied) return
    const place = this.#takeOne()
    const { clusterSize } = this.#layout
    try {
      if (now.table !== 0) this.#copyTable(now.table, place)
      metadata.exclusive(() => {
        tables.select(cluster)
        // An allocation may have made one meanwhile.
        if (tables.table !== now.table) {
          this.#clusters.free(place, clusterSize)
          return
        }
        tables.touchL1(cluster)
        tables.setTable(cluster, place)
        if (now.table !== 0) this.#clusters.decrement(now.table / clusterSize)
      })
    } catch (error) {
      metadata.exclusive(() => this.#clusters.free(place, clusterSize))
      throw error
    }
  }

  #takeOne(): number {
    for (;;) {
      const place = this.#context.metadata.exclusive(() => this.#clusters.take(1))
      if (place >= 0) return place
      this.#makeRoom()
    }
  }

  /** A table that others use too is never changed: what is in the file is what it says. */
  #copyTable(from: number, to: number): void {
    const { clusterSize } = this.#layout
    const buffer = new Uint8Array(Math.min(CHUNK, clusterSize))
    for (let done = 0; done < clusterSize; done += buffer.length) {
      const got = this.#storage.read(buffer, 0, buffer.length, from + done)
      buffer.fill(0, got)
      this.#storage.write(buffer, 0, buffer.length, to + done)
    }
    this.#context.metadata.wrote(this.#context.files[0]!.index)
  }

  #makeRoom(): void {
    const { state, metadata } = this.#context
    // Somebody else may have made room while this thread waited.
    if (metadata.shared(() => state[State.NEXT]! < state[State.LIMIT]!)) return
    if (this.#claimGap()) return
    if (this.#storage.fixedSize) throw this.#full()
    this.#claimEnd()
  }

  #full(): VdiskError {
    return new VdiskError('NO_SPACE', `all ${this.#storage.size()} bytes of the device are in use`, {
      path: this.#storage.path,
      errno: 'ENOSPC',
    })
  }

  /** Clusters that are secured at a time. */
  get #most(): number {
    return Math.max(1, CLAIM / this.#layout.clusterSize)
  }

  /** Secures free clusters between used ones. @returns false where none were found in the pages that were looked at */
  #claimGap(): boolean {
    const { state, metadata } = this.#context
    const refcounts = this.#refcounts
    const [from, end] = metadata.shared(() => [
      state[State.CURSOR]!,
      Math.floor(Math.min(this.#storage.size(), state[State.LIMIT]!) / this.#layout.clusterSize),
    ])
    let cursor = from!
    let gap: { first: number; count: number } | undefined
    const most = this.#storage.fixedSize ? Number.POSITIVE_INFINITY : SEARCH_PAGES
    for (let pages = 0; pages < most && cursor < end! && !gap; pages++) {
      if (this.#storage.fixedSize) this.#countHere(cursor, end!)
      const stop = Math.min(refcounts.pageEnd(cursor), end!)
      gap = metadata.shared(() => {
        // What no block counts is left alone: behind the end there is as much room as one likes.
        if (refcounts.blockAt(refcounts.blockIndex(cursor)) === 0) return undefined
        const first = refcounts.find(cursor, stop, true)
        return first === stop ? undefined : { first, count: this.#freeRun(first, stop) }
      })
      cursor = gap ? gap.first + gap.count : stop
    }
    metadata.exclusive(() => {
      state[State.CURSOR] = cursor
    })
    if (!gap) return false
    this.#refuseOverlap(gap.first, gap.count)
    this.#count(gap.first, gap.count)
    const { clusterSize } = this.#layout
    if (trace.enabled) trace('found %d free clusters at %d', gap.count, gap.first * clusterSize)
    this.#context.space!.add(gap.first * clusterSize, gap.count * clusterSize)
    return true
  }

  /** On a device, what no block counts is room too: it gets a block, which is the first thing that lies there. */
  #countHere(cluster: number, end: number): void {
    const refcounts = this.#refcounts
    const index = refcounts.blockIndex(cluster)
    const check = (count: number) => {
      if (cluster + count > end) throw this.#full()
      this.#refuseOverlap(cluster, count)
    }
    if (index >= refcounts.tableEntries) this.#room.growTable(cluster, check)
    else if (this.#context.metadata.shared(() => refcounts.blockAt(index)) === 0) {
      check(1)
      this.#room.addBlock(cluster)
    }
  }

  #freeRun(first: number, stop: number): number {
    return this.#refcounts.find(first, Math.min(stop, first + this.#most), false) - first
  }

  /** Refcounts that are wrong must not make anybody write over the tables. */
  #refuseOverlap(first: number, count: number): void {
    const { clusterSize } = this.#layout
    const start = first * clusterSize
    const end = start + count * clusterSize
    const { state, metadata } = this.#context
    const own = metadata.shared(() => this.#refcounts.blockAt(this.#refcounts.blockIndex(first)))
    const areas = [
      ...metadataAreas(this.#layout, state),
      { name: 'refcount block', start: own, end: own + clusterSize },
    ]
    const hit = areas.find((area) => area.start < end && start < area.end)
    if (hit)
      throw new VdiskError(
        'CORRUPT',
        `its refcounts call bytes ${start} to ${end} free, where its ${hit.name} is: vdiskfs check --repair all`,
        { path: this.#storage.path, offset: start },
      )
  }

  /** Sets the refcounts of free clusters, whose block is there, to 1. They lie in one page. */
  #count(first: number, count: number): void {
    const refcounts = this.#refcounts
    const { metadata } = this.#context
    metadata.exclusive(() => {
      for (let cluster = first; cluster < first + count; cluster = refcounts.sectorEnd(cluster))
        refcounts.touch(cluster)
      for (let cluster = first; cluster < first + count; cluster++) refcounts.set(cluster, 1)
    })
  }

  /** Secures clusters behind the file's end. */
  #claimEnd(): void {
    const { state, metadata } = this.#context
    const { clusterSize } = this.#layout
    const refcounts = this.#refcounts
    for (let looked = 0; looked < MAX_LEAKED_PAGES; looked++) {
      const next = state[State.LIMIT]! / clusterSize
      if (!Number.isSafeInteger((next + 1) * clusterSize + CLAIM)) break
      if (refcounts.blockIndex(next) >= refcounts.tableEntries) {
        this.#room.growTable(next)
        continue
      }
      if (metadata.shared(() => refcounts.blockAt(refcounts.blockIndex(next))) === 0) {
        this.#room.addBlock(next)
        continue
      }
      const stop = refcounts.pageEnd(next)
      const [first, count] = metadata.shared(() => {
        const free = refcounts.find(next, stop, true)
        return [free, free === stop ? 0 : this.#freeRun(free, stop)] as const
      })
      if (count === 0) {
        // Leaked, before the file was cut off.
        this.#moveEnd(stop * clusterSize, stop * clusterSize)
        continue
      }
      const end = (first + count) * clusterSize
      this.#storage.truncate(end)
      this.#reserve(first * clusterSize, count * clusterSize)
      metadata.wrote(this.#context.files[0]!.index)
      this.#count(first, count)
      this.#moveEnd(first * clusterSize, end)
      return
    }
    throw new VdiskError('NO_SPACE', `no room behind byte ${state[State.LIMIT]}: its refcounts say that all is used`, {
      path: this.#storage.path,
    })
  }

  #moveEnd(next: number, limit: number): void {
    const { state, metadata } = this.#context
    metadata.exclusive(() => {
      state[State.NEXT] = next
      state[State.LIMIT] = limit
    })
  }

  /** With room that the host has set aside, an fsync after allocations costs less. A full host may still take the data. */
  #reserve(offset: number, length: number): void {
    try {
      this.#storage.reserve(offset, length)
    } catch (error) {
      if (!(error instanceof VdiskError) || error.code !== 'NO_SPACE') throw error
    }
  }
}
