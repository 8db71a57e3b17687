/**
 * The only way to a file that an image names. An image may come from anybody: by default it can bring in files of its
 * own folder (and folders below), and nothing else; `--backing-dir` allows more folders.
 */

import { readlinkSync, realpathSync } from 'node:fs'
import { dirname, sep } from 'node:path'
import { openFile } from '../storage/file.js'
import type { Storage } from '../storage/storage.js'
import { fromSystem, VdiskError } from '../util/errors.js'

export class Gate {
  readonly #folders: readonly string[]

  /**
   * @param imagePath the image that was named by the user
   * @param backingDirs further folders that he allows
   * @throws NOT_FOUND where one of these does not exist
   */
  constructor(imagePath: string, backingDirs: readonly string[]) {
    this.#folders = [dirname(real(imagePath)), ...backingDirs.map(real)]
  }

  /**
   * Opens a file that an image names, read-only unless it is said otherwise.
   * @throws NOT_FOUND, GATE where it lies outside of what is allowed (after every symbolic link), and what opening throws.
   */
  open(path: string, readOnly = true, syncAtClose = false): Storage {
    const target = real(path)
    if (!this.allows(target))
      throw new VdiskError(
        'GATE',
        `it lies outside of ${this.#folders.join(', ')}; allow its folder with --backing-dir ${dirname(target)}`,
        {
          path,
        },
      )
    const storage = openFile(target, { readOnly, syncAtClose })
    try {
      const handle = storage.handle()
      // The path may have been changed under us since it was looked at: what counts is what was opened.
      if (handle.kind === 'file' && readlinkSync(`/proc/self/fd/${handle.fd}`) !== target)
        throw new VdiskError('GATE', 'it changed while it was opened', { path })
      return storage
    } catch (error) {
      storage.close()
      throw error
    }
  }

  /** True for a real path in one of the allowed folders or below. */
  allows(target: string): boolean {
    return this.#folders.some((folder) => target.startsWith(folder.endsWith(sep) ? folder : folder + sep))
  }
}

function real(path: string): string {
  try {
    return realpathSync(path)
  } catch (error) {
    throw fromSystem(error, path, 'open')
  }
}
