/** Values of options, checked. */

import { VdiskError } from '../util/errors.js'

/** The error for a value that an option cannot have. */
export function wrongValue(option: string, text: string, expected: string): VdiskError {
  return new VdiskError('USAGE', `--${option} ${text}: expected ${expected}`)
}

/** One of some words. @throws USAGE */
export function choice(option: string, text: string, words: readonly string[]): string {
  if (!words.includes(text)) throw wrongValue(option, text, words.join(' or '))
  return text
}

const MOST = 2 ** 32 - 2

/** A whole number. @throws USAGE */
export function parseCount(option: string, text: string, least: number, most = MOST): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
  if (!(value >= least && value <= most)) throw wrongValue(option, text, `a whole number from ${least} to ${most}`)
  return value
}
