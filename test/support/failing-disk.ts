/**
 * A small file system on a disk that can be told to lose what is written to it: an ext4 on a loop device whose file lies
 * on a tmpfs without room. Write-back of what was never written before fails then, and so does the fsync that waits for it.
 */

import { closeSync, openSync, readSync, rmSync, statfsSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { attachLoop, mountDevice } from './mounts.js'
import { must, run } from './run.js'
import type { TestCase } from './temp.js'

const MiB = 2 ** 20
const DISK_BYTES = 256 * MiB
/** For the tmpfs, of which only what was written takes memory. */
const ROOM = 2 * DISK_BYTES
const PAGE = 4096
/** e2fsck has mended something. */
const MENDED = 1

export class FailingDisk {
  /** Where its file system is mounted. */
  readonly folder: string
  readonly #device: string
  readonly #memory: string
  readonly #ballast: string

  constructor(t: TestCase) {
    this.#memory = mountDevice(t, 'tmpfs', ['-t', 'tmpfs', '-o', `size=${ROOM}`])
    this.#ballast = join(this.#memory, 'ballast')
    const file = join(this.#memory, 'disk')
    writeFileSync(file, '')
    truncateSync(file, DISK_BYTES)
    this.#device = attachLoop(t, file)
    // With blocks as large as pages, because a loop device takes a write that only began to fit for one that worked.
    must('mkfs.ext4', ['-q', '-m', '0', '-b', String(PAGE), '-J', 'size=4', this.#device])
    this.#writeJournal()
    this.folder = mountDevice(t, this.#device)
  }

  /**
   * Writes all of the journal once. It takes what the file system changes of its own structures while the disk fails, so that
   * it goes on, and is whole when the disk is: without one, a file whose extents grew into a new block would be lost.
   */
  #writeJournal(): void {
    const blocks = must('debugfs', ['-R', 'blocks <8>', this.#device]).trim().split(/\s+/).map(Number)
    const fd = openSync(this.#device, 'r+')
    const block = Buffer.alloc(PAGE)
    for (const number of blocks) {
      readSync(fd, block, 0, PAGE, number * PAGE)
      writeSync(fd, block, 0, PAGE, number * PAGE)
    }
    closeSync(fd)
  }

  /** From now on nothing comes to the disk where there was nothing before. */
  fail(): void {
    must('sync', ['-f', this.folder])
    const { blocks, bfree, bsize } = statfsSync(this.#memory)
    this.#resize((blocks - bfree) * bsize)
    // A tmpfs does not count to the page when it is resized.
    const { code, err } = run('dd', ['if=/dev/zero', `of=${this.#ballast}`, `bs=${PAGE}`])
    if (code === 0 || !/No space/.test(err)) throw new Error(`the tmpfs is not full: ${err}`)
  }

  /** The disk takes everything again. What it did not take is forgotten: nothing is in the host's memory any more. */
  heal(): void {
    this.#resize(ROOM)
    rmSync(this.#ballast)
    must('umount', [this.folder])
    const { code, out } = run('e2fsck', ['-fy', this.#device])
    if (code > MENDED) throw new Error(`e2fsck ended with ${code}: ${out}`)
    must('mount', [this.#device, this.folder])
  }

  #resize(bytes: number): void {
    must('mount', ['-o', `remount,size=${bytes}`, this.#memory])
  }
}
