import t from 'tap'
import { crc32c, crc32cWithoutField, onesComplementByteSum } from '../../lib/util/checksum.js'

// RFC 3720 appendix B.4. The RFC prints the CRC's bytes in the order in which they are sent, the lowest first.
const RFC_3720: readonly (readonly [string, Uint8Array, number])[] = [
  ['32 bytes of zeros', new Uint8Array(32), 0x8a9136aa],
  ['32 bytes of ones', new Uint8Array(32).fill(0xff), 0x62a8ab43],
  ['32 bytes counting up', Uint8Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
  ['32 bytes counting down', Uint8Array.from({ length: 32 }, (_, i) => 31 - i), 0x113fdb5c],
  [
    'an iSCSI read command',
    Uint8Array.from(
      Buffer.from(
        '01c00000000000000000000000000000140000000000040000000014000000182800000000000000020000000000 0000'.replace(
          ' ',
          '',
        ),
        'hex',
      ),
    ),
    0xd9963a56,
  ],
]

t.test('CRC-32C: the vectors of RFC 3720', async (t) => {
  for (const [name, bytes, expected] of RFC_3720) t.equal(crc32c(bytes), expected, name)
  t.equal(crc32c(Buffer.from('123456789')), 0xe3069283, 'the check value of the CRC catalogues')
  t.equal(crc32c(new Uint8Array(0)), 0)
})

t.test('CRC-32C: any part, from any start, in any pieces', async (t) => {
  const bytes = Uint8Array.from({ length: 100 }, (_, i) => (i * 37) & 0xff)
  let bitwise = 0xffffffff
  for (const byte of bytes.subarray(3, 97)) {
    bitwise ^= byte
    for (let i = 0; i < 8; i++) bitwise = bitwise & 1 ? (bitwise >>> 1) ^ 0x82f63b78 : bitwise >>> 1
  }
  const expected = ~bitwise >>> 0
  t.equal(crc32c(bytes, 3, 97), expected)
  for (let cut = 3; cut <= 97; cut++) t.equal(crc32c(bytes, cut, 97, crc32c(bytes, 3, cut)), expected)
})

t.test('CRC-32C: its own field counts as zeros', async (t) => {
  const bytes = new Uint8Array(32)
  bytes.set([1, 2, 3, 4], 5)
  t.equal(crc32cWithoutField(bytes, 5), 0x8a9136aa)
  t.same(bytes.subarray(5, 9), [1, 2, 3, 4], 'and is left alone')
})

t.test('VHD checksum', async (t) => {
  // A footer that Microsoft's tools wrote would do; this is worked out by hand: 4 × 0xff + 1 + 2 = 0x3ff.
  const bytes = new Uint8Array(512)
  bytes.set([0xff, 0xff, 0xff, 0xff, 1], 0)
  bytes[511] = 2
  bytes.set([9, 9, 9, 9], 64)
  t.equal(onesComplementByteSum(bytes, 64), 0xfffffc00)
  t.equal(onesComplementByteSum(new Uint8Array(512), 64), 0xffffffff)
})
