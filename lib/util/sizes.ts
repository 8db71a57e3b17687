/** Sizes as people write and read them. */

import { VdiskError } from './errors.js'

export const KiB = 1024
export const MiB = 1024 * KiB
export const GiB = 1024 * MiB
export const TiB = 1024 * GiB

const UNITS: Readonly<Record<string, number>> = { '': 1, b: 1, k: KiB, m: MiB, g: GiB, t: TiB, p: 1024 * TiB }

/** A whole number of bytes. As in qemu-img, its last `b` is a digit; a unit behind it would be taken for one as easily. */
const HEX = /^0x[\da-f]+$/i

/**
 * Parses `1G`, `1.5T`, `512`, `64KiB`, `10MB`: a number and a binary unit, as qemu-img reads them; and `0x40000000`.
 * @returns bytes, a whole safe integer ≥ 0.
 * @throws USAGE
 */
export function parseSize(text: string): number {
  const bytes = HEX.test(text.trim()) ? Number(text) : parseDecimal(text)
  if (!Number.isSafeInteger(bytes)) throw new VdiskError('USAGE', `size '${text}' is too large`)
  return bytes
}

function parseDecimal(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?$/i.exec(text.trim())
  const unit = match && UNITS[match[2]!.toLowerCase()]
  if (!match || unit === undefined || unit === null)
    throw new VdiskError(
      'USAGE',
      `'${text}' is not a size: expected a number and one of K, M, G, T, P, such as 512M or 1.5T, or 0x and hex digits`,
    )
  return Math.round(Number(match[1]) * unit)
}

/** `1.5 GiB`, with at most three digits that mean something. */
export function formatSize(bytes: number): string {
  let value = bytes
  let unit = 0
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${unit === 0 ? value : Number(value.toPrecision(value >= 100 ? Math.ceil(Math.log10(value + 1)) : 3))} ${units[unit]}`
}
