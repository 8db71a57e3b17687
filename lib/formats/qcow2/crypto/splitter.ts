/**
 * The anti-forensic splitter of LUKS (LUKS On-Disk Format Specification 1.2.3, 2.4): a key is blown up to many stripes, all
 * of which are needed to get it back, so that a destroyed sector destroys it.
 */

import { createHash, randomBytes } from 'node:crypto'

/** Hashes every piece of a digest's length with its number in front, in place. */
function diffuse(block: Uint8Array, hash: string): void {
  const number = Buffer.alloc(4)
  for (let at = 0, i = 0; at < block.length; i++) {
    number.writeUInt32BE(i)
    const digest = createHash(hash)
      .update(number)
      .update(block.subarray(at, at + digestSize(hash)))
      .digest()
    const n = Math.min(digest.length, block.length - at)
    block.set(digest.subarray(0, n), at)
    at += n
  }
}

const sizes = new Map<string, number>()

function digestSize(hash: string): number {
  let size = sizes.get(hash)
  if (size === undefined) {
    size = createHash(hash).digest().length
    sizes.set(hash, size)
  }
  return size
}

function addStripe(block: Uint8Array, stripes: Uint8Array, i: number): void {
  for (let j = 0; j < block.length; j++) block[j]! ^= stripes[i * block.length + j]!
}

/** The key of `keySize` bytes that these stripes were made from. */
export function mergeStripes(stripes: Uint8Array, keySize: number, hash: string): Uint8Array {
  const block = new Uint8Array(keySize)
  const last = stripes.length / keySize - 1
  for (let i = 0; i < last; i++) {
    addStripe(block, stripes, i)
    diffuse(block, hash)
  }
  addStripe(block, stripes, last)
  return block
}

/** Splits a key: random stripes, and a last one that makes up for them. */
export function splitKey(key: Uint8Array, count: number, hash: string): Uint8Array {
  const stripes = new Uint8Array(key.length * count)
  stripes.set(randomBytes(key.length * (count - 1)))
  // With a last stripe of zeros the merged key is what the last stripe has to turn into the key.
  const rest = mergeStripes(stripes, key.length, hash)
  for (let j = 0; j < key.length; j++) stripes[(count - 1) * key.length + j] = rest[j]! ^ key[j]!
  return stripes
}
