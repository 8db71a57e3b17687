/**
 * The header of LUKS version 1 (LUKS On-Disk Format Specification 1.2.3, 2.1): everything that is in the clear. All of it is
 * checked before it is used.
 */

import { VdiskError } from '../../../util/errors.js'
import { array, ascii, bytes, type RecordOf, Struct, u16, u32 } from '../../../util/struct.js'
import { MODES, SECTOR } from './modes.js'
import { type CipherSpec, HASHES, unknownPart } from './sector-cipher.js'

export const DIGEST_SIZE = 20
export const SALT_SIZE = 32
export const KEY_SLOTS = 8
/** Into how many stripes every key is split. */
export const STRIPES = 4000
/** Where the material of the first key slot begins, and to what that of the others is rounded up. */
export const SLOT_ALIGNMENT = 4096

const MAGIC = 'LUKS\xba\xbe'
const VERSION = 1
export const SlotState = { ENABLED: 0x00ac71f3, DISABLED: 0x0000dead } as const
/**
 * More iterations of PBKDF2, of all key slots together, take minutes: cryptsetup and QEMU choose some millions for each, and
 * who writes more wants this program to hang.
 */
export const MAX_ITERATIONS = 2 ** 27

const SLOT = new Struct('LUKS key slot', 48, 'big', {
  active: u32,
  iterations: u32,
  salt: bytes(SALT_SIZE),
  keyMaterialOffset: u32,
  stripes: u32,
})

export const LUKS_HEADER = new Struct('LUKS header', 592, 'big', {
  magic: ascii(6),
  version: u16,
  cipherName: ascii(32),
  cipherMode: ascii(32),
  hashSpec: ascii(32),
  payloadOffset: u32,
  keyBytes: u32,
  mkDigest: bytes(DIGEST_SIZE),
  mkDigestSalt: bytes(SALT_SIZE),
  mkDigestIterations: u32,
  uuid: ascii(40),
  keySlots: array(KEY_SLOTS, SLOT),
})
export type LuksHeader = RecordOf<typeof LUKS_HEADER>

const untilNul = (text: string) => text.replace(/\0.*$/s, '')

/** Where the header is, and how many bytes there are for it and its key material. */
export interface HeaderPlace {
  readonly path: string
  readonly offset: number
  readonly length: number
}

/** A header whose fields are checked, and what they mean. */
export interface Luks {
  readonly header: LuksHeader
  readonly spec: CipherSpec
  readonly hash: string
  readonly uuid: string
}

/**
 * @param raw the header's bytes
 * @throws CORRUPT; UNSUPPORTED for ciphers, modes and hashes that are not known
 */
export function decodeLuks(raw: Uint8Array, place: HeaderPlace): Luks {
  const wrong = (text: string) => new VdiskError('CORRUPT', `LUKS header at byte ${place.offset}: ${text}`, place)
  const header = LUKS_HEADER.read(raw, 0, place)
  if (header.magic !== MAGIC) throw wrong('its magic is wrong')
  if (header.version !== VERSION)
    throw new VdiskError('UNSUPPORTED', `it is encrypted with LUKS version ${header.version}: expected 1`, place)
  const [mode = '', generator = ''] = splitOnce(untilNul(header.cipherMode), '-')
  const [ivGenerator = '', ivHash] = splitOnce(generator, ':')
  const cipher = untilNul(header.cipherName)
  const spec = { cipher, mode, ivGenerator, ivHash, keySize: header.keyBytes }
  const hash = untilNul(header.hashSpec).toLowerCase()
  const unknown = unknownPart(spec) ?? (Object.hasOwn(HASHES, hash) ? undefined : `the hash '${hash}'`)
  if (unknown !== undefined) throw new VdiskError('UNSUPPORTED', `its encryption needs ${printable(unknown)}`, place)
  checkIterations('the master key', header.mkDigestIterations, wrong)
  header.keySlots.forEach((slot, i) => {
    if (slot.active !== SlotState.ENABLED && slot.active !== SlotState.DISABLED)
      throw wrong(`key slot ${i} is 0x${slot.active.toString(16)}: expected an active or a disabled one`)
    if (slot.active === SlotState.DISABLED) return
    checkIterations(`key slot ${i}`, slot.iterations, wrong)
    if (slot.stripes < 1 || slot.stripes > STRIPES)
      throw wrong(`key slot ${i} has ${slot.stripes} stripes: expected ${STRIPES}`)
    const start = slot.keyMaterialOffset * SECTOR
    const end = start + materialSize(header.keyBytes, slot.stripes)
    if (start < LUKS_HEADER.size || end > Math.ceil(place.length / SECTOR) * SECTOR)
      throw wrong(`the material of key slot ${i} is at bytes ${start} to ${end}: there are ${place.length}`)
  })
  const total = iterationsOf(header)
  if (total > MAX_ITERATIONS)
    throw wrong(`its key slots want ${total} iterations of PBKDF2: expected ${MAX_ITERATIONS} at most`)
  return { header, spec, hash, uuid: printable(untilNul(header.uuid)) }
}

/** How many iterations of PBKDF2 it takes to find out that a passphrase opens none of the key slots. */
export function iterationsOf({ keySlots, mkDigestIterations }: LuksHeader): number {
  const active = keySlots.filter(({ active }) => active === SlotState.ENABLED)
  return active.reduce((sum, { iterations }) => sum + iterations + mkDigestIterations, 0)
}

function checkIterations(of: string, count: number, wrong: (text: string) => VdiskError): void {
  if (count < 1 || count > MAX_ITERATIONS)
    throw wrong(`${of} wants ${count} iterations of PBKDF2: expected 1 to ${MAX_ITERATIONS}`)
}

function splitOnce(text: string, at: string): [string, string | undefined] {
  const i = text.indexOf(at)
  return i < 0 ? [text, undefined] : [text.slice(0, i), text.slice(i + 1)]
}

/** What an image says, for messages: without characters that do something to a terminal. */
function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?')
}

/** Bytes that the split key of a slot takes, in whole sectors. */
export function materialSize(keyBytes: number, stripes: number): number {
  return Math.ceil((keyBytes * stripes) / SECTOR) * SECTOR
}

/** The header of a new image: all slots disabled but the first, whose secrets are given. */
export function newHeader(
  spec: CipherSpec,
  hash: string,
  secrets: Pick<LuksHeader, 'mkDigest' | 'mkDigestSalt' | 'mkDigestIterations' | 'uuid'> & {
    readonly salt: Uint8Array
    readonly iterations: number
  },
): LuksHeader {
  const { cipher, mode, ivGenerator, ivHash, keySize } = spec
  const { salt, iterations, ...rest } = secrets
  const slotSize = Math.ceil(materialSize(keySize, STRIPES) / SLOT_ALIGNMENT) * SLOT_ALIGNMENT
  const offsetOf = (slot: number) => (SLOT_ALIGNMENT + slot * slotSize) / SECTOR
  return {
    ...rest,
    magic: MAGIC,
    version: VERSION,
    cipherName: cipher,
    cipherMode: `${mode}-${ivGenerator}${ivHash === undefined ? '' : `:${ivHash}`}`,
    hashSpec: hash,
    payloadOffset: offsetOf(KEY_SLOTS),
    keyBytes: keySize,
    keySlots: Array.from({ length: KEY_SLOTS }, (_, i) => ({
      active: i === 0 ? SlotState.ENABLED : SlotState.DISABLED,
      iterations: i === 0 ? iterations : 0,
      salt: i === 0 ? salt : new Uint8Array(SALT_SIZE),
      keyMaterialOffset: offsetOf(i),
      stripes: STRIPES,
    })),
  }
}

/** Keys of a cipher that one of a mode is. */
export const keysOf = (mode: string) => MODES[mode]!.keys
