/** Feature bits and their names: which of them are known here, and how unknown ones are called. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { type Extension, ExtensionType, findExtension } from './extensions.js'
import { Autoclear, Compatible, type Header, Incompatible, readHeader, writeFeatures } from './header.js'

/** The three words of bits, in the numbers that the name table gives them. */
const Word = { INCOMPATIBLE: 0, COMPATIBLE: 1, AUTOCLEAR: 2 } as const

/** Bytes of an entry of the name table, and where the name is in it. */
const ENTRY = 48
const NAME_AT = 2

const KNOWN: readonly (readonly [word: number, bit: number, name: string])[] = [
  [Word.INCOMPATIBLE, Incompatible.DIRTY, 'dirty bit'],
  [Word.INCOMPATIBLE, Incompatible.CORRUPT, 'corrupt bit'],
  [Word.INCOMPATIBLE, Incompatible.DATA_FILE, 'external data file'],
  [Word.INCOMPATIBLE, Incompatible.COMPRESSION, 'compression type'],
  [Word.INCOMPATIBLE, Incompatible.EXTENDED_L2, 'extended L2 entries'],
  [Word.COMPATIBLE, Compatible.LAZY_REFCOUNTS, 'lazy refcounts'],
  [Word.AUTOCLEAR, Autoclear.BITMAPS, 'bitmaps'],
  [Word.AUTOCLEAR, Autoclear.RAW_DATA_FILE, 'raw external data'],
]

/** The name table of a new image. */
export function featureNames(): Extension {
  const data = new Uint8Array(KNOWN.length * ENTRY)
  KNOWN.forEach(([word, bit, name], i) => {
    data.set([word, bit, ...Buffer.from(name, 'latin1')], i * ENTRY)
  })
  return { type: ExtensionType.FEATURE_NAMES, data }
}

/** What the image's own table calls a bit; undefined where it says nothing. */
export function featureName(extensions: readonly Extension[], word: number, bit: number): string | undefined {
  const table = findExtension(extensions, ExtensionType.FEATURE_NAMES) ?? new Uint8Array()
  for (let at = 0; at + ENTRY <= table.length; at += ENTRY) {
    if (table[at] !== word || table[at + 1] !== bit) continue
    const text = Buffer.from(table.subarray(at + NAME_AT, at + ENTRY)).toString('utf8')
    return text.split('\0')[0]
  }
  return undefined
}

const known = (word: number, bit: number) => KNOWN.some(([w, b]) => w === word && b === bit)

/** @throws UNSUPPORTED naming the features that an image needs and that are not known here */
export function refuseUnknown({ incompatible, extensions }: Header, path: string): void {
  const unknown = incompatible.filter((bit) => !known(Word.INCOMPATIBLE, bit))
  if (unknown.length === 0) return
  const names = unknown.map((bit) => {
    const name = featureName(extensions, Word.INCOMPATIBLE, bit)
    return name ? `'${name}' (bit ${bit})` : `number ${bit}`
  })
  throw new VdiskError('UNSUPPORTED', `it needs a feature that is not known here: ${names.join(', ')}`, { path })
}

/** The autoclear bits that may stay set when the image is written. */
export function autoclearKept({ autoclear }: Pick<Header, 'autoclear'>, bitmaps: boolean): number[] {
  return autoclear.filter((bit) => known(Word.AUTOCLEAR, bit) && (bit !== Autoclear.BITMAPS || bitmaps))
}

/**
 * Before a tool changes an image: autoclear bits that are not known here are cleared, as nobody here keeps true what they
 * say.
 * @returns the image
 */
export function withoutUnknown(storage: Storage): Storage {
  const header = readHeader(storage)
  const kept = autoclearKept(header, true)
  if (header.version < 3 || kept.length === header.autoclear.length) return storage
  writeFeatures(storage, 'autoclear', kept)
  storage.sync()
  return storage
}
