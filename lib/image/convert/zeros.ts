/** Finding the zeros in data. */

import { MiB } from '../../util/sizes.js'

/** The most that is looked at together. */
export const MAX_GRANULE = 2 * MiB

const WORD = 8

let zeros: Buffer | undefined

/** True where `length` bytes of `data` from `at` on are zeros; at most MAX_GRANULE. */
export function isZero(data: Buffer, at: number, length: number): boolean {
  // Most data is found not to be zeros by its first or its last byte.
  if (data[at] !== 0 || data[at + length - 1] !== 0) return false
  if (length <= WORD) return data.subarray(at, at + length).every((byte) => byte === 0)
  zeros ??= Buffer.alloc(MAX_GRANULE)
  return data.compare(zeros, 0, length, at, at + length) === 0
}

/**
 * Cuts data into runs of zeros and of other data. Zeros count in whole granules, which begin where `offset + at` is a
 * multiple of `granule`: the parts of granules at both ends count for themselves.
 * @param offset of the first byte on the disk
 * @param granule bytes
 */
export function eachRun(
  data: Buffer,
  length: number,
  offset: number,
  granule: number,
  visit: (at: number, length: number, zero: boolean) => void,
): void {
  let start = 0
  let zero = false
  for (let at = 0; at < length; ) {
    const next = Math.min(length, at + granule - ((offset + at) % granule))
    const here = isZero(data, at, next - at)
    if (at > 0 && here !== zero) {
      visit(start, at - start, zero)
      start = at
    }
    zero = here
    at = next
  }
  if (length > 0) visit(start, length - start, zero)
}
