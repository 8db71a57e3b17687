/** The extensions behind a QCOW2 header: type, length, data, padding to 8 bytes. Unknown ones are kept as they are. */

import { VdiskError } from '../../util/errors.js'
import { Struct, u32, u64 } from '../../util/struct.js'
import type { ParentRecord } from '../driver.js'

export const ExtensionType = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  CRYPT_HEADER: 0x0537be77,
  DATA_FILE: 0x44415441,
  /** This program's own (`vdfp`): what the backing file was, see `ParentRecord`. */
  BACKING_RECORD: 0x76646670,
  /** This program's own (`skip`): what it holds means nothing, and is there while a header changes only. */
  SKIPPED: 0x736b6970,
} as const

export interface Extension {
  readonly type: number
  readonly data: Uint8Array
}

const EXTENSION = new Struct('QCOW2 header extension', 8, 'big', { type: u32, length: u32 })

const BITMAPS = new Struct('QCOW2 bitmaps extension', 24, 'big', {
  nbBitmaps: u32,
  reserved: u32,
  bitmapDirectorySize: u64,
  bitmapDirectoryOffset: u64,
})

const CRYPT_HEADER = new Struct('QCOW2 full disk encryption header pointer', 16, 'big', { offset: u64, length: u64 })

const BACKING_RECORD = new Struct('QCOW2 backing record', 16, 'big', { size: u64, mtimeMs: u64 })

const padded = (length: number) => Math.ceil(length / 8) * 8

/**
 * @param area the file's bytes up to where extensions must end
 * @param start where they begin
 * @throws CORRUPT where one goes on behind the area
 */
export function decodeExtensions(area: Uint8Array, start: number, path: string): Extension[] {
  const found: Extension[] = []
  for (let at = start; at + EXTENSION.size <= area.length; ) {
    const { type, length } = EXTENSION.read(area, at)
    if (type === ExtensionType.END) break
    const data = at + EXTENSION.size
    if (length > area.length - data)
      throw new VdiskError(
        'CORRUPT',
        `the header extension 0x${type.toString(16)} has ${length} bytes: expected at most ${area.length - data}`,
        { path, offset: at },
      )
    found.push({ type, data: area.slice(data, data + length) })
    at = data + padded(length)
  }
  return found
}

/** With the end mark. */
export function encodeExtensions(extensions: readonly Extension[]): Uint8Array {
  const size = extensions.reduce((sum, { data }) => sum + EXTENSION.size + padded(data.length), EXTENSION.size)
  const out = new Uint8Array(size)
  let at = 0
  for (const { type, data } of extensions) {
    EXTENSION.write({ type, length: data.length }, out, at)
    out.set(data, at + EXTENSION.size)
    at += EXTENSION.size + padded(data.length)
  }
  return out
}

export function findExtension(extensions: readonly Extension[], type: number): Uint8Array | undefined {
  return extensions.find((extension) => extension.type === type)?.data
}

/** The text of an extension that is a string: the backing file's format, the data file's name. */
export function extensionText(extensions: readonly Extension[], type: number): string | undefined {
  const data = findExtension(extensions, type)
  return data && Buffer.from(data).toString('utf8')
}

export interface BitmapsExtension {
  readonly nbBitmaps: number
  readonly bitmapDirectorySize: number
  readonly bitmapDirectoryOffset: number
}

/** @throws CORRUPT */
export function bitmapsExtension(extensions: readonly Extension[], path: string): BitmapsExtension | undefined {
  const data = findExtension(extensions, ExtensionType.BITMAPS)
  if (!data) return undefined
  const { nbBitmaps, bitmapDirectorySize, bitmapDirectoryOffset } = BITMAPS.read(data, 0, { path })
  return { nbBitmaps, bitmapDirectorySize, bitmapDirectoryOffset }
}

export function encodeBitmapsExtension(values: BitmapsExtension): Extension {
  return { type: ExtensionType.BITMAPS, data: BITMAPS.encode({ ...values, reserved: 0 }) }
}

/** Where the LUKS header is. @throws CORRUPT */
export function cryptExtension(extensions: readonly Extension[], path: string) {
  const data = findExtension(extensions, ExtensionType.CRYPT_HEADER)
  return data && CRYPT_HEADER.read(data, 0, { path })
}

export function encodeCryptExtension(values: { readonly offset: number; readonly length: number }): Extension {
  return { type: ExtensionType.CRYPT_HEADER, data: CRYPT_HEADER.encode(values) }
}

/** @throws CORRUPT */
export function backingRecord(extensions: readonly Extension[], path: string): ParentRecord | undefined {
  const data = findExtension(extensions, ExtensionType.BACKING_RECORD)
  return data && BACKING_RECORD.read(data, 0, { path })
}

export function encodeBackingRecord(record: ParentRecord): Extension {
  return { type: ExtensionType.BACKING_RECORD, data: BACKING_RECORD.encode({ ...record }) }
}
