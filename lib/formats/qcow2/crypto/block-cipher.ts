/**
 * Block ciphers by the names that LUKS has for them. Many blocks at a time, each by itself: what modes are made of, and
 * with Node's own AES the only fast way, since a cipher object for every sector would cost more than the sector.
 */

import { createCipheriv, createDecipheriv } from 'node:crypto'
import { VdiskError } from '../../../util/errors.js'
import { cast5 } from './cast5.js'
import { serpent } from './serpent.js'
import { twofish } from './twofish.js'

/** A cipher with a key. What is handed in is whole blocks; it may be changed, and be what is returned. */
export interface BlockCipher {
  /** Bytes. */
  readonly blockSize: number
  /** Every block by itself. */
  encrypt(blocks: Uint8Array): Uint8Array
  decrypt(blocks: Uint8Array): Uint8Array
  /** All blocks since the beginning as one chain (CBC), which began with zeros. */
  chain(blocks: Uint8Array): Uint8Array
}

/** A cipher in our own words: it works on one block, in place. */
export interface PlainCipher {
  readonly blockSize: number
  encryptBlock(bytes: Uint8Array, at: number): void
  decryptBlock(bytes: Uint8Array, at: number): void
}

interface Algorithm {
  readonly keySizes: readonly number[]
  make(key: Uint8Array): BlockCipher
}

const AES_BLOCK = 16
const LARGE_KEYS = [16, 24, 32]

function aes(key: Uint8Array): BlockCipher {
  const name = `aes-${8 * key.length}`
  // Without padding all that goes in comes out at once, however often that is.
  const encryptor = createCipheriv(`${name}-ecb`, key, null).setAutoPadding(false)
  const decryptor = createDecipheriv(`${name}-ecb`, key, null).setAutoPadding(false)
  const chained = createCipheriv(`${name}-cbc`, key, new Uint8Array(AES_BLOCK)).setAutoPadding(false)
  return {
    blockSize: AES_BLOCK,
    encrypt: (blocks) => encryptor.update(blocks),
    decrypt: (blocks) => decryptor.update(blocks),
    chain: (blocks) => chained.update(blocks),
  }
}

function fromPlain(cipher: PlainCipher): BlockCipher {
  const { blockSize } = cipher
  const last = new Uint8Array(blockSize)
  return {
    blockSize,
    encrypt(blocks) {
      for (let at = 0; at < blocks.length; at += blockSize) cipher.encryptBlock(blocks, at)
      return blocks
    },
    decrypt(blocks) {
      for (let at = 0; at < blocks.length; at += blockSize) cipher.decryptBlock(blocks, at)
      return blocks
    },
    chain(blocks) {
      for (let at = 0; at < blocks.length; at += blockSize) {
        for (let i = 0; i < blockSize; i++) blocks[at + i]! ^= last[i]!
        cipher.encryptBlock(blocks, at)
        for (let i = 0; i < blockSize; i++) last[i] = blocks[at + i]!
      }
      return blocks
    },
  }
}

const ALGORITHMS: Readonly<Record<string, Algorithm>> = {
  aes: { keySizes: LARGE_KEYS, make: aes },
  serpent: { keySizes: LARGE_KEYS, make: (key) => fromPlain(serpent(key)) },
  twofish: { keySizes: LARGE_KEYS, make: (key) => fromPlain(twofish(key)) },
  cast5: { keySizes: [16], make: (key) => fromPlain(cast5(key)) },
}

/** Whether a cipher is known, and with a key of so many bytes. */
export function hasCipher(name: string, keySize: number): boolean {
  return Object.hasOwn(ALGORITHMS, name) && ALGORITHMS[name]!.keySizes.includes(keySize)
}

/** @throws INTERNAL for what `hasCipher` does not know */
export function makeCipher(name: string, key: Uint8Array): BlockCipher {
  if (!hasCipher(name, key.length))
    throw new VdiskError('INTERNAL', `no cipher ${name} with ${key.length} bytes of key`)
  return ALGORITHMS[name]!.make(key)
}
