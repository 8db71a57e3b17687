/** What `create` does for an encrypted image: its options, with qemu-img's names, and the LUKS header. */

import { VdiskError } from '../../util/errors.js'
import type { CreateContext } from '../driver.js'
import type { OptionSpec, OptionValues } from '../options.js'
import { makeLuks } from './crypto/luks.js'
import { STRIPES } from './crypto/luks-header.js'
import { MODES, SECTOR } from './crypto/modes.js'
import { type CipherSpec, HASHES, IV_GENERATORS, unknownPart } from './crypto/sector-cipher.js'
import { Crypt } from './header.js'

const CIPHERS = ['aes', 'serpent', 'twofish'].flatMap((name) => [128, 192, 256].map((bits) => `${name}-${bits}`))
const CAST5 = 'cast5-128'
const DEFAULT_TIME = 2000
const LONGEST_TIME = 60_000

export const encryptionOptions: readonly OptionSpec[] = [
  {
    name: 'encrypt.format',
    help: 'encrypt the data, with the passphrase in --secret; aes is weak, and for old programs only',
    type: 'enum',
    values: ['none', 'luks', 'aes'],
    default: 'none',
  },
  {
    name: 'encrypt.cipher-alg',
    help: 'LUKS: the cipher',
    type: 'enum',
    values: [...CIPHERS, CAST5],
    default: 'aes-256',
  },
  {
    name: 'encrypt.cipher-mode',
    help: "LUKS: the cipher's mode",
    type: 'enum',
    values: Object.keys(MODES),
    default: 'xts',
  },
  {
    name: 'encrypt.ivgen-alg',
    help: 'LUKS: how initialization vectors are made',
    type: 'enum',
    values: IV_GENERATORS,
    default: 'plain64',
  },
  {
    name: 'encrypt.ivgen-hash-alg',
    help: 'LUKS: the hash for essiv',
    type: 'enum',
    values: Object.keys(HASHES),
    default: 'sha256',
  },
  {
    name: 'encrypt.hash-alg',
    help: 'LUKS: the hash for keys',
    type: 'enum',
    values: Object.keys(HASHES),
    default: 'sha256',
  },
  {
    name: 'encrypt.iter-time',
    help: 'LUKS: milliseconds that trying a passphrase is to take here',
    type: 'number',
    default: DEFAULT_TIME,
    min: 1,
    max: LONGEST_TIME,
  },
]

/** How a new image is to be encrypted. */
export interface NewEncryption {
  /** `crypt_method` of the header. */
  readonly method: number
  /** The LUKS header; undefined: there is none. */
  readonly luks: Uint8Array | undefined
}

/** @throws USAGE for what does not go together, and where there is no passphrase */
export function newEncryption({ options, path, secret }: Omit<CreateContext, 'storage'>): NewEncryption {
  const format = options['encrypt.format']
  if (format === 'none') return { method: Crypt.NONE, luks: undefined }
  const usage = (text: string) => new VdiskError('USAGE', text, { path })
  if (options.data_file_raw) throw usage('data_file_raw and encryption do not go together')
  if (options.preallocation !== 'off' && (options.compat === '0.10' || options.compat === 'v2'))
    throw usage('preallocation of an encrypted image needs compat=1.1')
  const passphrase = secret?.()
  if (!passphrase) throw usage(`encrypt.format=${format} needs --secret FILE, with a passphrase`)
  if (format === 'aes') return { method: Crypt.AES, luks: undefined }
  const spec = specOf(options)
  const unknown = unknownPart(spec)
  if (unknown !== undefined) throw usage(`encryption with ${unknown} is not possible`)
  // QEMU splits keys into whole sectors only, and crashes on others.
  if ((spec.keySize * STRIPES) % SECTOR !== 0)
    throw usage(`${options['encrypt.cipher-alg']} in mode ${spec.mode}: QEMU could not open such an image`)
  const time = options['encrypt.iter-time'] as number
  return { method: Crypt.LUKS, luks: makeLuks(spec, options['encrypt.hash-alg'] as string, passphrase, time) }
}

function specOf(options: OptionValues): CipherSpec {
  const [cipher, bits] = (options['encrypt.cipher-alg'] as string).split('-')
  const mode = options['encrypt.cipher-mode'] as string
  const ivGenerator = options['encrypt.ivgen-alg'] as string
  return {
    cipher: cipher!,
    mode,
    ivGenerator,
    ivHash: ivGenerator === 'essiv' ? (options['encrypt.ivgen-hash-alg'] as string) : undefined,
    keySize: (Number(bits) / 8) * MODES[mode]!.keys,
  }
}
