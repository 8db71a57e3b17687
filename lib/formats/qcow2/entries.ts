/**
 * What the entries of L1 and L2 tables and of the refcount table say. An entry is 64 bits, big-endian; here it is its two
 * halves, `hi` and `lo`, because JavaScript's bit operations have 32.
 */

const WORD = 2 ** 32

/** In the upper half. COPIED: the refcount is exactly 1, so that it may be written in place. */
export const COPIED = 0x80000000
export const COMPRESSED = 0x40000000
/** In the lower half of an L2 entry, not with subclusters: it reads as zeros. */
export const ZERO = 1

const OFFSET_HIGH = 0x00ffffff
const OFFSET_LOW = 0xfffffe00
/** Bits that mean nothing and are 0. */
export const L1_RESERVED = { hi: 0x7f000000, lo: 0x1ff } as const
export const L2_RESERVED = { hi: 0x3f000000, lo: 0x1fe } as const

/** A compressed cluster is given in sectors of so many bytes. */
export const COMPRESSED_SECTOR = 512
/** The bits of an offset that a compressed cluster has: this less the cluster's. */
const COMPRESSED_BITS = 70

export const isCopied = (hi: number): boolean => (hi & COPIED) !== 0
export const isCompressed = (hi: number): boolean => (hi & COMPRESSED) !== 0

/** Byte offset of the table or cluster that an L1 entry or a standard L2 entry says; 0: none. */
export const hostOffset = (hi: number, lo: number): number => (hi & OFFSET_HIGH) * WORD + ((lo & OFFSET_LOW) >>> 0)

/** Of an entry of the refcount table: 55 bits. */
export const blockOffset = (hi: number, lo: number): number => hi * WORD + ((lo & OFFSET_LOW) >>> 0)

/** Byte offset of a compressed cluster's first byte. It may be beyond 2^53: check it. */
export function compressedOffset(hi: number, lo: number, clusterBits: number): number {
  const highBits = COMPRESSED_BITS - clusterBits - 32
  return (hi & (2 ** highBits - 1)) * WORD + lo
}

/** How many sectors of a compressed cluster lie behind its first. */
export function compressedSectors(hi: number, clusterBits: number): number {
  return (hi & ~(COPIED | COMPRESSED)) >>> (COMPRESSED_BITS - clusterBits - 32)
}

/** Bytes from a compressed cluster's first one to the end of its last sector. */
export function compressedLength(hi: number, lo: number, clusterBits: number): number {
  const sectors = compressedSectors(hi, clusterBits) + 1
  return sectors * COMPRESSED_SECTOR - (lo % COMPRESSED_SECTOR)
}

/** Halves of an entry for a byte offset. */
export const highOf = (offset: number): number => Math.floor(offset / WORD)
export const lowOf = (offset: number): number => offset % WORD

/** The upper half of a compressed cluster's entry; the lower one is `lowOf(offset)`. `sectors`: those behind the first. */
export function compressedHigh(offset: number, sectors: number, clusterBits: number): number {
  return (COMPRESSED | (sectors << (COMPRESSED_BITS - clusterBits - 32)) | highOf(offset)) >>> 0
}

/** All of the 32 subclusters. */
export const ALL_SUBCLUSTERS = 0xffffffff

/** A bit for each of the subclusters `from` to below `to`. */
export function subclusterMask(from: number, to: number): number {
  if (to <= from) return 0
  return ((ALL_SUBCLUSTERS << from) & (ALL_SUBCLUSTERS >>> (32 - to))) >>> 0
}

/** How many bits are set from bit `from` on, without a gap. */
export function onesFrom(bits: number, from: number): number {
  // The lowest bit that is clear, counted from `from`; what is shifted in counts as set, and is cut off.
  const clear = ~(bits >> from)
  const run = clear === 0 ? 32 : 31 - Math.clz32(clear & -clear)
  return Math.min(run, 32 - from)
}
