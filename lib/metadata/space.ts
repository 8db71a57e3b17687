/** Signatures only, until the cache lands. */

/**
 * Host space of the top layer that may be used again, shared by all threads; exclusive lock. What is freed becomes
 * takeable only after the commit that removed its last reference and when no reader can still be on it; it has been
 * punched by then and reads as zeros.
 */
export interface SpaceList {
  /** Frees a range. Where the list is full the range is forgotten (leaked until it is looked for again). */
  free(offset: number, length: number): void
  /** Takes exactly `length` bytes; -1 where there are none. */
  take(length: number): number
  /** Adds space that nothing refers to (found by a scan); it is punched before it can be taken. */
  add(offset: number, length: number): void
  /** Calls back for each range that was freed and is not taken again, in whatever state. */
  each(visit: (offset: number, length: number) => void): void
}
