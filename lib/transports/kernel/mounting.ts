/** Mounting and unmounting: the device, mount(2), INIT, and what can only be set afterwards. */

import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import debug from 'debug'
import { MountFlag, mount, UnmountFlag, unmount as umount2 } from '../../native/mount.js'
import { fromSystem, VdiskError } from '../../util/errors.js'
import { KiB, MiB } from '../../util/sizes.js'
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
  /** Bytes that the kernel reads ahead of a program that reads in order, where it lets us say so. */
  readonly readAhead?: number | undefined
}

/** A file system that waits for workers. Whoever made it closes `fd`, after the last worker has ended. */
export interface KernelMount {
  readonly fd: number
  readonly negotiated: Negotiated
}

/** Shown as `fuse.vdiskfs` in /proc/mounts. */
const SUBTYPE = 'vdiskfs'
const DEFAULT_READ_AHEAD = MiB

/** Mounts as root. @throws VdiskError; nothing is mounted then. */
export function mountAsRoot(options: KernelMountOptions): KernelMount {
  const { mountpoint, source, readOnly } = options
  const fd = openDevice()
  try {
    const flags = MountFlag.NOSUID | MountFlag.NODEV | (readOnly ? MountFlag.RDONLY : 0)
    try {
      mount(source, mountpoint, `fuse.${SUBTYPE}`, flags, mountData(fd, options))
    } catch (error) {
      throw fromSystem(error, mountpoint, 'mount on')
    }
    return begin(fd, options)
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

/** What follows mounting, whoever did it: INIT, and the read-ahead. Unmounts where that fails. */
function begin(fd: number, options: KernelMountOptions): KernelMount {
  const { mountpoint, readAhead = DEFAULT_READ_AHEAD } = options
  try {
    const request = new Request()
    const reply = new Reply()
    const { negotiated, length } = negotiate(request, receiveFirst(fd, request.bytes), reply, options)
    writeSync(fd, reply.bytes, 0, length, null)
    trace('mounted on %s: FUSE 7.%d, flags %s', mountpoint, negotiated.minor, negotiated.flags.toString(16))
    setReadAhead(mountpoint, readAhead)
    return { fd, negotiated }
  } catch (error) {
    umount2(mountpoint, UnmountFlag.DETACH)
    throw fromSystem(error, DEVICE, 'negotiate with')
  }
}

/** Without it the kernel reads 128 KiB at a time for programs that do not use direct I/O. Needs root and a writable /sys. */
function setReadAhead(mountpoint: string, bytes: number): void {
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

export interface UnmountOptions {
  /** End the connection: who uses the file system gets errors, and requests that hang are given up. */
  readonly force?: boolean | undefined
  /** Take it out of the tree at once; it ends when nobody uses it any more. */
  readonly lazy?: boolean | undefined
}

/** A loop device that was just detached keeps its file for a moment. */
const BUSY_PATIENCE_MS = 2000
const BUSY_INTERVAL_MS = 50

/**
 * Unmounts. Without options it tries for two seconds while the file system is busy. The workers see the end by
 * themselves.
 * @throws VdiskError, IN_USE where it stayed busy
 */
export async function unmount(mountpoint: string, { force, lazy }: UnmountOptions = {}): Promise<void> {
  const until = Date.now() + BUSY_PATIENCE_MS
  for (;;) {
    const busy = tryUnmount(mountpoint, force ? UnmountFlag.FORCE : lazy ? UnmountFlag.DETACH : 0)
    if (!busy) return
    // It aborts the connection even where it says that it failed. What is left is to hide the mount.
    if (force && !tryUnmount(mountpoint, UnmountFlag.DETACH)) return
    if (Date.now() >= until) throw busy
    await sleep(BUSY_INTERVAL_MS)
  }
}

/** @returns the error where it is busy. @throws any other */
function tryUnmount(mountpoint: string, flags: number): VdiskError | undefined {
  try {
    umount2(mountpoint, flags)
    return undefined
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EINVAL') throw new VdiskError('NOT_FOUND', `nothing is mounted on ${mountpoint}`, { cause: error })
    const failure = fromSystem(error, mountpoint, 'unmount')
    if (code !== 'EBUSY') throw failure
    return failure
  }
}
