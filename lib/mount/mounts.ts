/** What is mounted where, from /proc/self/mountinfo: reading it never touches a file system, so a dead or hung one
 * cannot stop it. */

import { readFileSync, realpathSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'

export interface MountEntry {
  readonly mountpoint: string
  /** `fuse.vdiskfs`. */
  readonly type: string
  /** The image, of our own mounts. */
  readonly source: string
}

/** All mounts of this namespace, in the order in which they were made. */
export function mounts(): MountEntry[] {
  return parseMountinfo(readFileSync('/proc/self/mountinfo', 'utf8'))
}

/** proc(5): id, parent, device, root, mount point, options, optional fields, `-`, type, source, options. */
export function parseMountinfo(text: string): MountEntry[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const fields = line.split(' ')
      const dash = fields.indexOf('-', 6)
      return {
        mountpoint: decodeOctal(fields[4]!),
        type: fields[dash + 1] ?? '',
        source: decodeOctal(fields[dash + 2] ?? ''),
      }
    })
}

/** Blank, tab, newline and backslash are written as octal numbers of bytes; the rest is UTF-8. */
function decodeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
}

/** The mount that is on top at a path, if the path is a mount point. */
export function mountAt(mountpoint: string, entries: readonly MountEntry[] = mounts()): MountEntry | undefined {
  return entries.findLast((entry) => entry.mountpoint === mountpoint)
}

/** True for the type that our mounts show in /proc/mounts. */
export function isOurType(type: string): boolean {
  return type === 'fuse.vdiskfs'
}

/**
 * The absolute path of a mount point without symbolic links, as /proc writes it. The last component is looked at only
 * where it is no mount point, as looking at a dead one fails and at a hung one hangs.
 */
export function resolveMountpoint(path: string): string {
  const absolute = resolve(path)
  try {
    const candidate = join(realpathSync(dirname(absolute)), basename(absolute))
    return mountAt(candidate) ? candidate : realpathSync(absolute)
  } catch {
    return absolute
  }
}

/** True where `path` is `folder` or lies below it; both absolute. */
export function isWithin(path: string, folder: string): boolean {
  return path === folder || folder === '/' || path.startsWith(`${folder}/`)
}
