/** The ciphers by themselves, against vectors that others published or computed. */

import t from 'tap'
import { makeCipher } from '../../../lib/formats/qcow2/crypto/block-cipher.js'
import { MODES } from '../../../lib/formats/qcow2/crypto/modes.js'
import { mergeStripes, splitKey } from '../../../lib/formats/qcow2/crypto/splitter.js'

const hex = (text: string) => new Uint8Array(Buffer.from(text, 'hex'))
const KEY = '00112233445566778899aabbccddeeffffeeddccbbaa99887766554433221100'
const TEXT = '0123456789abcdeffedcba9876543210'

/** Cipher, key, plain text, what it becomes. */
const VECTORS: readonly (readonly [string, string, string, string])[] = [
  // RFC 2144, B.1.
  ['cast5', '0123456712345678234567893456789a', '0123456789abcdef', '238b4fe5847e44b2'],
  // The paper on Twofish, appendix A.
  ['twofish', '0'.repeat(32), '0'.repeat(32), '9f589f5cf6122c32b6bfec2f2ae8c35a'],
  ['twofish', '0123456789abcdeffedcba98765432100011223344556677', '0'.repeat(32), 'cfd1d2e5a9be9cdf501f13b892bd2248'],
  [
    'twofish',
    '0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff',
    '0'.repeat(32),
    '37527be0052334b89f0cfccae87cfa20',
  ],
  // Computed with libgcrypt 1.10.
  ['serpent', KEY.slice(0, 32), TEXT, 'd9a45f490415802e256e853936c87681'],
  ['serpent', KEY.slice(0, 48), TEXT, '65b756c63fdf6d38b02630c2c8b0b12a'],
  ['serpent', KEY, TEXT, '55dc179eadb0f657097106d4145ccbbf'],
  ['twofish', KEY, TEXT, '5a4fcbaec0275f43eb4b281e3db3de15'],
  // FIPS 197, C.1.
  ['aes', '000102030405060708090a0b0c0d0e0f', '00112233445566778899aabbccddeeff', '69c4e0d86a7b0430d8cdb78070b4c55a'],
]

for (const [name, key, text, expected] of VECTORS)
  t.test(`${name}, ${key.length * 4} bits`, async (t) => {
    const cipher = makeCipher(name, hex(key))
    t.equal(cipher.blockSize, text.length / 2)
    // Several blocks together, and again with the same object.
    for (const count of [1, 3])
      t.equal(Buffer.from(cipher.encrypt(hex(text.repeat(count)))).toString('hex'), expected.repeat(count))
    t.equal(Buffer.from(cipher.decrypt(hex(expected.repeat(2)))).toString('hex'), text.repeat(2))
  })

t.test('XTS of a sector: IEEE 1619, vector 10', async (t) => {
  const key = hex(
    '27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592',
  )
  const sector = Uint8Array.from({ length: 512 }, (_, i) => i)
  const iv = new Uint8Array(16)
  iv[0] = 0xff
  const { encrypt, decrypt } = MODES.xts!.make('aes', key)
  encrypt(sector, iv.slice())
  t.equal(Buffer.from(sector.subarray(0, 16)).toString('hex'), '1c3b3a102f770386e4836c99e370cf9b')
  t.equal(Buffer.from(sector.subarray(496)).toString('hex'), 'c4f36ffda9fcea70b9c6e693e148c151')
  decrypt(sector, iv.slice())
  t.same(
    sector,
    Uint8Array.from({ length: 512 }, (_, i) => i),
  )
})

t.test('a split key is merged again, and no stripe can be missed', async (t) => {
  const key = hex(KEY)
  for (const hash of ['sha1', 'sha256', 'sha512']) {
    const stripes = splitKey(key, 50, hash)
    t.equal(stripes.length, 50 * 32)
    t.same(new Uint8Array(mergeStripes(stripes, 32, hash)), key)
    stripes[17 * 32]! ^= 1
    t.not(Buffer.compare(mergeStripes(stripes, 32, hash), key), 0)
  }
})
