/**
 * What was asked of a mount, and how long it took: counts, bytes and a histogram of times for each kind of request. Each
 * thread has its own part of the shared memory and writes there without any ado; who reads adds the parts up.
 */

/** Kinds of requests, whatever the transport calls them. What is about names and attributes is `other`. */
export const REQUEST_KINDS = ['read', 'write', 'zero', 'seek', 'sync', 'other'] as const
export type RequestKindName = (typeof REQUEST_KINDS)[number]
/** The number of each. */
export const RequestKind = { READ: 0, WRITE: 1, ZERO: 2, SEEK: 3, SYNC: 4, OTHER: 5 } as const

/** Numbers of a kind; buckets follow. */
const COUNT = 0
const FAILED = 1
const BYTES = 2
const TOTAL_MS = 3
const MAX_MS = 4
const FIRST_BUCKET = 5
/** Bucket n counts times below 2^n microseconds, and from 2^(n−1) on; the last one, 16 seconds and more. */
const BUCKETS = 25
const PER_KIND = FIRST_BUCKET + BUCKETS
/** A multiple of a cache line, so that threads do not disturb each other. */
const PER_THREAD = Math.ceil((PER_KIND * REQUEST_KINDS.length) / 8) * 8

const MICROSECONDS = 1000

/** One thread's part. */
export class RequestRecorder {
  readonly #numbers: Float64Array

  /** Memory for threads with the numbers 0 to `threads` − 1. */
  static allocate(threads: number): SharedArrayBuffer {
    return new SharedArrayBuffer(threads * PER_THREAD * Float64Array.BYTES_PER_ELEMENT)
  }

  constructor(shared: SharedArrayBuffer, thread: number) {
    this.#numbers = new Float64Array(shared, thread * PER_THREAD * Float64Array.BYTES_PER_ELEMENT, PER_THREAD)
  }

  /**
   * Counts one request.
   * @param kind of RequestKind
   * @param bytes moved, or zeroed
   * @param ms from taking the request to having answered it
   */
  record(kind: number, bytes: number, ms: number, failed: boolean): void {
    const n = this.#numbers
    const at = kind * PER_KIND
    n[at + COUNT]!++
    if (failed) n[at + FAILED]!++
    n[at + BYTES]! += bytes
    n[at + TOTAL_MS]! += ms
    if (ms > n[at + MAX_MS]!) n[at + MAX_MS] = ms
    n[at + FIRST_BUCKET + bucketOf(ms)]!++
  }
}

function bucketOf(ms: number): number {
  const bits = 32 - Math.clz32(Math.min(ms * MICROSECONDS, 0xffff_ffff))
  return bits < BUCKETS ? bits : BUCKETS - 1
}

/** What all threads together have counted of one kind. */
export interface RequestSummary {
  readonly kind: RequestKindName
  readonly count: number
  readonly failed: number
  readonly bytes: number
  /** Milliseconds, all in all and at most. */
  readonly totalMs: number
  readonly maxMs: number
  /** Requests that took less than 2^index microseconds, and no less than half of that. */
  readonly histogram: readonly number[]
}

/** The sums over all threads, of the kinds that occurred. */
export function summarizeRequests(shared: SharedArrayBuffer): RequestSummary[] {
  const all = new Float64Array(shared)
  return REQUEST_KINDS.map((kind, index) => {
    const sums = new Array<number>(PER_KIND).fill(0)
    let maxMs = 0
    for (let at = index * PER_KIND; at < all.length; at += PER_THREAD) {
      for (let i = 0; i < PER_KIND; i++) sums[i]! += all[at + i]!
      maxMs = Math.max(maxMs, all[at + MAX_MS]!)
    }
    return {
      kind,
      count: sums[COUNT]!,
      failed: sums[FAILED]!,
      bytes: sums[BYTES]!,
      totalMs: sums[TOTAL_MS]!,
      maxMs,
      histogram: sums.slice(FIRST_BUCKET),
    }
  }).filter(({ count }) => count > 0)
}

/** The time, in microseconds, below which a part (0 to 1) of the requests stayed: the upper end of its bucket. */
export function quantile({ count, histogram }: RequestSummary, part: number): number {
  let seen = 0
  for (const [index, n] of histogram.entries()) {
    seen += n
    if (seen >= count * part) return 2 ** index
  }
  return 2 ** (BUCKETS - 1)
}
