/** Real mounts that end with the test, even where it failed or the server hangs: nothing may be left on the machine. */

import { existsSync, mkdtempSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { entries, find } from '../../lib/mount/registry.js'
import { must, type Result, run, vdiskfs, vdiskfsMust } from './run.js'
import { atEnd, type TestCase, temporaryFolder } from './temp.js'

/** False where nothing can be mounted: no device, or no right to use it. */
export const canMount = existsSync('/dev/fuse') && process.getuid!() === 0

/** A test that needs real mounts: `t.test(name, needsMounts, …)`. Skipped visibly where there can be none. */
export const needsMounts = canMount ? {} : { skip: 'needs root and /dev/fuse' }

export interface Listed {
  readonly mountpoint: string
  readonly image: string
  readonly format: string
  readonly pid: number
  readonly state: string
  readonly error?: string
  readonly 'write-error'?: string
  readonly log?: string
  readonly loop?: string
  readonly options: Readonly<Record<string, unknown>>
}

/** What `vdiskfs list --json` says. */
export function listed(): Listed[] {
  return JSON.parse(vdiskfsMust(['list', '--json'])) as Listed[]
}

/** The entry of one mount point in the list. */
export function listedAt(mountpoint: string): Listed | undefined {
  return listed().find((entry) => entry.mountpoint === mountpoint)
}

export function isMounted(mountpoint: string): boolean {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[4] === mountpoint)
}

function isAlive(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/s.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return false
  }
}

/** A mount of a test. */
export interface TestMount {
  readonly image: string
  readonly mountpoint: string
  /** Path of disk.raw. */
  readonly raw: string
  /** Of the server. */
  readonly pid: number
  /** `vdiskfs umount`, which has to succeed. */
  umount(): void
}

/** A folder to mount at. Whatever is mounted there when the test ends is taken away, and its server ended. */
export function mountpointFor(t: TestCase): string {
  const mountpoint = mkdtempSync(join(temporaryFolder(t), 'mnt-'))
  guard(t, mountpoint)
  return mountpoint
}

/** Makes sure that nothing is mounted at a folder of the test's own choice when it ends. */
export function guard(t: TestCase, mountpoint: string): void {
  atEnd(t, () => clear(mountpoint))
}

/** Mounts an image; the mount ends with the test at the latest. @throws where that fails */
export function mountImage(t: TestCase, image: string, options: readonly string[] = []): TestMount {
  const mountpoint = mountpointFor(t)
  vdiskfsMust(['mount', ...options, image, mountpoint])
  const pid = find(mountpoint)?.pid
  if (pid === undefined) throw new Error(`${mountpoint} is not in the registry`)
  return {
    image,
    mountpoint,
    raw: join(mountpoint, 'disk.raw'),
    pid,
    umount: () => void vdiskfsMust(['umount', mountpoint]),
  }
}

/** Tries to mount an image that cannot be mounted. */
export function tryMount(t: TestCase, image: string, options: readonly string[] = []): Result & { mountpoint: string } {
  const mountpoint = mountpointFor(t)
  return { ...vdiskfs(['mount', ...options, image, mountpoint]), mountpoint }
}

/** Attaches a loop device; it is detached when the test ends, if it still is attached. */
export function attachLoop(t: TestCase, file: string, options: readonly string[] = []): string {
  const device = must('losetup', ['--find', '--show', ...options, file]).trim()
  atEnd(t, () => {
    // Its number may be another one's by now.
    if (run('losetup', ['-j', file]).out.startsWith(`${device}:`)) must('losetup', ['--detach', device])
  })
  return device
}

/** Mounts a device or file by mount(8); ends with the test at the latest. */
export function mountDevice(t: TestCase, device: string, options: readonly string[] = []): string {
  const mountpoint = mkdtempSync(join(temporaryFolder(t), 'fs-'))
  atEnd(t, () => {
    if (isMounted(mountpoint)) must('umount', [mountpoint])
  })
  must('mount', [...options, device, mountpoint])
  return mountpoint
}

const PATIENCE = 100
const PAUSE = 50

/** Ends what is mounted at a mount point: as a user would, and where that does not help, by force. */
async function clear(mountpoint: string): Promise<void> {
  const pid = find(mountpoint)?.pid
  if (isMounted(mountpoint)) vdiskfs(['umount', mountpoint])
  if (isMounted(mountpoint)) run('umount', ['-f', mountpoint])
  while (isMounted(mountpoint) && run('umount', ['-l', mountpoint]).code === 0);
  if (pid === undefined) return
  for (let tries = 0; isAlive(pid) && tries < PATIENCE; tries++) await sleep(PAUSE)
  if (isAlive(pid)) {
    process.kill(pid, 'SIGKILL')
    for (let tries = 0; isAlive(pid) && tries < PATIENCE; tries++) await sleep(PAUSE)
  }
  // An entry with an error stays until it has been read, that of a killed server until the registry is.
  if (entries().some(({ entry }) => entry.mountpoint === mountpoint)) vdiskfs(['umount', mountpoint])
}
