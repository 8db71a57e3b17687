/**
 * Checks an image, and mends it: entries of its tables, refcounts, COPIED flags, snapshots and bitmaps. Works on the file
 * itself, without the cache.
 *
 * 1. the dirty bit (version 3) → barrier
 * 2. entries that refer to nothing, or to what belongs to something else
 * 3. refcounts, where they lie or anew
 * 4. COPIED flags → barrier
 * 5. the dirty and the corrupt bit are cleared → barrier
 *
 * Each of these makes the image better by itself, so that a crash leaves one that the next repair mends.
 */

import type { Storage } from '../../storage/storage.js'
import type { CheckTotals } from '../driver.js'
import { BitmapFlag, bitmapProblem, bitmapsConsistent } from './bitmap-directory.js'
import { checkCopied } from './copied.js'
import { type Counts, Use } from './counts.js'
import { ExtensionType, findExtension } from './extensions.js'
import { refuseUnknown } from './features.js'
import { FIELD, Incompatible, readHeader } from './header.js'
import { type CheckOptions, Mending } from './mending.js'
import { Recount } from './recount.js'
import { encodeSnapshots, lacksExtra, withExtra } from './snapshot-table.js'
import { freeEnd, placeOf, readStructure, rootsOf, type Structure, shapeOf } from './structure.js'
import { examine, type Fault, l2Span, type Origin, type Roots, type Walked, walk } from './walk.js'

/** @throws FORMAT, UNSUPPORTED, CORRUPT where the header cannot be read; IO */
export function checkImage(storage: Storage, options: CheckOptions): CheckTotals {
  const header = readHeader(storage)
  refuseUnknown(header, storage.path)
  const shape = shapeOf(header)
  return new Check(storage, new Mending(storage, shape, options), shape.clusterSize).run()
}

/** More are not kept in mind: flags are then judged by the references. */
const MAX_WRONG = 2 ** 18

/** Each lays bare at most the tables below those that were copied in the one before. */
const MOST_ROUNDS = 8

class Check {
  readonly #storage: Storage
  readonly #m: Mending
  readonly #origin: Origin
  /** Behind the last cluster that anything refers to. */
  #used = 0
  /** Refcounts that differ from the references, and stay so. */
  readonly #wrong = new Map<number, number>()

  constructor(storage: Storage, mending: Mending, clusterSize: number) {
    this.#storage = storage
    this.#m = mending
    this.#origin = { clusters: Math.ceil(storage.size() / clusterSize), moved: mending.moved }
  }

  run(): CheckTotals {
    const entry = (fault: Fault) => this.#m.entry(fault)
    this.#lookAhead()
    if (this.#m.all) this.#separate()
    const found = readStructure(this.#storage, entry)
    let structure = found
    this.#checkHeader(structure)
    this.#checkBitmaps(structure)
    if (this.#checkSnapshots(structure)) structure = readStructure(this.#storage)
    let roots = rootsOf(this.#storage, structure, entry)
    let walked = walk(this.#storage, structure.shape, roots, entry, this.#origin)
    if (this.#m.changed) {
      structure = readStructure(this.#storage, () => {})
      roots = rootsOf(this.#storage, structure)
      walked = walk(this.#storage, structure.shape, roots)
    }
    this.#checkRefcounts(walked.counts)
    this.#checkFlags(structure, walked)
    this.#checkMarks(found, this.#m.finish())
    const { clusterSize, size } = structure.shape
    return { imageEnd: this.#used * clusterSize, clusters: Math.ceil(size / clusterSize), ...walked.seen }
  }

  /** Before anything is written: whether it may be, and where there is room. */
  #lookAhead(): void {
    const structure = readStructure(this.#storage, () => {})
    const holds: Fault[] = []
    const fault = (found: Fault) => {
      if (found.holds) holds.push(found)
    }
    const roots = rootsOf(this.#storage, structure, fault)
    examine(this.#storage, structure.shape, roots, fault)
    if (holds.length > 0) this.#m.hold()
    this.#m.freeEnd = freeEnd(this.#storage, roots)
    if (this.#m.all && this.#storage.fixedSize) this.#m.inUse = this.#inUse(structure, roots)
  }

  /** What anything refers to, or is counted as in use; undefined where something is lost that may refer to more. */
  #inUse({ shape, place }: Structure, roots: Roots): Counts | undefined {
    let lost = false
    const fault = ({ loses, replace, copy }: Fault) => {
      lost ||= loses === true && !replace && !copy
    }
    const { counts } = walk(this.#storage, shape, roots, fault)
    const recount = new Recount(this.#storage, place)
    recount.mark(counts)
    recount.update(counts.clusters, counts, (cluster, refcount) => {
      if (refcount > 0 && counts.of(cluster) === 0) counts.add(cluster, Use.DATA)
      return refcount
    })
    return lost ? undefined : counts
  }

  /**
   * What lies in one cluster with something else gets one of its own, before anything is mended where it lies: else that
   * could write into another's data.
   */
  #separate(): void {
    for (let round = 0; round < MOST_ROUNDS && this.#m.all; round++) {
      this.#m.changed = false
      const structure = readStructure(this.#storage, () => {})
      const overlap = (fault: Fault) => {
        if (fault.what === 'overlap') this.#m.entry(fault)
      }
      walk(this.#storage, structure.shape, rootsOf(this.#storage, structure), overlap, this.#origin)
      if (!this.#m.changed) return
    }
    // It does not come to an end.
    this.#m.hold()
  }

  #checkHeader({ header, shape }: Structure): void {
    const { size, l1Size } = header
    const needed = Math.ceil(size / l2Span(shape))
    if (l1Size < needed)
      this.#m.entry({
        severity: 'corruption',
        what: 'l1-size',
        message: `the active L1 table has ${l1Size} entries: a disk of ${size} bytes needs ${needed}`,
        offset: FIELD.l1Size,
      })
  }

  /** @param cleared they were cleared, as nothing is wrong any more */
  #checkMarks({ header: { incompatible } }: Structure, cleared: boolean): void {
    const more = { offset: FIELD.incompatible }
    if (incompatible.includes(Incompatible.CORRUPT))
      this.#m.report('warning', 'corrupt-bit', 'it is marked corrupt', cleared, more)
    if (incompatible.includes(Incompatible.DIRTY))
      this.#m.report('warning', 'dirty-bit', 'it was left in use: its refcounts may be old', cleared, more)
  }

  #checkBitmaps({ header, shape, directory }: Structure): void {
    const extension = findExtension(header.extensions, ExtensionType.BITMAPS)
    if (extension && !bitmapsConsistent(header))
      this.#m.report('warning', 'bitmaps', 'its bitmaps were not kept up to date, and are gone', false, {
        repairable: false,
      })
    const names = new Set<string>()
    for (const bitmap of directory.bitmaps) {
      const problem = bitmapProblem(bitmap, shape.size, shape.clusterBits)
      const text = `bitmap '${bitmap.name}'`
      const more = { offset: directory.offset, repairable: false }
      if (problem !== undefined) this.#m.report('warning', 'bitmap', `${text}: ${problem}`, false, more)
      if ((bitmap.flags & BitmapFlag.IN_USE) !== 0)
        this.#m.report(
          'warning',
          'bitmap-in-use',
          `${text} was not kept up to date: all counts as changed`,
          false,
          more,
        )
      if (names.has(bitmap.name)) this.#m.report('corruption', 'bitmap', `there are two of ${text}`, false, more)
      names.add(bitmap.name)
    }
  }

  /** Version 3 demands the disk's size in every entry. @returns true where the table was written anew */
  #checkSnapshots({ header, snapshots: table, shape }: Structure): boolean {
    const lacking = shape.version < 3 ? [] : table.snapshots.filter(lacksExtra)
    const { all } = this.#m
    for (const { id, name } of lacking) {
      const message = `snapshot '${name || id}' does not say how large the disk was`
      this.#m.report('corruption', 'snapshot-extra', message, all, { offset: header.snapshotsOffset })
    }
    if (lacking.length === 0 || !all) return false
    const whole = table.snapshots.map((snapshot) =>
      lacksExtra(snapshot) ? withExtra(snapshot, header.size) : snapshot,
    )
    const offset = Buffer.alloc(8)
    offset.writeBigUInt64BE(BigInt(this.#m.append(encodeSnapshots(whole))))
    this.#m.write(offset, FIELD.snapshotsOffset)
    return true
  }

  #checkRefcounts(counts: Counts): void {
    const { all } = this.#m
    const place = placeOf(readHeader(this.#storage))
    // Structures that cannot be used are mended by new ones: the fault is repaired, whatever it is.
    const structure = (fault: Fault) => {
      if (all) this.#m.mark()
      this.#m.report(fault.severity, fault.what, fault.message, all, { offset: fault.offset })
    }
    const recount = new Recount(this.#storage, place, structure)
    recount.mark(counts, structure)
    // Blocks that may be something else as well are not written to.
    if (recount.broken && !all) this.#m.lost = true
    const runs = new Runs(this.#m, recount.most, place.clusterSize)
    const complete = recount.update(counts.clusters, counts, (cluster, refcount) => {
      const references = counts.of(cluster)
      if (refcount > 0 || references > 0) this.#used = cluster + 1
      if (references === refcount) return refcount
      const wanted = runs.differs(cluster, refcount, references)
      const next = recount.broken ? refcount : wanted
      if (next === references) return next
      // In use by what is lost, perhaps: it stays so in refcounts that are made anew, too.
      if (this.#m.keepsLeaks && refcount > references) counts.add(cluster, Use.DATA, refcount - references)
      else if (this.#wrong.size < MAX_WRONG) this.#wrong.set(cluster, next)
      return next
    })
    runs.end()
    this.#storage.sync()
    // Before anything is put there.
    for (const { offset, length } of runs.freed) this.#storage.punch(offset, length)
    if (all && (recount.broken || !complete)) {
      this.#m.mark()
      recount.rebuild(counts, counts.clusters, { free: this.#m.freeEnd, lost: this.#m.lost })
      this.#wrong.clear()
      this.#used = Math.ceil(this.#storage.size() / place.clusterSize)
      while (this.#used > 0 && counts.of(this.#used - 1) === 0) this.#used--
    }
  }

  /**
   * A flag that is set where others may use the cluster leads to their data being overwritten. One that is missing where
   * nobody does (before a cluster is shared it is cleared, so that crashes leave it so) makes the next writer copy the
   * cluster, and is mended with leaks; but in a data file, where a cluster has to stay in its place.
   */
  #checkFlags({ shape }: Structure, { counts, tables }: Walked): void {
    const { all, leaks, left, lost } = this.#m
    const refcounts = {
      clusters: counts.clusters,
      of: (cluster: number) => this.#wrong.get(cluster) ?? counts.of(cluster),
    }
    const careful = leaks && left === 0 && !lost
    checkCopied(this.#storage, shape, tables, refcounts, ({ offset, guest, host, kind, refcount, set }) => {
      const harmless = !set && !shape.dataFile
      const repaired = all || (harmless && careful)
      if (repaired) this.#m.mark()
      const expected = kind === 'compressed cluster' ? 'never has it' : `has refcount ${refcount}`
      const hint = harmless ? ': it is copied before it is written' : ''
      const message = `COPIED is ${set ? 'set' : 'not set'} for the ${kind} of the disk's byte ${guest}, at byte ${host}, which ${expected}${hint}`
      this.#m.report(harmless ? 'warning' : 'corruption', 'copied', message, repaired, { offset, guest })
      return repaired
    })
  }
}

/** Refcounts that differ, put together where neighbours differ alike. */
class Runs {
  /** Ranges of the file that were freed. */
  readonly freed: { offset: number; length: number }[] = []
  readonly #m: Mending
  readonly #most: number
  readonly #clusterSize: number
  #first = 0
  #next = -1
  #refcount = 0
  #references = 0

  constructor(mending: Mending, most: number, clusterSize: number) {
    this.#m = mending
    this.#most = most
    this.#clusterSize = clusterSize
  }

  /** @returns what the refcount is to be */
  differs(cluster: number, refcount: number, references: number): number {
    if (cluster !== this.#next || refcount !== this.#refcount || references !== this.#references) {
      this.end()
      this.#first = cluster
      this.#refcount = refcount
      this.#references = references
    }
    this.#next = cluster + 1
    if (!this.#repaired) return refcount
    this.#m.mark()
    return references
  }

  get #repaired(): boolean {
    if (this.#references > this.#most) return false
    return this.#refcount > this.#references ? (this.#m.all || this.#m.leaks) && !this.#m.keepsLeaks : this.#m.all
  }

  /** Reports the run that was begun. */
  end(): void {
    if (this.#next < 0) return
    const count = this.#next - this.#first
    const offset = this.#first * this.#clusterSize
    const repaired = this.#repaired
    const leak = this.#refcount > this.#references
    const which = count === 1 ? `cluster ${this.#first}` : `clusters ${this.#first} to ${this.#next - 1}`
    const message = `${which} at byte ${offset}: refcount ${this.#refcount}, ${this.#references} references`
    this.#m.report(leak ? 'leak' : 'corruption', leak ? 'leak' : 'refcount', message, repaired, {
      offset,
      count,
      found: this.#refcount,
      expected: this.#references,
      repairable: this.#references <= this.#most && !(leak && this.#m.lost),
    })
    if (repaired && this.#references === 0) this.freed.push({ offset, length: count * this.#clusterSize })
    this.#next = -1
  }
}
