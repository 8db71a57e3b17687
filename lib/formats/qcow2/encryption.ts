/**
 * Encryption of a QCOW2 image's data: AES (`crypt_method` 1, CBC with the passphrase itself as the key) and LUKS version 1
 * (`crypt_method` 2, whose header the full disk encryption header pointer names).
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Facts, OpenContext, SectorCipher } from '../driver.js'
import { findMasterKey, readLuks } from './crypto/luks.js'
import { type HeaderPlace, iterationsOf, type Luks, SlotState } from './crypto/luks-header.js'
import { SECTOR } from './crypto/modes.js'
import { type CipherSpec, NumberedSectors } from './crypto/sector-cipher.js'
import { cryptExtension } from './extensions.js'
import { Crypt, type Header } from './header.js'

/** QEMU's name for the encryption that was there before LUKS. */
const AES_KEY_SIZE = 16
const AES_SPEC: CipherSpec = {
  cipher: 'aes',
  mode: 'cbc',
  ivGenerator: 'plain64',
  ivHash: undefined,
  keySize: AES_KEY_SIZE,
}

/** What a layout has of an image's encryption: plain data. */
export interface Encryption {
  readonly method: 'aes' | 'luks'
  readonly spec: CipherSpec
  /** The key of the data itself; undefined where no secret was given. Never the passphrase of LUKS. */
  readonly key: Uint8Array | undefined
  /** For `info`, as qemu-img has them. */
  readonly facts: Facts
}

/** So many take ten seconds or so, and are several times what other programs choose. */
const MANY_ITERATIONS = 2 ** 25

/**
 * What the header says of encryption, and the key, where there is a secret.
 * @throws CORRUPT, UNSUPPORTED; ACCESS for a passphrase that does not open it
 */
export function openEncryption(
  storage: Storage,
  header: Header,
  { secret, warn }: Pick<OpenContext, 'secret' | 'warn'>,
): Encryption | undefined {
  if (header.cryptMethod === Crypt.NONE) return undefined
  const { path } = storage
  // Sectors are encrypted whole, and no writer makes a disk that ends inside of one.
  if (header.size % SECTOR !== 0)
    throw new VdiskError('CORRUPT', `its disk has ${header.size} bytes: expected whole sectors, as it is encrypted`, {
      path,
    })
  if (header.cryptMethod === Crypt.AES) {
    const passphrase = secret?.()
    return { method: 'aes', spec: AES_SPEC, key: passphrase && aesKey(passphrase), facts: { format: 'aes' } }
  }
  const place = headerPlace(storage, header)
  const luks = readLuks(storage, place)
  const passphrase = secret?.()
  const iterations = iterationsOf(luks.header)
  if (passphrase && iterations >= MANY_ITERATIONS)
    warn(`its passphrase is being tried, with up to ${iterations} iterations of PBKDF2: that may take a minute or two`)
  const key = passphrase && findMasterKey(storage, place, luks, passphrase)
  if (passphrase && !key) throw new VdiskError('ACCESS', 'the passphrase opens none of its key slots', { path })
  return { method: 'luks', spec: luks.spec, key, facts: luksFacts(luks) }
}

/** The passphrase, cut or filled up with zeros. */
function aesKey(passphrase: Uint8Array): Uint8Array {
  const key = new Uint8Array(AES_KEY_SIZE)
  key.set(passphrase.subarray(0, AES_KEY_SIZE))
  return key
}

function headerPlace(storage: Storage, header: Header): HeaderPlace {
  const { path } = storage
  const place = cryptExtension(header.extensions, path)
  if (!place)
    throw new VdiskError('CORRUPT', 'it is encrypted with LUKS, and does not say where the header is', { path })
  const { offset, length } = place
  if (offset % 2 ** header.clusterBits !== 0 || offset === 0 || offset + length > Number.MAX_SAFE_INTEGER)
    throw new VdiskError('CORRUPT', `its LUKS header is said to be at byte ${offset}: expected a cluster`, { path })
  return { path, offset, length }
}

function luksFacts({ header, spec, hash, uuid }: Luks): Facts {
  const { cipher, mode, ivGenerator, ivHash, keySize } = spec
  return {
    format: 'luks',
    uuid,
    'cipher-alg': `${cipher}-${8 * (mode === 'xts' ? keySize / 2 : keySize)}`,
    'cipher-mode': mode,
    'ivgen-alg': ivGenerator,
    ...(ivGenerator === 'essiv' && ivHash !== undefined && { 'ivgen-hash-alg': ivHash }),
    'hash-alg': hash,
    'payload-offset': header.payloadOffset * SECTOR,
    'master-key-iters': header.mkDigestIterations,
    slots: header.keySlots.map(({ active, iterations, stripes, keyMaterialOffset }) => ({
      active: active === SlotState.ENABLED,
      ...(active === SlotState.ENABLED && { iters: iterations, stripes }),
      'key-offset': keyMaterialOffset * SECTOR,
    })),
  }
}

/**
 * How a layer's data is encrypted, for the calling thread.
 * @throws ACCESS where no secret was given
 */
export function dataCipher({ method, spec, key }: Encryption, path: string): SectorCipher {
  if (!key)
    throw new VdiskError('ACCESS', `it is encrypted (${method}): say --secret FILE, with its passphrase`, { path })
  const sectors = new NumberedSectors(spec, key)
  // Initialization vectors are those of the guest's sectors with AES, and of the image's own with LUKS.
  const physical = method === 'luks'
  return {
    encrypt: (buffer, at, length, guest, host) =>
      sectors.encrypt(buffer, at, length, (physical ? host : guest) / SECTOR),
    decrypt: (buffer, at, length, guest, host) =>
      sectors.decrypt(buffer, at, length, (physical ? host : guest) / SECTOR),
  }
}
