/** Who keeps a mount busy, as far as /proc and /sys tell: processes, loop devices, mounts below it. */

import { relative } from 'node:path'
import { link, list, read } from './look.js'
import { isWithin, mounts } from './mounts.js'
import { describeProcess } from './processes.js'

/** More than these are only counted. */
const MOST_NAMED = 4

/** One text a holder, such as `bash (pid 17) works in it`. May miss some: what other users' processes do is hidden. */
export function holders(mountpoint: string): string[] {
  return [...loopDevices(mountpoint), ...mountsBelow(mountpoint), ...processes(mountpoint)]
}

/** One line for an error message. */
export function describeHolders(mountpoint: string): string {
  const found = holders(mountpoint)
  if (found.length === 0) return 'who holds it cannot be seen'
  const rest = found.length - MOST_NAMED
  return found.slice(0, MOST_NAMED).join(', ') + (rest > 0 ? ` and ${rest} more` : '')
}

function below(mountpoint: string, path: string): string {
  return relative(mountpoint, path) || 'it'
}

function loopDevices(mountpoint: string): string[] {
  return list('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .flatMap((name) => {
      const file = read(`/sys/block/${name}/loop/backing_file`)
      return file && isWithin(file, mountpoint) ? [`/dev/${name} is attached to ${below(mountpoint, file)}`] : []
    })
}

function mountsBelow(mountpoint: string): string[] {
  return mounts()
    .filter((mount) => mount.mountpoint !== mountpoint && isWithin(mount.mountpoint, mountpoint))
    .map((mount) => `${mount.mountpoint} is mounted below it`)
}

function processes(mountpoint: string): string[] {
  return list('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      const use = useOf(mountpoint, `/proc/${name}`)
      return use ? [`${describeProcess(Number(name))} ${use}`] : []
    })
}

/** What a process does with the mount, the plainest first. */
function useOf(mountpoint: string, proc: string): string | undefined {
  const at = (name: string) => {
    const path = link(`${proc}/${name}`)
    return path !== undefined && isWithin(path, mountpoint) ? path : undefined
  }
  if (at('cwd')) return 'works in it'
  if (at('root')) return 'has it as its root'
  for (const fd of list(`${proc}/fd`)) {
    const path = at(`fd/${fd}`)
    if (path) return `has ${below(mountpoint, path)} open`
  }
  return read(`${proc}/maps`)?.includes(` ${mountpoint}/`) ? 'has a file of it in its memory' : undefined
}
