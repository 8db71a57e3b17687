/** The system's zstd library, which nearly every Linux has: a part of its package manager, systemd or curl. */

import { openLibrary } from './libc.js'

/** Two buffers; as much of the first as is asked for. */
export interface NativeZstd {
  /** @returns the bytes that came out; undefined where it is no sound frame, or more come than `to` has room for */
  decompress(to: Uint8Array, from: Uint8Array): number | undefined
  /** @returns the bytes of the frame; undefined where `to` has no room for it */
  compress(to: Uint8Array, from: Uint8Array, level: number): number | undefined
}

const FILE = 'libzstd.so.1'

/** The calling thread's. Undefined where there is none. */
export function nativeZstd(): NativeZstd | undefined {
  const bind = openLibrary(FILE)
  if (!bind) return undefined
  try {
    const isError = bind('unsigned int ZSTD_isError(size_t code)')
    const decompress = bind(
      'size_t ZSTD_decompressDCtx(void *d, void *to, size_t room, const void *from, size_t length)',
    )
    const compress = bind(
      'size_t ZSTD_compressCCtx(void *c, void *to, size_t room, const void *from, size_t length, int level)',
    )
    // Never freed: each thread has one of each as long as it lives.
    const decompressor: unknown = bind('void *ZSTD_createDCtx()')()
    const compressor: unknown = bind('void *ZSTD_createCCtx()')()
    if (!decompressor || !compressor) return undefined
    const lengthOf = (code: number | bigint) => (isError(code) ? undefined : Number(code))
    return {
      decompress: (to, from) => lengthOf(decompress(decompressor, to, to.length, from, from.length)),
      compress: (to, from, level) => lengthOf(compress(compressor, to, to.length, from, from.length, level)),
    }
  } catch {
    return undefined
  }
}
