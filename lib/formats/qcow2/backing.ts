/** The names of other files that a QCOW2 image holds: where its backing file and its data file may be. */

import { basename, dirname, isAbsolute, relative, resolve, sep } from 'node:path'
import { VdiskError } from '../../util/errors.js'
import type { ParentRequest } from '../driver.js'
import { backingRecord, ExtensionType, extensionText } from './extensions.js'
import type { Header } from './header.js'

/** What QEMU calls files, and what is meant by it. */
const FORMAT_NAMES: Readonly<Record<string, string>> = { file: 'raw', host_device: 'raw' }
const FILE_PREFIX = 'file:'

const withoutPrefix = (name: string) => (name.startsWith(FILE_PREFIX) ? name.slice(FILE_PREFIX.length) : name)

/**
 * The path that a name in an image stands for, relative to the image's folder.
 * @throws UNSUPPORTED for what is no file: `json:` descriptions and `nbd:` and the like
 */
function pathOf(name: string, what: string, image: string): string {
  const text = withoutPrefix(name)
  const colon = text.indexOf(':')
  const slash = text.indexOf('/')
  if (text === name && colon > 0 && (slash < 0 || colon < slash))
    throw new VdiskError(
      'UNSUPPORTED',
      `its ${what} '${name}' is given with '${text.slice(0, colon + 1)}': expected the path of a file`,
      { path: image },
    )
  return resolve(dirname(image), text)
}

/** Where a name says; and beside the image, where the file would be if both were moved. */
export function places(name: string, what: string, image: string): { candidates: string[]; guesses: string[] } {
  const path = pathOf(name, what, image)
  const beside = resolve(dirname(image), basename(path))
  return {
    candidates: path === image ? [] : [path],
    guesses: beside === image || beside === path ? [] : [beside],
  }
}

/** @param image absolute path */
export function parentRequest(header: Header, image: string): ParentRequest | undefined {
  if (!header.backingName) return undefined
  const name = Buffer.from(header.backingName).toString('utf8')
  if (name === '') return undefined
  const given = extensionText(header.extensions, ExtensionType.BACKING_FORMAT)
  const format = given === undefined || given === '' ? undefined : (FORMAT_NAMES[given] ?? given)
  return {
    name,
    path: withoutPrefix(name),
    ...places(name, 'backing file', image),
    format,
    recorded: backingRecord(header.extensions, image),
    verify(parent, warn) {
      if (format === undefined)
        warn(
          `it does not say what format its backing file '${name}' has: taken for ${parent.format}, as it looks; vdiskfs rebase -u -b ${name} -F ${parent.format} says so`,
        )
    },
  }
}

/**
 * The name to store for another file: relative where both lie in one folder or it lies below, so that they can be moved
 * together.
 * @param file and image: absolute paths
 */
export function storedName(file: string, image: string): string {
  const name = relative(dirname(image), file)
  if (name.startsWith(`..${sep}`) || isAbsolute(name)) return file
  // A colon in front of every slash would be taken for a protocol.
  const colon = name.indexOf(':')
  return colon >= 0 && (!name.includes('/') || colon < name.indexOf('/')) ? `./${name}` : name
}
