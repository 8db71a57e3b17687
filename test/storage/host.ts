/** Things of the host that tests of storages need, and that are gone afterwards, whatever happens. */

import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

type Teardown = (undo: () => void) => void

/** A new folder. */
export function temporaryFolder(teardown: Teardown): string {
  const folder = mkdtempSync(join(tmpdir(), 'vdiskfs-test-'))
  teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Runs a program; its output, or an error with what it said. */
export function run(program: string, ...args: string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim()
}

/** A mounted file system of its own, of `size` such as `8M`, made by `mkfs.TYPE`. @returns its mount point. */
export function mountedFileSystem(teardown: Teardown, folder: string, type: string, size: string): string {
  const image = join(folder, `${type}.img`)
  const mountPoint = join(folder, type)
  run('truncate', '-s', size, image)
  run(`mkfs.${type}`, '-q', image)
  mkdirSync(mountPoint)
  run('mount', '-o', 'loop', image, mountPoint)
  teardown(() => run('umount', mountPoint))
  return mountPoint
}

/** A loop device over a new file of `size` bytes. @returns the device's path. */
export function loopDevice(teardown: Teardown, folder: string, size: number): string {
  const image = join(folder, 'loop.img')
  run('truncate', '-s', String(size), image)
  const device = run('losetup', '--find', '--show', image)
  teardown(() => run('losetup', '--detach', device))
  return device
}
