/** Where the file system of one mount is shown: moved, bound to a second place, hidden, in other mount namespaces. */

import { coverText, mountOnTop } from '../transports/mountinfo.js'
import { VdiskError } from '../util/errors.js'
import { link, list, read } from './look.js'
import { isOurType, type MountEntry, mounts, parseMountinfo } from './mounts.js'
import { describeProcess } from './processes.js'

/**
 * The path at which a file system can be unmounted now.
 * @param device its `major:minor`
 * @param mountpoint where it was mounted
 * @returns undefined where it is not mounted any more in this namespace
 * @throws IN_USE where something is mounted over it
 */
export function placeOf(device: string, mountpoint: string): string | undefined {
  if (mountOnTop(mountpoint)?.device === device) return mountpoint
  const own = mounts().filter((entry) => entry.device === device && entry.root === '/')
  const free = own.find((entry) => mountOnTop(entry.mountpoint)?.id === entry.id)
  if (free) return free.mountpoint
  const [hidden] = own
  if (!hidden) return undefined
  const what = coverText(mountOnTop(hidden.mountpoint))
  throw new VdiskError('IN_USE', `${hidden.mountpoint} is in use: ${what}; unmount that first`)
}

/** Other paths that show the file system, or a part of it, and will when it is unmounted at one. */
export function otherPlaces(device: string, place: string): string[] {
  const table = mounts()
  const top = mountOnTop(place)
  return table
    .filter((entry) => entry.device === device && entry.id !== top?.id && !(top && goesWith(entry, top, table)))
    .map((entry) => entry.mountpoint)
}

/** Unmounting goes on to where the parent is mounted a second time with shared propagation. mount_namespaces(7) */
function goesWith(entry: MountEntry, top: MountEntry, table: readonly MountEntry[]): boolean {
  const [parent, topParent] = [entry, top].map((child) => table.find(({ id }) => id === child.parent))
  if (!parent || !topParent || parent.id === topParent.id) return false
  const groups = topParent.propagation.filter((word) => word.startsWith('shared:')).map((word) => word.slice(7))
  const follows = parent.propagation.some((word) => groups.includes(word.replace(/^(shared|master):/, '')))
  return follows && placeIn(parent, entry) === placeIn(topParent, top)
}

/** The path of a mount point in the file system that it lies on. */
function placeIn(parent: MountEntry, { mountpoint }: MountEntry): string {
  const below = parent.mountpoint === '/' ? mountpoint : mountpoint.slice(parent.mountpoint.length)
  return parent.root === '/' ? below : parent.root + below
}

/** More than these are only counted. */
const MOST_NAMED = 4

/**
 * Who still has the file system mounted, of all whose mounts can be seen; undefined: nobody.
 * @param sources what it may have for its source, as numbers of devices are used again
 */
export function describePlaces(device: string, sources: readonly (string | undefined)[]): string | undefined {
  const isIt = (entry: MountEntry) => entry.device === device && isOurType(entry.type) && sources.includes(entry.source)
  const here = mounts().filter(isIt)
  const namespace = link('/proc/self/ns/mnt')
  const others = list('/proc').filter((name) => {
    if (!/^\d+$/.test(name) || link(`/proc/${name}/ns/mnt`) === namespace) return false
    return parseMountinfo(read(`/proc/${name}/mountinfo`) ?? '').some(isIt)
  })
  const named = [
    ...here.map(({ mountpoint }) => `it is mounted at ${mountpoint} too`),
    ...others.map((pid) => `${describeProcess(Number(pid))} has it in its mount namespace`),
  ]
  if (named.length === 0) return undefined
  const rest = named.length - MOST_NAMED
  return named.slice(0, MOST_NAMED).join(', ') + (rest > 0 ? ` and ${rest} more` : '')
}
