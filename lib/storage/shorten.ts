/** Giving back what a storage has behind its last used byte, where a block device keeps its length. */

import type { Storage } from './storage.js'

/** Makes it end at `size`, which is in front of its end. @returns false for a block device, which stays as it is */
export function shorten(storage: Storage, size: number): boolean {
  if (storage.fixedSize) return false
  storage.truncate(size)
  return true
}

/** Takes away what is behind `end`, if anything: what is not cut off reads as zeros. */
export function cutOff(storage: Storage, end: number): void {
  const size = storage.size()
  if (size > end && !shorten(storage, end)) storage.punch(end, size - end)
}
