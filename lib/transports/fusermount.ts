/**
 * fusermount3, the setuid program by which ordinary users mount and unmount, and what its refusals mean. libfuse 2 starts
 * it too, under the name fusermount.
 */

import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import { type ErrorCode, VdiskError } from '../util/errors.js'

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

const FUSE_CONF = '/etc/fuse.conf'

/** What it says, by a part of it → what to tell the user; `$&` stands for its words. */
const REFUSALS: readonly (readonly [RegExp, ErrorCode, string])[] = [
  [
    /user_allow_other/,
    'ACCESS',
    `--allow-other needs a line user_allow_other in ${FUSE_CONF}, which only root can add`,
  ],
  [/.*(no write access|not owned by user).*/, 'ACCESS', '$& (ordinary users mount on folders of their own only)'],
  [/.*open \/dev\/fuse: Permission denied.*/, 'ACCESS', '$& (as root: chmod 666 /dev/fuse)'],
  [
    /.*(\/dev\/fuse|device not found).*/,
    'NOT_FOUND',
    '$& (as root: modprobe fuse; in a container: --device /dev/fuse)',
  ],
  [/.*too many FUSE filesystems.*/, 'ACCESS', `$& (mount_max in ${FUSE_CONF})`],
  [/.*exec fusermount.*/, 'UNSUPPORTED', NO_FUSERMOUNT],
  [
    /.*Operation not permitted.*/,
    'ACCESS',
    '$& (fusermount3 must be setuid root; a container needs --cap-add SYS_ADMIN)',
  ],
]

/** The error for what fusermount3, or libfuse in its name, wrote to standard error. */
export function refusal(mountpoint: string, said: string, cause?: unknown): VdiskError {
  const lines = said
    .trim()
    .split('\n')
    .map((line) => line.replace(/^(?:\S*fusermount3?|fuse): /, ''))
  const words = lines.join('; ') || 'fusermount3 did not say why'
  const known = REFUSALS.find(([pattern]) => pattern.test(words))
  const text = known ? (known[0].exec(words)![0].replace(known[0], known[2]) ?? words) : words
  return new VdiskError(known?.[1] ?? 'IO', `cannot mount on ${mountpoint}: ${text}`, { cause })
}
