/** What is known of an open QCOW2 layer and never changes, and the numbers that do change, by name. */

import type { Encryption } from './encryption.js'
import type { Header } from './header.js'

/** Bytes of an L1 entry, and of an L2 entry without subclusters. */
export const ENTRY_BYTES = 8
export const EXTENDED_ENTRY_BYTES = 16
export const SUBCLUSTERS = 32

/** The file that holds the guest's data instead of the image. */
export interface DataFile {
  /** Its place in `LayerContext.files`. */
  readonly index: number
  /** It is a raw image of the disk by itself. */
  readonly raw: boolean
}

/** A dirty bitmap that is to record every write. */
export interface TrackedBitmap {
  /** Of its entry in the directory. */
  readonly entryOffset: number
  readonly flags: number
  readonly tableOffset: number
  /** Entries. */
  readonly tableSize: number
  readonly granularity: number
}

/** Plain data. Offsets and sizes in bytes. */
export interface Qcow2Layout {
  /** As it was when the image was opened. */
  readonly header: Header
  /** Of the disk that is shown. */
  readonly size: number
  readonly clusterSize: number
  /** Bytes that can be mapped by themselves: the cluster's, or those of one of its 32 parts. */
  readonly subclusterSize: number
  readonly extendedL2: boolean
  readonly entryBytes: number
  /** Entries of one L2 table. */
  readonly l2Entries: number
  /** Refcounts in one refcount block. */
  readonly blockEntries: number
  readonly refcountOrder: number
  /** The L1 table that is shown: the active one, or a snapshot's. `l1Size` in entries. */
  readonly l1Offset: number
  readonly l1Size: number
  readonly compressionType: number
  readonly encryption: Encryption | undefined
  readonly dataFile: DataFile | undefined
  /** What is not allocated is what the backing file says. */
  readonly backing: boolean
  /** Zero clusters can be said: version 3. */
  readonly zeroClusters: boolean
  /** Refcounts may be out of date while the dirty bit is set. */
  readonly lazyRefcounts: boolean
  /** The directory of bitmaps holds, and keeps holding while the image is written. */
  readonly bitmapsKept: boolean
  /** Bitmaps that record writes, and those that should and cannot. */
  readonly tracked: readonly TrackedBitmap[]
  readonly dropped: readonly TrackedBitmap[]
  /** The id of the snapshot that is shown. */
  readonly snapshot: string | undefined
}

/** The most decrements of refcounts that can wait for a commit. */
export const QUEUE_ENTRIES = 4096
/** Numbers of an entry: the cluster, and the commit that has to be done before. */
export const QUEUE_STRIDE = 2

/** Indexes of `LayerContext.state`. */
export const State = {
  /** Where the next cluster at the file's end is taken, and where what is secured there ends. */
  NEXT: 0,
  LIMIT: 1,
  /** The refcount table: byte offset, and clusters. */
  TABLE_OFFSET: 2,
  TABLE_CLUSTERS: 3,
  /** The number of the cluster from which on free ones are looked for. */
  CURSOR: 4,
  /** Counts up where a compressed cluster was freed, so that what somebody decoded from there is out of date. */
  GENERATION: 5,
  /** Decrements that wait: index of the oldest, and how many. */
  QUEUE_FIRST: 6,
  QUEUE_COUNT: 7,
  /** Where the next compressed cluster goes; at a cluster's bound: in one that is taken then. */
  PACKED: 8,
  QUEUE: 9,
} as const

export function firstState(layout: Qcow2Layout, fileSize: number, writable: boolean): number[] {
  const { header, clusterSize } = layout
  const state = new Array<number>(State.QUEUE + (writable ? QUEUE_ENTRIES * QUEUE_STRIDE : 0)).fill(0)
  const end = Math.ceil(fileSize / clusterSize) * clusterSize
  state[State.NEXT] = end
  state[State.LIMIT] = end
  state[State.TABLE_OFFSET] = header.refcountTableOffset
  state[State.TABLE_CLUSTERS] = header.refcountTableClusters
  return state
}
