/** fusermount3, the setuid program by which ordinary users mount and unmount; libfuse 2 calls its own fusermount. */

import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

/** Both speak the same protocol. */
const PROGRAMS = ['fusermount3', 'fusermount']
const USUAL_FOLDERS = ['/usr/local/bin', '/usr/bin', '/bin']

export const NO_FUSERMOUNT = 'fusermount3 is missing (on Debian: apt install fuse3), and only root can do without'

/** The path of the program, or undefined where there is none. */
export function fusermount(): string | undefined {
  const folders = [...(process.env.PATH ?? '').split(delimiter).filter((folder) => folder !== ''), ...USUAL_FOLDERS]
  return PROGRAMS.flatMap((name) => folders.map((folder) => join(folder, name))).find(isExecutable)
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
