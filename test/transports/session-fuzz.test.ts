import t from 'tap'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import { bench } from './fixtures/exchange.js'

const REQUESTS = 60_000
const SEED = 4
const HEADER = 40
/** FORGET, INTERRUPT, BATCH_FORGET: never answered. */
const SILENT = [2, 36, 42]
const OPCODES = 60
const MOST_BODY = 600

/** What lengths, offsets and sizes are made of. */
const EDGES = [0n, 1n, 2n, 511n, 512n, 4096n, 0xfffffn, 1n << 20n, 1n << 31n, (1n << 32n) - 1n, 1n << 53n, 1n << 63n]
const MAX = (1n << 64n) - 1n

/** A request of any opcode about any inode, of a length that mostly is what it says, its body edges and noise. */
function make(random: () => number, opcode: number, unique: number): Buffer {
  const body = random() < 0.8 ? 8 * Math.floor(random() * 10) : Math.floor(random() * MOST_BODY)
  const request = Buffer.alloc(HEADER + body)
  request.writeUInt32LE(random() < 0.95 ? request.length : Math.floor(random() * 2 ** 32), 0)
  request.writeUInt32LE(opcode, 4)
  request.writeUInt32LE(unique, 8)
  request.writeBigUInt64LE(random() < 0.8 ? BigInt(Math.ceil(random() * 3)) : edge(random), 16)
  for (let at = HEADER; at + 8 <= request.length; at += 8) {
    if (random() < 0.3) request.writeBigUInt64LE(edge(random), at)
    else {
      request.writeUInt32LE(Math.floor(random() * (random() < 0.5 ? 4096 : 2 ** 32)), at)
      if (random() < 0.2) request.writeUInt32LE(Math.floor(random() * 2 ** 32), at + 4)
    }
  }
  return random() < 0.95 ? request : request.subarray(0, Math.floor(random() * request.length))
}

function edge(random: () => number): bigint {
  const one = EDGES[Math.floor(random() * EDGES.length)]!
  return random() < 0.3 ? MAX - one : one + BigInt(Math.floor(random() * 3))
}

t.test('any request is answered exactly once, and throws nothing', async (t) => {
  const random = randomFrom(SEED)
  const { session, tree, answered } = bench({ size: 1 << 20 })
  const { length } = tree.data
  let done = 0
  for (let unique = 1; unique <= REQUESTS; unique++) {
    const opcode = random() < 0.97 ? Math.floor(random() * OPCODES) : Math.floor(random() * 2 ** 32)
    const request = make(random, opcode, unique)
    session.request.bytes.fill(0, 0, MOST_BODY + HEADER)
    request.copy(session.request.bytes)
    const what = () => `request ${unique}: ${request.toString('hex')}`
    let size: number
    try {
      size = session.handle(request.length)
    } catch (error) {
      t.fail(`${what()}: ${(error as Error).stack}`)
      return
    }
    // DESTROY ends a session, in which fsyncs are no longer parked; nothing is in hand here.
    const silent = SILENT.includes(opcode) || request.length < 16
    const reply = session.reply.bytes
    const right = silent
      ? size === 0
      : size >= 16 && reply.readUInt32LE(0) === size && reply.readUInt32LE(8) === unique && reply.readInt32LE(4) <= 0
    if (!right) t.fail(`${what()}: a reply of ${size} bytes: ${reply.toString('hex', 0, 32)}`)
    if (!silent && reply.readInt32LE(4) === 0) done++
  }
  t.equal(tree.data.length, length)
  t.same(answered, [], 'none was answered twice')
  t.ok(done > REQUESTS / 100, `${done} did something`)
})
