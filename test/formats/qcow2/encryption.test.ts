/** Encrypted images, with QEMU as the judge of everything that is computed. */

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { checkImage } from '../../../lib/image/check.js'
import { openImage } from '../../../lib/image/open.js'
import { openOverlay } from '../../../lib/image/overlay.js'
import { resizeImage } from '../../../lib/image/resize.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { create, MiB, PASSPHRASE, qemuCreate, qemuIo, qemuOptions, secret } from './luks-images.js'

// QEMU takes its time to make an encrypted image.
t.setTimeout(300_000)

/** Reads a range of an image, and says whether all of it is one byte. */
function holds(path: string, byte: number, offset: number, length: number): boolean {
  const image = openImage(path, { readOnly: true, secret })
  try {
    const buffer = Buffer.alloc(length)
    image.read(buffer, 0, length, offset)
    return buffer.every((value) => value === byte)
  } finally {
    image.close()
  }
}

function write(path: string, byte: number, offset: number, length: number): void {
  const image = openImage(path, { secret })
  image.write(Buffer.alloc(length, byte), 0, length, offset)
  image.close()
}

/** Cipher, mode, IV generator, its hash, hash: all that this machine's QEMU can have, each in some image. */
const VARIANTS: readonly (readonly [string, string, string, string, string])[] = [
  ...['aes-128', 'aes-256', 'serpent-128', 'serpent-256', 'twofish-128', 'twofish-256'].flatMap((cipher) =>
    ['xts', 'cbc', 'ctr', 'ecb'].map((mode) => [cipher, mode, 'plain64', 'sha256', 'sha256'] as const),
  ),
  ...['aes-192', 'serpent-192', 'twofish-192'].map((cipher) => [cipher, 'xts', 'plain64', 'sha256', 'sha256'] as const),
  ...['cbc', 'ctr', 'ecb'].map((mode) => ['cast5-128', mode, 'plain64', 'sha256', 'sha256'] as const),
  ...['md5', 'sha1', 'sha224', 'sha384', 'sha512', 'ripemd160'].map(
    (hash) => ['aes-256', 'xts', 'plain64', 'sha256', hash] as const,
  ),
  ['cast5-128', 'cbc', 'plain', 'sha256', 'sha256'],
  ['cast5-128', 'cbc', 'essiv', 'md5', 'sha256'],
  ['aes-256', 'cbc', 'plain', 'sha256', 'sha256'],
  ['aes-256', 'xts', 'essiv', 'sha256', 'sha1'],
  ['aes-128', 'cbc', 'essiv', 'sha256', 'sha1'],
  ['aes-128', 'cbc', 'essiv', 'md5', 'sha1'],
  ['serpent-128', 'cbc', 'essiv', 'sha256', 'sha1'],
  ['twofish-256', 'cbc', 'essiv', 'sha256', 'sha1'],
]

const optionsOf = ([cipher, mode, ivs, ivHash, hash]: (typeof VARIANTS)[number]) => [
  'encrypt.format=luks',
  `encrypt.cipher-alg=${cipher}`,
  `encrypt.cipher-mode=${mode}`,
  `encrypt.ivgen-alg=${ivs}`,
  ...(ivs === 'essiv' ? [`encrypt.ivgen-hash-alg=${ivHash}`] : []),
  `encrypt.hash-alg=${hash}`,
]

for (const variant of VARIANTS)
  t.test(`LUKS that is made here: ${variant.join(' ')}`, async (t) => {
    const path = join(temporaryFolder(t), 'image.qcow2')
    create(path, MiB, optionsOf(variant))
    write(path, 0x5a, 12345, 70_000)
    qemuIo(path, 'read -P 0x5a 12345 70000', 'read -P 0 0 12345', 'read -P 0 82345 10000', 'write -P 0x33 200000 5000')
    t.ok(holds(path, 0x33, 200_000, 5000))
    t.ok(holds(path, 0x5a, 12_345, 70_000))
    t.ok(holds(path, 0, 205_000, 1000))
    must('qemu-img', ['check', '-q', ...qemuOptions(path)])
  })

for (const variant of [VARIANTS[4]!, VARIANTS[5]!, VARIANTS.at(-4)!, VARIANTS[9]!, VARIANTS[19]!])
  t.test(`LUKS that QEMU made: ${variant.join(' ')}`, async (t) => {
    const path = join(temporaryFolder(t), 'image.qcow2')
    qemuCreate(path, '1M', optionsOf(variant))
    qemuIo(path, 'write -P 0x77 65000 100000')
    t.ok(holds(path, 0x77, 65_000, 100_000))
    t.ok(holds(path, 0, 0, 65_000))
    write(path, 0x11, 64_999, 2)
    write(path, 0x22, 400_000, 513)
    qemuIo(path, 'read -P 0x11 64999 2', 'read -P 0x77 65001 99999', 'read -P 0x22 400000 513', 'read -P 0 400513 9999')
  })

t.test('AES, as it was before LUKS', async (t) => {
  const folder = temporaryFolder(t)
  for (const [name, make] of [
    ['ours', (path: string) => create(path, 4 * MiB, ['encrypt.format=aes'])],
    ['QEMU', (path: string) => qemuCreate(path, '4M', ['encrypt.format=aes'])],
  ] as const) {
    const path = join(folder, `${name}.qcow2`)
    make(path)
    qemuIo(path, 'write -P 0x77 65000 100000')
    t.ok(holds(path, 0x77, 65_000, 100_000))
    // The initialization vector is the guest's sector: the second write goes to a cluster far from its place.
    write(path, 0x11, 3 * MiB + 1, 100_000)
    qemuIo(path, `read -P 0x11 ${3 * MiB + 1} 100000`, 'read -P 0 1M 1M', 'read -P 0x77 65000 100000')
  }
})

t.test('every way to write, against QEMU', async (t) => {
  const folder = temporaryFolder(t)
  const base = join(folder, 'base.raw')
  const plain = Buffer.alloc(2 * MiB + 512, 'the parent is not encrypted ')
  writeFileSync(base, plain)
  for (const options of [
    [],
    ['cluster_size=512'],
    ['cluster_size=2M'],
    ['extended_l2=on'],
    ['compat=0.10'],
    ['compat=0.10', 'encrypt.format=aes'],
    [`data_file=${join(folder, 'data')}`],
  ]) {
    const path = join(folder, `i${options.join('').replaceAll('/', '')}.qcow2`)
    const size = 2 * MiB + 1024
    const external = options.join().includes('data_file')
    const { createImage } = await import('../../../lib/image/create.js')
    createImage(path, {
      format: 'qcow2',
      size,
      secret,
      options: ['encrypt.format=luks', 'encrypt.iter-time=1', ...options],
      ...(external ? {} : { backing: base, backingFormat: 'raw' }),
    })
    const model = Buffer.alloc(size)
    if (!external) plain.copy(model)
    const image = openImage(path, { secret })
    const put = (byte: number, offset: number, length: number) => {
      image.write(Buffer.alloc(length, byte), 0, length, offset)
      model.fill(byte, offset, offset + length)
    }
    const zero = (offset: number, length: number, unmap: boolean) => {
      image.zero(offset, length, unmap)
      model.fill(0, offset, offset + length)
    }
    put(1, 70_000, 10)
    put(2, 69_990, 300_000)
    put(3, 511, 2)
    zero(100_000, 1000, true)
    zero(1 * MiB, 200_000, false)
    zero(69_632, 131_072, true)
    put(4, 1 * MiB + 100_001, 77)
    put(5, size - 700, 700)
    put(6, 0, 4096)
    image.flush()
    const read = Buffer.alloc(size)
    image.read(read, 0, size, 0)
    t.ok(read.equals(model), `${options}: read before it is closed`)
    image.close()
    const out = join(folder, 'out.raw')
    // The name of the data file is relative to the image.
    must('qemu-img', ['convert', ...qemuOptions(path), '-O', 'raw', out], { cwd: folder })
    t.ok(readFileSync(out).equals(model), `${options}: read by QEMU`)
    must('qemu-img', ['check', '-q', ...qemuOptions(path)], { cwd: folder })
  }
})

t.test('preallocated, it reads as zeros all the same', async (t) => {
  const folder = temporaryFolder(t)
  for (const preallocation of ['metadata', 'falloc', 'full'])
    for (const more of [[], ['extended_l2=on']]) {
      const path = join(folder, `${preallocation}${more}.qcow2`)
      create(path, 300_032, ['encrypt.format=luks', `preallocation=${preallocation}`, ...more])
      t.ok(holds(path, 0, 0, 300_032))
      write(path, 0x44, 70_000, 100)
      qemuIo(path, 'read -P 0 0 70000', 'read -P 0x44 70000 100', 'read -P 0 70100 229932')
      must('qemu-img', ['check', '-q', ...qemuOptions(path)])
    }
})

t.test('snapshots of an encrypted image', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, MiB, ['encrypt.format=luks'])
  write(path, 0x11, 65_536, 65_536)
  must('qemu-img', ['snapshot', '-c', 'one', ...qemuOptions(path)])
  write(path, 0x22, 70_000, 1000)
  qemuIo(path, 'read -P 0x11 65536 4464', 'read -P 0x22 70000 1000', 'read -P 0x11 71000 60072')
  const old = openImage(path, { readOnly: true, secret, snapshot: 'one' })
  const buffer = Buffer.alloc(65_536)
  old.read(buffer, 0, 65_536, 65_536)
  t.ok(buffer.every((byte) => byte === 0x11))
  old.close()
})

t.test('the passphrase: missing, wrong, and never in what is told or kept', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'image.qcow2')
  create(path, MiB, ['encrypt.format=luks'])
  t.throws(() => openImage(path, { readOnly: true }), {
    code: 'ACCESS',
    message: `${path}: it is encrypted (luks): say --secret FILE, with its passphrase`,
  })
  t.throws(() => openImage(path, { secret: Buffer.from('falsch') }), {
    code: 'ACCESS',
    message: `${path}: the passphrase opens none of its key slots`,
  })
  let asked = 0
  const image = openImage(path, {
    secret: () => {
      asked++
      return secret
    },
  })
  t.equal(asked, 1)
  const handle = JSON.stringify(image.handle())
  t.notMatch(handle, PASSPHRASE)
  t.notMatch(handle, [...secret].join())
  image.close()
  const plain = join(folder, 'plain.qcow2')
  must('qemu-img', ['create', '-q', '-f', 'qcow2', plain, '1M'])
  openImage(plain, {
    secret: () => {
      asked++
      return secret
    },
  }).close()
  t.equal(asked, 1, 'nobody is asked for an image that is not encrypted')
})

t.test('headers that are wrong', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'image.qcow2')
  create(path, MiB, ['encrypt.format=luks'])
  const good = readFileSync(path)
  const at = good.indexOf('LUKS\xba\xbe', 0, 'latin1')
  const slot = 208
  const cases: readonly (readonly [string, (bytes: Buffer) => void, RegExp])[] = [
    ['magic', (b) => b.fill(0, at, at + 4), /LUKS header at byte \d+: its magic is wrong/],
    ['version 2', (b) => b.writeUInt16BE(2, at + 6), /LUKS version 2: expected 1/],
    ['cipher', (b) => b.fill('rot13\0', at + 8, at + 14), /needs the cipher 'rot13' with a key of 32 bytes/],
    ['a name with a bell', (b) => b.fill('\x07\0', at + 8, at + 10), /needs the cipher '\?' with/],
    ['mode', (b) => b.fill('lrw-benbi\0', at + 40, at + 50), /needs the mode 'lrw'/],
    ['IV generator', (b) => b.fill('xts-random\0', at + 40, at + 51), /needs the IV generator 'random'/],
    ['essiv without its hash', (b) => b.fill('cbc-essiv\0', at + 40, at + 50), /needs the /],
    ['hash', (b) => b.fill('whirlpool\0', at + 72, at + 82), /needs the hash 'whirlpool'/],
    ['key size', (b) => b.writeUInt32BE(0xffffffff, at + 108), /needs the cipher 'aes' with a key of/],
    ['iterations', (b) => b.writeUInt32BE(0xffffffff, at + slot + 4), /key slot 0 wants 4294967295 iterations/],
    ['no iterations', (b) => b.writeUInt32BE(0, at + 164), /the master key wants 0 iterations/],
    ['stripes', (b) => b.writeUInt32BE(0xffffffff, at + slot + 44), /key slot 0 has 4294967295 stripes/],
    ['material', (b) => b.writeUInt32BE(0xffffffff, at + slot + 40), /the material of key slot 0 is at bytes/],
    ['material in the header', (b) => b.writeUInt32BE(0, at + slot + 40), /the material of key slot 0 is at bytes/],
    ['state', (b) => b.writeUInt32BE(7, at + slot), /key slot 0 is 0x7/],
    ['all slots disabled', (b) => b.writeUInt32BE(0xdead, at + slot), /opens none of its key slots/],
  ]
  for (const [name, change, message] of cases) {
    const bytes = Buffer.from(good)
    change(bytes)
    writeFileSync(path, bytes)
    t.throws(() => openImage(path, { readOnly: true, secret }), { message }, name)
  }
  const extension = good.indexOf(Buffer.from([0x05, 0x37, 0xbe, 0x77])) + 8
  for (const [name, offset, length] of [
    ['beyond the file', 1n << 40n, 4096n],
    ['not at a cluster', BigInt(at + 512), 4096n],
    ['no place', 0n, 4096n],
    ['beyond everything', 1n << 60n, 4096n],
    ['no length', BigInt(at), 0n],
    ['too short', BigInt(at), 600n],
  ] as const) {
    const bytes = Buffer.from(good)
    bytes.writeBigUInt64BE(offset, extension)
    bytes.writeBigUInt64BE(length, extension + 8)
    writeFileSync(path, bytes)
    t.throws(() => openImage(path, { readOnly: true, secret }), { code: 'CORRUPT' }, name)
  }
})

t.test('another size: what is new is zeros, and without the passphrase nothing changes', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, MiB, ['encrypt.format=luks'])
  write(path, 0x11, MiB - 100, 100)
  resizeImage(path, { size: MiB - 1024, shrink: true })
  t.throws(() => resizeImage(path, { size: MiB + 512 }), { code: 'ACCESS' })
  const unchanged = openImage(path, { readOnly: true, secret })
  t.equal(unchanged.size, MiB - 1024)
  unchanged.close()
  resizeImage(path, { size: MiB + 512, secret })
  t.ok(holds(path, 0, MiB - 1024, 1024 + 512))
  qemuIo(path, `read -P 0 ${MiB - 1024} 1536`)
})

t.test('check and repair know the LUKS header', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, MiB, ['encrypt.format=luks'])
  write(path, 0x11, 5000, 100_000)
  t.equal(checkImage(path).corruptions, 0)
  const bytes = readFileSync(path)
  const block = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))))
  bytes.fill(0, block, block + 65_536)
  writeFileSync(path, bytes)
  t.ok(checkImage(path, { repair: 'all' }).corruptionsFixed > 30, 'all refcounts were gone')
  t.equal(checkImage(path).corruptions, 0)
  // New data must not go where the key slots are.
  write(path, 0x22, 500_000, 500_000)
  t.ok(holds(path, 0x11, 5000, 100_000))
  must('qemu-img', ['check', '-q', ...qemuOptions(path)])
})

t.test('an overlay of an encrypted image is encrypted too', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'image.qcow2')
  const overlay = join(folder, 'overlay.qcow2')
  create(path, MiB, ['encrypt.format=luks'])
  const image = openOverlay(path, overlay, { secret })
  image.write(Buffer.alloc(4096, 'in the clear'), 0, 4096, 0)
  image.close()
  t.notOk(readFileSync(overlay).includes('in the clear'))
  const again = openOverlay(path, overlay, { secret })
  const buffer = Buffer.alloc(12)
  again.read(buffer, 0, 12, 0)
  again.close()
  t.equal(buffer.toString(), 'in the clear')
  t.throws(() => openOverlay(path, overlay), { code: 'ACCESS' })
  t.throws(() => openOverlay(path, join(folder, 'none.qcow2')), { code: 'ACCESS' })
  t.notOk(existsSync(join(folder, 'none.qcow2')))
})
