/** What a folder must be so that an image can be shown at it. */

import { realpathSync, type Stats, statSync } from 'node:fs'
import { fromSystem, VdiskError } from '../util/errors.js'
import { isOurType, isWithin, mountAt, resolveMountpoint } from './mounts.js'
import { find, type RegistryEntry, remove, stateOf } from './registry.js'
import type { MountTransport } from './transports.js'

/**
 * Checks a mount point. One whose server was killed is cleaned up first, where the mount was ours.
 * @param warn is told what was cleaned up
 * @returns its absolute path without symbolic links
 * @throws NOT_FOUND, ACCESS, IN_USE
 */
export async function prepareMountpoint(
  path: string,
  transport: MountTransport,
  warn: (message: string) => void,
): Promise<string> {
  const mountpoint = resolveMountpoint(path)
  let stat = look(path, mountpoint)
  if (stat === 'dead') {
    await cleanUp(mountpoint, transport, warn)
    stat = look(path, mountpoint)
  }
  if (stat === 'dead') throw new VdiskError('IN_USE', `${path} is a dead mount below another one: umount ${path}`)
  if (!stat.isDirectory()) throw new VdiskError('NOT_FOUND', `mount point ${path} is not a directory`)
  const mount = mountAt(mountpoint)
  if (mount && isOurType(mount.type))
    throw new VdiskError('IN_USE', `mount point ${path} is in use: it shows ${mount.source} already`)
  warnOfFailed(find(mountpoint), warn)
  return mountpoint
}

function look(path: string, mountpoint: string): Stats | 'dead' {
  try {
    return statSync(mountpoint)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    // ECONNABORTED: the server was killed while a request was under way.
    if (code === 'ENOTCONN' || code === 'ECONNABORTED') return 'dead'
    if (code === 'ENOENT') throw new VdiskError('NOT_FOUND', `mount point ${path} does not exist`)
    throw fromSystem(error, path, 'use mount point')
  }
}

/** Takes a dead mount away, also one that somebody still has files open of: they get errors anyway. */
async function cleanUp(mountpoint: string, transport: MountTransport, warn: (message: string) => void): Promise<void> {
  const mount = mountAt(mountpoint)
  const entry = find(mountpoint)
  const ours = mount ? isOurType(mount.type) : entry !== undefined
  if (!ours) {
    const what = mount ? `a dead mount of type ${mount.type}` : 'a dead mount'
    throw new VdiskError('IN_USE', `${mountpoint} is ${what}: end it first with umount ${mountpoint}`)
  }
  await transport.unmount(mountpoint, { lazy: true, device: mount?.device })
  const image = entry?.image ?? mount?.source ?? 'an image'
  if (entry && stateOf(entry) === 'gone') remove(entry)
  warn(`${mountpoint}: cleaned up the dead mount of ${image}, whose server was killed; what it had not flushed is lost`)
}

function warnOfFailed(entry: RegistryEntry | undefined, warn: (message: string) => void): void {
  if (entry && stateOf(entry) === 'failed')
    warn(`the mount of ${entry.image} at ${entry.mountpoint} before this one ended with an error: ${entry.error}`)
}

/**
 * Refuses a mount point above the image's own files: they would be hidden below it, and the next open of one of them
 * would come back to us.
 * @throws USAGE
 */
export function refuseHiding(mountpoint: string, files: readonly string[]): void {
  for (const file of files)
    if (isWithin(realpathSync(file), mountpoint))
      throw new VdiskError(
        'USAGE',
        `${mountpoint} holds ${file}, which would be hidden below the mount: choose another folder`,
      )
}
