/** Looks into /proc and /sys: what cannot be seen, or has just gone away, counts as not there. */

import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** The names in a folder; none where it cannot be read. */
export function list(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

/** A file as text, without white space at its end. */
export function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trimEnd()
  } catch {
    return undefined
  }
}

/** Where a symbolic link leads. */
export function link(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch {
    return undefined
  }
}
