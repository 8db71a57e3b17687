import t from 'tap'
import { array, ascii, bytes, guid, reserved, Struct, u8, u16, u32, u64, u64OrNone } from '../../lib/util/struct.js'

const hex = (text: string) => new Uint8Array(Buffer.from(text.replace(/\s/g, ''), 'hex'))

const ITEM = new Struct('item', 3, 'big', { kind: u8, length: u16 })
const BIG = new Struct('big record', 56, 'big', {
  cookie: ascii(4),
  count: u32,
  offset: u64,
  next: u64OrNone,
  id: guid('big'),
  gap: reserved(2),
  blob: bytes(8),
  items: array(2, ITEM),
})

const BYTES = hex(`74657374 00000102 0000000200000003 ffffffffffffffff
  00112233445566778899aabbccddeeff eeee 0102030405060708 01 0203 04 0506`)
const VALUES = {
  cookie: 'test',
  count: 258,
  offset: 2 * 2 ** 32 + 3,
  next: undefined,
  id: '00112233-4455-6677-8899-aabbccddeeff',
  blob: hex('0102030405060708'),
  items: [
    { kind: 1, length: 0x0203 },
    { kind: 4, length: 0x0506 },
  ],
}

t.test('a record is read field by field', async (t) => {
  t.same(BIG.read(BYTES), VALUES)
  const shifted = new Uint8Array(60)
  shifted.set(BYTES, 3)
  t.same(BIG.read(shifted.subarray(1), 2), VALUES, 'anywhere in a buffer that is itself a part of one')
})

t.test('what is read is a copy', async (t) => {
  const source = BYTES.slice()
  const { blob } = BIG.read(source)
  source.fill(0)
  t.equal(blob[0], 1)
})

t.test('a record is written field by field, and reserved bytes are left alone', async (t) => {
  const target = new Uint8Array(56).fill(0xee)
  BIG.write(VALUES, target)
  t.same(target, BYTES)
  t.same(BIG.encode(VALUES).subarray(40, 42), hex('0000'), 'in a new one they are zero')
})

t.test('little-endian records', async (t) => {
  const LITTLE = new Struct('little record', 30, 'little', { a: u16, b: u32, c: u64, d: guid('mixed') })
  const raw = hex('0201 04030201 0800000001000000 33221100554477668899aabbccddeeff')
  const values = { a: 0x0102, b: 0x01020304, c: 2 ** 32 + 8, d: '00112233-4455-6677-8899-aabbccddeeff' }
  t.same(LITTLE.read(raw), values)
  t.same(LITTLE.encode(values), raw)
})

t.test('numbers of 64 bits are safe integers or refused with the name of the field', async (t) => {
  const N = new Struct('record', 8, 'big', { size: u64 })
  t.equal(N.read(hex('001fffffffffffff')).size, Number.MAX_SAFE_INTEGER)
  t.throws(() => N.read(hex('0020000000000000'), 0, { path: 'x.vhd', offset: 512 }), {
    code: 'CORRUPT',
    message: 'x.vhd: record: size is 0x20000000000000: expected a number below 2^53',
    offset: 512,
  })
  t.throws(() => N.read(hex('ffffffffffffffff')), { code: 'CORRUPT' })
  const M = new Struct('record', 8, 'big', { size: u64OrNone })
  t.equal(M.read(hex('ffffffffffffffff')).size, undefined)
  t.throws(() => M.read(hex('fffffffffffffffe')), { code: 'CORRUPT' })
})

t.test('what does not fit is a fault of the program', async (t) => {
  const N = new Struct('record', 13, 'big', { a: u8, b: ascii(4), c: u64 })
  for (const [a, b, c] of [
    [256, '', 0],
    [-1, '', 0],
    [0.5, '', 0],
    [0, 'abcde', 0],
    [0, '', 2 ** 53],
    [0, '', -1],
  ] as const)
    t.throws(() => N.encode({ a, b, c }), { code: 'INTERNAL' }, `${a} ${b} ${c}`)
  t.same(N.encode({ a: 1, b: 'ab', c: 1 }), hex('01 61620000 0000000000000001'), 'text is filled up with NULs')
})

t.test('a record that does not end in the buffer is refused', async (t) => {
  t.throws(() => BIG.read(BYTES.subarray(1), 0, { path: 'x' }), {
    code: 'CORRUPT',
    message: 'x: big record: only 55 of its 56 bytes are there',
  })
})

t.test('the size is asserted, and offsets are known', async (t) => {
  t.throws(() => new Struct('record', 7, 'big', { a: u32, b: u32 }), {
    message: 'record: the fields take 8 bytes, not 7',
  })
  t.equal(BIG.offsetOf('blob'), 42)
  t.equal(ITEM.offsetOf('length'), 1)
})
