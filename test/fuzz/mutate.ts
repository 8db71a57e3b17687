/** Damages an image where it hurts: fields to their edges, offsets onto each other, tables onto tables, names, cuts. */

import { type Anatomy, type Field, readNumber, type Table, type Text, writeNumber } from './anatomy/anatomy.js'
import type { Pages } from './pages.js'
import { mutateText } from './texts.js'

export type Random = () => number

const BLOCKS = [512, 4096, 65536]
/** Chance that one more mutation follows. */
const MORE = 0.45
const MOST = 8
/** Chance that checksums are made right again. */
const SEALED = 0.9

export function pick<T>(list: readonly T[], random: Random): T {
  return list[Math.floor(random() * list.length)]!
}

/** Names that an image may not make anybody open. */
const HOSTILE_NAMES = [
  '/etc/passwd',
  '../../../../../../etc/passwd',
  '..\\..\\..\\etc\\passwd',
  'C:\\Windows\\System32\\config',
  '\\\\server\\share\\disk.vhdx',
  '/dev/zero',
  '/dev/tty',
  '/proc/self/mem',
  '/proc/self/fd/0',
  'fifo',
  'link',
  'folder',
  'image',
  './image',
  'parent',
  '.',
  '..',
  '/',
  '',
  'json:{"driver":"file","filename":"/etc/passwd"}',
  'nbd://localhost/x',
  'file:///etc/passwd',
  'file://localhost/%2e%2e/%00x',
  'x'.repeat(300),
  `${'y/'.repeat(200)}z`,
  'a\0b',
  'a\nb',
  '\u001b[31mred',
  '\ud800',
]

/**
 * @param more the chance that one more mutation follows
 * @returns what was done, for messages
 */
export function mutate(bytes: Pages, anatomy: Anatomy, random: Random, more = MORE): string[] {
  const done: string[] = []
  const isText = bytes.get(0, 1)[0] === 0x3c
  do {
    const kind = isText ? mutateText : pickKind(anatomy, random)
    done.push(kind(bytes, random, anatomy))
  } while (done.length < MOST && random() < more)
  if (random() < SEALED) for (const seal of anatomy.seals) seal(bytes)
  else done.push('not sealed')
  return done
}

type Mutation = (bytes: Pages, random: Random, anatomy: Anatomy) => string

const KINDS: readonly (readonly [weight: number, Mutation])[] = [
  [40, field],
  [22, entry],
  [10, copyEntries],
  [8, flip],
  [7, cut],
  [6, moveBlock],
  [7, name],
]
const TOTAL = KINDS.reduce((sum, [weight]) => sum + weight, 0)

function pickKind({ fields, tables, texts }: Anatomy, random: Random): Mutation {
  if (fields.length === 0) return pick([flip, cut, moveBlock], random)
  let left = random() * TOTAL
  for (const [weight, kind] of KINDS) {
    left -= weight
    if (left >= 0) continue
    if ((kind === entry || kind === copyEntries) && tables.length === 0) return field
    if (kind === name && texts.length === 0) return field
    return kind
  }
  return field
}

function field(bytes: Pages, random: Random, anatomy: Anatomy): string {
  const chosen = pick(anatomy.fields, random)
  return set(bytes, chosen, value(bytes, chosen, anatomy, random), anatomy)
}

function entry(bytes: Pages, random: Random, anatomy: Anatomy): string {
  const table = pick(anatomy.tables, random)
  const chosen = entryOf(table, random)
  return set(bytes, chosen, value(bytes, chosen, anatomy, random), anatomy)
}

/** Mostly one of the first, which are used. */
function entryOf({ name, at, count, width }: Table, random: Random): Field {
  const index = Math.floor(random() * (random() < 0.6 ? Math.min(count, 8) : count))
  return { name: `${name}[${index}]`, at: at + index * width, width }
}

/** Entries of one table onto another, or onto themselves. */
function copyEntries(bytes: Pages, random: Random, { tables }: Anatomy): string {
  const from = pick(tables, random)
  const to = random() < 0.7 ? from : pick(tables, random)
  const length = from.width * Math.ceil(random() * Math.min(8, from.count))
  const source = entryOf(from, random)
  const target = entryOf(to, random)
  bytes.put(target.at, bytes.get(source.at, length))
  return `${length} bytes of ${source.name} onto ${target.name}`
}

function flip(bytes: Pages, random: Random): string {
  const at = somewhere(bytes, random)
  const byte = bytes.get(at, 1)
  if (byte.length === 0) return 'nothing'
  byte[0]! ^= random() < 0.5 ? 1 << Math.floor(random() * 8) : Math.ceil(random() * 255)
  bytes.put(at, byte)
  return `byte ${at} flipped`
}

/** In a page that holds something, mostly. */
function somewhere(bytes: Pages, random: Random): number {
  if (random() < 0.1) return Math.floor(random() * bytes.size)
  const { used } = bytes
  const page = used.length === 0 ? 0 : random() < 0.5 ? pick(used.slice(0, 8), random) : pick(used, random)
  return Math.min(Math.max(0, bytes.size - 1), page * 4096 + Math.floor(random() * (random() < 0.5 ? 128 : 4096)))
}

function cut(bytes: Pages, random: Random, { units }: Anatomy): string {
  const unit = pick(units, random)
  const sizes = [
    Math.floor(random() * bytes.size),
    Math.floor(random() * 2048),
    bytes.size - 1 - Math.floor(random() * 1024),
    Math.floor((random() * bytes.size) / unit) * unit,
    bytes.size + Math.floor(random() * 3 * unit),
    bytes.size + 2 ** Math.floor(random() * 42),
  ]
  const size = Math.max(0, pick(sizes, random))
  bytes.truncate(size)
  return `cut or grown to ${size}`
}

function moveBlock(bytes: Pages, random: Random): string {
  const block = pick(BLOCKS, random)
  const blockAt = () => Math.floor(somewhere(bytes, random) / block) * block
  const [a, b] = [blockAt(), blockAt()]
  const [ofA, ofB] = [bytes.get(a, block), bytes.get(b, block)]
  bytes.put(b, ofA)
  if (random() < 0.5) bytes.put(a, ofB)
  return `block of ${block} at ${a} to ${b}`
}

function name(bytes: Pages, random: Random, { texts, bigEndian }: Anatomy): string {
  const chosen = pick(texts, random)
  const text = pick(HOSTILE_NAMES, random)
  const raw = encode(chosen, text).subarray(0, random() < 0.9 ? chosen.room : 4096)
  bytes.put(chosen.at, raw)
  const { length } = chosen
  if (length && random() < 0.8) writeNumber(bytes, length.at, length.width, bigEndian, BigInt(raw.length))
  return `name ${JSON.stringify(text.slice(0, 60))}`
}

function encode({ encoding }: Text, text: string): Uint8Array {
  const raw = Buffer.from(text, encoding === 'utf8' ? 'utf8' : 'utf16le')
  return encoding === 'utf16be' ? raw.swap16() : raw
}

function set(bytes: Pages, { name, at, width }: Field, wanted: bigint, { bigEndian }: Anatomy): string {
  const fitting = BigInt.asUintN(width * 8, wanted)
  writeNumber(bytes, at, width, bigEndian, fitting)
  return `${name} = ${fitting}`
}

/** A number that a field is not expected to hold. */
function value(bytes: Pages, chosen: Field, anatomy: Anatomy, random: Random): bigint {
  const { bigEndian, units, fields, tables } = anatomy
  const bits = BigInt(chosen.width * 8)
  const old = readNumber(bytes, chosen.at, chosen.width, bigEndian)
  const unit = BigInt(pick(units, random))
  const other = random() < 0.5 || tables.length === 0 ? pick(fields, random) : entryOf(pick(tables, random), random)
  const size = BigInt(bytes.size)
  const bit = 1n << BigInt(Math.floor(random() * Number(bits)))
  const max = (1n << bits) - 1n
  const values: readonly bigint[] = [
    ...[0n, 1n, 2n, max, max - 1n, max >> 1n, (max >> 1n) + 1n],
    ...[old + 1n, old - 1n, old * 2n, old / 2n, old ^ bit, old + unit, old - unit, old * unit, old / unit],
    ...[bit, bit - 1n, bit + 1n, bit | 1n],
    // What lies elsewhere: the place of another field, or its number.
    ...[BigInt(other.at), BigInt(other.at) / unit, (BigInt(other.at) / unit) * unit],
    ...[old & ~0xfffffn, (old & 0xfffffn) | ((BigInt(other.at) >> 20n) << 20n)],
    readNumber(bytes, other.at, other.width, bigEndian),
    ...[size, size / unit, size - unit, size + unit, size - 1n],
    BigInt(Math.floor(random() * 2 ** 48)),
    BigInt(Math.floor(random() * 2 ** 16)),
  ]
  return pick(values, random)
}
