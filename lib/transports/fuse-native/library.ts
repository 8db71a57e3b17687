/**
 * The fuse-native package, which may be missing: it is an optional dependency, and its binary needs libfuse 2. This is
 * the only file that loads it. It has no types of its own; what is used of it is declared here, as of 2.2.6.
 */

import { createRequire } from 'node:module'
import { VdiskError } from '../../util/errors.js'

/** Answers an operation: 0, a count of bytes, or a negative errno. */
export type Done = (result: number) => void
/** Answers an operation that has more to tell than a number. */
export type DoneWith<T> = (errno: number, value?: T) => void

/** What `getattr` tells; whole numbers of 32 bits, but for `size`, `blocks` and the times (milliseconds, from 0 on). */
export interface Stat {
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  readonly nlink: number
  readonly ino: number
  readonly blksize: number
  readonly blocks: number
  readonly atime: number
  readonly mtime: number
  readonly ctime: number
}

/** What `statfs` tells; whole numbers of 32 bits. */
export interface Statfs {
  readonly bsize: number
  readonly frsize: number
  readonly blocks: number
  readonly bfree: number
  readonly bavail: number
  readonly files: number
  readonly namemax: number
}

/** The operations of the package that are used here. What is left out is answered with ENOSYS. */
export interface Operations {
  getattr(path: string, done: DoneWith<Stat>): void
  fgetattr(path: string, handle: number, done: DoneWith<Stat>): void
  readdir(path: string, done: DoneWith<readonly string[]>): void
  statfs(path: string, done: DoneWith<Statfs>): void
  open(path: string, flags: number, done: DoneWith<number>): void
  read(path: string, handle: number, buffer: Buffer, length: number, offset: number, done: Done): void
  write(path: string, handle: number, buffer: Buffer, length: number, offset: number, done: Done): void
  flush(path: string, handle: number, done: Done): void
  fsync(path: string, dataOnly: number, handle: number, done: Done): void
  fsyncdir(path: string, dataOnly: number, handle: number, done: Done): void
  release(path: string, handle: number, done: Done): void
  truncate(path: string, size: number, done: Done): void
  ftruncate(path: string, handle: number, size: number, done: Done): void
  chmod(path: string, mode: number, done: Done): void
  chown(path: string, uid: number, gid: number, done: Done): void
  utimens(path: string, atime: number, mtime: number, done: Done): void
  create(path: string, mode: number, done: DoneWith<number>): void
  mknod(path: string, mode: number, device: number, done: Done): void
  mkdir(path: string, mode: number, done: Done): void
  unlink(path: string, done: Done): void
  rmdir(path: string, done: Done): void
  rename(from: string, to: string, done: Done): void
  link(from: string, to: string, done: Done): void
  symlink(target: string, path: string, done: Done): void
}

export interface FuseOptions {
  /** Milliseconds after which it answers an operation itself, while the operation still has its buffer: never wanted. */
  readonly timeout: false
}

/** One mount of the package. */
export interface Fuse {
  /** The option string that libfuse gets, `-o…`. The package's own knows only some. */
  _fuseOptions(): string
  mount(done: (error: Error | null | undefined) => void): void
  unmount(done: (error: Error | null | undefined) => void): void
}

export interface FuseClass {
  new (mountpoint: string, operations: Operations, options: FuseOptions): Fuse
  /** What its `unmount` begins with: a lazy unmount, by a command line. */
  unmount(mountpoint: string, done: (error: Error | null) => void): void
}

const PACKAGE = 'fuse-native'

let loaded: FuseClass | undefined

/** The package. @throws UNSUPPORTED, saying what is missing */
export function loadLibrary(): FuseClass {
  if (loaded) return loaded
  try {
    loaded = createRequire(import.meta.url)(PACKAGE) as FuseClass
  } catch (error) {
    throw new VdiskError('UNSUPPORTED', `the transport fuse-native cannot be used: ${whyNot(error)}`, { cause: error })
  }
  // Its unmount would detach whatever is on top at the mount point, busy or not. What is left of it lets go of the
  // event loop.
  loaded.unmount = (_mountpoint, done) => done(null)
  return loaded
}

/** What the user can do about it, in one line. */
export function whyNot(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  const library = /(libfuse\.so\.\d+): cannot open shared object/.exec(text)
  if (library) return `${library[1]} is missing (on Debian: apt install libfuse2)`
  if (/No native build was found/i.test(text))
    return `it has no binary for ${process.platform} ${process.arch}, and none was compiled (npm rebuild ${PACKAGE})`
  if (code === 'MODULE_NOT_FOUND') return `the package is not installed (npm install ${PACKAGE}@2.2.6)`
  return text.split('\n')[0]!
}
