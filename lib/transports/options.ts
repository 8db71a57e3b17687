/** Mount options that are no business of a transport: the kernel does what they say, for every file system. */

import { MountFlag } from '../native/mount.js'

/** Their words in mount(8), and the flags of mount(2). nosuid and nodev are always set. */
export const SYSTEM_OPTIONS: Readonly<Record<string, number>> = {
  noexec: MountFlag.NOEXEC,
  sync: MountFlag.SYNCHRONOUS,
  dirsync: MountFlag.DIRSYNC,
}

/** The flags of some of these words. */
export function flagsOf(words: readonly string[] = []): number {
  return words.reduce((flags, word) => flags | (SYSTEM_OPTIONS[word] ?? 0), 0)
}

/** Options as libfuse and fusermount3 take them: joined by commas, those inside of one written `\\,`. */
export function joinOptions(options: readonly string[]): string {
  return options.map((option) => option.replace(/[\\,]/g, '\\$&')).join(',')
}
