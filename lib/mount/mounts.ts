/** Our mounts among those of this machine, and the paths of mount points. */

import { realpathSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { type MountEntry, mounts } from '../transports/mountinfo.js'

export { type MountEntry, mounts, parseMountinfo } from '../transports/mountinfo.js'

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
