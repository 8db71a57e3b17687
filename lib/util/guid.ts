/** GUIDs as text (lower case, with hyphens, no braces) and as 16 bytes in the two orders that image formats use. */

import { randomUUID } from 'node:crypto'
import { VdiskError } from './errors.js'

/**
 * How the 16 bytes are written:
 * - `big`: as they read in the text (RFC 4122 4.1.2); VHD, and UUIDs of Linux programs
 * - `mixed`: the first three groups little-endian (RFC 4122's `GUID` of Windows); VHDX, GPT
 */
export type GuidOrder = 'big' | 'mixed'

export const GUID_BYTES = 16
export const NIL_GUID = '00000000-0000-0000-0000-000000000000'

const PATTERN = /^(\{?)([0-9a-f]{8})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{12})(\}?)$/i

/** Index in the text's bytes of each byte on disk. */
const PLACES: Readonly<Record<GuidOrder, readonly number[]>> = {
  big: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
  mixed: [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15],
}

/**
 * The bytes of a GUID that is written as text, with or without braces, in either case.
 * @throws USAGE where it is none.
 */
export function parseGuid(text: string, order: GuidOrder): Uint8Array {
  const match = PATTERN.exec(text)
  if (!match || (match[1] === '') !== (match[7] === '')) {
    throw new VdiskError('USAGE', `'${text}' is not a GUID: expected 32 hexadecimal digits in groups of 8-4-4-4-12`)
  }
  const digits = match.slice(2, 7).join('')
  return Uint8Array.from(PLACES[order], (place) => Number.parseInt(digits.slice(2 * place, 2 * place + 2), 16))
}

/** The text of the GUID whose 16 bytes are at index `at`. */
export function formatGuid(bytes: Uint8Array, order: GuidOrder, at = 0): string {
  const text = new Array<string>(GUID_BYTES)
  PLACES[order].forEach((place, i) => {
    text[place] = bytes[at + i]!.toString(16).padStart(2, '0')
  })
  const hex = text.join('')
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-')
}

/** A new random GUID (version 4), as text. */
export function randomGuid(): string {
  return randomUUID()
}
