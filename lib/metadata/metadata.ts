/** Signatures only, until the cache lands: what drivers and Image call. */

import type { FileRef } from '../formats/driver.js'

/** The shared metadata of an open image as one thread sees it: pages, lock, space, commits. */
export interface Metadata {
  readonly threads: number
}

/**
 * A window on one metadata structure of a file (a table, a bitmap), read and written through the shared cache. Only
 * sectors that lie in [start, end), rounded out to 512 bytes, are ever taken for metadata. Offsets are file offsets.
 * Every method but `move` may end with a PageMiss, before it has changed anything; a field never straddles two sectors.
 * Reading needs the shared or the exclusive lock, writing the exclusive one.
 */
export declare class Region {
  /** @param order 0..3: commits write sectors of a lower order before those of a higher one, with a barrier between. */
  constructor(metadata: Metadata, file: FileRef, start: number, end: number, order: number)
  /** Points the window at another structure; returns itself. */
  move(start: number, end: number): this
  u8(offset: number): number
  u32be(offset: number): number
  u32le(offset: number): number
  setU8(offset: number, value: number): void
  setU32be(offset: number, value: number): void
  setU32le(offset: number, value: number): void
  /** Makes sure that the sectors of a range are cached, so that what follows cannot miss (at most 64 pages). */
  touch(offset: number, length: number): void
  /** Makes whole sectors valid and dirty, filled with `byte`, without reading them from the file: a new structure. */
  fresh(offset: number, length: number, byte: number): void
  /** Copies bytes of the structure out. */
  copyOut(offset: number, length: number, target: Uint8Array, at: number): void
  /** Forgets the structure's sectors, dirty or not: it was freed. */
  drop(): void
}
