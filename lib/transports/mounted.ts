/** What is done to a FUSE mount that is there, by whichever transport it was made. */

import { readFileSync, writeFileSync } from 'node:fs'
import debug from 'debug'
import { KiB, MiB } from '../util/sizes.js'

const trace = debug('vdiskfs:transport')

/** Shown as `fuse.vdiskfs` in /proc/mounts. */
export const SUBTYPE = 'vdiskfs'

const DEFAULT_READ_AHEAD = MiB

/**
 * How far the kernel reads ahead of a program that reads in order, in bytes. Without it that is 128 KiB, for programs
 * that do not use direct I/O. Needs root and a writable /sys; where it cannot be set it stays.
 */
export function setReadAhead(mountpoint: string, bytes = DEFAULT_READ_AHEAD): void {
  const device = mountedDevice(mountpoint)
  try {
    if (device) writeFileSync(`/sys/class/bdi/${device}/read_ahead_kb`, String(bytes / KiB))
  } catch (error) {
    trace('read-ahead stays as it is: %s', error)
  }
}

/** The `major:minor` of what is mounted on a folder, found without asking the file system, which may not answer. */
export function mountedDevice(mountpoint: string): string | undefined {
  // `id parent major:minor root mountpoint options…`; the last line of a mount point is the mount that is seen.
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').trimEnd().split('\n').reverse()) {
    const [, , device, , where] = line.split(' ')
    if (where !== undefined && unescapeMountinfo(where) === mountpoint) return device
  }
  return undefined
}

/** Spaces and the like are octal there: `\040`. */
const unescapeMountinfo = (text: string): string =>
  Buffer.from(
    Buffer.from(text)
      .toString('latin1')
      .replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8))),
    'latin1',
  ).toString()
