/** The end of a storage: giving back what lies behind the last used byte, where a block device keeps its length. */

import type { Storage } from './storage.js'

/**
 * Makes it end at `size`, where it ends behind that.
 * @returns false where there is nothing to cut off, or where it stays: a block device
 */
export function shorten(storage: Storage, size: number): boolean {
  if (storage.fixedSize || storage.size() <= size) return false
  storage.truncate(size)
  return true
}

/** Where places for something new end, in bytes: nowhere, but on a block device, which cannot grow. */
export function placesEnd(storage: Storage): number {
  return storage.fixedSize ? storage.size() : Number.POSITIVE_INFINITY
}

/** Takes away what is behind `end`, if anything: what is not cut off reads as zeros. */
export function cutOff(storage: Storage, end: number): void {
  const size = storage.size()
  if (size > end && !shorten(storage, end)) storage.punch(end, size - end)
}
