/**
 * Serpent (Anderson, Biham and Knudsen, "Serpent: A Proposal for the Advanced Encryption Standard", 1998), which Node has
 * not and no npm package that is cared for. Bits of the same place in four words go through an S-box together: each box is
 * evaluated as sums of products of whole words, which are worked out from its table.
 */

import type { PlainCipher } from './block-cipher.js'

const BLOCK = 16
const ROUNDS = 32
const PHI = 0x9e3779b9 | 0

/** S0 to S7 (appendix A.5): what becomes of 0 to 15. */
const TABLES = [
  '38f1a65bed42709c',
  'fc27905a1be86d34',
  '8679 3caf d1e4 0b52',
  '0fb8c963d124a75e',
  '1f83c0b6254a9e7d',
  'f52b4a9c03e8d671',
  '72c5846be91fd3a0',
  '1df0e82b74ca9356',
].map((digits) => Array.from(digits.replaceAll(' ', ''), (digit) => Number.parseInt(digit, 16)))

type Words = [number, number, number, number]

/**
 * A box as sums of products (its algebraic normal form). Bit i of a number among `terms` says that word i is a factor of
 * that product; the terms of output word `bit` are those from `ends[bit - 1]` to `ends[bit]`.
 */
interface Box {
  readonly terms: Uint8Array
  readonly ends: readonly number[]
}

function makeBox(table: readonly number[]): Box {
  const terms: number[] = []
  const ends = [0, 1, 2, 3].map((bit) => {
    const sums = table.map((y) => (y >> bit) & 1)
    for (let factor = 1; factor < 16; factor <<= 1)
      for (let x = 0; x < 16; x++) if (x & factor) sums[x]! ^= sums[x ^ factor]!
    for (let x = 0; x < 16; x++) if (sums[x]) terms.push(x)
    return terms.length
  })
  return { terms: Uint8Array.from(terms), ends }
}

const inverse = (table: readonly number[]) => table.map((_, y) => table.indexOf(y))
const BOXES = TABLES.map(makeBox)
const INVERSE_BOXES = TABLES.map((table) => makeBox(inverse(table)))

/** All products of four words, by their factors; the product of none is all ones. */
const products = new Int32Array(16).fill(-1)

function substitute({ terms, ends }: Box, x: Int32Array): void {
  const p = products
  p[1] = x[0]!
  p[2] = x[1]!
  p[3] = x[0]! & x[1]!
  p[4] = x[2]!
  p[8] = x[3]!
  p[12] = x[2]! & x[3]!
  for (let i = 1; i < 4; i++) {
    p[4 + i] = p[4]! & p[i]!
    p[8 + i] = p[8]! & p[i]!
    p[12 + i] = p[12]! & p[i]!
  }
  for (let bit = 0, i = 0; bit < 4; bit++) {
    let sum = 0
    for (const end = ends[bit]!; i < end; i++) sum ^= p[terms[i]!]!
    x[bit] = sum
  }
}

const rol = (x: number, n: number) => (x << n) | (x >>> (32 - n))
const ror = (x: number, n: number) => (x >>> n) | (x << (32 - n))

/** The linear transformation of a round. */
function transform(x: Int32Array): void {
  let [a, b, c, d] = x as unknown as Words
  a = rol(a, 13)
  c = rol(c, 3)
  b = rol(b ^ a ^ c, 1)
  d = rol(d ^ c ^ (a << 3), 7)
  x[0] = rol(a ^ b ^ d, 5)
  x[1] = b
  x[2] = rol(c ^ d ^ (b << 7), 22)
  x[3] = d
}

function transformBack(x: Int32Array): void {
  let [a, b, c, d] = x as unknown as Words
  c = ror(c, 22) ^ d ^ (b << 7)
  a = ror(a, 5) ^ b ^ d
  d = ror(d, 7) ^ c ^ (a << 3)
  b = ror(b, 1) ^ a ^ c
  x[0] = ror(a, 13)
  x[1] = b
  x[2] = ror(c, 3)
  x[3] = d
}

/** The 33 round keys, of four words each. */
function expand(key: Uint8Array): Int32Array {
  const padded = new Uint8Array(32)
  padded.set(key)
  if (key.length < padded.length) padded[key.length] = 1
  const view = new DataView(padded.buffer)
  const prekeys = new Int32Array(8 + 4 * (ROUNDS + 1))
  for (let i = 0; i < 8; i++) prekeys[i] = view.getInt32(4 * i, true)
  for (let i = 8; i < prekeys.length; i++)
    prekeys[i] = rol(prekeys[i - 8]! ^ prekeys[i - 5]! ^ prekeys[i - 3]! ^ prekeys[i - 1]! ^ PHI ^ (i - 8), 11)
  const keys = prekeys.slice(8)
  for (let round = 0; round <= ROUNDS; round++)
    substitute(BOXES[(ROUNDS + 3 - round) % 8]!, keys.subarray(4 * round, 4 * round + 4))
  return keys
}

function addKey(x: Int32Array, keys: Int32Array, round: number): void {
  for (let i = 0; i < 4; i++) x[i]! ^= keys[4 * round + i]!
}

/** @param key 16, 24 or 32 bytes */
export function serpent(key: Uint8Array): PlainCipher {
  const keys = expand(key)
  const x = new Int32Array(4)
  const on = (bytes: Uint8Array, at: number, work: () => void) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset + at, BLOCK)
    for (let i = 0; i < 4; i++) x[i] = view.getInt32(4 * i, true)
    work()
    for (let i = 0; i < 4; i++) view.setInt32(4 * i, x[i]!, true)
  }
  const encrypt = () => {
    for (let round = 0; round < ROUNDS; round++) {
      addKey(x, keys, round)
      substitute(BOXES[round % 8]!, x)
      if (round < ROUNDS - 1) transform(x)
    }
    addKey(x, keys, ROUNDS)
  }
  const decrypt = () => {
    addKey(x, keys, ROUNDS)
    for (let round = ROUNDS - 1; round >= 0; round--) {
      if (round < ROUNDS - 1) transformBack(x)
      substitute(INVERSE_BOXES[round % 8]!, x)
      addKey(x, keys, round)
    }
  }
  return {
    blockSize: BLOCK,
    encryptBlock: (bytes, at) => on(bytes, at, encrypt),
    decryptBlock: (bytes, at) => on(bytes, at, decrypt),
  }
}
