/**
 * Modes of operation over sectors, each of which begins anew with its own initialization vector: XTS (IEEE 1619), CBC, CTR
 * and ECB. All blocks of many sectors go through the cipher together.
 */

import { type BlockCipher, makeCipher } from './block-cipher.js'

export const SECTOR = 512

/** Encrypts or decrypts whole sectors in place; `ivs` has one initialization vector a sector, of `ivSize` bytes. */
export interface Mode {
  readonly ivSize: number
  encrypt(data: Uint8Array, ivs: Uint8Array): void
  decrypt(data: Uint8Array, ivs: Uint8Array): void
}

const words = (bytes: Uint8Array) => new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)

/** A copy of bytes that can be seen as words, whatever they are a part of. */
function aligned(bytes: Uint8Array): Uint8Array {
  return bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes)
}

function xor(target: Int32Array, other: Int32Array): void {
  for (let i = 0; i < target.length; i++) target[i]! ^= other[i]!
}

const XTS_BLOCK = 16
const XTS_WORDS = XTS_BLOCK / 4
/** x^128 = x^7 + x^2 + x + 1. */
const XTS_POLYNOMIAL = 0x87

/**
 * Adds to every block its tweak, and keeps the tweaks: the first one of a sector is given, each other is the one before times
 * x.
 */
function addTweaks(blocks: Int32Array, tweaks: Int32Array, first: Int32Array, count: number): void {
  for (let s = 0, i = 0; i < count; s += XTS_WORDS) {
    let a = first[s]!
    let b = first[s + 1]!
    let c = first[s + 2]!
    let d = first[s + 3]!
    for (const end = i + SECTOR / 4; i < end; i += XTS_WORDS) {
      tweaks[i] = a
      tweaks[i + 1] = b
      tweaks[i + 2] = c
      tweaks[i + 3] = d
      blocks[i]! ^= a
      blocks[i + 1]! ^= b
      blocks[i + 2]! ^= c
      blocks[i + 3]! ^= d
      const carry = d >> 31
      d = (d << 1) | (c >>> 31)
      c = (c << 1) | (b >>> 31)
      b = (b << 1) | (a >>> 31)
      a = (a << 1) ^ (carry & XTS_POLYNOMIAL)
    }
  }
}

function xts(name: string, key: Uint8Array): Mode {
  const half = key.length / 2
  const cipher = makeCipher(name, key.subarray(0, half))
  const tweaker = makeCipher(name, key.subarray(half))
  let blocks = new Int32Array(0)
  let tweaks = new Int32Array(0)
  let bytes = new Uint8Array(0)
  const run = (data: Uint8Array, ivs: Uint8Array, work: (blocks: Uint8Array) => Uint8Array) => {
    const count = data.length / 4
    if (blocks.length < count) {
      blocks = new Int32Array(count)
      tweaks = new Int32Array(count)
      bytes = new Uint8Array(blocks.buffer)
    }
    bytes.set(data)
    addTweaks(blocks, tweaks, words(aligned(tweaker.encrypt(ivs))), count)
    const out = aligned(work(bytes.subarray(0, data.length)))
    xor(words(out), tweaks)
    data.set(out)
  }
  return {
    ivSize: XTS_BLOCK,
    encrypt: (data, ivs) => run(data, ivs, (all) => cipher.encrypt(all)),
    decrypt: (data, ivs) => run(data, ivs, (all) => cipher.decrypt(all)),
  }
}

function cbc(name: string, key: Uint8Array): Mode {
  const cipher = makeCipher(name, key)
  const { blockSize } = cipher
  /** What the endless chain of the cipher went on from: taken out again where a sector begins. */
  const last = new Uint8Array(blockSize)
  return {
    ivSize: blockSize,
    encrypt(data, ivs) {
      for (let at = 0, iv = 0; at < data.length; at += SECTOR, iv += blockSize) {
        const sector = new Uint8Array(data.subarray(at, at + SECTOR))
        for (let i = 0; i < blockSize; i++) sector[i]! ^= ivs[iv + i]! ^ last[i]!
        const out = cipher.chain(sector)
        last.set(out.subarray(SECTOR - blockSize))
        data.set(out, at)
      }
    },
    decrypt(data, ivs) {
      const before = new Uint8Array(data.length)
      before.set(data.subarray(0, -blockSize), blockSize)
      for (let at = 0, iv = 0; at < data.length; at += SECTOR, iv += blockSize)
        before.set(ivs.subarray(iv, iv + blockSize), at)
      const out = aligned(cipher.decrypt(new Uint8Array(data)))
      xor(words(out), words(before))
      data.set(out)
    },
  }
}

/** Adds 1 to the big-endian number in front of index `end`. */
function increment(bytes: Uint8Array, start: number, end: number): void {
  for (let i = end - 1; i >= start; i--) {
    bytes[i]!++
    if (bytes[i] !== 0) return
  }
}

function ctr(name: string, key: Uint8Array): Mode {
  const cipher = makeCipher(name, key)
  const { blockSize } = cipher
  const run = (data: Uint8Array, ivs: Uint8Array) => {
    const counters = new Uint8Array(data.length)
    for (let at = 0; at < data.length; at += blockSize) {
      if (at % SECTOR === 0) counters.set(ivs.subarray((at / SECTOR) * blockSize, (at / SECTOR + 1) * blockSize), at)
      else {
        counters.copyWithin(at, at - blockSize, at)
        increment(counters, at, at + blockSize)
      }
    }
    const stream = cipher.encrypt(counters)
    for (let i = 0; i < data.length; i++) data[i]! ^= stream[i]!
  }
  return { ivSize: blockSize, encrypt: run, decrypt: run }
}

function ecb(name: string, key: Uint8Array): Mode {
  const cipher: BlockCipher = makeCipher(name, key)
  return {
    ivSize: 0,
    encrypt: (data) => data.set(cipher.encrypt(new Uint8Array(data))),
    decrypt: (data) => data.set(cipher.decrypt(new Uint8Array(data))),
  }
}

/** By the names that LUKS has for them. `keys`: how many keys of the cipher one of the mode is. */
export const MODES: Readonly<Record<string, { readonly keys: number; make(cipher: string, key: Uint8Array): Mode }>> = {
  xts: { keys: 2, make: xts },
  cbc: { keys: 1, make: cbc },
  ctr: { keys: 1, make: ctr },
  ecb: { keys: 1, make: ecb },
}
