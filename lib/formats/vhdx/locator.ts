/** The parent locator: what a differencing disk says of its parent. */

import { dirname, relative } from 'node:path'
import { VdiskError } from '../../util/errors.js'
import { NIL_GUID } from '../../util/guid.js'
import { guid, reserved, Struct, u16, u32 } from '../../util/struct.js'
import { parentPlaces, toWindows } from '../parent-paths.js'

// [MS-VHDX] 2.6.2.6.1
export const LOCATOR_HEADER = new Struct('VHDX parent locator', 20, 'little', {
  locatorType: guid('mixed'),
  reserved: reserved(2),
  keyValueCount: u16,
})
// [MS-VHDX] 2.6.2.6.2
export const LOCATOR_ENTRY = new Struct('VHDX parent locator entry', 12, 'little', {
  keyOffset: u32,
  valueOffset: u32,
  keyLength: u16,
  valueLength: u16,
})

/** The parent is a VHDX: the only type there is. */
export const VHDX_LOCATOR = 'b04aefb7-d19e-4a81-b789-25b8e9445913'

/** There are five keys; each can name 64 KiB of text. */
const MAX_ENTRIES = 256

export interface LocatorEntry {
  readonly key: string
  readonly value: string
}

// [MS-VHDX] 2.6.2.6.3, in the order in which paths are tried
const PATH_KEYS = ['relative_path', 'volume_path', 'absolute_win32_path']

/** @throws CORRUPT, UNSUPPORTED */
export function decodeLocator(item: Uint8Array, path: string): LocatorEntry[] {
  const fail = (text: string) => new VdiskError('CORRUPT', `VHDX parent locator: ${text}`, { path })
  const { locatorType, keyValueCount } = LOCATOR_HEADER.read(item, 0, { path })
  if (locatorType !== VHDX_LOCATOR) {
    const text = `VHDX parent locator: its type is ${locatorType}: expected ${VHDX_LOCATOR} (the parent is a VHDX)`
    throw new VdiskError('UNSUPPORTED', text, { path })
  }
  if (keyValueCount > MAX_ENTRIES) throw fail(`it has ${keyValueCount} entries: expected ${MAX_ENTRIES} at most`)
  const entries: LocatorEntry[] = []
  const text = (name: string, offset: number, length: number) => {
    if (offset === 0 || length === 0 || offset + length > item.length)
      throw fail(`${name} is at ${offset}, ${length} bytes: the item has ${item.length}`)
    // Some writers count a NUL at the end.
    return new TextDecoder('utf-16le').decode(item.subarray(offset, offset + length)).replace(/\0+$/, '')
  }
  for (let i = 0; i < keyValueCount; i++) {
    const at = LOCATOR_HEADER.size + i * LOCATOR_ENTRY.size
    const { keyOffset, valueOffset, keyLength, valueLength } = LOCATOR_ENTRY.read(item, at, { path })
    const key = text(`key ${i + 1}`, keyOffset, keyLength)
    const value = text(`the value of ${key}`, valueOffset, valueLength)
    if (value.includes('\0')) throw fail(`the value of ${key} has a NUL in it`)
    if (entries.some((entry) => entry.key === key)) throw fail(`${key} is there twice`)
    entries.push({ key, value })
  }
  return entries
}

export function locatorValue(entries: readonly LocatorEntry[], key: string): string | undefined {
  return entries.find((entry) => entry.key === key)?.value
}

/** The GUIDs that the parent's data may have: lower case, without braces. */
export function parentLinks(entries: readonly LocatorEntry[]): string[] {
  return ['parent_linkage', 'parent_linkage2']
    .map((key) => locatorValue(entries, key)?.replace(/[{}]/g, '').toLowerCase())
    .filter((link): link is string => link !== undefined && link !== '' && link !== NIL_GUID)
}

/** Where the parent may be, best first. @param child absolute path of the image that names it */
export function parentCandidates(entries: readonly LocatorEntry[], child: string): string[] {
  const paths = PATH_KEYS.map((key) => locatorValue(entries, key)).filter((path) => path !== undefined)
  return parentPlaces(paths, child)
}

/** The name that messages use: the most telling one. */
export function shownParent(entries: readonly LocatorEntry[]): string {
  for (const key of ['absolute_win32_path', 'relative_path', 'volume_path', 'parent_linkage']) {
    const value = locatorValue(entries, key)
    if (value) return value
  }
  return '(no name)'
}

/**
 * All that a new child says of its parent. Windows' forms of a path want a drive or a volume, which a path of ours does
 * not have: `C:` and a nil GUID stand for it.
 * @param child and parent: absolute paths
 * @throws USAGE for a path that Windows' way of writing it cannot hold
 */
export function newLocator(child: string, parent: string, dataWriteGuid: string): LocatorEntry[] {
  const fromChild = relative(dirname(child), parent)
  if (parent.includes('\\') || fromChild.includes('\\'))
    throw new VdiskError('USAGE', `a VHDX cannot name the parent ${parent}: a backslash separates folders in it`)
  const dotted = fromChild.startsWith('../') ? fromChild : `./${fromChild}`
  return [
    { key: 'parent_linkage', value: `{${dataWriteGuid}}` },
    { key: 'parent_linkage2', value: `{${NIL_GUID}}` },
    { key: 'relative_path', value: toWindows(dotted) },
    { key: 'volume_path', value: `\\\\?\\Volume{${NIL_GUID}}${toWindows(parent)}` },
    { key: 'absolute_win32_path', value: `\\\\?\\C:${toWindows(parent)}` },
  ]
}

/** The metadata item. */
export function encodeLocator(entries: readonly LocatorEntry[]): Uint8Array {
  const texts = entries.map(({ key, value }) => [Buffer.from(key, 'utf16le'), Buffer.from(value, 'utf16le')] as const)
  const start = LOCATOR_HEADER.size + entries.length * LOCATOR_ENTRY.size
  const item = new Uint8Array(texts.reduce((sum, [key, value]) => sum + key.length + value.length, start))
  LOCATOR_HEADER.write({ locatorType: VHDX_LOCATOR, keyValueCount: entries.length }, item)
  let at = start
  texts.forEach(([key, value], i) => {
    const entry = {
      keyOffset: at,
      valueOffset: at + key.length,
      keyLength: key.length,
      valueLength: value.length,
    }
    LOCATOR_ENTRY.write(entry, item, LOCATOR_HEADER.size + i * LOCATOR_ENTRY.size)
    item.set(key, at)
    item.set(value, at + key.length)
    at += key.length + value.length
  })
  return item
}
