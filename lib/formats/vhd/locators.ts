/** Parent locators: the names under which a differencing disk's parent may be found, on Windows, the Mac, and here. */

import { basename, dirname, relative } from 'node:path'
import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Place } from '../../util/struct.js'
import { parentPlaces, toWindows } from '../parent-paths.js'
import type { DynamicHeader, Locator } from './dynamic-header.js'

/** A name of the parent as the image gives it. */
export interface ParentName {
  /** The locator's "Platform Code"; `name` for the header's "Parent Unicode Name". */
  readonly code: string
  readonly name: string
}

/** No path of Windows is longer: 32767 UTF-16 units. */
const MAX_LOCATOR_BYTES = 65536

const utf16 = (data: Uint8Array) => new TextDecoder('utf-16le').decode(data)

/** "ANSI" was the code page of some Windows; programs elsewhere write UTF-8. */
function ansi(data: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(data)
  } catch {
    return new TextDecoder('windows-1252').decode(data)
  }
}

/** The path of `file://localhost/a/b`, `file:///a/b` or (as some programs write it) `file://./b`. */
function fileUrl(data: Uint8Array): string {
  const text = ansi(data)
  const path = text.replace(/^file:(\/\/(localhost(?=\/))?)?/i, '')
  try {
    return decodeURIComponent(path)
  } catch {
    return path
  }
}

/** How the names of each platform code are written. An alias of the Mac ("Mac ") is a blob that says nothing here. */
const DECODERS: Readonly<Record<string, (data: Uint8Array) => string>> = {
  W2ru: utf16,
  W2ku: utf16,
  Wi2r: ansi,
  Wi2k: ansi,
  MacX: fileUrl,
}

/** Up to the first NUL; nothing where characters are in it that no path of Windows has. */
function clean(name: string): string {
  const end = name.indexOf('\0')
  const text = end < 0 ? name : name.slice(0, end)
  // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what is looked for
  return /[\u0001-\u001f\u007f]/.test(text) ? '' : text
}

function swapBytes(data: Uint8Array): Uint8Array {
  const swapped = new Uint8Array(data.length & ~1)
  for (let i = 0; i < swapped.length; i++) swapped[i] = data[i ^ 1]!
  return swapped
}

/**
 * All names that the header and its locators give the parent, in their order; empty ones left out.
 * @throws CORRUPT where a locator lies outside of the file or is longer than any path, IO
 */
export function readParentNames(storage: Storage, header: DynamicHeader, place: Place): ParentName[] {
  const names: ParentName[] = []
  const end = storage.size()
  header.parentLocators.forEach((locator, i) => {
    const decode = DECODERS[locator.platformCode]
    if (!decode || locator.platformDataLength === 0) return
    checkLocator(locator, i, end, place)
    const data = new Uint8Array(locator.platformDataLength)
    storage.read(data, 0, data.length, locator.platformDataOffset)
    names.push({ code: locator.platformCode, name: clean(decode(data)) })
  })
  // This one field is big-endian. (Specification, "Parent Unicode Name")
  names.push({ code: 'name', name: clean(utf16(swapBytes(header.parentUnicodeName))) })
  return names.filter(({ name }) => name !== '')
}

/** "Platform Data Space" is not looked at: it is found in bytes as well as in sectors. */
function checkLocator(locator: Locator, index: number, end: number, place: Place): void {
  const { platformCode, platformDataLength, platformDataOffset } = locator
  const name = `VHD parent locator ${index + 1} (${platformCode})`
  if (platformDataLength > MAX_LOCATOR_BYTES)
    throw new VdiskError(
      'CORRUPT',
      `${name} is ${platformDataLength} bytes: expected ${MAX_LOCATOR_BYTES} at most`,
      place,
    )
  if (platformDataOffset + platformDataLength > end) {
    const text = `${name} is at bytes ${platformDataOffset} to ${platformDataOffset + platformDataLength}`
    throw new VdiskError('CORRUPT', `${text}: the file ends at ${end}`, place)
  }
}

const RELATIVE_FIRST = ['W2ru', 'Wi2r', 'name', 'MacX', 'W2ku', 'Wi2k']

/**
 * Where the parent may be, best first: where a relative name says, then beside the child, then where an absolute name
 * says.
 * @param child absolute path of the image that names it
 */
export function parentCandidates(names: readonly ParentName[], child: string): string[] {
  const sorted = [...names].sort((a, b) => RELATIVE_FIRST.indexOf(a.code) - RELATIVE_FIRST.indexOf(b.code))
  return parentPlaces(
    sorted.map(({ name }) => name),
    child,
  )
}

/** The name that messages use: the most telling one. */
export function shownParentName(names: readonly ParentName[], uniqueId: string): string {
  for (const code of ['W2ku', 'name', 'W2ru', 'MacX', 'Wi2k', 'Wi2r']) {
    const found = names.find((name) => name.code === code)
    if (found) return found.name
  }
  return uniqueId
}

/** A locator as it is written: code, text, and how the text is laid down. */
export interface NewLocator {
  readonly code: string
  readonly data: Uint8Array
}

/**
 * The locators and the name of a new child.
 * @param child and parent: absolute paths
 * @throws USAGE for a path that Windows' way of writing it cannot hold
 */
export function encodeParentNames(child: string, parent: string): { locators: NewLocator[]; unicodeName: Uint8Array } {
  const fromChild = relative(dirname(child), parent)
  if (fromChild.includes('\\'))
    throw new VdiskError('USAGE', `a VHD cannot name the parent ${parent}: a backslash separates folders in it`)
  if (clean(fromChild) !== fromChild)
    throw new VdiskError('USAGE', `a VHD cannot name the parent ${parent}: control characters are in its name`)
  const dotted = fromChild.startsWith('..') ? fromChild : `./${fromChild}`
  return {
    locators: [
      { code: 'W2ku', data: Buffer.from(toWindows(parent), 'utf16le') },
      { code: 'W2ru', data: Buffer.from(toWindows(dotted), 'utf16le') },
    ],
    unicodeName: swapBytes(Buffer.from(basename(parent), 'utf16le')),
  }
}
