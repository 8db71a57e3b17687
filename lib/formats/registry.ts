/** The formats that are known: one line each. Detection, help, conformance tests and documentation follow from it. */

import { VdiskError } from '../util/errors.js'
import type { Format, Probe } from './driver.js'
import { parallels } from './parallels/format.js'
import { raw } from './raw.js'
import { vhd } from './vhd/format.js'
import { vhdx } from './vhdx/format.js'

/** In the order of detection; raw, which matches everything, comes last. */
export const formats: readonly Format[] = [vhdx, vhd, parallels, raw]

/** A format by its name or another name of it, in any case. @throws USAGE */
export function findFormat(name: string): Format {
  const wanted = name.toLowerCase()
  const found = formats.find((format) => format.name === wanted || format.aliases.includes(wanted))
  if (found) return found
  throw new VdiskError(
    'USAGE',
    `unknown format '${name}'; known are ${formats.map((format) => format.name).join(', ')}`,
  )
}

/** The format of a file's content. */
export function detect(probe: Probe): Format {
  return formats.find((format) => format.probe(probe)) ?? raw
}
