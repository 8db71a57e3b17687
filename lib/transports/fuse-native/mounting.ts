/**
 * Mounting through libfuse, and knowing when that has ended. The package tells nobody: so the descriptor of the device
 * is looked up among this process's, and a second one of it shows when the connection is over.
 */

import { closeSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { awaitEnd, duplicate, redirect } from '../../native/descriptors.js'
import { makePipe } from '../../native/pipes.js'
import { VdiskError } from '../../util/errors.js'
import { refusal } from '../fusermount.js'
import { SUBTYPE, setReadAhead } from '../mounted.js'
import { mountedDevice } from '../mountinfo.js'
import { joinOptions } from '../options.js'
import { RequestRecorder, type RequestSummary, summarizeRequests } from '../statistics.js'
import type { FileTree } from '../transport.js'
import { type Fuse, loadLibrary } from './library.js'
import { serveTree } from './operations.js'

export interface NativeMountOptions {
  /** Absolute path of a folder, without symbolic links. */
  readonly mountpoint: string
  /** What /proc/mounts shows as the device: the image. */
  readonly source: string
  readonly readOnly: boolean
  readonly allowOther: boolean
  /** What else mount(8) is told: the words of `SYSTEM_OPTIONS`. */
  readonly systemOptions?: readonly string[] | undefined
  /** The kernel shall keep no pages: the same bytes are shown under several names. */
  readonly uncached: boolean
  readonly tree: FileTree
}

/** A file system that is being served by this thread, from its event loop. */
export interface NativeMount {
  /** Resolves when it has ended; no operation reaches the tree after that. */
  readonly ended: Promise<void>
  /** `major:minor`, by which it can be told from what is mounted over it. */
  readonly device: string | undefined
  /** What was asked so far. */
  requests(): RequestSummary[]
}

/** The most that libfuse 2 takes in one request: 32 pages. */
const MAX_TRANSFER = 128 * 1024
/** libfuse makes a thread for each request under way, and they are served one by one all the same. */
const MAX_BACKGROUND = 8
/** Names never change while mounted; sizes neither, but the space that the image takes does. */
const NAME_VALID_SECONDS = 3600
const ATTRIBUTES_VALID_SECONDS = 1
/** The addon has room for so many bytes of a path, and as many of options. */
const MOST_BYTES = 1023

function optionString(options: NativeMountOptions): string {
  const words = [
    options.readOnly ? 'ro' : 'rw',
    'nosuid',
    'nodev',
    ...(options.systemOptions ?? []),
    'default_permissions',
    ...(options.allowOther ? ['allow_other'] : []),
    // The folder may hold something, as that of any other mount.
    'nonempty',
    'big_writes',
    `max_read=${MAX_TRANSFER}`,
    `max_write=${MAX_TRANSFER}`,
    `max_background=${MAX_BACKGROUND}`,
    options.uncached ? 'direct_io' : 'kernel_cache',
    'use_ino',
    `entry_timeout=${NAME_VALID_SECONDS}`,
    `attr_timeout=${ATTRIBUTES_VALID_SECONDS}`,
    `subtype=${SUBTYPE}`,
  ]
  const text = `-o${joinOptions(words)}`
  const named = (source: string) => `${text},${joinOptions([`fsname=${source}`])}`
  // A longer name is told by its end: it is for people.
  let { source } = options
  while (Buffer.byteLength(named(source)) > MOST_BYTES) source = source.slice(1)
  return named(source)
}

/** Mounts and serves. @throws VdiskError; nothing is mounted then. */
export async function mount(options: NativeMountOptions): Promise<NativeMount> {
  const library = loadLibrary()
  const { mountpoint, tree } = options
  refuseMountpoint(mountpoint)
  const counts = RequestRecorder.allocate(1)
  const { operations, stop } = serveTree(tree, new RequestRecorder(counts, 0))
  const before = new Set(connections())
  const fuse = new library(mountpoint, operations, { timeout: false })
  fuse._fuseOptions = () => optionString(options)
  await begin(fuse, mountpoint)
  const fd = connections().find((connection) => !before.has(connection))
  setReadAhead(mountpoint)
  return {
    ended: whenEnded(fd === undefined ? undefined : duplicate(fd), fuse, stop),
    device: mountedDevice(mountpoint),
    requests: () => summarizeRequests(counts),
  }
}

/** What the addon would cut off, or refuse in its own words. */
function refuseMountpoint(mountpoint: string): void {
  if (Buffer.byteLength(mountpoint) > MOST_BYTES)
    throw new VdiskError('UNSUPPORTED', `${mountpoint}: longer than fuse-native can mount on (${MOST_BYTES} bytes)`)
  if (statSync(mountpoint).dev !== statSync(dirname(mountpoint)).dev)
    throw new VdiskError('UNSUPPORTED', `${mountpoint} is a mount point already, on which fuse-native cannot mount`)
}

async function begin(fuse: Fuse, mountpoint: string): Promise<void> {
  const said = catchStderr()
  const error = await new Promise<Error | null | undefined>((resolve) => fuse.mount(resolve))
  const words = said()
  if (error) throw refusal(mountpoint, words, error)
  process.stderr.write(words)
}

const STDERR = 2

/** From now on, what is written to standard error is kept. @returns a function that ends that and tells it */
function catchStderr(): () => string {
  const kept = duplicate(STDERR)
  const { reader, writer } = makePipe()
  redirect(STDERR, writer)
  closeSync(writer)
  return () => {
    redirect(STDERR, kept)
    closeSync(kept)
    const words = readFileSync(reader, 'utf8')
    closeSync(reader)
    return words
  }
}

async function whenEnded(fd: number | undefined, fuse: Fuse, stop: () => void): Promise<void> {
  if (fd !== undefined) {
    await awaitEnd(fd)
    closeSync(fd)
  }
  stop()
  // Lets the event loop end; nothing is unmounted any more.
  await new Promise<void>((resolve) => fuse.unmount(() => resolve()))
}

/** The descriptors of this process that are connections to FUSE. */
function connections(): number[] {
  return readdirSync('/proc/self/fd')
    .filter((fd) => isDevice(`/proc/self/fd/${fd}`))
    .map(Number)
}

function isDevice(link: string): boolean {
  try {
    return readlinkSync(link) === '/dev/fuse'
  } catch {
    return false
  }
}
