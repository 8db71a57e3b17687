/**
 * The format extension: one cluster that says what an image has beyond header, BAT and data; feature records behind an
 * MD5. This turns the cluster's bytes into features and back. What a feature that nobody here knows is worth is in its
 * flags: NECESSARY forbids to change the image, TRANSIT is carried along, neither is dropped when the image is written.
 */

import { createHash } from 'node:crypto'
import type { Storage } from '../../storage/storage.js'
import { MiB } from '../../util/sizes.js'
import { bytes, guid, reserved, Struct, u32 } from '../../util/struct.js'
import { type Geometry, SECTOR, u64Limitless } from './header.js'

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

const EXTENSION = new Struct('format extension', CHECKED_FROM, 'little', { magic: bytes(8), checkSum: bytes(16) })

const FEATURE = new Struct('feature', 24, 'little', {
  magic: bytes(8),
  flags: u64Limitless,
  dataSize: u32,
  unused32: reserved(4),
})

const BITMAP = new Struct('dirty bitmap', 32, 'little', {
  /** In sectors: the disk's size. */
  size: u64Limitless,
  id: guid('big'),
  /** Sectors that one bit stands for. */
  granularity: u32,
  l1Size: u32,
})

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
  const cluster = new Uint8Array(clusterSize)
  storage.read(cluster, 0, clusterSize, offset)
  return parseExtension(cluster, geometry, storage.size())
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

export function parseExtension(cluster: Uint8Array, geometry: Geometry, fileSize: number): LoadedExtension {
  const { magic, checkSum } = EXTENSION.read(cluster)
  if (hex(magic) !== EXTENSION_MAGIC) return { error: `its magic is ${hex(magic)}, expected ${EXTENSION_MAGIC}` }
  const sum = md5(cluster)
  if (hex(checkSum) !== hex(sum)) return { error: `its MD5 is ${hex(checkSum)}, expected ${hex(sum)}` }
  const features: Feature[] = []
  let bitmaps = 0
  for (let at = CHECKED_FROM; ; ) {
    if (at + FEATURE.size > cluster.length) return { error: 'its features have no end' }
    const header = FEATURE.read(cluster, at)
    const dataAt = at + FEATURE.size
    const name = hex(header.magic)
    if (name === END_MAGIC) return { extension: { features } }
    if (dataAt + header.dataSize > cluster.length)
      return { error: `its feature ${name} has ${header.dataSize} bytes, which end behind the cluster` }
    if (header.flags === Number.POSITIVE_INFINITY) return { error: `its feature ${name} has flags that are unknown` }
    const data = cluster.slice(dataAt, dataAt + header.dataSize)
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
  if (data.length < BITMAP.size) return `the bitmap has ${data.length} bytes, expected at least 32`
  const { size, id, granularity: sectors, l1Size } = BITMAP.read(data)
  if (size * SECTOR !== geometry.size)
    return `the bitmap is for ${size} sectors, expected ${geometry.size / SECTOR}, the disk's size`
  if (sectors === 0 || (sectors & (sectors - 1)) !== 0)
    return `the bitmap's granularity is ${sectors} sectors, expected a power of two`
  const granularity = sectors * SECTOR
  const expected = l1Entries(geometry, granularity)
  if (l1Size !== expected) return `the bitmap's L1 table has ${l1Size} entries, expected ${expected}`
  if (data.length < BITMAP.size + l1Size * L1_ENTRY) return `the bitmap's L1 table of ${l1Size} entries is cut off`
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength)
  const l1: number[] = []
  for (let i = 0; i < l1Size; i++) {
    const entry = Number(view.getBigUint64(BITMAP.size + i * L1_ENTRY, true))
    const offset = entry <= L1_SET ? entry : entry * SECTOR
    const wrong = entry <= L1_SET ? undefined : wrongClusterOffset(offset, geometry, fileSize)
    if (wrong) return `the bitmap's L1 entry ${i}, byte ${offset}, ${wrong}`
    l1.push(offset)
  }
  return { id, granularity, l1 }
}

/** A feature for a bitmap; `flags` as they were, or 0 for a new one. */
export function bitmapFeature(bitmap: Bitmap, { size }: Geometry, flags = 0): Feature {
  const data = new Uint8Array(BITMAP.size + bitmap.l1.length * L1_ENTRY)
  const { id, granularity, l1 } = bitmap
  BITMAP.write({ size: size / SECTOR, id, granularity: granularity / SECTOR, l1Size: l1.length }, data)
  const view = new DataView(data.buffer)
  l1.forEach((offset, i) => {
    view.setBigUint64(BITMAP.size + i * L1_ENTRY, BigInt(offset <= L1_SET ? offset : offset / SECTOR), true)
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

/** The clusters of an extension at `offset` and of its bitmaps' bits. */
export function clustersOf(offset: number, features: readonly Feature[]): number[] {
  return [offset, ...features.flatMap(({ bitmap }) => bitmap?.l1.filter((entry) => entry > L1_SET) ?? [])]
}

/** True where clusters may belong to features that are not understood: what looks free may not be. */
export function isOpaque(features: readonly Feature[]): boolean {
  return keptFeatures(features).some(({ error }) => error !== undefined)
}

/** @returns the cluster's bytes, or undefined where the features do not fit into it. */
export function encodeExtension(features: readonly Feature[], clusterSize: number): Uint8Array | undefined {
  if (l1Places(features).end + FEATURE.size > clusterSize) return undefined
  const cluster = new Uint8Array(clusterSize)
  let at = CHECKED_FROM
  for (const { magic, flags, data } of features) {
    FEATURE.write({ magic: Buffer.from(magic, 'hex'), flags, dataSize: data.length }, cluster, at)
    cluster.set(data, at + FEATURE.size)
    at = align8(at + FEATURE.size + data.length)
  }
  EXTENSION.write({ magic: Buffer.from(EXTENSION_MAGIC, 'hex'), checkSum: md5(cluster) }, cluster)
  return cluster
}

/** Where, in the cluster, each bitmap's L1 table is, and where the features end. */
export function l1Places(features: readonly Feature[]): { tables: number[]; end: number } {
  const tables: number[] = []
  let at = CHECKED_FROM
  for (const { data, bitmap } of features) {
    const dataAt = at + FEATURE.size
    if (bitmap) tables.push(dataAt + BITMAP.size)
    at = align8(dataAt + data.length)
  }
  return { tables, end: at }
}

/** The MD5 of an extension's cluster, put into it. */
export function seal(cluster: Uint8Array): void {
  cluster.set(md5(cluster), EXTENSION.offsetOf('checkSum'))
}

function md5(cluster: Uint8Array): Uint8Array {
  return createHash('md5').update(cluster.subarray(CHECKED_FROM)).digest()
}

function align8(at: number): number {
  return Math.ceil(at / 8) * 8
}

function hex(part: Uint8Array): string {
  return Buffer.from(part).toString('hex')
}
