/**
 * Ending from outside what `attach` made: `vdiskfs detach`. Stopped half way, or where the device was detached by others
 * already, the same command again does the rest; the server does it by itself a little later.
 */

import { realpathSync } from 'node:fs'
import { resolve } from 'node:path'
import { VdiskError } from '../util/errors.js'
import { backingFile, detachLoop, isLoopDevice, isOn, loopsOn } from './loop.js'
import { resolveMountpoint } from './mounts.js'
import { entries, isPrivate, type RegistryEntry } from './registry.js'
import { endMount } from './unmount.js'

/**
 * Detaches a loop device and ends its mount; returns when the image is committed and closed.
 * @param what the device, the image, or the private mount point
 * @param notice is told what the user should know
 * @throws NOT_FOUND, IN_USE where somebody uses the device (nothing has changed then), IO as `endMount`
 */
export async function detach(what: string, notice: (message: string) => void): Promise<void> {
  const { mountpoint } = findAttached(what)
  for (const device of loopsOn(mountpoint)) await detachLoop(device, mountpoint)
  await endMount(mountpoint, notice)
}

function findAttached(what: string): RegistryEntry {
  const attached = entries()
    .map(({ entry }) => entry)
    .filter(({ mountpoint }) => isPrivate(mountpoint))
  const path = realPath(what)
  if (isLoopDevice(path)) return findDevice(path, attached)
  const mountpoint = resolveMountpoint(what)
  const found = attached.filter((entry) => entry.mountpoint === mountpoint || realPath(entry.image) === path)
  if (found.length === 1) return found[0]!
  if (found.length === 0) throw new VdiskError('NOT_FOUND', `${what} is not attached (vdiskfs list shows what is)`)
  const devices = found.map(({ loop }) => loop).join(', ')
  throw new VdiskError('USAGE', `${what} is attached more than once: say which, of ${devices}`)
}

/** What shows a file of ours counts; a device that was detached by others may be somebody else's by now. */
function findDevice(device: string, attached: readonly RegistryEntry[]): RegistryEntry {
  const entry =
    attached.find(({ mountpoint }) => isOn(device, mountpoint)) ?? attached.findLast(({ loop }) => loop === device)
  const file = backingFile(device)
  if (entry && (file === undefined || isOn(device, entry.mountpoint))) return entry
  const state = file === undefined ? 'is not attached' : `shows ${file}, and was not made by vdiskfs attach`
  throw new VdiskError('NOT_FOUND', `${device} ${state}`)
}

function realPath(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return resolve(path)
  }
}
