/**
 * A tree of files as the operations of fuse-native: paths and handles in, numbers out. Everything is synchronous, on
 * the thread that calls; nothing that may be asked makes an operation throw, and each answers exactly once.
 */

import { constants as files } from 'node:fs'
import { constants } from 'node:os'
import debug from 'debug'
import { errnoOf } from '../errno.js'
import { RequestKind, type RequestRecorder } from '../statistics.js'
import { type Attributes, type FileTree, ROOT_INODE } from '../transport.js'
import { Handles, opensForWriting } from './handles.js'
import type { Done, DoneWith, Operations, Stat, Statfs } from './library.js'

const trace = debug('vdiskfs:fuse')

const { EBADF, EINVAL, EIO, EISDIR, ENOENT, ENOTDIR, EPERM, EROFS } = constants.errno

const S_IFDIR = 0o040000
const S_IFREG = 0o100000
const PERMISSION_BITS = 0o7777
/** What programs are told to transfer at once (`st_blksize`). */
const PREFERRED_IO_SIZE = 4096
const MOST_32_BITS = 2 ** 32 - 1
/** chown(2) of one of the two says this of the other. */
const UNCHANGED = MOST_32_BITS

/** An errno that an operation ends with. */
class Failure extends Error {
  readonly errno: number
  constructor(errno: number) {
    super(`errno ${errno}`)
    this.errno = errno
  }
}

const numberOf = (error: unknown): number => -(error instanceof Failure ? error.errno : errnoOf(error))

const { READ, WRITE, SYNC, OTHER } = RequestKind
const KINDS: Readonly<Record<string, number>> = { read: READ, write: WRITE, flush: SYNC, fsync: SYNC, fsyncdir: SYNC }

export interface ServedTree {
  readonly operations: Operations
  /** From now on everything fails with EIO: the image is about to be closed. */
  stop(): void
}

/** The operations over a tree; what is asked is counted by `recorder`. */
export function serveTree(tree: FileTree, recorder: RequestRecorder): ServedTree {
  const handles = new Handles()
  let stopped = false

  /** @returns what `work` does, or a negative errno */
  const attempt = (name: string, path: string, work: () => number): number => {
    const begun = performance.now()
    let result: number
    try {
      result = work()
    } catch (error) {
      result = numberOf(error)
    }
    recorder.record(KINDS[name] ?? OTHER, Math.max(0, result), performance.now() - begun, result < 0)
    if (trace.enabled) trace('%s %s: %d', name, path, result)
    return result
  }
  /** Calls `done` with what `work` makes. */
  const tell = <T>(name: string, path: string, done: DoneWith<T>, work: () => T): void => {
    let value: T | undefined
    const errno = attempt(name, path, () => {
      value = work()
      return 0
    })
    if (errno === 0) done(0, value)
    else done(errno)
  }

  const find = (path: string): number => {
    if (stopped) throw new Failure(EIO)
    let inode: number | undefined = ROOT_INODE
    for (const name of path.split('/')) if (name !== '' && inode !== undefined) inode = tree.lookup(inode, name)
    if (inode === undefined) throw new Failure(ENOENT)
    return inode
  }
  const attributesOf = (inode: number): Attributes => {
    const attributes = tree.attributes(inode)
    if (!attributes) throw new Failure(ENOENT)
    return attributes
  }
  const used = (handle: number): number => {
    if (stopped) throw new Failure(EIO)
    const inode = handles.use(handle)
    if (inode === 0) throw new Failure(EBADF)
    return inode
  }
  const commit = (): number => {
    if (stopped) throw new Failure(EIO)
    if (tree.unflushed) tree.flush()
    return 0
  }
  /** Nothing can be changed, as on a block device; what is so already succeeds. */
  const change = (name: string, path: string, done: Done, isSo: (attributes: Attributes) => boolean): void =>
    done(
      attempt(name, path, () => {
        const attributes = attributesOf(find(path))
        if (tree.readOnly) return -EROFS
        return isSo(attributes) ? 0 : -EPERM
      }),
    )
  const resize = (inode: number, size: number, ofOpen: boolean): number => {
    const attributes = attributesOf(inode)
    if (attributes.directory) return -EISDIR
    if (tree.readOnly) return -EROFS
    return size === attributes.size || (size === 0 && ofOpen) ? 0 : -EINVAL
  }
  /** Files can neither come nor go. */
  const refuse = (name: string, path: string, done: Done): void =>
    done(attempt(name, path, () => -(tree.readOnly ? EROFS : EPERM)))

  const operations: Operations = {
    getattr: (path, done) => tell('getattr', path, done, () => statOf(attributesOf(find(path)))),
    // A handle is not used by asking for its attributes: the kernel does that before it truncates.
    fgetattr: (path, _handle, done) => tell('fgetattr', path, done, () => statOf(attributesOf(find(path)))),
    readdir: (path, done) =>
      tell('readdir', path, done, () => {
        const inode = find(path)
        if (!attributesOf(inode).directory) throw new Failure(ENOTDIR)
        return ['.', '..', ...tree.list(inode).map((entry) => entry.name)]
      }),
    statfs: (path, done) => tell('statfs', path, done, () => statfsOf(tree)),
    open: (path, flags, done) =>
      tell('open', path, done, () => {
        const inode = find(path)
        if (attributesOf(inode).directory) throw new Failure(EISDIR)
        const writing = opensForWriting(flags)
        if (writing && tree.readOnly) throw new Failure(EROFS)
        return handles.open(inode, writing, (flags & files.O_DSYNC) !== 0)
      }),
    read: (path, handle, buffer, length, offset, done) =>
      done(attempt('read', path, () => tree.read(used(handle), buffer, 0, length, offset))),
    write: (path, handle, buffer, length, offset, done) =>
      done(
        attempt('write', path, () => {
          if (tree.readOnly) return -EROFS
          const written = tree.write(used(handle), buffer, 0, length, offset)
          // The kernel asks for that itself of cached files only.
          if (handles.synchronous(handle)) commit()
          return written
        }),
      ),
    flush: (path, handle, done) => {
      handles.use(handle)
      // Who cannot write has nothing to flush when he closes, and is told of no failure of others.
      done(attempt('flush', path, () => (handles.reads(handle) ? 0 : commit())))
    },
    fsync: (path, _dataOnly, handle, done) => {
      handles.use(handle)
      done(attempt('fsync', path, commit))
    },
    fsyncdir: (path, _dataOnly, _handle, done) => done(attempt('fsyncdir', path, commit)),
    release: (path, handle, done) => {
      handles.close(handle)
      done(attempt('release', path, () => 0))
    },
    truncate: (path, size, done) =>
      done(
        attempt('truncate', path, () => {
          const inode = find(path)
          return resize(inode, size, handles.truncates(inode))
        }),
      ),
    ftruncate: (path, handle, size, done) => done(attempt('ftruncate', path, () => resize(used(handle), size, false))),
    chmod: (path, mode, done) => change('chmod', path, done, (is) => (mode & PERMISSION_BITS) === is.mode),
    chown: (path, uid, gid, done) =>
      change('chown', path, done, (is) => [is.uid, UNCHANGED].includes(uid) && [is.gid, UNCHANGED].includes(gid)),
    utimens: (path, _atime, _mtime, done) => change('utimens', path, done, () => true),
    create: (path, _mode, done) => refuse('create', path, done),
    mknod: (path, _mode, _device, done) => refuse('mknod', path, done),
    mkdir: (path, _mode, done) => refuse('mkdir', path, done),
    unlink: (path, done) => refuse('unlink', path, done),
    rmdir: (path, done) => refuse('rmdir', path, done),
    rename: (path, _to, done) => refuse('rename', path, done),
    link: (path, _to, done) => refuse('link', path, done),
    symlink: (_target, path, done) => refuse('symlink', path, done),
  }
  return {
    operations,
    stop: () => {
      stopped = true
    },
  }
}

function statOf(a: Attributes): Stat {
  return {
    mode: (a.directory ? S_IFDIR : S_IFREG) | a.mode,
    uid: a.uid,
    gid: a.gid,
    size: a.size,
    nlink: a.links,
    ino: a.inode,
    blksize: PREFERRED_IO_SIZE,
    blocks: a.blocks,
    // It takes a time for a whole number from 0 on: what is older becomes 1970.
    atime: Math.max(0, Math.floor(a.atimeMs)),
    mtime: Math.max(0, Math.floor(a.mtimeMs)),
    ctime: Math.max(0, Math.floor(a.ctimeMs)),
  }
}

/** Counts of blocks have 32 bits: of larger disks the blocks are told larger. */
function statfsOf(tree: FileTree): Statfs {
  const s = tree.statistics()
  let unit = 1
  while (s.blocks / unit > MOST_32_BITS) unit *= 2
  const blockSize = s.blockSize * unit
  return {
    bsize: blockSize,
    frsize: blockSize,
    blocks: Math.floor(s.blocks / unit),
    bfree: Math.floor(s.freeBlocks / unit),
    bavail: Math.floor(s.availableBlocks / unit),
    files: s.files,
    namemax: s.nameLength,
  }
}
