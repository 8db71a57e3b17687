/**
 * Zstandard, synchronously: the system's library, which is the fastest; where there is none, Node's own (22.15 and later);
 * where there is none either, the library compiled to WebAssembly, from the package @bokuweb/zstd-wasm. Loaded with the
 * first cluster that needs it. binding-notes.md says why it is that package.
 */

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import zlib from 'node:zlib'
import { nativeZstd } from '../../native/zstd.js'
import { VdiskError } from '../../util/errors.js'

export interface Zstd {
  /**
   * One whole frame, which gives at most what `to` has room for.
   * @returns how many bytes that was; not all where the frame is cut off
   * @throws an Error where it is not sound, or more come
   */
  decompress(frame: Uint8Array, to: Uint8Array): number
  /** One frame of all of `data`; undefined where it would take more than `capacity` bytes. */
  compress(data: Uint8Array, capacity: number): Uint8Array | undefined
}

/** What Node 22.15 added to node:zlib; its types are of a later version than ours. */
interface ZstdOfNode {
  zstdCompressSync(data: Uint8Array, options: object): Uint8Array
  zstdDecompressSync(data: Uint8Array, options: object): Uint8Array
  constants: { ZSTD_c_compressionLevel: number; ZSTD_d_windowLogMax: number }
}

/** The level that zstd(1), and QEMU, use by default. */
const LEVEL = 3
/** 8 MiB, what RFC 8878 (3.1.1.1.2) asks decoders to support at least; a hostile frame gets no larger window. */
const WINDOW_LOG_MAX = 23

function fromNode(): Zstd | undefined {
  if (!('zstdDecompressSync' in zlib)) return undefined
  const node = zlib as unknown as ZstdOfNode
  const { ZSTD_c_compressionLevel, ZSTD_d_windowLogMax } = node.constants
  return {
    decompress(frame, to) {
      const out = node.zstdDecompressSync(frame, {
        maxOutputLength: to.length,
        chunkSize: Math.max(zlib.constants.Z_MIN_CHUNK, to.length),
        params: { [ZSTD_d_windowLogMax]: WINDOW_LOG_MAX },
      })
      to.set(out)
      return out.length
    },
    compress(data, capacity) {
      const params = { [ZSTD_c_compressionLevel]: LEVEL }
      // The size goes into the frame, so that who reads it knows how large a buffer it needs.
      const out = node.zstdCompressSync(data, { params, pledgedSrcSize: data.length })
      return out.length > capacity ? undefined : out
    },
  }
}

function fromSystem(): Zstd | undefined {
  const native = nativeZstd()
  return (
    native && {
      decompress(frame, to) {
        const length = native.decompress(to, frame)
        if (length === undefined) throw new Error('zstd cannot decompress it')
        return length
      },
      compress(data, capacity) {
        const out = new Uint8Array(capacity)
        const length = native.compress(out, data, LEVEL)
        return length === undefined ? undefined : out.slice(0, length)
      },
    }
  )
}

/** What of WebAssembly is used here; Node's types have none of it. */
declare const WebAssembly: {
  Module: new (bytes: Uint8Array) => object
  Instance: new (module: object, imports: object) => object
}

/** The parts of the C library that the package's module shows: addresses are offsets in its memory. */
interface WasmModule {
  instantiateWasm: (imports: object, done: (instance: object) => unknown) => unknown
  init(): void
  readonly HEAPU8: Uint8Array
  _malloc(size: number): number
  _ZSTD_compressBound(size: number): number
  _ZSTD_compress(to: number, capacity: number, from: number, length: number, level: number): number
  _ZSTD_decompress(to: number, capacity: number, from: number, length: number): number
  _ZSTD_isError(code: number): number
}

/** A buffer in the module's memory that grows with what it has to hold. */
class Scratch {
  readonly #module: WasmModule
  #address = 0
  #size = 0

  constructor(module: WasmModule) {
    this.#module = module
  }

  /** The address of room for `size` bytes; what an earlier call returned may be gone. */
  room(size: number): number {
    if (size > this.#size) {
      // Never freed: a thread sees few sizes, each a multiple of the one before.
      this.#size = 2 ** Math.ceil(Math.log2(size))
      this.#address = this.#module._malloc(this.#size)
      if (this.#address === 0) throw new VdiskError('INTERNAL', `no memory for ${this.#size} bytes of zstd`)
    }
    return this.#address
  }
}

/** The module as the package loads it, but without a promise: emscripten lets the caller instantiate. */
function instantiate(): WasmModule {
  const require = createRequire(import.meta.url)
  const folder = dirname(require.resolve('@bokuweb/zstd-wasm'))
  const { Module: module } = require(join(folder, 'zstd.js')) as { Module: WasmModule }
  module.instantiateWasm = (imports, done) =>
    done(new WebAssembly.Instance(new WebAssembly.Module(readFileSync(join(folder, 'zstd.wasm'))), imports))
  module.init()
  return module
}

function fromWasm(): Zstd {
  const module = instantiate()
  const input = new Scratch(module)
  const output = new Scratch(module)
  const run = (data: Uint8Array, capacity: number, work: (to: number, from: number) => number) => {
    const [from, to] = [input.room(data.length), output.room(capacity)]
    module.HEAPU8.set(data, from)
    const length = work(to, from)
    return module._ZSTD_isError(length) ? undefined : module.HEAPU8.subarray(to, to + length)
  }
  return {
    decompress(frame, to) {
      const room = to.length
      const out = run(frame, room, (at, from) => module._ZSTD_decompress(at, room, from, frame.length))
      if (!out) throw new Error('zstd cannot decompress it')
      to.set(out)
      return out.length
    },
    compress(data, capacity) {
      const bound = module._ZSTD_compressBound(data.length)
      const out = run(data, bound, (to, from) => module._ZSTD_compress(to, bound, from, data.length, LEVEL))
      return out && out.length <= capacity ? out.slice() : undefined
    },
  }
}

/** The three of them, for tests. */
export const implementations = { fromNode, fromSystem, packagedZstd }

let wasm: Zstd | undefined
let best: Zstd | undefined

/** The package's zstd, of the calling thread. The package has one instance only. */
export function packagedZstd(): Zstd {
  wasm ??= fromWasm()
  return wasm
}

/** The calling thread's zstd. */
export function zstd(): Zstd {
  best ??= fromSystem() ?? fromNode() ?? packagedZstd()
  return best
}
