/**
 * The file that a conversion makes. Where there is a file of that name already, the new one gets another name beside it
 * and takes its place at the end; so what was there is there until the new one is complete. What is not completed is
 * removed.
 */

import {
  accessSync,
  chmodSync,
  chownSync,
  constants,
  realpathSync,
  renameSync,
  type Stats,
  statSync,
  truncateSync,
  unlinkSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { openFile } from '../../storage/file.js'
import { lockImage } from '../../storage/lock.js'
import type { Storage } from '../../storage/storage.js'
import { fromSystem, VdiskError } from '../../util/errors.js'
import { randomGuid } from '../../util/guid.js'
import { syncFolder } from '../create.js'

function statOf(path: string): Stats | undefined {
  try {
    return statSync(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw fromSystem(error, path, 'open')
  }
}

/** @throws USAGE where the target is one of these files: what is read would be overwritten */
export function refuseSame(target: string, sources: readonly string[]): void {
  const found = statOf(target)
  if (!found) return
  for (const source of sources) {
    const stats = statOf(source)
    if (stats && stats.dev === found.dev && stats.ino === found.ino)
      throw new VdiskError('USAGE', `the target is what is read: ${source}`, { path: target })
  }
}

/** @throws ACCESS where nothing can be made in the folder of a file that is to be replaced */
function checkFolder(file: string, path: string): void {
  const folder = dirname(file)
  try {
    accessSync(folder, constants.W_OK | constants.X_OK)
  } catch (cause) {
    const why = `what is there is replaced by a new file beside it, and nothing can be made in ${folder}`
    const remedy = 'give another TARGET or, to overwrite a disk of at least that size in place, say -n'
    throw new VdiskError('ACCESS', `${why}: ${remedy}`, { path, cause })
  }
}

/** Bits of st_mode that chmod(2) takes. */
const PERMISSIONS = 0o7777
/** Nobody else may look into a file whose owner and permissions are not yet those of the one that it will replace. */
const PRIVATE = 0o600

export class NewFile {
  readonly #path: string
  /** Where it is made. */
  readonly path: string
  /** Permission bits to make it with; undefined: the usual ones. */
  readonly mode: number | undefined
  /** What was there before, locked. */
  readonly #old: Storage | undefined
  readonly #oldStats: Stats | undefined
  #made = false

  /**
   * Makes nothing yet.
   * @throws ACCESS where no file can be made beside the one that is there, IN_USE where there is an image that somebody uses, USAGE where there is no file but something else
   */
  constructor(path: string) {
    this.#oldStats = statOf(path)
    const exists = this.#oldStats !== undefined
    if (exists) checkFolder(realpathSync(path), path)
    // Of a link, the file that it leads to is replaced.
    this.#path = exists ? realpathSync(path) : path
    this.#old = exists ? openFile(this.#path, { readOnly: false }) : undefined
    this.path = exists ? join(dirname(this.#path), `.vdiskfs-${randomGuid().slice(0, 8)}`) : path
    this.mode = exists ? PRIVATE : undefined
    try {
      if (this.#old) lockImage(this.#old, { write: true })
    } catch (error) {
      this.#old?.close()
      throw error
    }
  }

  /** Says that the file at `path` is there, and ours. It gets the owner and the permissions of the old one. */
  made(): void {
    this.#made = true
    if (!this.#oldStats) return
    const { uid, gid, mode } = this.#oldStats
    try {
      chownSync(this.path, uid, gid)
    } catch {
      // Only root can give files away. Then it is ours, as any new file.
    }
    chmodSync(this.path, mode & PERMISSIONS)
  }

  /** Puts the new file, which is durable and closed, into its place. */
  complete(): void {
    if (this.#old) renameSync(this.path, this.#path)
    syncFolder(this.#path)
    this.#old?.close()
  }

  /** Removes what was made of it; it may be open. @param others further files that were made with it */
  remove(others: readonly string[]): void {
    this.#old?.close()
    if (!this.#made) return
    for (const path of [this.path, ...others])
      try {
        // What was written need not reach the disk any more.
        truncateSync(path, 0)
        unlinkSync(path)
      } catch {
        // The reason why all this failed is what the user should be told.
      }
  }
}

/** True for a block device. */
export function isDevice(path: string): boolean {
  return statOf(path)?.isBlockDevice() ?? false
}
