/**
 * Twofish (Schneier and others, "Twofish: A 128-Bit Block Cipher", 1998), which Node has not and no npm package that is
 * cared for. Names are the paper's. Its key-dependent S-boxes are worked out with the key, together with the MDS matrix.
 */

import type { PlainCipher } from './block-cipher.js'

const BLOCK = 16
const ROUNDS = 16
/** Multiplied with it, a number fills every byte of a word with itself. */
const RHO = 0x01010101
const MDS_POLYNOMIAL = 0x169
const RS_POLYNOMIAL = 0x14d

/** The 4-bit permutations t0 to t3 of which q0 and q1 are made (4.3.5). */
const T0 = ['817d6f320b59eca4', 'ecb81235f4a6709d', 'ba5e6d90c8f32471', 'd7f4126e9b3085ca']
const T1 = ['28bdf76e31940ac5', '1e2b4c376da5f908', '4c75169a0ed82b3f', 'b951c3de647f208a']

const MDS = [
  [0x01, 0xef, 0x5b, 0x5b],
  [0x5b, 0xef, 0xef, 0x01],
  [0xef, 0x5b, 0x01, 0xef],
  [0xef, 0x01, 0xef, 0x5b],
]

const RS = [
  [0x01, 0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e],
  [0xa4, 0x56, 0x82, 0xf3, 0x1e, 0xc6, 0x68, 0xe5],
  [0x02, 0xa1, 0xfc, 0xc1, 0x47, 0xae, 0x3d, 0x19],
  [0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e, 0x03],
]

const rol = (x: number, n: number) => (x << n) | (x >>> (32 - n))

function makeQ(tables: readonly string[]): Uint8Array {
  const [t0, t1, t2, t3] = tables.map((digits) => Array.from(digits, (digit) => Number.parseInt(digit, 16)))
  const mix = (a: number, b: number) => [a ^ b, (a ^ ((b >> 1) | (b << 3)) ^ (a << 3)) & 15] as const
  return Uint8Array.from({ length: 256 }, (_, x) => {
    const [a1, b1] = mix(x >> 4, x & 15)
    const [a3, b3] = mix(t0![a1]!, t1![b1]!)
    return (t3![b3]! << 4) | t2![a3]!
  })
}

const Q0 = makeQ(T0)
const Q1 = makeQ(T1)

/** Product in GF(2^8). */
function multiply(a: number, b: number, polynomial: number): number {
  let product = 0
  for (let x = a, y = b; y > 0; y >>= 1) {
    if (y & 1) product ^= x
    x <<= 1
    if (x & 0x100) x ^= polynomial
  }
  return product
}

/** What byte `y` in place `column` adds to the product with the MDS matrix. */
function mdsColumn(column: number, y: number): number {
  return MDS.reduce((word, row, i) => word | (multiply(row[column]!, y, MDS_POLYNOMIAL) << (8 * i)), 0)
}
const MDS_COLUMNS = [0, 1, 2, 3].map((column) => Int32Array.from({ length: 256 }, (_, y) => mdsColumn(column, y)))

/** The permutations that a byte goes through in h, by its place, the last one first (4.3.2). */
const H_ORDER = [
  [Q1, Q0, Q0, Q1, Q1],
  [Q0, Q0, Q1, Q1, Q0],
  [Q1, Q1, Q0, Q0, Q0],
  [Q0, Q1, Q1, Q0, Q1],
]

/** One byte through h, before the MDS matrix; `list` has words of the key, the first of which comes last. */
function hByte(x: number, place: number, list: readonly number[]): number {
  const order = H_ORDER[place]!
  let y = x
  for (let i = list.length; i > 0; i--) y = order[i]![y]! ^ ((list[i - 1]! >>> (8 * place)) & 255)
  return order[0]![y]!
}

function h(x: number, list: readonly number[]): number {
  return MDS_COLUMNS.reduce((sum, column, place) => sum ^ column[hByte((x >>> (8 * place)) & 255, place, list)]!, 0)
}

/** The word of S that 8 bytes of the key give (4.3). */
function rsWord(key: Uint8Array, at: number): number {
  return RS.reduce((word, row, i) => {
    const byte = row.reduce((sum, factor, j) => sum ^ multiply(factor, key[at + j]!, RS_POLYNOMIAL), 0)
    return word | (byte << (8 * i))
  }, 0)
}

function expand(key: Uint8Array) {
  const view = new DataView(key.buffer, key.byteOffset, key.length)
  const pairs = Array.from({ length: key.length / 8 }, (_, i) => i)
  const even = pairs.map((i) => view.getInt32(8 * i, true))
  const odd = pairs.map((i) => view.getInt32(8 * i + 4, true))
  const s = pairs.map((i) => rsWord(key, 8 * i)).reverse()
  const subkeys = new Int32Array(8 + 2 * ROUNDS)
  for (let i = 0; i < subkeys.length; i += 2) {
    const a = h(Math.imul(i, RHO), even)
    const b = rol(h(Math.imul(i + 1, RHO), odd), 8)
    subkeys[i] = a + b
    subkeys[i + 1] = rol((a + 2 * b) | 0, 9)
  }
  const boxes = MDS_COLUMNS.map((column, place) =>
    Int32Array.from({ length: 256 }, (_, x) => column[hByte(x, place, s)]!),
  )
  return { subkeys, boxes: boxes as [Int32Array, Int32Array, Int32Array, Int32Array] }
}

/** @param key 16, 24 or 32 bytes */
export function twofish(key: Uint8Array): PlainCipher {
  const {
    subkeys: k,
    boxes: [s0, s1, s2, s3],
  } = expand(key)
  const g = (x: number) => s0[x & 255]! ^ s1[(x >>> 8) & 255]! ^ s2[(x >>> 16) & 255]! ^ s3[x >>> 24]!
  return {
    blockSize: BLOCK,
    encryptBlock(bytes, at) {
      const view = new DataView(bytes.buffer, bytes.byteOffset + at, BLOCK)
      let [a, b, c, d] = [0, 4, 8, 12].map((i) => view.getInt32(i, true) ^ k[i / 4]!) as [
        number,
        number,
        number,
        number,
      ]
      for (let r = 0; r < ROUNDS; r++) {
        const t0 = g(a)
        const t1 = g(rol(b, 8))
        const [f0, f1] = [(t0 + t1 + k[2 * r + 8]!) | 0, (t0 + 2 * t1 + k[2 * r + 9]!) | 0]
        const [newA, newB] = [rol(c ^ f0, 31), rol(d, 1) ^ f1]
        c = a
        d = b
        a = newA
        b = newB
      }
      view.setInt32(0, c ^ k[4]!, true)
      view.setInt32(4, d ^ k[5]!, true)
      view.setInt32(8, a ^ k[6]!, true)
      view.setInt32(12, b ^ k[7]!, true)
    },
    decryptBlock(bytes, at) {
      const view = new DataView(bytes.buffer, bytes.byteOffset + at, BLOCK)
      let [c, d, a, b] = [0, 4, 8, 12].map((i) => view.getInt32(i, true) ^ k[4 + i / 4]!) as [
        number,
        number,
        number,
        number,
      ]
      for (let r = ROUNDS - 1; r >= 0; r--) {
        const t0 = g(c)
        const t1 = g(rol(d, 8))
        const [f0, f1] = [(t0 + t1 + k[2 * r + 8]!) | 0, (t0 + 2 * t1 + k[2 * r + 9]!) | 0]
        const [oldC, oldD] = [rol(a, 1) ^ f0, rol(b ^ f1, 31)]
        a = c
        b = d
        c = oldC
        d = oldD
      }
      view.setInt32(0, a ^ k[0]!, true)
      view.setInt32(4, b ^ k[1]!, true)
      view.setInt32(8, c ^ k[2]!, true)
      view.setInt32(12, d ^ k[3]!, true)
    },
  }
}
