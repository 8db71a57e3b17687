/** The formats that are known: one line each. Detection, help, conformance tests and documentation follow from it. */

import { VdiskError } from '../util/errors.js'
import type { Format, Probe } from './driver.js'
import { addDriver } from './drivers.js'
import { parallels } from './parallels/format.js'
import { qcow2 } from './qcow2/format.js'
import { raw } from './raw.js'
import { vhd } from './vhd/format.js'
import { vhdx } from './vhdx/format.js'

/** In the order of detection; raw, which matches everything, comes last. */
export const formats: readonly Format[] = [qcow2, vhdx, vhd, parallels, raw]

for (const { name, attach } of formats) addDriver(name, attach)

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

/**
 * Beginnings of files that are images of formats that are not known here. Such a file is not the disk that its owner
 * means, and writing to it as if it were would destroy it.
 */
const FOREIGN: readonly (readonly [name: string, offset: number, signature: string])[] = [
  ['QED', 0, 'QED\0'],
  ['VMDK', 0, 'KDMV'],
  ['VMDK', 0, 'COWD'],
  ['VMDK descriptor', 0, '# Disk DescriptorFile'],
  ['VDI', 64, '\x7f\x10\xda\xbe'],
]

/**
 * The format of a file's content; raw where it looks like none. What a guest has written must not decide it: into the
 * beginning of an image that has its structures at the end, or the other way round.
 * @throws FORMAT where it looks like one that is not known here, or like two
 */
export function detect(probe: Probe): Format {
  const found = formats.filter((format) => format !== raw && format.probe(probe))
  const foreign = foreignName(probe)
  const byHead = found.find((format) => !format.guestBegins)
  const byEnd = found.find((format) => format.guestBegins)
  const head = byHead?.name ?? foreign
  if (byEnd && head !== undefined && byEnd.guestBegins!(probe)) throw ambiguous(probe.path, head, byHead, byEnd)
  if (byHead) return byHead
  if (foreign === undefined) return byEnd ?? raw
  const text = `it looks like a ${foreign} image, which is none of ${formats.map(({ name }) => name).join(', ')}`
  throw new VdiskError('FORMAT', `${text}; say --format raw where its bytes are the disk`, { path: probe.path })
}

function foreignName({ head }: Probe): string | undefined {
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.byteLength)
  return FOREIGN.find(([, at, text]) => bytes.toString('latin1', at, at + text.length) === text)?.[0]
}

function ambiguous(path: string, head: string, byHead: Format | undefined, byEnd: Format): VdiskError {
  const both = `it looks like both: a ${head} image by its beginning, a ${byEnd.name} image by its end`
  const options = [byHead, byEnd].flatMap((format) => (format ? `--format ${format.name}` : []))
  return new VdiskError('FORMAT', `${both}; ${options.join(' or ')} says which it is`, { path })
}
