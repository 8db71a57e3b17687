// Requests as the kernel sends them on x86-64 and arm64 (little-endian), with layouts from include/uapi/linux/fuse.h.

import t from 'tap'
import { VdiskError } from '../../lib/util/errors.js'
import { type Bench, bench, hex, plain } from './fixtures/exchange.js'
import { Control } from './fixtures/memory-tree.js'

/** A header for a request of `length` bytes about `node`, by thread `pid` of root, with unique 0x42. */
const header = (length: number, opcode: number, node: number, pid = 77): string => {
  const b = Buffer.alloc(40)
  b.writeUInt32LE(length, 0)
  b.writeUInt32LE(opcode, 4)
  b.writeUInt32LE(0x42, 8)
  b.writeUInt32LE(node, 16)
  b.writeUInt32LE(pid, 32)
  return b.toString('hex')
}
const request = (opcode: number, node: number, body: string, pid?: number): Buffer => {
  const bytes = hex(body)
  return Buffer.concat([hex(header(40 + bytes.length, opcode, node, pid)), bytes])
}
/** A reply of the header alone, with a negative errno. */
const failed = (errno: number): string => {
  const b = Buffer.alloc(16)
  b.writeUInt32LE(16, 0)
  b.writeInt32LE(-errno, 4)
  b.writeUInt32LE(0x42, 8)
  return b.toString('hex')
}
const OK = failed(0)
const [EPERM, ENOENT, ENXIO, EIO, EISDIR, EINVAL, ENOSPC, EROFS, ENOSYS, EOPNOTSUPP] = [
  1, 2, 6, 5, 21, 22, 28, 30, 38, 95,
]

/** The struct fuse_attr of disk.raw: 1 MiB, 0640, root, group 6. */
const ATTR_DISK = plain(`
  0200000000000000 | ino 2
  0000100000000000 | size 1048576
  0800000000000000 | blocks 8
  00ca9a3b00000000 | atime 1000000000
  01ca9a3b00000000 | mtime 1000000001
  feffffffffffffff | ctime -2: a second and a half before 1970
  c0d45407         | atimensec 123000000
  00022e1b         | mtimensec 456000000
  0065cd1d         | ctimensec 500000000
  a0810000         | mode 0100640
  01000000         | nlink 1
  00000000         | uid 0
  06000000         | gid 6
  00000000         | rdev
  00100000         | blksize 4096
  00000000         | flags
`)

t.test('LOOKUP', async (t) => {
  const { exchange } = bench()
  const lookup = hex(`
    31000000 01000000  | len 49, opcode 1
    0600000000000000   | unique 6
    0100000000000000   | nodeid 1, the root
    e8030000 e9030000  | uid 1000, gid 1001
    39300000           | pid 12345
    0000 0000          | total_extlen, padding
    6469736b2e72617700 | disk.raw, NUL
  `)
  const entry = plain(`
    90000000 00000000  | len 144, no error
    0600000000000000   | unique 6
    0200000000000000   | nodeid 2
    0000000000000000   | generation
    100e000000000000   | entry valid for 3600 s
    0100000000000000   | attributes valid for 1 s
    00000000 00000000  | and no nanoseconds
    ${ATTR_DISK}
  `)
  t.equal(exchange(lookup), entry)
  t.equal(exchange(request(1, 1, '6469736b2e72617800')), failed(ENOENT), 'another name')
  t.equal(exchange(request(1, 2, '6469736b2e72617700')), failed(ENOENT), 'below a file')
  t.equal(exchange(request(1, 1, '6469736b2e726177')), failed(EINVAL), 'no NUL')
  t.equal(exchange(request(1, 1, '0000')), failed(EINVAL), 'empty')
  t.equal(exchange(request(1, 1, 'fffe00')), failed(ENOENT), 'no UTF-8')
})

t.test('GETATTR and STATX', async (t) => {
  const { exchange } = bench()
  const getattr = plain(`
    78000000 00000000 4200000000000000 | len 120
    0100000000000000 00000000 00000000 | valid for 1 s, 0 ns, padding
    ${ATTR_DISK}
  `)
  // flags, dummy, fh
  t.equal(exchange(request(3, 2, '00000000 00000000 0000000000000000')), getattr)
  t.equal(exchange(request(3, 9, '00000000 00000000 0000000000000000')), failed(ENOENT), 'no such node')
  t.equal(exchange(request(3, 2, '00000000 00000000 00000000')), failed(EINVAL), 'short')
  const statx = plain(`
    30010000 00000000 4200000000000000  | len 304
    0100000000000000 00000000 00000000  | valid for 1 s, 0 ns, flags
    0000000000000000 0000000000000000   | spare
    ff070000 00100000 0000000000000000  | mask: STATX_BASIC_STATS; blksize; attributes
    01000000 00000000 06000000 a081 0000 | nlink, uid, gid, mode
    0200000000000000 0000100000000000   | ino, size
    0800000000000000 0000000000000000   | blocks, attributes_mask
    00ca9a3b00000000 c0d45407 00000000  | atime
    0000000000000000 00000000 00000000  | btime: not known, not in the mask
    feffffffffffffff 0065cd1d 00000000  | ctime
    01ca9a3b00000000 00022e1b 00000000  | mtime
    00000000 00000000 00000000 00000000 | rdev, dev
    ${'00'.repeat(112)}                 | spare
  `)
  // getattr_flags, reserved, fh, sx_flags, sx_mask
  t.equal(exchange(request(52, 2, '00000000 00000000 0000000000000000 00000000 ff0f0000')), statx)
})

/** SETATTR's body: fields that are not given are rubbish, which must not matter. */
const setattr = (valid: number, { size = 0x7777, mode = 0o123, uid = 5, gid = 5 }): string => {
  const b = Buffer.alloc(88, 0xdd)
  b.writeUInt32LE(valid, 0) // valid
  b.writeBigUInt64LE(BigInt(size), 16) // size
  b.writeUInt32LE(mode, 68) // mode
  b.writeUInt32LE(uid, 76) // uid
  b.writeUInt32LE(gid, 80) // gid
  return b.toString('hex')
}
const FATTR = { MODE: 1, UID: 2, GID: 4, SIZE: 8, ATIME: 16, MTIME: 32, FH: 64, ATIME_NOW: 128, KILL_SUIDGID: 2048 }

t.test('SETATTR', async (t) => {
  const { exchange } = bench()
  const succeeds = (body: string, name: string) => t.match(exchange(request(4, 2, body)), /^7800000000000000/, name)
  succeeds(setattr(FATTR.SIZE, { size: 1 << 20 }), 'the present size')
  succeeds(setattr(FATTR.ATIME | FATTR.MTIME | FATTR.ATIME_NOW, {}), 'times')
  succeeds(setattr(FATTR.MODE, { mode: 0o100640 }), 'the present mode')
  succeeds(setattr(FATTR.UID | FATTR.GID, { uid: 0, gid: 6 }), 'the present owner')
  t.equal(exchange(request(4, 2, setattr(FATTR.MODE, { mode: 0o100600 }))), failed(EPERM), 'chmod')
  t.equal(exchange(request(4, 2, setattr(FATTR.UID, { uid: 1 }))), failed(EPERM), 'chown')
  t.equal(exchange(request(4, 2, setattr(FATTR.GID, { gid: 7 }))), failed(EPERM), 'chgrp')
  t.equal(exchange(request(4, 2, setattr(FATTR.SIZE, { size: 4096 }))), failed(EINVAL), 'truncate')
  t.equal(exchange(request(4, 2, setattr(FATTR.SIZE, { size: 1 << 21 }))), failed(EINVAL), 'grow')
  t.equal(exchange(request(4, 1, setattr(FATTR.SIZE, { size: 1 }))), failed(EISDIR), 'a folder')
  t.equal(exchange(request(4, 9, setattr(FATTR.SIZE, { size: 1 }))), failed(ENOENT), 'nothing')
  t.equal(exchange(request(4, 2, setattr(0, {}).slice(8))), failed(EINVAL), 'short')
  const readOnly = bench({ readOnly: true })
  t.equal(readOnly.exchange(request(4, 2, setattr(FATTR.ATIME, {}))), failed(EROFS), 'read-only')
})

t.test('a truncation to 0 succeeds where it is the O_TRUNC of an open, and only there', async (t) => {
  const { exchange } = bench()
  const truncate = (valid: number, pid: number) => exchange(request(4, 2, setattr(valid, { size: 0 }), pid))
  const OPENED = /^20000000/
  const TRUNCATED = /^7800000000000000/
  t.equal(truncate(FATTR.SIZE, 77), failed(EINVAL), 'truncate(path, 0)')
  // flags, open_flags: O_WRONLY without O_TRUNC, as the kernel sends it
  t.match(exchange(request(14, 2, '01800000 00000000', 77)), OPENED)
  t.equal(truncate(FATTR.SIZE | FATTR.FH, 77), failed(EINVAL), 'ftruncate(fd, 0)')
  t.equal(truncate(FATTR.SIZE, 78), failed(EINVAL), 'by another thread')
  t.match(truncate(FATTR.SIZE, 77), TRUNCATED, 'after the open')
  t.equal(truncate(FATTR.SIZE, 77), failed(EINVAL), 'a second time')
  t.match(exchange(request(14, 2, '01800000 00000000', 77)), OPENED)
  t.match(exchange(request(14, 2, '00800000 00000000', 77)), OPENED, 'opened for reading since')
  t.equal(truncate(FATTR.SIZE, 77), failed(EINVAL))
  const range = '0200000000000000 0000000000000000' // fh, offset
  const requests: Readonly<Record<string, (pid: number) => Buffer>> = {
    LOOKUP: (pid) => request(1, 1, '6469736b2e72617700', pid),
    GETATTR: (pid) => request(3, 2, '00000000 00000000 0000000000000000', pid),
    WRITE: (pid) => request(16, 2, `${range} 01000000 00000000 0000000000000000 00000000 00000000 ff`, pid),
    FSYNC: (pid) => request(20, 2, '0200000000000000 00000000 00000000', pid),
    FLUSH: (pid) => request(25, 2, '0200000000000000 00000000 00000000 0000000000000000', pid),
  }
  for (const [name, make] of Object.entries(requests))
    for (const pid of [77, 78]) {
      t.match(exchange(request(14, 2, '02800000 00000000', 77)), OPENED)
      t.match(exchange(make(pid)), /^.{8}00000000/, name)
      const answer = truncate(FATTR.SIZE, 77)
      if (pid === 77) t.equal(answer, failed(EINVAL), `truncate(path, 0) after ${name}`)
      else t.match(answer, TRUNCATED, `${name} of another thread`)
    }
  t.match(exchange(request(14, 2, '02800000 00000000', 77)), OPENED)
  exchange(request(15, 2, `${range} 00100000 00000000 0000000000000000 00000000 00000000`, 77))
  t.match(truncate(FATTR.SIZE, 77), TRUNCATED, 'after a READ, which may be read-ahead from before')
})

t.test('OPEN', async (t) => {
  const opened = (flags: string) =>
    plain(`20000000 00000000 4200000000000000 | len 32
           0200000000000000 ${flags} 00000000 | fh, open_flags, padding`)
  const cached = bench()
  t.equal(cached.exchange(request(14, 2, '00800000 00000000')), opened('22000000'), 'O_RDONLY: KEEP_CACHE, NOFLUSH')
  t.equal(cached.exchange(request(14, 2, '02800000 00000000')), opened('02000000'), 'O_RDWR: KEEP_CACHE')
  t.equal(cached.exchange(request(14, 1, '00800000 00000000')), failed(EISDIR))
  t.equal(cached.exchange(request(14, 3, '00800000 00000000')), failed(ENOENT))
  t.equal(cached.exchange(request(14, 2, '00800000')), failed(EINVAL), 'short')
  const direct = bench({ cachePolicy: 'direct' })
  t.equal(direct.exchange(request(14, 2, '02800000 00000000')), opened('41000000'), 'DIRECT_IO, PARALLEL_DIRECT_WRITES')
  const readOnly = bench({ readOnly: true })
  t.equal(readOnly.exchange(request(14, 2, '00800000 00000000')), opened('22000000'))
  t.equal(readOnly.exchange(request(14, 2, '01800000 00000000')), failed(EROFS), 'O_WRONLY')
  t.equal(readOnly.exchange(request(14, 2, '02800000 00000000')), failed(EROFS), 'O_RDWR')
  t.equal(readOnly.exchange(request(14, 2, '00820000 00000000')), failed(EROFS), 'O_RDONLY | O_TRUNC')
})

/** READ's body. */
const read = (offset: string, size: string): string => `
  0200000000000000  | fh
  ${offset}         | offset
  ${size} 00000000  | size, read_flags
  0000000000000000  | lock_owner
  00800000 00000000 | flags, padding`

t.test('READ', async (t) => {
  const { exchange, tree } = bench()
  tree.data.write('ABCDEFGH', 4096)
  tree.data.write('end', tree.data.length - 3)
  const reply = (length: string, data: string) => plain(`${length} 00000000 4200000000000000 ${data}`)
  t.equal(exchange(request(15, 2, read('0010000000000000', '06000000'))), reply('16000000', '414243444546'))
  t.equal(exchange(request(15, 2, read('fdff0f0000000000', '00100000'))), reply('13000000', '656e64'), 'over the end')
  t.equal(exchange(request(15, 2, read('0000100000000000', '00100000'))), OK, 'at the end')
  t.equal(exchange(request(15, 2, read('ffffffffffff0f00', '00100000'))), OK, 'far behind it')
  t.equal(exchange(request(15, 2, read('0000000000000000', '01000800'))), failed(EINVAL), 'more than 512 KiB')
  t.equal(exchange(request(15, 2, read('0000000000000000', 'ffffffff'))), failed(EINVAL), '4 GiB')
  t.equal(exchange(request(15, 2, read('ffffffffffffff7f', '01000000'))), failed(EINVAL), 'offset 2^63 - 1')
  t.equal(exchange(request(15, 2, read('ffffffffffffffff', '01000000'))), failed(EINVAL), 'offset 2^64 - 1')
  t.equal(exchange(request(15, 2, read('ffffffffffff1f00', '01000000'))), failed(EINVAL), 'ends at 2^53')
  t.equal(exchange(request(15, 2, read('00'.repeat(8), '06000000').slice(0, -20))), failed(EINVAL), 'short')
})

/** WRITE's body without the data. */
const write = (offset: string, size: string, flags = '01800000'): string => `
  0200000000000000  | fh
  ${offset}         | offset
  ${size} 00000000  | size, write_flags
  0000000000000000  | lock_owner
  ${flags} 00000000 | flags, padding
  `

t.test('WRITE', async (t) => {
  const { exchange, tree } = bench()
  const written = (size: string) => plain(`18000000 00000000 4200000000000000 ${size} 00000000`)
  t.equal(exchange(request(16, 2, `${write('0220000000000000', '04000000')} 61626364`)), written('04000000'))
  t.equal(tree.data.toString('latin1', 0x2000, 0x2008), '\0\0abcd\0\0')
  t.equal(exchange(request(16, 2, `${write('feff0f0000000000', '04000000')} 61626364`)), written('02000000'), 'short')
  t.equal(tree.data.toString('latin1', tree.data.length - 4), '\0\0ab')
  t.equal(exchange(request(16, 2, `${write('0000100000000000', '01000000')} 61`)), failed(ENOSPC), 'at the end')
  t.equal(exchange(request(16, 2, `${write('0000000000000000', '05000000')} 61626364`)), failed(EINVAL), 'data missing')
  t.equal(exchange(request(16, 2, `${write('0000000000000000', '03000000')} 61626364`)), failed(EINVAL), 'data left')
  t.equal(exchange(request(16, 2, `${write('ffffffffffffffff', '01000000')} 61`)), failed(EINVAL), 'offset 2^64 - 1')
  t.equal(tree.data[0], 0, 'none of these was done')
  const readOnly = bench({ readOnly: true })
  t.equal(readOnly.exchange(request(16, 2, `${write('0000000000000000', '01000000')} 61`)), failed(EROFS))
})

t.test('a WRITE of a program that opened with O_DIRECT is said to be one', async (t) => {
  const { exchange, tree } = bench()
  const put = (flags: string) => exchange(request(16, 2, `${write('0000000000000000', '01000000', flags)} 61`))
  put('01800000')
  t.equal(tree.control[Control.PAST], 0, 'O_WRONLY')
  put('01c00000')
  t.equal(tree.control[Control.PAST], 1, 'O_DIRECT')
})

t.test('a WRITE that is to be durable is, where the kernel sends no FSYNC behind it', async (t) => {
  const flushes = ({ tree }: Bench) => tree.control[Control.FLUSHES]
  const put = (flags: string) => request(16, 2, `${write('0000000000000000', '01000000', flags)} 61`)
  const direct = bench({ cachePolicy: 'direct' })
  direct.exchange(put('01800000'))
  t.equal(flushes(direct), 0, 'O_WRONLY')
  direct.exchange(put('01900000'))
  t.equal(flushes(direct), 1, 'O_DSYNC')
  direct.exchange(put('01901000'))
  t.equal(flushes(direct), 2, 'O_SYNC')
  direct.tree.control[Control.FLUSH_FAILS] = 1
  t.equal(direct.exchange(put('01900000')), failed(ENOSPC), 'the write fails where that fails')
  const cached = bench()
  cached.exchange(put('01901000'))
  t.equal(flushes(cached), 0, 'the kernel sends one')
})

t.test('the largest requests each way', async (t) => {
  const { session, tree } = bench({ size: 2 << 20 })
  tree.data.fill(0x5a)
  const get = request(15, 2, read('0000100000000000', '00000800'))
  get.copy(session.request.bytes)
  t.equal(session.handle(get.length), 16 + (1 << 19))
  t.ok(session.reply.bytes.subarray(16, 16 + (1 << 19)).every((byte) => byte === 0x5a))
  const put = Buffer.concat([request(16, 2, write('0000000000000000', '00000800')), Buffer.alloc(1 << 19, 0xa5)])
  put.writeUInt32LE(put.length, 0)
  put.copy(session.request.bytes)
  t.equal(session.handle(put.length), 24)
  t.ok(tree.data.subarray(0, 1 << 19).every((byte) => byte === 0xa5))
  t.equal(tree.data[1 << 19], 0x5a)
})

t.test('STATFS', async (t) => {
  const { exchange } = bench()
  const statfs = plain(`
    60000000 00000000 4200000000000000 | len 96
    e803000000000000 9001000000000000  | blocks 1000, bfree 400
    2c01000000000000 0200000000000000  | bavail 300, files 2
    0000000000000000 00100000 ff000000 | ffree, bsize 4096, namelen 255
    00100000 00000000 ${'00'.repeat(24)} | frsize, padding, spare
  `)
  t.equal(exchange(request(17, 1, '')), statfs)
})

t.test('directories', async (t) => {
  const { exchange } = bench()
  const opened = plain('20000000 00000000 4200000000000000 0100000000000000 00000000 00000000')
  t.equal(exchange(request(27, 1, '00880000 00000000')), opened, 'OPENDIR')
  t.equal(exchange(request(27, 2, '00880000 00000000')), failed(20), 'OPENDIR of a file: ENOTDIR')
  const dot = plain('0100000000000000 0100000000000000 01000000 04000000 2e00000000000000') // ino, off, namelen, DT_DIR
  const dots = plain('0100000000000000 0200000000000000 02000000 04000000 2e2e000000000000')
  const disk = plain('0200000000000000 0300000000000000 08000000 08000000 6469736b2e726177') // DT_REG
  const listed = (length: string, entries: string) => plain(`${length} 00000000 4200000000000000 ${entries}`)
  t.equal(exchange(request(28, 1, read('0000000000000000', '00100000'))), listed('70000000', dot + dots + disk))
  t.equal(
    exchange(request(28, 1, read('0000000000000000', '41000000'))),
    listed('50000000', dot + dots),
    'room for two',
  )
  t.equal(exchange(request(28, 1, read('0200000000000000', '00100000'))), listed('30000000', disk), 'from the third on')
  t.equal(exchange(request(28, 1, read('0300000000000000', '00100000'))), OK, 'the end')
  t.equal(exchange(request(28, 1, read('ffffffffffffffff', '00100000'))), failed(EINVAL))
  t.equal(exchange(request(28, 1, read('0000000000000000', '00002000'))), failed(EINVAL), '2 MiB at once')
  t.equal(exchange(request(28, 2, read('0000000000000000', '00100000'))), failed(20), 'READDIR of a file')
  const entry = plain(
    `0200000000000000 0000000000000000 100e000000000000 0100000000000000 0000000000000000 ${ATTR_DISK}`,
  )
  t.equal(
    exchange(request(44, 1, read('0200000000000000', '00100000'))),
    listed('b0000000', entry + disk),
    'READDIRPLUS',
  )
  t.equal(
    exchange(request(44, 1, read('0000000000000000', 'a0000000'))),
    listed('b0000000', '00'.repeat(128) + dot),
    'READDIRPLUS: `.` is not looked up',
  )
  t.equal(exchange(request(29, 1, '00'.repeat(24))), OK, 'RELEASEDIR')
})

/** FALLOCATE's body: fh, offset, length, mode, padding. */
const fallocate = (offset: string, length: string, mode: string) =>
  `0200000000000000 ${offset} ${length} ${mode} 00000000`

t.test('FALLOCATE', async (t) => {
  const { exchange, tree } = bench()
  const ask = (offset: string, length: string, mode: string) =>
    exchange(request(43, 2, fallocate(offset, length, mode)))
  const [zero, page, end, whole] = ['0000000000000000', '0010000000000000', '0000100000000000', '0000100000000000']
  tree.data.fill(1)
  t.equal(ask(page, page, '03000000'), OK, 'punch a hole')
  t.same([tree.control[Control.UNMAPPED], tree.control[Control.ZEROED]], [1, 0], 'given back')
  t.same([tree.data[0xfff], tree.data[0x1000], tree.data[0x1fff], tree.data[0x2000]], [1, 0, 0, 1])
  t.equal(ask('0040000000000000', page, '10000000'), OK, 'zero a range')
  t.same([tree.control[Control.UNMAPPED], tree.control[Control.ZEROED]], [1, 1], 'kept')
  t.same([tree.data[0x3fff], tree.data[0x4000], tree.data[0x4fff], tree.data[0x5000]], [1, 0, 0, 1])
  t.equal(ask('00f00f0000000000', whole, '11000000'), OK, 'zero over the end, keeping the size')
  t.same([tree.data[0xfefff], tree.data[0xff000], tree.data[0xfffff]], [1, 0, 0])
  t.equal(ask('00f00f0000000000', whole, '10000000'), failed(ENOSPC), 'zero over the end, growing')
  t.equal(ask(end, page, '03000000'), OK, 'punch behind the end')
  t.equal(ask(zero, whole, '00000000'), OK, 'preallocate')
  t.equal(ask(zero, whole, '01000000'), OK, 'preallocate, keeping the size')
  t.equal(ask(page, whole, '00000000'), failed(ENOSPC), 'preallocate over the end')
  t.equal(ask(page, whole, '01000000'), failed(ENOSPC))
  t.equal(ask(zero, page, '08000000'), failed(EOPNOTSUPP), 'collapse')
  t.equal(ask(zero, page, '20000000'), failed(EOPNOTSUPP), 'insert')
  t.equal(ask(zero, page, '02000000'), failed(EOPNOTSUPP), 'punch without keeping the size')
  t.equal(ask(zero, zero, '03000000'), failed(EINVAL), 'nothing')
  t.equal(ask('ffffffffffffffff', page, '03000000'), failed(EINVAL))
  t.equal(ask(page, 'ffffffffffffffff', '03000000'), failed(EINVAL))
  t.equal(exchange(request(43, 1, fallocate(zero, page, '03000000'))), failed(EISDIR))
  t.equal(bench({ readOnly: true }).exchange(request(43, 2, fallocate(zero, page, '03000000'))), failed(EROFS))
})

t.test('LSEEK', async (t) => {
  const { exchange, tree } = bench()
  tree.data[0x20000] = 1
  const ask = (offset: string, whence: string) =>
    exchange(request(46, 2, `0200000000000000 ${offset} ${whence} 00000000`)) // fh, offset, whence, padding
  const at = (offset: string) => plain(`18000000 00000000 4200000000000000 ${offset}`)
  t.equal(ask('0000000000000000', '03000000'), at('0000020000000000'), 'SEEK_DATA')
  t.equal(ask('0100020000000000', '03000000'), at('0100020000000000'), 'SEEK_DATA in data')
  t.equal(ask('0000020000000000', '04000000'), at('0000030000000000'), 'SEEK_HOLE')
  t.equal(ask('0000030000000000', '03000000'), failed(ENXIO), 'no more data')
  t.equal(ask('0000100000000000', '04000000'), failed(ENXIO), 'SEEK_HOLE at the end')
  t.equal(ask('ffffffffffffffff', '03000000'), failed(ENXIO))
  t.equal(ask('0000000000000000', '00000000'), failed(EINVAL), 'SEEK_SET')
  t.equal(ask('0000000000000000', 'ffffffff'), failed(EINVAL))
})

t.test('FSYNC, FLUSH, INTERRUPT', async (t) => {
  const { exchange, tree, session, answered } = bench()
  const fsync = request(20, 2, '0200000000000000 00000000 00000000') // fh, fsync_flags, padding
  const flush = request(25, 2, '0200000000000000 00000000 00000000 0000000000000000') // fh, unused, padding, lock_owner
  t.equal(exchange(fsync), OK)
  t.equal(tree.control[Control.FLUSHES], 0, 'nothing to do')
  tree.control[Control.UNFLUSHED] = 1
  t.equal(exchange(fsync), OK)
  t.equal(tree.control[Control.FLUSHES], 1)
  tree.control[Control.UNFLUSHED] = 1
  t.equal(exchange(flush), OK)
  t.equal(tree.control[Control.FLUSHES], 2, 'close(2) too')
  tree.control[Control.UNFLUSHED] = 1
  tree.control[Control.FLUSH_FAILS] = 1
  t.equal(exchange(fsync), failed(ENOSPC))
  tree.control[Control.FLUSH_FAILS] = 0

  // Another worker commits: as if it were this session's flush that another fsync and its interrupt meet.
  const inside: string[] = []
  const interrupt = request(36, 0, '4200000000000000') // unique of what is interrupted
  const other = bench({ tree: (memory) => Object.assign(memory, { flush: () => inside.push(...meanwhile()) }) })
  const meanwhile = (): string[] => {
    if (inside.length > 0) return []
    const parked = Buffer.from(fsync)
    parked.writeUInt32LE(0x44, 8)
    const replies = [
      other.exchange(fsync),
      other.exchange(parked),
      other.exchange(interrupt),
      other.exchange(interrupt),
    ]
    fsync.copy(other.session.request.bytes)
    return replies
  }
  other.tree.control[Control.UNFLUSHED] = 1
  const first = Buffer.from(fsync)
  first.writeUInt32LE(0x40, 8)
  t.equal(other.exchange(first), '', 'answered while it went on for the other')
  t.same(inside, ['', '', '', ''], 'parked, and the interrupt itself is not answered')
  t.same(other.answered, [
    [0x42, 4], // EINTR
    [0x40, 0],
    [0x44, 0],
  ])
  t.equal(session.handle(0), 0)
  t.same(answered, [])
})

t.test('nothing can come or go', async (t) => {
  const writable = bench()
  const readOnly = bench({ readOnly: true })
  // SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, CREATE, RENAME2
  for (const opcode of [6, 8, 9, 10, 11, 12, 13, 35, 45]) {
    t.equal(writable.exchange(request(opcode, 1, '6e616d6500')), failed(EPERM), `opcode ${opcode}`)
    t.equal(readOnly.exchange(request(opcode, 1, '6e616d6500')), failed(EROFS), `opcode ${opcode}, read-only`)
  }
})

t.test('what is not answered, and what is not known', async (t) => {
  const { exchange } = bench()
  t.equal(exchange(request(2, 2, '0100000000000000')), '', 'FORGET')
  t.equal(exchange(request(2, 2, '')), '', 'FORGET, short')
  t.equal(exchange(request(42, 0, '01000000 00000000 0200000000000000 0100000000000000')), '', 'BATCH_FORGET')
  t.equal(exchange(request(36, 0, '')), '', 'INTERRUPT, short')
  t.equal(exchange(request(36, 0, '9900000000000000')), '', 'INTERRUPT of what is not here')
  t.equal(exchange(request(38, 0, '')), OK, 'DESTROY')
  t.equal(exchange(request(18, 2, '00'.repeat(24))), OK, 'RELEASE')
  // GETXATTR, GETLK, ACCESS, BMAP, IOCTL, POLL, COPY_FILE_RANGE, TMPFILE, INIT again, and numbers that nobody uses
  for (const opcode of [22, 31, 34, 37, 39, 40, 47, 51, 26, 0, 7, 19, 63, 64, 4096, 0x7fffffff, 0xffffffff])
    t.equal(exchange(request(opcode, 2, '00'.repeat(64))), failed(ENOSYS), `opcode ${opcode}`)
})

t.test('requests of any length, with any bytes, are answered once and never throw', async (t) => {
  const { exchange, session } = bench()
  for (let length = 0; length < 16; length++) t.equal(exchange(Buffer.alloc(length, 0xff)), '', `${length} bytes`)
  for (let opcode = 0; opcode < 64; opcode++) {
    const silent = [2, 36, 42].includes(opcode)
    for (let length = 16; length <= 140; length++) {
      const absurd = Buffer.alloc(length, 0xff)
      hex(header(length, opcode, 2)).copy(absurd, 0, 0, Math.min(40, length))
      const reply = Buffer.from(exchange(absurd), 'hex')
      if (silent ? reply.length !== 0 : reply.length < 16 || reply.readUInt32LE(0) !== reply.length)
        t.fail(`opcode ${opcode}, ${length} bytes: ${reply.toString('hex')}`)
      if (!silent && length < 40 && reply.readInt32LE(4) !== -EINVAL)
        t.fail(`opcode ${opcode}, ${length} bytes: errno ${-reply.readInt32LE(4)}`)
    }
  }
  const lying = request(3, 2, '00'.repeat(16))
  lying.writeUInt32LE(57, 0)
  t.equal(exchange(lying), failed(EINVAL), 'a length that is not its own')
  t.equal(session.handle(session.request.bytes.length), 16, 'a full buffer')
})
t.test('whatever the tree throws becomes an answer', async (t) => {
  const throwing = (error: unknown) =>
    bench({
      tree: (memory) =>
        Object.assign(memory, {
          read: () => {
            throw error
          },
        }),
    }).exchange(request(15, 2, read('0000000000000000', '01000000')))
  t.equal(throwing(new VdiskError('CORRUPT', 'bad')), failed(EIO))
  t.equal(throwing(new VdiskError('NO_SPACE', 'full', { errno: 'EDQUOT' })), failed(122))
  t.equal(throwing(new TypeError('a fault')), failed(EIO))
  t.equal(throwing(undefined), failed(EIO))
})
