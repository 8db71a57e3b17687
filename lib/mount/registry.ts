/**
 * The mounts of this machine that are ours: one JSON file a mount in a folder under /run, made by the server process
 * and removed by it when all is committed and closed. A server that could not commit leaves its entry, with the error,
 * until `umount` has told it; one that was killed leaves its entry too, and `list` sweeps it up.
 */

import { createHash, randomBytes } from 'node:crypto'
import {
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import type { Partition } from '../partitions/partition.js'
import { fromSystem, VdiskError } from '../util/errors.js'
import { isOurType, mountAt, mounts } from './mounts.js'
import { isAlive, type ProcessIdentity } from './processes.js'

export interface MountOptions {
  readonly readOnly: boolean
  readonly format?: string | undefined
  /** The snapshot inside the image that is shown. */
  readonly snapshot?: string | undefined
  /** Absolute path of the overlay that takes what is written. */
  readonly overlay?: string | undefined
  /** What is written goes to a file without a name, and is gone at the end. */
  readonly temporary?: boolean | undefined
  readonly transport: string
  readonly backingDirs: readonly string[]
  readonly workers?: number | undefined
  /** Bytes. */
  readonly cacheSize?: number | undefined
  readonly allowOther: boolean
  /** Words for the kernel: `SYSTEM_OPTIONS`. */
  readonly systemOptions?: readonly string[] | undefined
  readonly uid: number
  readonly gid: number
  readonly umask: number
  /** Show the partitions as files of their own. */
  readonly partitions: boolean
}

export interface RegistryEntry extends ProcessIdentity {
  /** Absolute, without symbolic links. */
  readonly mountpoint: string
  /** Absolute. */
  readonly image: string
  readonly format: string
  /** Size of the disk in bytes. */
  readonly size: number
  readonly options: MountOptions
  /** `/dev/loopN`, of a mount that `attach` made. */
  readonly loop?: string | undefined
  /** Those that are shown as files, or that the loop device has. */
  readonly partitions?: readonly Partition[] | undefined
  /** The server answers to those who ask for statistics. */
  readonly statistics?: boolean
  /** Where the server writes what it has to say; none of a server in the foreground. */
  readonly log: string | undefined
  /** One line: why nothing is written any more, though it is mounted for writing. A sync of the image failed. */
  readonly writeError?: string | undefined
  /** `mounted` from the moment on at which the files can be used. */
  /** `major:minor` of the mount, while the server lives. */
  readonly device?: string | undefined
  readonly phase: 'starting' | 'mounted' | 'ended'
  /** One line: why the image could not be committed or closed. Of an ended server. */
  readonly error?: string | undefined
}

/**
 * - `starting`, `mounted`: as it says
 * - `closing`: the mount is gone, the server still commits
 * - `dead`: the server was killed, and its mount is still there (ENOTCONN)
 * - `failed`: the server ended with an error that nobody has read yet
 * - `gone`: the server was killed and its mount is gone; only the entry is left
 */
export type MountState = 'starting' | 'mounted' | 'closing' | 'dead' | 'failed' | 'gone'

/** The folder of the registry of this user; made where it is missing. @throws ACCESS where it is somebody else's. */
export function registryFolder(): string {
  const uid = process.getuid!()
  const folder = uid === 0 ? '/run/vdiskfs' : (runtimeFolder(uid) ?? `/tmp/vdiskfs-${uid}`)
  try {
    mkdirSync(folder, { mode: 0o700 })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw fromSystem(error, folder, 'make')
  }
  const stat = lstatSync(folder)
  if (!stat.isDirectory() || stat.uid !== uid || (stat.mode & 0o022) !== 0)
    throw new VdiskError('ACCESS', `${folder} is not a folder that only you (uid ${uid}) can write to: remove it`)
  return folder
}

/** Below $XDG_RUNTIME_DIR, where that is there and this user's: after su it is another one's. */
function runtimeFolder(uid: number): string | undefined {
  const runtime = process.env.XDG_RUNTIME_DIR
  if (!runtime) return undefined
  return statSync(runtime, { throwIfNoEntry: false })?.uid === uid ? join(runtime, 'vdiskfs') : undefined
}

/** The file of a mount point's entry. */
export function entryPath(mountpoint: string, folder = registryFolder()): string {
  return join(folder, `${createHash('sha256').update(mountpoint).digest('hex').slice(0, 16)}.json`)
}

/** Where the server of a mount puts its statistics when it is asked for them. */
export function statisticsPath(mountpoint: string, folder = registryFolder()): string {
  return entryPath(mountpoint, folder).replace(/json$/, 'stats')
}

/** A name for the log of a new server. */
export function newLogPath(folder = registryFolder()): string {
  return join(folder, `${randomBytes(8).toString('hex')}.log`)
}

function temporary(entry: RegistryEntry, target: string): string {
  const path = `${target}.${process.pid}.new`
  writeFileSync(path, `${JSON.stringify(entry, undefined, 2)}\n`, { mode: 0o600 })
  return path
}

/**
 * Makes the entry of a mount that is about to be made. Two that want one mount point at once cannot both get it.
 * @throws IN_USE where there is a live one.
 */
export function claim(entry: RegistryEntry): void {
  const target = entryPath(entry.mountpoint)
  const made = temporary(entry, target)
  try {
    for (;;) {
      try {
        linkSync(made, target)
        return
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw fromSystem(error, target, 'make')
      }
      const other = readEntry(target)
      if (other && isAlive(other)) {
        const what = stateOf(other) === 'closing' ? 'is still being closed' : `shows ${other.image} already`
        throw new VdiskError('IN_USE', `${entry.mountpoint} is in use: it ${what} (pid ${other.pid})`)
      }
      removeFile(target, other)
    }
  } finally {
    rmSync(made, { force: true })
  }
}

/** Replaces an entry of the same server, at once and whole. */
export function update(entry: RegistryEntry): void {
  const target = entryPath(entry.mountpoint)
  const found = readEntry(target)
  if (found && !isSame(found, entry)) return
  renameSync(temporary(entry, target), target)
}

/** The entry of a mount point. */
export function find(mountpoint: string): RegistryEntry | undefined {
  return readEntry(entryPath(mountpoint))
}

/** Removes an entry and its log, and its mount point where that is a private one. */
export function remove(entry: RegistryEntry): void {
  removeFile(entryPath(entry.mountpoint), entry)
}

const isSame = (a: ProcessIdentity, b: ProcessIdentity) => a.pid === b.pid && a.startTime === b.startTime

/** Removes a file that holds this entry, or, where that is undefined, nothing that can be read. */
function removeFile(path: string, entry: RegistryEntry | undefined): void {
  if (entry?.log) rmSync(entry.log, { force: true })
  // It may have become another server's since it was read: so it is looked at where nobody else finds it.
  const aside = `${path}.${process.pid}.old`
  try {
    renameSync(path, aside)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
    throw fromSystem(error, path, 'remove')
  }
  const found = readEntry(aside)
  if (found && !(entry && isSame(found, entry))) putBack(aside, path)
  else {
    if (entry && isPrivate(entry.mountpoint)) removePrivate(entry.mountpoint)
    rmSync(path.replace(/json$/, 'stats'), { force: true })
  }
  rmSync(aside, { force: true })
}

function putBack(aside: string, path: string): void {
  try {
    linkSync(aside, path)
  } catch (error) {
    // Somebody has claimed it in between: then it was nobody's any more.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw fromSystem(error, path, 'make')
  }
}

/** In the registry's folder: where images are mounted that only their loop devices are wanted of. */
const PRIVATE = 'attached'
const LONGEST_NAME = 64

/** Makes a mount point for an image; its name says which, for those who look at `losetup --list`. */
export function makePrivate(image: string, folder = registryFolder()): string {
  const parent = join(folder, PRIVATE)
  mkdirSync(parent, { recursive: true, mode: 0o700 })
  const name = basename(image)
    .replace(/[^\w.-]/g, '_')
    .slice(0, LONGEST_NAME)
  return mkdtempSync(join(parent, `${name}-`))
}

/** True for a mount point that `makePrivate` made. */
export const isPrivate = (mountpoint: string): boolean => dirname(mountpoint) === join(registryFolder(), PRIVATE)

/** Removes a private mount point, where nothing is mounted. */
export function removePrivate(mountpoint: string): void {
  try {
    rmdirSync(mountpoint)
  } catch {
    // Still mounted: whoever ends that comes here again.
  }
}

function readEntry(path: string): RegistryEntry | undefined {
  try {
    const entry = JSON.parse(readFileSync(path, 'utf8')) as RegistryEntry
    return typeof entry.mountpoint === 'string' && typeof entry.pid === 'number' ? entry : undefined
  } catch {
    return undefined
  }
}

/** What has become of a mount. */
export function stateOf(entry: RegistryEntry, table = mounts()): MountState {
  const mount = mountAt(entry.mountpoint, table)
  const mounted = mount !== undefined && isOurType(mount.type)
  if (isAlive(entry)) {
    if (entry.phase === 'starting') return 'starting'
    // It may have been moved, or be hidden below another one.
    const somewhere = mounted || table.some(({ device }) => device === entry.device)
    return somewhere && entry.phase === 'mounted' ? 'mounted' : 'closing'
  }
  if (entry.error !== undefined) return 'failed'
  return mounted ? 'dead' : 'gone'
}

/** All mounts with their states, by mount point. What is left of killed servers, and unreadable files, is removed. */
export function entries(): { entry: RegistryEntry; state: MountState }[] {
  const folder = registryFolder()
  const table = mounts()
  const found: { entry: RegistryEntry; state: MountState }[] = []
  const names = readdirSync(folder)
  for (const name of names.filter((n) => n.endsWith('.json'))) {
    const path = join(folder, name)
    const entry = readEntry(path)
    const state = entry ? stateOf(entry, table) : 'gone'
    if (entry && state !== 'gone') found.push({ entry, state })
    else removeFile(path, entry)
  }
  const used = found.flatMap(({ entry }) => [entry.log, entry.mountpoint])
  for (const path of names.filter((n) => !n.endsWith('.json') && n !== PRIVATE).map((n) => join(folder, n)))
    if (!used.includes(path) && isOld(path)) rmSync(path, { force: true })
  if (names.includes(PRIVATE))
    for (const path of readdirSync(join(folder, PRIVATE)).map((n) => join(folder, PRIVATE, n)))
      if (!used.includes(path) && !mountAt(path, table) && isOld(path)) removePrivate(path)
  return found.sort((a, b) => (a.entry.mountpoint < b.entry.mountpoint ? -1 : 1))
}

/** What has no entry after so long belongs to a `mount` that was killed before there was one. */
const ORPHAN_AGE = 3_600_000

function isOld(path: string): boolean {
  const stat = statSync(path, { throwIfNoEntry: false })
  return stat !== undefined && Date.now() - stat.mtimeMs > ORPHAN_AGE
}
