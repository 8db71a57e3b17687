/** Raw images that are mounted, scribbled on, and looked at when the mount has ended. */

import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { startTime } from '../../lib/mount/processes.js'
import { isMounted, listedAt, mountImage, type TestMount } from './mounts.js'
import { type TestCase, temporaryFolder } from './temp.js'

const MiB = 1 << 20

/** An empty image of 16 MiB. */
export function rawImage(t: TestCase): string {
  const path = join(temporaryFolder(t), 'disk.img')
  writeFileSync(path, '')
  truncateSync(path, 16 * MiB)
  return path
}

export const mountRaw = (t: TestCase): TestMount => mountImage(t, rawImage(t), ['--format', 'raw'])

/** Writes some bytes without fsync: whoever ends the mount has to commit them. */
export function scribble({ raw }: TestMount, text: string): void {
  const fd = openSync(raw, 'r+')
  writeSync(fd, Buffer.from(text), 0, text.length, MiB)
  closeSync(fd)
}

/** What the image has where `scribble` writes. */
export const written = ({ image }: TestMount, length: number): string =>
  readFileSync(image).toString('latin1', MiB, MiB + length)

/** Nothing is left of a mount: the server has gone, as well as its entry. */
export function isGone(t: Test, mount: TestMount): void {
  t.equal(startTime(mount.pid), undefined, 'the server is gone')
  t.notOk(isMounted(mount.mountpoint))
  t.equal(listedAt(mount.mountpoint), undefined)
}
