/**
 * Encryption of sectors by number, as LUKS and dm-crypt describe it: a cipher (`aes`), and a mode with the generator of its
 * initialization vectors (`xts-plain64`, `cbc-essiv:sha256`).
 */

import { createHash } from 'node:crypto'
import { hasCipher, makeCipher } from './block-cipher.js'
import { MODES, type Mode, SECTOR } from './modes.js'

/** How data is encrypted; all but the key. */
export interface CipherSpec {
  /** `aes`, `serpent`, `twofish`, `cast5`. */
  readonly cipher: string
  /** `xts`, `cbc`, `ctr`, `ecb`. */
  readonly mode: string
  /** `plain`, `plain64`, `essiv`. */
  readonly ivGenerator: string
  /** Of `essiv`; with the others it has no meaning. */
  readonly ivHash: string | undefined
  /** Bytes of the key. */
  readonly keySize: number
}

/** The hashes that QEMU has for LUKS: name, and bytes of a digest. */
export const HASHES: Readonly<Record<string, number>> = {
  md5: 16,
  sha1: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
  ripemd160: 20,
}

export const IV_GENERATORS = ['plain', 'plain64', 'essiv']
const XTS_BLOCK_CIPHER_ONLY = ['aes', 'serpent', 'twofish']
const has = (table: object, name: string) => Object.hasOwn(table, name)

/** What of it is not known, as text; undefined where all is. */
export function unknownPart(spec: CipherSpec): string | undefined {
  const { cipher, mode, ivGenerator, ivHash, keySize } = spec
  if (!has(MODES, mode)) return `the mode '${mode}'`
  const cipherKey = keySize / MODES[mode]!.keys
  if (!hasCipher(cipher, cipherKey)) return `the cipher '${cipher}' with a key of ${cipherKey} bytes`
  if (mode === 'xts' && !XTS_BLOCK_CIPHER_ONLY.includes(cipher)) return `the cipher '${cipher}' in mode xts`
  if (!IV_GENERATORS.includes(ivGenerator)) return `the IV generator '${ivGenerator}'`
  if (ivGenerator !== 'essiv') return undefined
  if (ivHash === undefined || !has(HASHES, ivHash)) return `the hash '${ivHash ?? ''}' of the IV generator`
  if (!hasCipher(cipher, HASHES[ivHash]!)) return `the cipher '${cipher}' with a key of ${HASHES[ivHash]} bytes (essiv)`
  return undefined
}

/** Writes the initialization vectors of sectors that follow each other. */
type IvGenerator = (ivs: Uint8Array, ivSize: number, first: number) => Uint8Array

/** The number of the sector, little-endian, in so many of its bytes. */
function numbers(bytes: 4 | 8): IvGenerator {
  return (ivs, ivSize, first) => {
    const view = new DataView(ivs.buffer)
    for (let at = 0, sector = first; at < ivs.length; at += ivSize, sector++) {
      view.setUint32(at, sector % 2 ** 32, true)
      if (bytes === 8) view.setUint32(at + 4, Math.floor(sector / 2 ** 32), true)
    }
    return ivs
  }
}

function generator({ cipher, ivGenerator, ivHash }: CipherSpec, key: Uint8Array): IvGenerator {
  if (ivGenerator !== 'essiv') return numbers(ivGenerator === 'plain' ? 4 : 8)
  // The hash of the key is a key by itself, which decides on the variant of the cipher.
  const salted = makeCipher(cipher, createHash(ivHash!).update(key).digest())
  const plain = numbers(8)
  return (ivs, ivSize, first) => salted.encrypt(plain(ivs, ivSize, first))
}

/** Bytes that go through the cipher together: as many as stay in a core's cache. */
const BATCH = 128 * SECTOR

/** Encrypts and decrypts whole sectors in place. */
export class NumberedSectors {
  readonly #mode: Mode
  readonly #ivs: IvGenerator

  /** @param spec one of which all parts are known. The key has `spec.keySize` bytes. */
  constructor(spec: CipherSpec, key: Uint8Array) {
    this.#mode = MODES[spec.mode]!.make(spec.cipher, key)
    this.#ivs = generator(spec, key)
  }

  /** `length` bytes of `buffer` from index `at` on, which are the sectors from number `first` on. */
  encrypt(buffer: Uint8Array, at: number, length: number, first: number): void {
    this.#each(buffer, at, length, first, (data, ivs) => this.#mode.encrypt(data, ivs))
  }

  /** As `encrypt`. */
  decrypt(buffer: Uint8Array, at: number, length: number, first: number): void {
    this.#each(buffer, at, length, first, (data, ivs) => this.#mode.decrypt(data, ivs))
  }

  #each(
    buffer: Uint8Array,
    at: number,
    length: number,
    first: number,
    work: (data: Uint8Array, ivs: Uint8Array) => void,
  ): void {
    const { ivSize } = this.#mode
    for (let done = 0; done < length; done += BATCH) {
      const n = Math.min(length - done, BATCH)
      const ivs = new Uint8Array((n / SECTOR) * ivSize)
      const filled = ivSize === 0 ? ivs : this.#ivs(ivs, ivSize, first + done / SECTOR)
      work(buffer.subarray(at + done, at + done + n), filled)
    }
  }
}
