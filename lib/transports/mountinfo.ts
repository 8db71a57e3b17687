/** What is mounted where, from /proc/self/mountinfo: reading it never touches a file system, so a dead or hung one
 * cannot stop it. */

import { closeSync, constants, openSync, readFileSync } from 'node:fs'

export interface MountEntry {
  readonly id: number
  /** The id of the mount that it is mounted on. */
  readonly parent: number
  /** `major:minor` of the file system. */
  readonly device: string
  /** What of the file system is shown; `/` is all of it. */
  readonly root: string
  readonly mountpoint: string
  /** `shared:N`, `master:N`. */
  readonly propagation: readonly string[]
  /** `fuse.vdiskfs`. */
  readonly type: string
  /** The image, of our own mounts. */
  readonly source: string
}

/** All mounts of this namespace, in the order in which they were made. */
export function mounts(): MountEntry[] {
  return parseMountinfo(readFileSync('/proc/self/mountinfo', 'utf8'))
}

/** proc(5): id, parent, device, root, mount point, options, optional fields, `-`, type, source, options. */
export function parseMountinfo(text: string): MountEntry[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const fields = line.split(' ')
      const dash = fields.indexOf('-', 6)
      return {
        id: Number(fields[0]),
        parent: Number(fields[1]),
        device: fields[2]!,
        root: decodeOctal(fields[3]!),
        mountpoint: decodeOctal(fields[4]!),
        propagation: fields.slice(6, dash),
        type: fields[dash + 1] ?? '',
        source: decodeOctal(fields[dash + 2] ?? ''),
      }
    })
}

/** Blank, tab, newline and backslash are written as octal numbers of bytes; the rest is UTF-8. */
function decodeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
}

/** open(2): only where a path leads is of interest, and its file system is not asked. */
const O_PATH = 0o10000000

/**
 * The mount that whoever unmounts a path takes away; undefined where the path is no mount point, or one that is hidden
 * below a mount on a folder above it.
 * @param path absolute, without symbolic links
 */
export function mountOnTop(path: string): MountEntry | undefined {
  const there = mounts().filter((entry) => entry.mountpoint === path)
  if (there.length === 0) return undefined
  let fd: number
  try {
    fd = openSync(path, O_PATH | constants.O_NOFOLLOW)
  } catch (error) {
    // Who cannot look there has to believe the order.
    return (error as NodeJS.ErrnoException).code === 'ENOENT' ? undefined : there.at(-1)
  }
  try {
    const id = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1]
    return there.find((entry) => entry.id === Number(id))
  } finally {
    closeSync(fd)
  }
}

/** The `major:minor` of what is mounted on a folder, found without asking the file system, which may not answer. */
export function mountedDevice(mountpoint: string): string | undefined {
  return mountOnTop(mountpoint)?.device
}

/** For messages: what hides a mount. */
export function coverText(top: MountEntry | undefined): string {
  return top ? `${top.type} (${top.source}) is mounted over it` : 'something is mounted over a folder above it'
}
