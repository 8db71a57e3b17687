/** Opens a file or a block device of the host, and nothing else. */

import { closeSync, constants, fstatSync, openSync, type Stats, statSync } from 'node:fs'
import { uninterrupted } from '../native/files.js'
import { fromSystem, VdiskError } from '../util/errors.js'
import { FileStorage } from './file-storage.js'

export interface OpenOptions {
  readonly readOnly?: boolean
  /** Makes a new file, readable and writable; EXISTS where there is something of that name already. */
  readonly create?: boolean
  /** Permission bits of a new file, before the umask; default: all may read and write. */
  readonly mode?: number | undefined
  /**
   * `sync` does nothing, and closing syncs: for a file of which nothing counts unless all of it does, such as the
   * target of a copy.
   */
  readonly syncAtClose?: boolean
}

const KINDS: readonly (readonly [(stats: Stats) => boolean, string])[] = [
  [(stats) => stats.isDirectory(), 'a directory'],
  [(stats) => stats.isFIFO(), 'a FIFO'],
  [(stats) => stats.isSocket(), 'a socket'],
  [(stats) => stats.isCharacterDevice(), 'a character device'],
]

function checkKind(stats: Stats, path: string): void {
  const kind = KINDS.find(([is]) => is(stats))?.[1]
  if (kind === undefined) return
  throw new VdiskError('USAGE', `${path} is ${kind}, not a file or a block device`, { path })
}

/**
 * Opens a regular file or a block device. A block device that is opened for writing is taken exclusively, so that it
 * fails with IN_USE while it, or a partition of it, is mounted.
 *
 * To be called in the main thread: Node closes the descriptors that a worker opened when that worker ends.
 * @throws NOT_FOUND, EXISTS, ACCESS, IN_USE, READ_ONLY, USAGE (a directory, FIFO, socket or character device), IO
 */
export function openFile(path: string, options: OpenOptions = {}): FileStorage {
  const readOnly = options.readOnly === true && options.create !== true
  let fd: number | undefined
  try {
    let flags = readOnly ? constants.O_RDONLY : constants.O_RDWR
    if (options.create) flags |= constants.O_CREAT | constants.O_EXCL
    else {
      // Looked at before it is opened, because opening some devices does things; and after it, because it may have
      // been exchanged in between, for what O_NONBLOCK keeps a FIFO from hanging us.
      const stats = statSync(path)
      checkKind(stats, path)
      if (stats.isBlockDevice() && !readOnly) flags |= constants.O_EXCL
    }
    fd = uninterrupted(() => openSync(path, flags | constants.O_NONBLOCK | constants.O_NOCTTY, options.mode))
    checkKind(fstatSync(fd), path)
    return new FileStorage(fd, path, readOnly, true, options.syncAtClose === true && !readOnly)
  } catch (error) {
    if (fd !== undefined) closeSync(fd)
    throw fromSystem(error, path, options.create ? 'create' : 'open')
  }
}
