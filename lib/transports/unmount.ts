/**
 * Taking a mount away. Root can do it by umount2(2); ordinary users have the setuid program fusermount3 for it. The
 * thread that serves a mount must not wait in umount2, as the kernel may still have pages to write to it: it starts a
 * program too.
 */

import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { UnmountFlag, unmount as umount2 } from '../native/mount.js'
import { fromSystem, VdiskError } from '../util/errors.js'
import { fusermount, NO_FUSERMOUNT } from './fusermount.js'
import { coverText, mountOnTop } from './mountinfo.js'

export interface UnmountOptions {
  /** End the connection: who uses the file system gets errors, and requests that hang are given up. */
  readonly force?: boolean | undefined
  /** Take it out of the tree at once; it ends when nobody uses it any more. */
  readonly lazy?: boolean | undefined
  /**
   * The `major:minor` of what is meant. Where something else is on top, nothing happens: IN_USE. Undefined: whatever is
   * on top.
   */
  readonly device?: string | undefined
}

type Manner = 'plain' | 'force' | 'lazy'
/** One attempt. @returns the error where it is busy. @throws any other */
type Attempt = (mountpoint: string, manner: Manner) => Promise<VdiskError | undefined>

/** A loop device that was just detached keeps its file for a moment. */
const BUSY_PATIENCE_MS = 2000
const BUSY_INTERVAL_MS = 50

/**
 * Unmounts. Without options it tries for two seconds while the file system is busy. Who serves it sees the end by
 * itself. Not for the thread that serves.
 * @throws VdiskError, IN_USE where it stayed busy
 */
export function unmount(mountpoint: string, options?: UnmountOptions): Promise<void> {
  return repeat(process.geteuid!() === 0 ? bySystemCall : byFusermount, mountpoint, options)
}

/** The same, and this thread goes on serving meanwhile. */
export function unmountWhileServing(mountpoint: string, options?: UnmountOptions): Promise<void> {
  return repeat(process.geteuid!() === 0 ? byUmount : byFusermount, mountpoint, options)
}

async function repeat(attempt: Attempt, mountpoint: string, options: UnmountOptions = {}): Promise<void> {
  const { force, lazy, device } = options
  const checked: Attempt = async (path, manner) => {
    refuseOther(path, device)
    return attempt(path, manner)
  }
  const until = Date.now() + BUSY_PATIENCE_MS
  for (;;) {
    const busy = await checked(mountpoint, force ? 'force' : lazy ? 'lazy' : 'plain')
    if (!busy) return
    // It aborts the connection even where it says that it failed. What is left is to hide the mount.
    if (force && !(await checked(mountpoint, 'lazy'))) return
    if (Date.now() >= until) throw busy
    await sleep(BUSY_INTERVAL_MS)
  }
}

const notMounted = (mountpoint: string, cause?: unknown) =>
  new VdiskError('NOT_FOUND', `nothing is mounted on ${mountpoint}`, { cause })

/** Between looking and unmounting there is a moment, which no system call closes. */
function refuseOther(mountpoint: string, device: string | undefined): void {
  if (device === undefined) return
  const top = mountOnTop(mountpoint)
  if (top?.device === device) return
  if (!top) throw notMounted(mountpoint)
  throw new VdiskError('IN_USE', `cannot unmount ${mountpoint}: ${coverText(top)}`)
}

const FLAGS: Readonly<Record<Manner, number>> = { plain: 0, force: UnmountFlag.FORCE, lazy: UnmountFlag.DETACH }

const bySystemCall: Attempt = async (mountpoint, manner) => {
  try {
    umount2(mountpoint, FLAGS[manner])
    return undefined
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EINVAL') throw notMounted(mountpoint, error)
    const failure = fromSystem(error, mountpoint, 'unmount')
    if (code !== 'EBUSY') throw failure
    return failure
  }
}

const OPTION: Readonly<Record<Manner, readonly string[]>> = { plain: [], force: ['-f'], lazy: ['-l'] }

/** umount(8), without the helpers of file system types, which might be our own. */
const byUmount: Attempt = (mountpoint, manner) => run('umount', ['-i', ...OPTION[manner], mountpoint], mountpoint)

const byFusermount: Attempt = async (mountpoint, manner) => {
  const program = fusermount()
  if (!program) throw new VdiskError('UNSUPPORTED', `cannot unmount ${mountpoint}: ${NO_FUSERMOUNT}`)
  if (manner === 'force') abortConnection(mountpoint)
  return run(program, ['-u', ...(manner === 'plain' ? [] : ['-z']), '--', mountpoint], mountpoint)
}

/** What `umount -f` does first; who made a mount may do it. Where it cannot be done, a lazy unmount has to do. */
function abortConnection(mountpoint: string): void {
  const minor = mountOnTop(mountpoint)?.device.split(':')[1]
  try {
    writeFileSync(`/sys/fs/fuse/connections/${minor}/abort`, '1')
  } catch {
    // Not mounted, or not ours.
  }
}

function run(program: string, args: readonly string[], mountpoint: string): Promise<VdiskError | undefined> {
  return new Promise((resolve, reject) => {
    execFile(program, args, { env: { ...process.env, LC_ALL: 'C' } }, (error, _out, err) => {
      if (!error) return resolve(undefined)
      const words = err.trim().split('\n').at(-1) || error.message
      if (/busy/i.test(words))
        return resolve(new VdiskError('IN_USE', `cannot unmount ${mountpoint}: it is busy`, { cause: error }))
      if (/not mounted|not found in|no mount point|no such file/i.test(words))
        return reject(notMounted(mountpoint, error))
      reject(new VdiskError('IO', `cannot unmount ${mountpoint}: ${words}`, { cause: error }))
    })
  })
}
