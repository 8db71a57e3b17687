/** The paths that Microsoft's formats give parents, in our words, and the places that follow from them. */

import { dirname, isAbsolute, posix, resolve } from 'node:path'

/** A path of Windows in our words: `C:\a\b.vhd` and `\\?\Volume{…}\a\b.vhd` are `/a/b.vhd`. */
export function fromWindows(name: string): string {
  return name
    .replace(/^\\\\\?\\UNC\\/i, '\\\\')
    .replace(/^\\\\\?\\(Volume\{[^}\\]*\})?/i, '')
    .replace(/^[A-Za-z]:/, '')
    .replaceAll('\\', '/')
}

/** A path of ours with Windows' separators. */
export function toWindows(path: string): string {
  return path.replaceAll('/', '\\')
}

/** `//server/share/…` and the like: only the file's own name can mean something here. */
const isNetworkPath = (path: string) => path.startsWith('//')

/**
 * Where a parent may be, best first: where a relative name says, then beside the child, then where an absolute name
 * says.
 * @param names as the image gives them, best first
 * @param child absolute path of the image that names it
 */
export function parentPlaces(names: readonly string[], child: string): string[] {
  const folder = dirname(child)
  const paths = names.map(fromWindows).filter((path) => path !== '')
  const relatives = paths.filter((path) => !isAbsolute(path)).map((path) => resolve(folder, path))
  const beside = paths
    .map((path) => posix.basename(path))
    .filter((base) => base !== '' && base !== '.' && base !== '..')
    .map((base) => resolve(folder, base))
  const absolutes = paths.filter((path) => isAbsolute(path) && !isNetworkPath(path)).map((path) => resolve(path))
  return [...new Set([...relatives, ...beside, ...absolutes])].filter((path) => path !== child && path !== folder)
}
