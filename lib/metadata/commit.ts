/** Signatures only, until the cache lands. */

/** A copy of the dirty sectors at one moment, sorted by order, file and offset. */
export interface DirtyBatch {
  readonly count: number
}
