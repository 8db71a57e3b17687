/** A process that writes numbered blocks to a disk and tells, behind each fsync, what is safe by then. */

import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs'
import { BLOCK, stamp } from './stamps.js'

const [path, blocks, seed] = process.argv.slice(2) as [string, string, string]
const fd = openSync(path, 'r+')
let number = 1
let state = Number(seed)
const random = (below: number): number => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 2 ** 32) * below)
}

try {
  for (;;) {
    const batch: [block: number, number: number][] = []
    const count = 1 + random(24)
    for (let i = 0; i < count; i++) {
      const block = random(Number(blocks))
      batch.push([block, number])
      process.send!({ begun: [block, number] })
      writeSync(fd, stamp(block, number++), 0, BLOCK, block * BLOCK)
    }
    fsyncSync(fd)
    process.send!({ safe: batch })
    await new Promise((resolve) => setImmediate(resolve))
  }
} catch (error) {
  // The server was killed: what is told after this is not true any more.
  process.send!({ ended: String(error) }, () => process.disconnect())
} finally {
  try {
    closeSync(fd)
  } catch {
    // The mount is gone.
  }
}
