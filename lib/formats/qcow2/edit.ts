/**
 * A change of an image's structures that nobody has open: snapshots, bitmaps, another size. New structures are written to
 * clusters that nothing uses; then the header refers to them instead of the old ones.
 *
 * 1. the new structures → barrier
 * 2. the dirty bit (version 3) → barrier
 * 3. COPIED flags of clusters that will be shared are cleared → barrier
 * 4. refcounts that rise → barrier
 * 5. the header, in one sector → barrier
 * 6. refcounts that sink → barrier
 * 7. COPIED flags of clusters whose refcount is 1 now are set → barrier
 * 8. the dirty bit is cleared → barrier; freed clusters are punched, the free end of the file is cut off
 *
 * A crash before 5 leaves what was, later what is new; in version 2 at worst with leaked clusters and flags that `check`
 * mends, in version 3 with the dirty bit, so that whoever writes next mends them.
 */

import { shorten } from '../../storage/shorten.js'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { checkCopied } from './copied.js'
import { Counts, Use } from './counts.js'
import { Incompatible, readFeatures, writeFeatures } from './header.js'
import { Recount, type Values } from './recount.js'
import { readStructure, rootsOf, type Structure } from './structure.js'
import { type Fault, type Roots, walk } from './walk.js'

export class Edit {
  /** As it was found. */
  readonly structure: Structure
  readonly #storage: Storage
  readonly #roots: Roots
  readonly #recount: Recount
  readonly #before: Counts
  /** Refcounts as they were found. */
  readonly #actual: Counts
  readonly #taken: Counts
  readonly #clusterSize: number
  /** Behind the last cluster that was given out. */
  #end: number
  #cursor = 1

  /**
   * @param without the number of a snapshot that is not looked at: what it refers to is leaked
   * @throws CORRUPT where the image has faults, besides leaked clusters
   */
  constructor(storage: Storage, without?: number) {
    this.#storage = storage
    const { path } = storage
    const fail = (fault: Pick<Fault, 'message'>): never => {
      throw new VdiskError('CORRUPT', `it has errors, and is not changed before they are mended: ${fault.message}`, {
        path,
      })
    }
    this.structure = readStructure(storage)
    this.#clusterSize = this.structure.shape.clusterSize
    this.#roots = rootsOf(storage, leavingOut(this.structure, without), fail)
    this.#before = walk(storage, this.structure.shape, this.#roots, fail).counts
    this.#recount = new Recount(storage, this.structure.place, fail)
    this.#recount.mark(this.#before, fail)
    this.#end = this.#before.clusters
    this.#actual = new Counts(this.#end, path)
    this.#taken = new Counts(this.#end, path)
    const complete = this.#recount.update(this.#end, this.#before, (cluster, refcount) => {
      const references = this.#before.of(cluster)
      if (refcount < references)
        fail({ message: `cluster ${cluster} has refcount ${refcount}, and ${references} references` })
      if (refcount > 0) this.#actual.add(cluster, Use.DATA, refcount)
      return refcount
    })
    if (!complete) fail({ message: 'clusters have no refcounts' })
  }

  /** Of the image. */
  get path(): string {
    return this.#storage.path
  }

  /** How often a cluster is referred to now. */
  references(offset: number): number {
    return this.#before.of(offset / this.#clusterSize)
  }

  /**
   * Takes clusters that nothing uses, one behind the other.
   * @param length bytes; 0: none
   * @returns the first one's byte offset
   */
  allocate(length: number): number {
    const count = Math.ceil(length / this.#clusterSize)
    if (count === 0) return 0
    let first = this.#cursor
    let free = 0
    for (let cluster = this.#cursor; cluster < this.#end && free < count; cluster++) {
      free = this.#isFree(cluster) ? free + 1 : 0
      if (free === 0) first = cluster + 1
      // Searched once from the beginning: what is skipped now is left to the next writer.
    }
    for (let i = 0; i < count; i++) this.#taken.add(first + i, Use.METADATA)
    if (count === 1) this.#cursor = first + 1
    this.#end = Math.max(this.#end, first + count)
    return first * this.#clusterSize
  }

  #isFree(cluster: number): boolean {
    return this.#actual.of(cluster) === 0 && this.#taken.of(cluster) === 0 && this.#before.of(cluster) === 0
  }

  /** Takes clusters and fills them. @returns their byte offset */
  place(bytes: Uint8Array): number {
    const offset = this.allocate(bytes.length)
    const filled = new Uint8Array(Math.ceil(bytes.length / this.#clusterSize) * this.#clusterSize)
    filled.set(bytes)
    this.#storage.write(filled, 0, filled.length, offset)
    return offset
  }

  /**
   * Makes the image what `next` says, whose structures are written already.
   * @param refer writes the header's fields that make it so; what it writes has to lie in one sector
   */
  commit(next: Structure, refer: () => void): void {
    const storage = this.#storage
    storage.sync()
    const wrong = ({ message }: Fault): never => {
      throw new VdiskError('CORRUPT', `what was about to be written would be wrong, and was not: ${message}`, {
        path: storage.path,
      })
    }
    const roots = rootsOf(storage, next, wrong)
    const after = walk(storage, next.shape, roots, wrong).counts
    this.#recount.mark(after)
    this.#checkLimit(after)
    const features = next.shape.version < 3 ? undefined : readFeatures(storage, 'incompatible')
    const mark = (bits: readonly number[]) => {
      if (!features) return
      writeFeatures(storage, 'incompatible', bits)
      storage.sync()
    }
    mark([...new Set([...(features ?? []), Incompatible.DIRTY])])
    this.#clearFlags(roots, after)
    this.#raise(after)
    refer()
    storage.sync()
    const { freed, used } = this.#lower(after)
    const { clusters } = after
    checkCopied(
      storage,
      next.shape,
      roots.tables,
      { clusters, of: (cluster) => this.#final(after, cluster) },
      () => true,
    )
    storage.sync()
    mark((features ?? []).filter((bit) => bit !== Incompatible.DIRTY))
    for (const { first, count } of freed) storage.punch(first * this.#clusterSize, count * this.#clusterSize)
    shorten(storage, used * this.#clusterSize)
    storage.sync()
  }

  /** @throws UNSUPPORTED where a refcount would be larger than the image can say */
  #checkLimit(after: Counts): void {
    const { most } = this.#recount
    for (let first = 0; first < this.#end; first += STEP) {
      const stop = Math.min(this.#end, first + STEP)
      if (after.noneIn(first, stop)) continue
      for (let cluster = first; cluster < stop; cluster++)
        if (after.of(cluster) > most)
          throw new VdiskError('UNSUPPORTED', `its refcounts can be ${most} at most: no more can share its clusters`, {
            path: this.#storage.path,
          })
    }
  }

  /** No cluster that is shared from now on may be taken as one's own, neither before the header changes nor after. */
  #clearFlags(roots: Roots, after: Counts): void {
    const raised = {
      clusters: after.clusters,
      of: (cluster: number) => this.#raised(after, cluster, this.#actual.of(cluster)),
    }
    const { shape } = this.structure
    for (const { tables } of [this.#roots, roots]) checkCopied(this.#storage, shape, tables, raised, ({ set }) => set)
    this.#storage.sync()
  }

  /** By how much the references become more. */
  #more(after: Counts, cluster: number): number {
    return Math.max(0, after.of(cluster) - this.#before.of(cluster))
  }

  /**
   * The refcount, of a cluster that has this one now, that holds from step 4 to step 6. One that was too large stays so,
   * but behind the end of the file, where nothing can be: a writer that crashed has counted there before it wrote, and
   * what it counted is not what is put there now.
   */
  #raised(after: Counts, cluster: number, refcount: number): number {
    const found = cluster < this.#before.clusters ? refcount : 0
    return Math.min(this.#recount.most, found + this.#more(after, cluster))
  }

  /** The refcount, of a cluster that has this one then, that holds from step 6 on. */
  #lowered(after: Counts, cluster: number, refcount: number): number {
    return Math.max(0, refcount - Math.max(0, this.#before.of(cluster) - after.of(cluster)))
  }

  /** The refcount that holds in the end. Flags go by it, not by the references: a leaked cluster is nobody's own. */
  #final(after: Counts, cluster: number): number {
    return this.#lowered(after, cluster, this.#raised(after, cluster, this.#actual.of(cluster)))
  }

  #raise(after: Counts): void {
    const complete = this.#recount.update(this.#end, after, (cluster, refcount) =>
      this.#raised(after, cluster, refcount),
    )
    if (!complete) {
      const all = new Counts(this.#end, this.#storage.path)
      this.#recount.update(this.#end, after, (cluster, refcount) => {
        // Where there is no block yet nothing was raised.
        const value = refcount === 0 ? this.#more(after, cluster) : refcount
        if (value > 0) all.add(cluster, Use.DATA, value)
        return refcount
      })
      this.#recount.rebuild(all, this.#end)
    }
    this.#storage.sync()
  }

  /** @returns what is free now, and the number of the cluster behind the last that is not */
  #lower(after: Counts): { freed: { first: number; count: number }[]; used: number } {
    const freed: { first: number; count: number }[] = []
    let used = 0
    const end = Math.max(this.#end, Math.ceil(this.#storage.size() / this.#clusterSize))
    const none: Values = { of: () => 0, noneIn: () => true }
    this.#recount.update(end, none, (cluster, refcount) => {
      const next = this.#lowered(after, cluster, refcount)
      if (next > 0) used = cluster + 1
      else if (refcount > 0) {
        const last = freed.at(-1)
        if (last && last.first + last.count === cluster) last.count++
        else freed.push({ first: cluster, count: 1 })
      }
      return next
    })
    this.#storage.sync()
    return { freed, used }
  }
}

const STEP = 4096

function leavingOut(structure: Structure, snapshot: number | undefined): Structure {
  if (snapshot === undefined) return structure
  const { snapshots, length } = structure.snapshots
  return { ...structure, snapshots: { snapshots: snapshots.toSpliced(snapshot, 1), length } }
}
