import t from 'tap'
import { negotiate } from '../../lib/transports/kernel/init.js'
import { Reply, Request } from '../../lib/transports/kernel/messages.js'
import { hex, plain } from './fixtures/exchange.js'

/** INIT as Linux 6.18 sends it, here with every flag that there can be. */
const INIT = hex(`
  68000000 1a000000 0200000000000000 | len 104, opcode 26, unique 2
  0000000000000000 00000000 00000000 00000000 00000000 | nodeid, uid, gid, pid, extensions
  07000000 2d000000                  | 7.45
  00000200                           | max_readahead 128 KiB
  ffffffff ffffffff                  | flags, flags2
  ${'00'.repeat(44)}                 | unused
`)

function agree(bytes: Buffer, wishes = {}) {
  const request = new Request()
  const reply = new Reply()
  reply.bytes.fill(0xee, 0, 200)
  bytes.copy(request.bytes)
  const { negotiated, length } = negotiate(request, bytes.length, reply, wishes)
  return { negotiated, reply: reply.bytes.toString('hex', 0, length) }
}

const replyWith = (minor: string, flags: string, flags2: string) =>
  plain(`
    50000000 00000000 0200000000000000 | len 80
    07000000 ${minor}                  | 7.x
    00000200 ${flags}                  | max_readahead, flags
    4000 3000                          | max_background 64, congestion_threshold 48
    00000800                           | max_write 512 KiB
    40420f00                           | time_gran: a millisecond
    8000 0000                          | max_pages 128, map_alignment
    ${flags2}                          | flags2
    ${'00'.repeat(28)}                 | max_stack_depth and what follows
  `)

t.test('what is asked for, of what is offered', async (t) => {
  // Bits 0 ASYNC_READ, 5 BIG_WRITES, 15 ASYNC_DIO, 18 PARALLEL_DIROPS, 22 MAX_PAGES, 30 INIT_EXT; 36 DIRECT_IO_ALLOW_MMAP
  const { negotiated, reply } = agree(INIT)
  t.equal(reply, replyWith('2d000000', '21804440', '10000000'))
  t.match(negotiated, { minor: 45, flags: 0x40448021, flags2: 0x10, maxTransfer: 524288, writeback: false })
  const writeback = agree(INIT, { writeback: true })
  t.equal(writeback.reply, replyWith('2d000000', '21804540', '10000000'), 'and bit 16, WRITEBACK_CACHE')
  t.equal(writeback.negotiated.writeback, true)
})

t.test('kernels that offer less', async (t) => {
  const old = Buffer.from(INIT.subarray(0, 56))
  old.writeUInt32LE(56, 0)
  old.writeUInt32LE(31, 44)
  old.writeUInt32LE(0x00408021, 52)
  const { negotiated, reply } = agree(old, { writeback: true })
  t.equal(reply, replyWith('1f000000', '21804000', '00000000'), 'Linux 5.4')
  t.match(negotiated, { minor: 31, flags2: 0, writeback: false })
})

t.test('a newer protocol than is known here, and others', async (t) => {
  const changed = (at: number, value: number) => {
    const bytes = Buffer.from(INIT)
    bytes.writeUInt32LE(value, at)
    return bytes
  }
  t.equal(agree(changed(44, 99)).negotiated.minor, 45)
  t.throws(() => agree(changed(44, 30)), { code: 'UNSUPPORTED', message: /7\.30, expected 7\.31/ })
  t.throws(() => agree(changed(40, 8)), { code: 'UNSUPPORTED' })
  t.throws(() => agree(changed(4, 3)), { code: 'IO', message: /opcode 3, expected INIT/ })
  t.throws(() => agree(INIT.subarray(0, 48)), { code: 'IO' })
})
