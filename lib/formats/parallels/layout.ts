/** What is known of an open image or bundle and never changes: its layout; and the numbers that do change, by name. */

import { clustersEnd } from './entries.js'
import type { Geometry, Header } from './header.js'

/** A bitmap that writes are recorded in. */
export interface TrackedBitmap {
  readonly granularity: number
  /** Byte offset in the file of its L1 table while the image is written, and entries in it. */
  readonly l1: number
  readonly l1Size: number
}

/** The extension of an image that is opened for writing. */
export interface TrackedExtension {
  /** Byte offset of its cluster. */
  readonly offset: number
  /**
   * What the first change does with it: `keep` leaves it alone (there are no bitmaps), `rewrite` puts a stand-in there
   * until the clean end, `drop` removes it, because nothing in it may stay.
   */
  readonly plan: 'keep' | 'rewrite' | 'drop'
  readonly bitmaps: readonly TrackedBitmap[]
  /** Features that are not understood are kept: clusters that look free may be theirs. */
  readonly opaque: boolean
  /** The bitmaps say what was changed; false: somebody wrote without them, all counts as changed. */
  readonly trusted: boolean
}

export interface ImageLayout {
  readonly geometry: Geometry
  readonly header: Header
  /** The image is an overlay: what it does not have is the parent's. */
  readonly parent: boolean
  readonly extension: TrackedExtension | undefined
}

/** A part of a layer: one file. */
export interface PartLayout {
  /** Guest bytes. */
  readonly start: number
  readonly length: number
  /** Its place in the layer's files. */
  readonly file: number
  /** Its numbers among the layer's. */
  readonly stateStart: number
  readonly stateEnd: number
  /** What the descriptor calls it, and what it is; undefined: a plain file. */
  readonly name: string
  readonly image: ImageLayout | undefined
}

/** A bundle: a disk of parts. */
export interface BundleLayout {
  readonly kind: 'bundle'
  readonly size: number
  readonly snapshot: string
  readonly top: string
  /** GUIDs, and of each the parent's. */
  readonly snapshots: readonly (readonly [guid: string, parent: string])[]
  readonly parts: readonly PartLayout[]
}

export type SingleLayout = ImageLayout & { readonly kind: 'image' }

/** What `Format.open` finds out. */
export type Layout = SingleLayout | BundleLayout

/** Threads whose allocations under way are known by their place; with more of them, gaps are not looked for. */
export const INFLIGHT_SLOTS = 256

/** Places in the layer's shared numbers. */
export const State = {
  /** Where the next new cluster goes, in bytes: behind every cluster that is in use. */
  END: 0,
  /** Clusters in front of this are in the file and read as zeros where nothing was written. */
  LIMIT: 1,
  /** Not 0: the BAT does not count, all is zeros. */
  EMPTY: 2,
  /** See `Search`. */
  SEARCH: 3,
  /** Clusters behind this are of this session. */
  FLOOR: 4,
  /** While the image is written, the cluster of the extension that counts everything as changed; 0: none. */
  STAND_IN: 5,
  /** Not 0: writing has begun. Of a bundle another part may have failed to, and then all of them are asked again. */
  BEGUN: 6,
  /** For every thread the offset and length of what it has allocated and not yet published. */
  INFLIGHT: 7,
  COUNT: 7 + 2 * INFLIGHT_SLOTS,
} as const

/**
 * Whether the gaps between clusters that were there at opening are known, and that the BAT refers to nothing behind them.
 */
export const Search = { TO_DO: 0, RUNNING: 1, DONE: 2 } as const

/** First values of the numbers. */
export function firstState({ geometry, header }: ImageLayout, fileSize: number): number[] {
  const end = clustersEnd(geometry, fileSize)
  const state = new Array<number>(State.COUNT).fill(0)
  state[State.END] = end
  state[State.LIMIT] = end
  state[State.FLOOR] = end
  state[State.EMPTY] = header.flags & 1
  return state
}
