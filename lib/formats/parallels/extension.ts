/**
 * The format extension: one cluster that says what an image has beyond header, BAT and data; feature records behind an
 * MD5. This turns the cluster's bytes into features and back. What a feature that nobody here knows is worth is in its
 * flags: NECESSARY forbids to change the image, TRANSIT is carried along, neither is dropped when the image is written.
 */

import { createHash } from 'node:crypto'
import type { Storage } from '../../storage/storage.js'
import { formatGuid, parseGuid } from '../../util/guid.js'
import { MiB } from '../../util/sizes.js'
import { type Geometry, SECTOR } from './header.js'
import { readU64, recordCodec, TOO_LARGE, viewOf, writeU64 } from './record.js'

/** As it lies on disk, so that no 64-bit number is needed: 0xAB234CEF23DCEA87. */
const EXTENSION_MAGIC = '87eadc23ef4c23ab'
/** 0x20385FAE252CB34A. */
const BITMAP_MAGIC = '4ab32c25ae5f3820'
const END_MAGIC = '0000000000000000'

export const FLAG_NECESSARY = 1
export const FLAG_TRANSIT = 2

/** The cluster is read and hashed whole; nobody makes larger ones with an extension. */
const MAX_EXTENSION_CLUSTER = 64 * MiB
/** Each costs work at every write. */
export const MAX_BITMAPS = 128

const CHECKED_FROM = 24
const L1_ENTRY = 8
/** L1 entries that are no offsets. */
export const L1_CLEAR = 0
export const L1_SET = 1

const extensionHeader = recordCodec({ magic: ['bytes', 8], checkSum: ['bytes', 16] }, CHECKED_FROM)

const featureHeader = recordCodec(
  { magic: ['bytes', 8], flags: ['u64', 8], dataSize: ['u32', 4], unused32: ['u32', 4] },
  24,
)

const bitmapHeader = recordCodec(
  {
    /** In sectors: the disk's size. */
    size: ['u64', 8],
    id: ['bytes', 16],
    /** Sectors that one bit stands for. */
    granularity: ['u32', 4],
    l1Size: ['u32', 4],
  },
  32,
)

/** A dirty bitmap. */
export interface Bitmap {
  /** Its id as a GUID in the order of the bytes, as QEMU shows it. */
  readonly id: string
  /** Bytes that one bit stands for. */
  readonly granularity: number
  /** For every cluster of bits: L1_CLEAR, L1_SET, or where it is in the file, in bytes. */
  readonly l1: readonly number[]
}

export interface Feature {
  /** Eight bytes in hexadecimal, as they lie on disk. */
  readonly magic: string
  readonly flags: number
  readonly data: Uint8Array
  /** The feature, if it is a bitmap and sound. */
  readonly bitmap: Bitmap | undefined
  /** Why it could not be loaded, one line. */
  readonly error: string | undefined
}

export interface Extension {
  readonly features: readonly Feature[]
}

/** The extension or what is wrong with it as a whole. */
export type LoadedExtension = { readonly extension: Extension } | { readonly error: string }

/** The cluster of bits for each L1 entry, in bits. */
export function bitsPerCluster(clusterSize: number): number {
  return clusterSize * 8
}

/** L1 entries of a bitmap over the whole disk. */
export function l1Entries({ size, clusterSize }: Geometry, granularity: number): number {
  return Math.ceil(Math.ceil(size / granularity) / bitsPerCluster(clusterSize))
}

/** Reads the extension's cluster at a byte offset, and checks everything in it but what its bitmaps hold. */
export function loadExtension(storage: Storage, geometry: Geometry, offset: number): LoadedExtension {
  const { clusterSize } = geometry
  const wrong = wrongClusterOffset(offset, geometry, storage.size())
  if (wrong) return { error: `its offset, byte ${offset}, ${wrong}` }
  if (clusterSize > MAX_EXTENSION_CLUSTER)
    return { error: `its cluster has ${clusterSize} bytes, expected at most ${MAX_EXTENSION_CLUSTER}` }
  const bytes = new Uint8Array(clusterSize)
  storage.read(bytes, 0, clusterSize, offset)
  return parseExtension(bytes, geometry, storage.size())
}

/** What is wrong with the offset of a cluster, or undefined. */
export function wrongClusterOffset(
  offset: number,
  { dataStart, clusterSize }: Geometry,
  fileSize: number,
): string | undefined {
  if (offset < dataStart) return `is in front of the data area, which begins at byte ${dataStart}`
  if (offset >= fileSize) return `is behind the file's end at byte ${fileSize}`
  if ((offset - dataStart) % clusterSize !== 0) return `is not that of a cluster (${clusterSize} bytes each)`
  return undefined
}

export function parseExtension(bytes: Uint8Array, geometry: Geometry, fileSize: number): LoadedExtension {
  const { magic, checkSum } = extensionHeader.decode(bytes)
  if (hex(magic) !== EXTENSION_MAGIC) return { error: `its magic is ${hex(magic)}, expected ${EXTENSION_MAGIC}` }
  const sum = md5(bytes)
  if (hex(checkSum) !== hex(sum)) return { error: `its MD5 is ${hex(checkSum)}, expected ${hex(sum)}` }
  const features: Feature[] = []
  let bitmaps = 0
  for (let at = CHECKED_FROM; ; ) {
    if (at + featureHeader.size > bytes.length) return { error: 'its features have no end' }
    const header = featureHeader.decode(bytes, at)
    const dataAt = at + featureHeader.size
    const name = hex(header.magic)
    if (name === END_MAGIC) return { extension: { features } }
    if (dataAt + header.dataSize > bytes.length)
      return { error: `its feature ${name} has ${header.dataSize} bytes, which end behind the cluster` }
    if (header.flags === TOO_LARGE) return { error: `its feature ${name} has flags that are unknown` }
    const data = bytes.slice(dataAt, dataAt + header.dataSize)
    const feature = describe(name, header.flags, data, geometry, fileSize)
    if (feature.bitmap && ++bitmaps > MAX_BITMAPS) return { error: `it has more than ${MAX_BITMAPS} bitmaps` }
    features.push(feature)
    at = align8(dataAt + header.dataSize)
  }
}

function describe(magic: string, flags: number, data: Uint8Array, geometry: Geometry, fileSize: number): Feature {
  if (magic !== BITMAP_MAGIC) return { magic, flags, data, bitmap: undefined, error: 'it is unknown' }
  const parsed = parseBitmap(data, geometry, fileSize)
  return typeof parsed === 'string'
    ? { magic, flags, data, bitmap: undefined, error: parsed }
    : { magic, flags, data, bitmap: parsed, error: undefined }
}

/** @returns the bitmap, or what is wrong with it. */
function parseBitmap(data: Uint8Array, geometry: Geometry, fileSize: number): Bitmap | string {
  if (data.length < bitmapHeader.size) return `the bitmap has ${data.length} bytes, expected at least 32`
  const { size, id, granularity: sectors, l1Size } = bitmapHeader.decode(data)
  if (size * SECTOR !== geometry.size)
    return `the bitmap is for ${size} sectors, expected ${geometry.size / SECTOR}, the disk's size`
  if (sectors === 0 || (sectors & (sectors - 1)) !== 0)
    return `the bitmap's granularity is ${sectors} sectors, expected a power of two`
  const granularity = sectors * SECTOR
  const expected = l1Entries(geometry, granularity)
  if (l1Size !== expected) return `the bitmap's L1 table has ${l1Size} entries, expected ${expected}`
  if (data.length < bitmapHeader.size + l1Size * L1_ENTRY)
    return `the bitmap's L1 table of ${l1Size} entries is cut off`
  const view = viewOf(data)
  const l1: number[] = []
  for (let i = 0; i < l1Size; i++) {
    const entry = readU64(view, bitmapHeader.size + i * L1_ENTRY)
    const offset = entry <= L1_SET ? entry : entry * SECTOR
    const wrong = entry <= L1_SET ? undefined : wrongClusterOffset(offset, geometry, fileSize)
    if (wrong) return `the bitmap's L1 entry ${i}, byte ${offset}, ${wrong}`
    l1.push(offset)
  }
  return { id: formatGuid(id, 'big'), granularity, l1 }
}

/** A feature for a bitmap; `flags` as they were, or 0 for a new one. */
export function bitmapFeature(bitmap: Bitmap, { size }: Geometry, flags = 0): Feature {
  const data = new Uint8Array(bitmapHeader.size + bitmap.l1.length * L1_ENTRY)
  const { id, granularity, l1 } = bitmap
  bitmapHeader.encode(
    { size: size / SECTOR, id: parseGuid(id, 'big'), granularity: granularity / SECTOR, l1Size: l1.length },
    data,
  )
  const view = viewOf(data)
  l1.forEach((offset, i) => {
    writeU64(view, bitmapHeader.size + i * L1_ENTRY, offset <= L1_SET ? offset : offset / SECTOR)
  })
  return { magic: BITMAP_MAGIC, flags, data, bitmap, error: undefined }
}

/** The features with other L1 entries in all of their bitmaps. */
export function withL1(features: readonly Feature[], geometry: Geometry, entry: (old: number) => number): Feature[] {
  return features.map((feature) =>
    feature.bitmap
      ? bitmapFeature({ ...feature.bitmap, l1: feature.bitmap.l1.map(entry) }, geometry, feature.flags)
      : feature,
  )
}

/**
 * What of the features is still there when the image was written: what loaded, and what is unknown and is to be carried
 * along. A known feature that does not load is dropped.
 */
export function keptFeatures(features: readonly Feature[]): Feature[] {
  const carried = FLAG_TRANSIT | FLAG_NECESSARY
  return features.filter(({ magic, error, flags }) => !error || (magic !== BITMAP_MAGIC && (flags & carried) !== 0))
}

/** The feature, if there is one, because of which the image must not be changed. */
export function forbidding(features: readonly Feature[]): Feature | undefined {
  return features.find(({ error, flags }) => error !== undefined && (flags & FLAG_NECESSARY) !== 0)
}

/** True where clusters may belong to features that are not understood: what looks free may not be. */
export function isOpaque(features: readonly Feature[]): boolean {
  return keptFeatures(features).some(({ error }) => error !== undefined)
}

/** @returns the cluster's bytes, or undefined where the features do not fit into it. */
export function encodeExtension(features: readonly Feature[], clusterSize: number): Uint8Array | undefined {
  if (l1Places(features).end + featureHeader.size > clusterSize) return undefined
  const bytes = new Uint8Array(clusterSize)
  let at = CHECKED_FROM
  for (const { magic, flags, data } of features) {
    featureHeader.encode({ magic: Buffer.from(magic, 'hex'), flags, dataSize: data.length, unused32: 0 }, bytes, at)
    bytes.set(data, at + featureHeader.size)
    at = align8(at + featureHeader.size + data.length)
  }
  extensionHeader.encode({ magic: Buffer.from(EXTENSION_MAGIC, 'hex'), checkSum: md5(bytes) }, bytes)
  return bytes
}

/** Where, in the cluster, each bitmap's L1 table is, and where the features end. */
export function l1Places(features: readonly Feature[]): { tables: number[]; end: number } {
  const tables: number[] = []
  let at = CHECKED_FROM
  for (const { data, bitmap } of features) {
    const dataAt = at + featureHeader.size
    if (bitmap) tables.push(dataAt + bitmapHeader.size)
    at = align8(dataAt + data.length)
  }
  return { tables, end: at }
}

/** The MD5 of an extension's cluster, put into it. */
export function seal(bytes: Uint8Array): void {
  bytes.set(md5(bytes), extensionHeader.at.checkSum)
}

function md5(cluster: Uint8Array): Uint8Array {
  return createHash('md5').update(cluster.subarray(CHECKED_FROM)).digest()
}

function align8(at: number): number {
  return Math.ceil(at / 8) * 8
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
