/** Mounting as root: the device, mount(2); and for everybody, INIT, and what can only be set afterwards. */

import { closeSync, openSync, writeSync } from 'node:fs'
import debug from 'debug'
import { MountFlag, mount, UnmountFlag, unmount as umount2 } from '../../native/mount.js'
import { fromSystem } from '../../util/errors.js'
import { SUBTYPE, setReadAhead } from '../mounted.js'
import { mountedDevice } from '../mountinfo.js'
import { flagsOf } from '../options.js'
import { DEVICE, receiveFirst } from './device.js'
import { type InitWishes, type Negotiated, negotiate } from './init.js'
import { Reply, Request } from './messages.js'
import { MAX_TRANSFER, S_IFDIR } from './protocol.js'

const trace = debug('vdiskfs:transport')

export interface KernelMountOptions extends InitWishes {
  /** Absolute path of a folder, without symbolic links. */
  readonly mountpoint: string
  /** What /proc/mounts shows as the device: the image. */
  readonly source: string
  readonly readOnly: boolean
  /** Let other users in too; root as well, where an ordinary user mounts. */
  readonly allowOther: boolean
  /** What else mount(8) is told: the words of `SYSTEM_OPTIONS`. */
  readonly systemOptions?: readonly string[] | undefined
  /** Bytes that the kernel reads ahead of a program that reads in order, where it lets us say so. */
  readonly readAhead?: number | undefined
}

/** A file system that waits for workers. Whoever made it closes `fd`, after the last worker has ended. */
export interface KernelMount {
  readonly fd: number
  readonly negotiated: Negotiated
  /** `major:minor`, by which it can be told from what is mounted over it. */
  readonly device: string | undefined
}

/** Mounts as root. @throws VdiskError; nothing is mounted then. */
export function mountAsRoot(options: KernelMountOptions): KernelMount {
  const { mountpoint, source, readOnly } = options
  const fd = openDevice()
  try {
    const always = MountFlag.NOSUID | MountFlag.NODEV
    const flags = always | (readOnly ? MountFlag.RDONLY : 0) | flagsOf(options.systemOptions)
    try {
      mount(source, mountpoint, `fuse.${SUBTYPE}`, flags, mountData(fd, options))
    } catch (error) {
      throw fromSystem(error, mountpoint, 'mount on')
    }
    return begin(fd, options, () => umount2(mountpoint, UnmountFlag.DETACH))
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

function openDevice(): number {
  try {
    return openSync(DEVICE, 'r+')
  } catch (error) {
    throw fromSystem(error, DEVICE, 'open')
  }
}

function mountData(fd: number, { allowOther }: KernelMountOptions): string {
  const data = [
    `fd=${fd}`,
    `rootmode=${S_IFDIR.toString(8)}`,
    `user_id=${process.getuid!()}`,
    `group_id=${process.getgid!()}`,
    'default_permissions',
    `max_read=${MAX_TRANSFER}`,
  ]
  if (allowOther) data.push('allow_other')
  return data.join(',')
}

/**
 * What follows mounting, whoever did it: INIT, and the read-ahead.
 * @param undo unmounts; called where that fails
 */
export function begin(fd: number, options: KernelMountOptions, undo: () => void): KernelMount {
  const { mountpoint, readAhead } = options
  try {
    const request = new Request()
    const reply = new Reply()
    const { negotiated, length } = negotiate(request, receiveFirst(fd, request.bytes), reply, options)
    writeSync(fd, reply.bytes, 0, length, null)
    trace('mounted on %s: FUSE 7.%d, flags %s', mountpoint, negotiated.minor, negotiated.flags.toString(16))
    setReadAhead(mountpoint, readAhead)
    return { fd, negotiated, device: mountedDevice(mountpoint) }
  } catch (error) {
    undo()
    throw fromSystem(error, DEVICE, 'negotiate with')
  }
}
