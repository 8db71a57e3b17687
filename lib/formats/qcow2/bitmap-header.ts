/**
 * How the header comes to refer to another directory of bitmaps. Where the extension is there and lies in one sector, it
 * is changed by one write. Otherwise the extensions are written anew while the autoclear bit says that there are no
 * bitmaps, and the bit is what makes them valid: a crash in between loses bitmaps, and nothing else.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Directory } from './bitmap-directory.js'
import { bitmapsConsistent } from './bitmap-directory.js'
import { type Extension, ExtensionType, encodeBitmapsExtension, findExtension } from './extensions.js'
import { Autoclear, encodeHeader, type Header, V2_LENGTH, V3_LENGTH, writeFeatures } from './header.js'
import { changeHeader } from './header-change.js'

const SECTOR = 512
/** Of an extension's type and length. */
const EXTENSION_HEAD = 8

export class DirectoryChange {
  /** As it will be. */
  readonly header: Header
  readonly #storage: Storage
  readonly #before: Header
  readonly #extension: Extension | undefined
  /** Where the data of the extension lies, if that is all that has to be changed. */
  readonly #place: number | undefined

  constructor(storage: Storage, before: Header, { offset, length, bitmaps }: Directory) {
    this.#storage = storage
    this.#before = before
    this.#extension =
      bitmaps.length === 0
        ? undefined
        : encodeBitmapsExtension({
            nbBitmaps: bitmaps.length,
            bitmapDirectorySize: length,
            bitmapDirectoryOffset: offset,
          })
    const others = before.autoclear.filter((bit) => bit !== Autoclear.BITMAPS)
    const extensions = before.extensions.filter(({ type }) => type !== ExtensionType.BITMAPS)
    this.header = {
      ...before,
      autoclear: this.#extension ? [...others, Autoclear.BITMAPS] : others,
      extensions: this.#extension ? [...extensions, this.#extension] : extensions,
    }
    this.#place = this.#extension && bitmapsConsistent(before) ? placeInSector(before) : undefined
  }

  /** Before the commit. @throws USAGE where the header has no room */
  prepare(): void {
    if (this.#place !== undefined || !this.#extension) return
    const others = this.header.autoclear.filter((bit) => bit !== Autoclear.BITMAPS)
    const header = { ...this.header, autoclear: others }
    const fitting = this.#fit(header)
    writeFeatures(this.#storage, 'autoclear', others)
    this.#storage.sync()
    changeHeader(this.#storage, fitting)
  }

  /** The one write that makes it so. */
  write(): void {
    const data = this.#extension?.data
    if (this.#place !== undefined && data) this.#storage.write(data, 0, data.length, this.#place)
    else writeFeatures(this.#storage, 'autoclear', this.header.autoclear)
  }

  /** After the commit: an extension that says nothing any more is taken out. */
  finish(): void {
    if (this.#extension || !findExtension(this.#before.extensions, ExtensionType.BITMAPS)) return
    changeHeader(this.#storage, this.#fit(this.header))
  }

  /** Where there is no room for the bitmaps, the table of feature names makes some: it only helps error messages. */
  #fit(header: Header): Header {
    const { path } = this.#storage
    const bare = header.extensions.filter(({ type }) => type !== ExtensionType.FEATURE_NAMES)
    try {
      encodeHeader(header, path)
      return header
    } catch (error) {
      if (!(error instanceof VdiskError) || error.code !== 'USAGE' || bare.length === header.extensions.length)
        throw error
      encodeHeader({ ...header, extensions: bare }, path)
      return { ...header, extensions: bare }
    }
  }
}

/** Byte offset of the data of the bitmaps extension; undefined where it is not there, or crosses into another sector. */
function placeInSector({ version, additional, extensions }: Header): number | undefined {
  let at = version < 3 ? V2_LENGTH : V3_LENGTH + additional.length
  for (const { type, data } of extensions) {
    const start = at + EXTENSION_HEAD
    if (type === ExtensionType.BITMAPS)
      return Math.floor(start / SECTOR) === Math.floor((start + data.length - 1) / SECTOR) ? start : undefined
    at = start + Math.ceil(data.length / 8) * 8
  }
  return undefined
}
