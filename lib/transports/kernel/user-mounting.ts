/**
 * Mounting as an ordinary user: fusermount3 mounts, as it is setuid, and sends the descriptor of the device over a
 * socket. What it accepts is in mount.fuse3(8) and /etc/fuse.conf.
 */

import { spawnSync } from 'node:child_process'
import { closeSync } from 'node:fs'
import { makeSocketPair, receiveDescriptor } from '../../native/descriptors.js'
import { VdiskError } from '../../util/errors.js'
import { fusermount, NO_FUSERMOUNT, refusal } from '../fusermount.js'
import { SUBTYPE } from '../mounted.js'
import { joinOptions } from '../options.js'
import { begin, type KernelMount, type KernelMountOptions, mountAsRoot } from './mounting.js'
import { MAX_TRANSFER } from './protocol.js'

/** Mounts as whoever this process belongs to. @throws VdiskError; nothing is mounted then. */
export function mount(options: KernelMountOptions): KernelMount {
  return process.geteuid!() === 0 ? mountAsRoot(options) : mountAsUser(options)
}

/** @throws VdiskError; nothing is mounted then. */
export function mountAsUser(options: KernelMountOptions): KernelMount {
  const { mountpoint } = options
  const program = fusermount()
  if (!program) throw new VdiskError('UNSUPPORTED', `cannot mount on ${mountpoint}: ${NO_FUSERMOUNT}`)
  const fd = receiveFrom(program, options)
  try {
    return begin(fd, options, () => spawnSync(program, ['-u', '-z', '--', mountpoint]))
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/** The descriptor's number in fusermount3, and the variable that tells it. */
const SOCKET = 3
const SOCKET_VARIABLE = '_FUSE_COMMFD'

function receiveFrom(program: string, options: KernelMountOptions): number {
  const { mountpoint } = options
  const [ours, theirs] = makeSocketPair()
  let result: ReturnType<typeof spawnSync>
  try {
    // It sends the descriptor and ends, so that all is in the socket when this returns.
    result = spawnSync(program, ['-o', userOptions(options), '--', mountpoint], {
      env: { ...process.env, LC_ALL: 'C', [SOCKET_VARIABLE]: String(SOCKET) },
      stdio: ['ignore', 'ignore', 'pipe', theirs],
      encoding: 'utf8',
    })
  } finally {
    closeSync(theirs)
  }
  try {
    const fd = result.status === 0 ? receiveDescriptor(ours) : undefined
    if (fd === undefined) throw refusal(mountpoint, String(result.stderr ?? ''), result.error)
    return fd
  } finally {
    closeSync(ours)
  }
}

function userOptions({ source, readOnly, allowOther, systemOptions = [] }: KernelMountOptions): string {
  const options = [
    readOnly ? 'ro' : 'rw',
    'nosuid',
    'nodev',
    ...systemOptions,
    'default_permissions',
    `max_read=${MAX_TRANSFER}`,
    `subtype=${SUBTYPE}`,
  ]
  if (allowOther) options.push('allow_other')
  return joinOptions([...options, `fsname=${source}`])
}
