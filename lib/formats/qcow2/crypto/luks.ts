/**
 * LUKS version 1: from a passphrase to the master key, and a new header with one key slot. What is secret stays in here, and
 * in what is returned; no message has any of it.
 */

import { createHash, pbkdf2Sync, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto'
import type { Storage } from '../../../storage/storage.js'
import {
  DIGEST_SIZE,
  decodeLuks,
  type HeaderPlace,
  LUKS_HEADER,
  type Luks,
  type LuksHeader,
  MAX_ITERATIONS,
  materialSize,
  newHeader,
  SALT_SIZE,
  SlotState,
  STRIPES,
} from './luks-header.js'
import { SECTOR } from './modes.js'
import { type CipherSpec, NumberedSectors } from './sector-cipher.js'
import { mergeStripes, splitKey } from './splitter.js'

/** Fewer iterations than this nobody writes, however slow a machine is. */
const MIN_ITERATIONS = 1000
/** Of a key slot that is made here, so that `MAX_ITERATIONS` leaves room for the digest. */
const MOST_ITERATIONS = MAX_ITERATIONS / 2
/** Of the time that a key slot is to take, the master key's digest gets this part. */
const DIGEST_SHARE = 8

/** Master keys that were found or made, by what they were found with: images are opened several times by one command. */
const known = new Map<string, Uint8Array>()
const MOST_KNOWN = 16

type Lock = Pick<Luks, 'spec' | 'hash'> & {
  readonly header: Pick<LuksHeader, 'mkDigest' | 'mkDigestSalt' | 'mkDigestIterations' | 'keySlots'>
}

/** Not the same for two passphrases, two master keys, or two sets of key slots. */
function nameOf({ header, spec, hash }: Lock, passphrase: Uint8Array): string {
  const all = createHash('sha256').update(JSON.stringify([spec, hash, header.mkDigestIterations, passphrase.length]))
  all.update(passphrase).update(header.mkDigest).update(header.mkDigestSalt)
  for (const { active, iterations, stripes, keyMaterialOffset, salt } of header.keySlots)
    all.update(JSON.stringify([active, iterations, stripes, keyMaterialOffset])).update(salt)
  return all.digest('hex')
}

function remember(name: string, key: Uint8Array): void {
  known.set(name, key)
  if (known.size > MOST_KNOWN) known.delete(known.keys().next().value!)
}

/** @throws CORRUPT, UNSUPPORTED, IO */
export function readLuks(storage: Storage, place: HeaderPlace): Luks {
  const raw = new Uint8Array(Math.min(LUKS_HEADER.size, place.length))
  const got = storage.read(raw, 0, raw.length, place.offset)
  return decodeLuks(raw.subarray(0, got), place)
}

/** The master key, from the first key slot that the passphrase opens; undefined where it opens none. */
export function findMasterKey(
  storage: Storage,
  place: HeaderPlace,
  luks: Luks,
  passphrase: Uint8Array,
): Uint8Array | undefined {
  const { header, spec, hash } = luks
  const name = nameOf(luks, passphrase)
  const found = known.get(name)
  if (found) return found
  for (const slot of header.keySlots) {
    if (slot.active !== SlotState.ENABLED) continue
    const material = new Uint8Array(materialSize(spec.keySize, slot.stripes))
    storage.read(material, 0, material.length, place.offset + slot.keyMaterialOffset * SECTOR)
    const slotKey = pbkdf2Sync(passphrase, slot.salt, slot.iterations, spec.keySize, hash)
    new NumberedSectors(spec, slotKey).decrypt(material, 0, material.length, 0)
    const key = mergeStripes(material.subarray(0, spec.keySize * slot.stripes), spec.keySize, hash)
    const digest = pbkdf2Sync(key, header.mkDigestSalt, header.mkDigestIterations, DIGEST_SIZE, hash)
    if (!timingSafeEqual(digest, header.mkDigest)) continue
    remember(name, key)
    return key
  }
  return undefined
}

/** Iterations of PBKDF2 that take so many milliseconds here, for a key of `size` bytes. */
function iterationsFor(milliseconds: number, hash: string, size: number): number {
  for (let count = MIN_ITERATIONS; ; count *= 4) {
    const start = process.cpuUsage().user
    pbkdf2Sync('passphrase', 'salt', count, size, hash)
    // Microseconds. A measurement over 20 ms is good enough.
    const took = (process.cpuUsage().user - start) / 1000
    if (took >= 20 || count >= 2 ** 24)
      return Math.min(MOST_ITERATIONS, Math.max(MIN_ITERATIONS, Math.round((count * milliseconds) / took)))
  }
}

/**
 * The bytes of a new header, key material and the room of empty slots included, and so the length of the encryption
 * header.
 * @param milliseconds that trying a passphrase is to take on this machine
 */
export function makeLuks(spec: CipherSpec, hash: string, passphrase: Uint8Array, milliseconds: number): Uint8Array {
  const key = randomBytes(spec.keySize)
  const salt = randomBytes(SALT_SIZE)
  const mkDigestSalt = randomBytes(SALT_SIZE)
  const iterations = iterationsFor(milliseconds, hash, spec.keySize)
  const mkDigestIterations = Math.max(
    MIN_ITERATIONS,
    Math.round(iterationsFor(milliseconds, hash, DIGEST_SIZE) / DIGEST_SHARE),
  )
  const mkDigest = pbkdf2Sync(key, mkDigestSalt, mkDigestIterations, DIGEST_SIZE, hash)
  const header = newHeader(spec, hash, {
    mkDigest,
    mkDigestSalt,
    mkDigestIterations,
    uuid: randomUUID(),
    salt,
    iterations,
  })
  const out = new Uint8Array(header.payloadOffset * SECTOR)
  LUKS_HEADER.write(header, out)
  const start = header.keySlots[0]!.keyMaterialOffset * SECTOR
  out.set(splitKey(key, STRIPES, hash), start)
  const slotKey = pbkdf2Sync(passphrase, salt, iterations, spec.keySize, hash)
  new NumberedSectors(spec, slotKey).encrypt(out, start, materialSize(spec.keySize, STRIPES), 0)
  remember(nameOf({ header, spec, hash }, passphrase), key)
  return out
}
