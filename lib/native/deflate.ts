/**
 * The system's libdeflate, where there is one (libtiff brings it): it decompresses twice as fast as zlib. What it refuses
 * is not always wrong, as zlib takes streams that lack their end.
 */

import { openLibrary } from './libc.js'

const FILE = 'libdeflate.so.0'
const SUCCESS = 0

/** Decompresses raw deflate so that it fills `to` exactly; what is behind the stream's end is ignored. False: it does not. */
export type Inflate = (to: Uint8Array, from: Uint8Array) => boolean

/** The calling thread's. Undefined where there is none. */
export function nativeInflate(): Inflate | undefined {
  const bind = openLibrary(FILE)
  if (!bind) return undefined
  try {
    const inflate = bind(
      'int libdeflate_deflate_decompress(void *d, const void *from, size_t length, void *to, size_t room, void *actual)',
    )
    // Never freed: each thread has one as long as it lives.
    const decompressor: unknown = bind('void *libdeflate_alloc_decompressor()')()
    if (!decompressor) return undefined
    return (to, from) => inflate(decompressor, from, from.length, to, to.length, null) === SUCCESS
  } catch {
    return undefined
  }
}
