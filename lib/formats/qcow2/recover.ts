/**
 * An image that was left in use, which is to be written: its refcounts may be old, and are made right first. Nobody has
 * asked for more than that, so one with other faults is left as it is: mending those can give up data.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Finding } from '../driver.js'
import { checkImage } from './check.js'

/** Faults that can be mended without giving anything up: refcounts, their table, and flags that say the same. */
const HARMLESS: ReadonlySet<string> = new Set(['refcount', 'refcount-table', 'copied'])

/** @throws CORRUPT where it has other faults; nothing is written then */
export function recoverRefcounts(storage: Storage): void {
  const other = firstOf(storage, 'none', ({ what, repairable }) => !HARMLESS.has(what) || !repairable)
  if (other !== undefined)
    throw refused(storage, `has faults besides old refcounts: ${other}; vdiskfs check --repair all mends what it can`)
  const left = firstOf(storage, 'all', ({ repaired }) => !repaired)
  if (left !== undefined) throw refused(storage, `cannot be mended: ${left}`)
}

/** The first corruption that is such a one. */
function firstOf(storage: Storage, repair: 'none' | 'all', isOne: (finding: Finding) => boolean): string | undefined {
  let first: string | undefined
  const found = (finding: Finding) => {
    if (finding.severity === 'corruption' && isOne(finding)) first ??= finding.message
  }
  checkImage(storage, { repair, found })
  return first
}

function refused({ path }: Storage, why: string): VdiskError {
  const text = `not opened for writing: it was left in use, and ${why}; it can be read as it is`
  return new VdiskError('CORRUPT', text, { path })
}
