/** Clusters of a file that nothing uses: where a storage cannot grow, what mends an image has to lie between the rest. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'

export class FreeClusters {
  readonly #path: string
  readonly #end: number
  readonly #isFree: (cluster: number) => boolean

  /** @param isFree asked of clusters that are in the file as a whole */
  constructor(storage: Storage, clusterSize: number, isFree: (cluster: number) => boolean) {
    this.#path = storage.path
    this.#end = Math.floor(storage.size() / clusterSize)
    this.#isFree = isFree
  }

  /** @returns the first of so many free clusters that lie together. @throws NO_SPACE */
  run(count: number): number {
    let free = 0
    for (let cluster = 1; cluster < this.#end; cluster++) {
      free = this.#isFree(cluster) ? free + 1 : 0
      if (free === count) return cluster + 1 - count
    }
    throw this.#full(count)
  }

  /** @returns so many free clusters, none of those from `first` to before `end`. @throws NO_SPACE */
  singles(count: number, first: number, end: number): number[] {
    const found: number[] = []
    for (let cluster = 1; cluster < this.#end && found.length < count; cluster++)
      if ((cluster < first || cluster >= end) && this.#isFree(cluster)) found.push(cluster)
    if (found.length < count) throw this.#full(count)
    return found
  }

  #full(count: number): VdiskError {
    return new VdiskError('NO_SPACE', `${count} free clusters are needed, and the device cannot grow`, {
      path: this.#path,
      errno: 'ENOSPC',
    })
  }
}

/** Where something is lost, what looks unused may not be. */
export function noneForSure({ path }: Storage): VdiskError {
  const text = 'what is free on the device cannot be told for sure: only a copy of it, in a file, can be mended'
  return new VdiskError('NO_SPACE', text, { path })
}
