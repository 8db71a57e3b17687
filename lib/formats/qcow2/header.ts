/**
 * The header of a QCOW2 image: its fields, feature bits and extensions, read and written. What is not known here is kept.
 *
 * The specification is `docs/interop/qcow2.rst` of QEMU.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { bits64, type Place, Struct, u32, u64 } from '../../util/struct.js'
import { decodeExtensions, type Extension, encodeExtensions } from './extensions.js'

/** `QFI\xfb` */
export const MAGIC = 0x514649fb

export const CLUSTER_BITS = { min: 9, max: 21, minExtended: 14 } as const
export const MAX_REFCOUNT_ORDER = 6
/** Version 2 has always this one: 16 bits. */
export const REFCOUNT_ORDER_V2 = 4
export const MAX_BACKING_NAME = 1023
/** Larger tables nobody reads (QEMU's limits, in bytes). */
export const MAX_L1_BYTES = 32 * 2 ** 20
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 2 ** 20
export const MAX_SNAPSHOTS = 65536

export const Incompatible = { DIRTY: 0, CORRUPT: 1, DATA_FILE: 2, COMPRESSION: 3, EXTENDED_L2: 4 } as const
export const Compatible = { LAZY_REFCOUNTS: 0 } as const
export const Autoclear = { BITMAPS: 0, RAW_DATA_FILE: 1 } as const
export const Crypt = { NONE: 0, AES: 1, LUKS: 2 } as const
export const Compression = { ZLIB: 0, ZSTD: 1 } as const
export const COMPRESSION_NAMES = ['zlib', 'zstd'] as const

const HEADER_V2 = new Struct('QCOW2 header', 72, 'big', {
  magic: u32,
  version: u32,
  backingFileOffset: u64,
  backingFileSize: u32,
  clusterBits: u32,
  size: u64,
  cryptMethod: u32,
  l1Size: u32,
  l1TableOffset: u64,
  refcountTableOffset: u64,
  refcountTableClusters: u32,
  nbSnapshots: u32,
  snapshotsOffset: u64,
})

const HEADER_V3 = new Struct('QCOW2 header', 32, 'big', {
  incompatible: bits64,
  compatible: bits64,
  autoclear: bits64,
  refcountOrder: u32,
  headerLength: u32,
})

export const V2_LENGTH = HEADER_V2.size
/** The least that version 3 has. */
export const V3_LENGTH = HEADER_V2.size + HEADER_V3.size
/** With the compression type, and padding behind it. */
const V3_FULL_LENGTH = 112

/** Where fields are in the file that are changed by themselves. */
export const FIELD = {
  backingFileOffset: HEADER_V2.offsetOf('backingFileOffset'),
  l1Size: HEADER_V2.offsetOf('l1Size'),
  l1TableOffset: HEADER_V2.offsetOf('l1TableOffset'),
  refcountTableOffset: HEADER_V2.offsetOf('refcountTableOffset'),
  nbSnapshots: HEADER_V2.offsetOf('nbSnapshots'),
  snapshotsOffset: HEADER_V2.offsetOf('snapshotsOffset'),
  size: HEADER_V2.offsetOf('size'),
  incompatible: V2_LENGTH + HEADER_V3.offsetOf('incompatible'),
  compatible: V2_LENGTH + HEADER_V3.offsetOf('compatible'),
  autoclear: V2_LENGTH + HEADER_V3.offsetOf('autoclear'),
} as const

/** The field that selects reference table and length at once: 12 bytes from `FIELD.refcountTableOffset` on. */
export const REFCOUNT_TABLE_FIELDS = new Struct('QCOW2 header', 12, 'big', {
  refcountTableOffset: u64,
  refcountTableClusters: u32,
})

const FEATURES = new Struct('QCOW2 feature bits', 8, 'big', { bits: bits64 })

export interface Header {
  readonly version: number
  readonly clusterBits: number
  /** Bytes of the disk. */
  readonly size: number
  readonly cryptMethod: number
  /** Entries. */
  readonly l1Size: number
  readonly l1TableOffset: number
  readonly refcountTableOffset: number
  readonly refcountTableClusters: number
  readonly nbSnapshots: number
  readonly snapshotsOffset: number
  /** Numbers of the bits that are set. */
  readonly incompatible: readonly number[]
  readonly compatible: readonly number[]
  readonly autoclear: readonly number[]
  readonly refcountOrder: number
  /** The bytes of the header behind those that every version 3 has: the compression type and what came later. */
  readonly additional: Uint8Array
  /** In their order, unknown ones too. */
  readonly extensions: readonly Extension[]
  /** The backing file's name as it is stored; undefined: there is none. */
  readonly backingName: Uint8Array | undefined
}

/** @returns true where the bytes begin as any version of the format does */
export function hasMagic(head: Uint8Array): boolean {
  return head.length >= 8 && new DataView(head.buffer, head.byteOffset).getUint32(0) === MAGIC
}

export const compressionType = ({ additional }: Header): number => additional[0] ?? Compression.ZLIB

/**
 * Reads a header. Checked is all that reading on depends on; whether this program can handle the features is not.
 * @throws FORMAT, UNSUPPORTED (version), CORRUPT, IO
 */
export function readHeader(storage: Storage): Header {
  const { path } = storage
  const place: Place = { path, offset: 0 }
  const fixed = new Uint8Array(V3_LENGTH)
  const got = storage.read(fixed, 0, V3_LENGTH, 0)
  if (!hasMagic(fixed)) throw new VdiskError('FORMAT', "not a qcow2 image: it does not begin with 'QFI\\xfb'", { path })
  const version = new DataView(fixed.buffer).getUint32(4)
  if (version !== 2 && version !== 3)
    throw new VdiskError('UNSUPPORTED', `QCOW version ${version}: expected 2 or 3`, { path, offset: 4 })
  const needed = version === 2 ? V2_LENGTH : V3_LENGTH
  if (got < needed) throw new VdiskError('CORRUPT', `the file ends inside of the header, at byte ${got}`, place)
  const base = HEADER_V2.read(fixed, 0, place)
  const more = version === 2 ? VERSION_2 : HEADER_V3.read(fixed, V2_LENGTH, place)
  checkShape(base.clusterBits, version, more, place)
  const clusterSize = 2 ** base.clusterBits
  const { headerLength } = more
  if (headerLength > clusterSize)
    throw new VdiskError('CORRUPT', `the header has ${headerLength} bytes, and a cluster ${clusterSize}`, place)
  const cluster = new Uint8Array(clusterSize)
  storage.read(cluster, 0, clusterSize, 0)
  const backing = backingPlace(base, headerLength, clusterSize, place)
  return {
    version,
    clusterBits: base.clusterBits,
    size: base.size,
    cryptMethod: base.cryptMethod,
    l1Size: base.l1Size,
    l1TableOffset: base.l1TableOffset,
    refcountTableOffset: base.refcountTableOffset,
    refcountTableClusters: base.refcountTableClusters,
    nbSnapshots: base.nbSnapshots,
    snapshotsOffset: base.snapshotsOffset,
    incompatible: more.incompatible,
    compatible: more.compatible,
    autoclear: more.autoclear,
    refcountOrder: more.refcountOrder,
    additional: cluster.slice(Math.min(headerLength, V3_LENGTH), headerLength),
    extensions: decodeExtensions(cluster.subarray(0, backing?.offset ?? clusterSize), headerLength, path),
    backingName: backing && cluster.slice(backing.offset, backing.offset + backing.length),
  }
}

const VERSION_2 = {
  incompatible: [],
  compatible: [],
  autoclear: [],
  refcountOrder: REFCOUNT_ORDER_V2,
  headerLength: V2_LENGTH,
}

function checkShape(
  clusterBits: number,
  version: number,
  { refcountOrder, headerLength }: { refcountOrder: number; headerLength: number },
  place: Place,
): void {
  const { min, max } = CLUSTER_BITS
  if (clusterBits < min || clusterBits > max)
    throw new VdiskError('CORRUPT', `the header's cluster_bits is ${clusterBits}: expected ${min} to ${max}`, place)
  if (refcountOrder > MAX_REFCOUNT_ORDER)
    throw new VdiskError('CORRUPT', `the header's refcount_order is ${refcountOrder}: expected 0 to 6`, place)
  if (version > 2 && (headerLength < V3_LENGTH || headerLength % 8 !== 0))
    throw new VdiskError(
      'CORRUPT',
      `the header's header_length is ${headerLength}: expected a multiple of 8 from ${V3_LENGTH} on`,
      place,
    )
}

function backingPlace(
  { backingFileOffset: offset, backingFileSize: length }: { backingFileOffset: number; backingFileSize: number },
  headerLength: number,
  clusterSize: number,
  place: Place,
): { offset: number; length: number } | undefined {
  if (offset === 0) return undefined
  if (offset < headerLength || offset > clusterSize || length > Math.min(MAX_BACKING_NAME, clusterSize - offset))
    throw new VdiskError(
      'CORRUPT',
      `the backing file's name is said to be at bytes ${offset} to ${offset + length}: expected at most ${MAX_BACKING_NAME} bytes from ${headerLength} to ${clusterSize}`,
      place,
    )
  return { offset, length }
}

/**
 * The bytes of a header with its extensions and the backing file's name: no more than a cluster.
 * @throws USAGE where they do not fit
 */
export function encodeHeader(header: Header, path: string): Uint8Array {
  const clusterSize = 2 ** header.clusterBits
  const nameAt = encodeWithoutName(header, 0).length
  const name = header.backingName ?? new Uint8Array()
  if (nameAt + name.length > clusterSize)
    throw new VdiskError(
      'USAGE',
      `the header with its extensions and the backing file's name takes ${nameAt + name.length} bytes, and a cluster has ${clusterSize}`,
      { path },
    )
  const out = new Uint8Array(nameAt + name.length)
  out.set(encodeWithoutName(header, nameAt))
  out.set(name, nameAt)
  return out
}

/** The bytes of a header with its extensions, whose backing file's name, if it has one, is at byte `nameAt`. */
export function encodeWithoutName(header: Header, nameAt: number): Uint8Array {
  const headerLength = header.version === 2 ? V2_LENGTH : V3_LENGTH + header.additional.length
  const extensions = encodeExtensions(header.extensions)
  const out = new Uint8Array(headerLength + extensions.length)
  const { backingName } = header
  HEADER_V2.write(
    { ...header, magic: MAGIC, backingFileOffset: backingName ? nameAt : 0, backingFileSize: backingName?.length ?? 0 },
    out,
  )
  if (header.version > 2) {
    HEADER_V3.write({ ...header, headerLength }, out, V2_LENGTH)
    out.set(header.additional, V3_LENGTH)
  }
  out.set(extensions, headerLength)
  return out
}

/** The additional fields of a new image. */
export function additionalFields(compression: number): Uint8Array {
  const fields = new Uint8Array(V3_FULL_LENGTH - V3_LENGTH)
  fields[0] = compression
  return fields
}

/** Writes one of the three words of feature bits. Not durable before a sync. */
export function writeFeatures(
  storage: Storage,
  word: 'incompatible' | 'compatible' | 'autoclear',
  bits: readonly number[],
): void {
  const encoded = FEATURES.encode({ bits })
  storage.write(encoded, 0, encoded.length, FIELD[word])
}

/** One of the three words of feature bits as it is in the file now. */
export function readFeatures(storage: Storage, word: 'incompatible' | 'compatible' | 'autoclear'): readonly number[] {
  const encoded = new Uint8Array(FEATURES.size)
  storage.read(encoded, 0, encoded.length, FIELD[word])
  return FEATURES.read(encoded).bits
}
