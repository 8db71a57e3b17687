/** Blocks that say which they are and when they were written. */

export const BLOCK = 4096
const WORDS = BLOCK / 8

/** The block's number and the write's, over and over, so that a torn one is seen. */
export function stamp(block: number, number: number): Buffer {
  const bytes = Buffer.alloc(BLOCK)
  for (let i = 0; i < WORDS; i++) {
    bytes.writeUInt32LE(block + 1, i * 8)
    bytes.writeUInt32LE(number, i * 8 + 4)
  }
  return bytes
}

/**
 * Looks at a block that may hold any write from `safe` (0: zeros) to `begun`, sector by sector.
 * @returns what is wrong, or undefined
 */
export function wrongWith(bytes: Buffer, block: number, safe: number, begun: number): string | undefined {
  for (let at = 0; at < BLOCK; at += 8) {
    const of = bytes.readUInt32LE(at)
    const number = bytes.readUInt32LE(at + 4)
    if (of === 0 && number === 0 && safe === 0) continue
    if (of !== block + 1) return `block ${block} holds data of ${of - 1} at ${at}`
    if (number < safe || number > begun)
      return `block ${block} holds write ${number} at ${at}: ${safe} was flushed, ${begun} was the last`
  }
  return undefined
}
