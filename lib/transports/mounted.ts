/** What is done to a FUSE mount that is there, by whichever transport it was made. */

import { writeFileSync } from 'node:fs'
import debug from 'debug'
import { KiB, MiB } from '../util/sizes.js'
import { mountedDevice } from './mountinfo.js'

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
