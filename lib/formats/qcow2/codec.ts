/**
 * One cluster, compressed and decompressed: pure functions, of which every thread can make use. Deflate without headers
 * (QCOW2 calls it type 0, QEMU `zlib`), or zstd.
 */

import { constants, deflateRawSync, inflateRawSync } from 'node:zlib'
import { type Inflate, nativeInflate } from '../../native/deflate.js'
import { zstd } from './zstd.js'
import { frameAt } from './zstd-frame.js'

export type CompressionType = 'zlib' | 'zstd'

/** `compression_type` of the header. */
export const COMPRESSION_TYPES: readonly CompressionType[] = ['zlib', 'zstd']

/** Older readers have a window of 4 KiB only. */
const WINDOW_BITS_WRITTEN = 12
/** The most that deflate has: who wrote an image need not know of the smaller window. */
const WINDOW_BITS_READ = 15
const MEMORY_LEVEL = 9
/** A cluster is one frame; what splits it into more frames than this does so to take our time. */
const MAX_FRAMES = 16

/**
 * Compresses a whole cluster.
 * @returns what to store; undefined where that is not smaller than the cluster, which is then stored as it is
 */
export function compressCluster(data: Uint8Array, type: CompressionType): Uint8Array | undefined {
  if (type === 'zstd') return zstd().compress(data, data.length - 1)
  const out = deflateRawSync(data, {
    windowBits: WINDOW_BITS_WRITTEN,
    memLevel: MEMORY_LEVEL,
    level: constants.Z_DEFAULT_COMPRESSION,
  })
  return out.length < data.length ? out : undefined
}

/** Loads what a type needs. @throws INTERNAL and what loading a package throws: a fault of the installation. */
export function prepareCodec(type: CompressionType): void {
  if (type === 'zstd') zstd()
}

/**
 * Decompresses a whole cluster into `into`, which is as long as it. Bytes behind its end, which are other clusters', are
 * ignored.
 * @throws an Error where that does not fill it exactly; never more memory than that is used
 */
export function decompressCluster(stored: Uint8Array, into: Uint8Array, type: CompressionType): void {
  const length = type === 'zstd' ? decompressFrames(stored, into) : inflate(stored, into)
  if (length !== into.length) throw new Error(`it gives ${length} bytes, expected ${into.length}`)
}

/** The thread's faster way to decompress, where the system has one. */
let native: { readonly inflate: Inflate | undefined } | undefined

function inflate(stored: Uint8Array, into: Uint8Array): number {
  native ??= { inflate: nativeInflate() }
  return native.inflate?.(into, stored) ? into.length : inflateWithZlib(stored, into)
}

/** @returns how many bytes came out; all that there is room for, or fewer. @throws an Error where more come */
export function inflateWithZlib(stored: Uint8Array, into: Uint8Array): number {
  const out = inflateRawSync(stored, {
    windowBits: WINDOW_BITS_READ,
    maxOutputLength: into.length,
    chunkSize: Math.max(constants.Z_MIN_CHUNK, into.length),
    // A stream that ends without its end mark is whole when it has filled the cluster.
    finishFlush: constants.Z_SYNC_FLUSH,
  })
  into.set(out)
  return out.length
}

function decompressFrames(stored: Uint8Array, into: Uint8Array): number {
  const { decompress } = zstd()
  let filled = 0
  for (let at = 0, frames = 0; filled < into.length; frames++) {
    if (frames === MAX_FRAMES) throw new Error(`it has more than ${MAX_FRAMES} zstd frames`)
    const { length, skippable } = frameAt(stored, at)
    if (!skippable) filled += decompress(stored.subarray(at, at + length), into.subarray(filled))
    at += length
  }
  return filled
}
