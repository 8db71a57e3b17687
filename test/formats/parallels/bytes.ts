/** Parallels images written byte by byte, after the specification, for tests: nothing of lib/formats is used here. */

import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'

export const KiB = 1024
export const OPEN = 0x746f6e59
export const CLOSED = 0x312e3276

/** The folder with images that other programs wrote, beside the project; it may be absent. */
const corpus = fileURLToPath(new URL('../../../../../shared/corpus/parallels/', import.meta.url))

export const needsCorpus = existsSync(corpus) ? {} : { skip: 'needs ../shared/corpus' }

/** The content of a packed file of the corpus. */
export function fromCorpus(name: string): Buffer {
  return gunzipSync(readFileSync(`${corpus}${name}.gz`))
}

export function corpusText(name: string): string {
  return readFileSync(corpus + name, 'utf8')
}

export interface ImageParts {
  readonly magic?: 'WithoutFreeSpace' | 'WithouFreSpacExt'
  readonly version?: number
  /** Sectors. */
  readonly cluster: number
  readonly sectors: number
  readonly entries?: number
  readonly inUse?: number
  readonly dataOff: number
  readonly flags?: number
  readonly extOff?: number
  readonly bat?: readonly number[]
  /** Bytes. */
  readonly size: number
}

/** Header and BAT at the offsets of the specification; the rest of the file is zeros. */
export function imageBytes(parts: ImageParts): Buffer {
  const { magic = 'WithouFreSpacExt', cluster, sectors, bat = [] } = parts
  const file = Buffer.alloc(parts.size)
  file.write(magic, 0, 'latin1')
  file.writeUInt32LE(parts.version ?? 2, 16)
  file.writeUInt32LE(16, 20)
  file.writeUInt32LE(Math.min(2 ** 32 - 1, Math.floor(sectors / 512)), 24)
  file.writeUInt32LE(cluster, 28)
  file.writeUInt32LE(parts.entries ?? Math.ceil(sectors / cluster), 32)
  file.writeBigUInt64LE(BigInt(sectors), 36)
  file.writeUInt32LE(parts.inUse ?? CLOSED, 44)
  file.writeUInt32LE(parts.dataOff, 48)
  file.writeUInt32LE(parts.flags ?? 0, 52)
  file.writeBigUInt64LE(BigInt(parts.extOff ?? 0), 56)
  bat.forEach((entry, i) => {
    file.writeUInt32LE(entry, 64 + 4 * i)
  })
  return file
}

export interface FeatureParts {
  readonly magic: bigint
  readonly flags?: number
  readonly data: Buffer
}

export const BITMAP = 0x20385fae252cb34an

/** The data of a dirty bitmap feature. Sizes, granularity and L1 entries in sectors. */
export function bitmapData(size: number, id: string, granularity: number, l1: readonly number[]): Buffer {
  const data = Buffer.alloc(32 + 8 * l1.length)
  data.writeBigUInt64LE(BigInt(size), 0)
  data.write(id.replaceAll('-', ''), 8, 'hex')
  data.writeUInt32LE(granularity, 24)
  data.writeUInt32LE(l1.length, 28)
  l1.forEach((entry, i) => {
    data.writeBigUInt64LE(BigInt(entry), 32 + 8 * i)
  })
  return data
}

/** The cluster of a format extension. */
export function extensionBytes(clusterBytes: number, features: readonly FeatureParts[]): Buffer {
  const bytes = Buffer.alloc(clusterBytes)
  bytes.writeBigUInt64LE(0xab234cef23dcea87n, 0)
  let at = 24
  for (const { magic, flags = 0, data } of features) {
    bytes.writeBigUInt64LE(magic, at)
    bytes.writeBigUInt64LE(BigInt(flags), at + 8)
    bytes.writeUInt32LE(data.length, at + 16)
    data.copy(bytes, at + 24)
    at += 24 + Math.ceil(data.length / 8) * 8
  }
  createHash('md5').update(bytes.subarray(24)).digest().copy(bytes, 8)
  return bytes
}
