/** CAST-128 with keys of 128 bits (RFC 2144), which LUKS calls cast5. Node's OpenSSL has it in a provider that it leaves out. */

import type { PlainCipher } from './block-cipher.js'
import { CAST_BOXES } from './cast5-boxes.js'

const BLOCK = 8
const ROUNDS = 16

const [S1, S2, S3, S4, S5, S6, S7, S8] = CAST_BOXES as [
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
  Int32Array,
]

/**
 * The key schedule (2.4), in bytes 0 to F of x or z. A step makes 4 bytes of the one out of 4 of the other: which, the
 * bytes that go through S5 to S8, and one more with its box. The first indices of these are of the other, `!` says that they
 * are of the one that is being made.
 */
const TO_Z = ['0 DFCE 7:8', '8 !0213 8:A', 'C !7654 5:9', '4 !A9B8 6:B']
const TO_X = ['8 5746 7:0', '0 !0213 8:2', '4 !7654 5:1', 'C !A9B8 6:3']
/** The words of the key that are taken after each four steps: bytes for S5 to S8, and for one more of these in turn. */
const WORDS = [
  ['89762', 'AB546', 'CD329', 'EF10C'],
  ['32CD8', '10EFD', '76893', '54AB7'],
  ['32CD9', '10EFC', '76892', '54AB6'],
  ['89763', 'AB547', 'CD328', 'EF10D'],
]

const hex = (digit: string | undefined) => Number.parseInt(digit!, 16)
const boxOf = (digit: string) => CAST_BOXES[Number(digit) - 1]!

function mix(bytes: Uint8Array, indices: string): number {
  const [a, b, c, d] = Array.from(indices, (digit) => bytes[hex(digit)]!)
  return S5[a!]! ^ S6[b!]! ^ S7[c!]! ^ S8[d!]!
}

/** The four steps that make all 16 bytes of `to` out of those of `from`. */
function step(steps: readonly string[], from: Uint8Array, to: Uint8Array): void {
  const [source, target] = [new DataView(from.buffer), new DataView(to.buffer)]
  steps.forEach((text, i) => {
    const [taken, indices, extra] = text.split(' ')
    const inTarget = indices!.startsWith('!')
    const [box, index] = extra!.split(':')
    const mixed = inTarget ? mix(to, indices!.slice(1)) : mix(from, indices!)
    target.setInt32(4 * i, source.getInt32(hex(taken)) ^ mixed ^ boxOf(box!)[from[hex(index)]!]!)
  })
}

/** The 32 words K1 to K32: masking keys, then rotations. */
function expand(key: Uint8Array): Int32Array {
  const x = new Uint8Array(key)
  const z = new Uint8Array(16)
  const words: number[] = []
  while (words.length < 2 * ROUNDS)
    WORDS.forEach((group, i) => {
      if (i % 2 === 0) step(TO_Z, x, z)
      else step(TO_X, z, x)
      const bytes = i % 2 === 0 ? z : x
      group.forEach((indices, j) => {
        words.push(mix(bytes, indices) ^ CAST_BOXES[4 + j]![bytes[hex(indices[4])]!]!)
      })
    })
  return Int32Array.from(words)
}

/** One of the three kinds of rounds (2.2). */
function f(kind: number, d: number, masking: number, rotation: number): number {
  const sum = kind === 0 ? masking + d : kind === 1 ? masking ^ d : masking - d
  const i = rotation === 0 ? sum | 0 : (sum << rotation) | ((sum | 0) >>> (32 - rotation))
  const [a, b, c, e] = [S1[i >>> 24]!, S2[(i >>> 16) & 255]!, S3[(i >>> 8) & 255]!, S4[i & 255]!]
  if (kind === 0) return ((a ^ b) - c + e) | 0
  if (kind === 1) return (a - b + c) ^ e
  return (((a + b) | 0) ^ c) - e
}

/** @param key 16 bytes */
export function cast5(key: Uint8Array): PlainCipher {
  const words = expand(key)
  const rotations = words.subarray(ROUNDS).map((word) => word & 31)
  const run = (bytes: Uint8Array, at: number, round: (step: number) => number) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset + at, BLOCK)
    let left = view.getInt32(0)
    let right = view.getInt32(4)
    for (let step = 0; step < ROUNDS; step++) {
      const i = round(step)
      const next = left ^ f(i % 3, right, words[i]!, rotations[i]!)
      left = right
      right = next
    }
    view.setInt32(0, right)
    view.setInt32(4, left)
  }
  return {
    blockSize: BLOCK,
    encryptBlock: (bytes, at) => run(bytes, at, (step) => step),
    decryptBlock: (bytes, at) => run(bytes, at, (step) => ROUNDS - 1 - step),
  }
}
