/** Many images are mounted at once, each written and read, and all are ended. */

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createImage } from '../../lib/image/create.js'
import { listed, mountImage, type TestMount } from '../support/mounts.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

const PAGE = 4096
const SIZE = 2 ** 20

/** @throws where one of them shows something else than was written to it */
export async function manyMounts(t: TestCase, count: number): Promise<void> {
  const folder = temporaryFolder(t)
  const mounts: TestMount[] = []
  for (let i = 0; i < count; i++) {
    const image = join(folder, `${i}.vhd`)
    createImage(image, { format: 'vhd', size: SIZE })
    mounts.push(mountImage(t, image))
    // Signals are looked at in between.
    await new Promise((resolve) => setImmediate(resolve))
  }
  if (listed().length < count) throw new Error(`${listed().length} mounts are listed, not ${count}`)
  for (const [i, { raw }] of mounts.entries()) writeFileSync(raw, Buffer.alloc(PAGE, i), { flag: 'r+' })
  for (const [i, { raw }] of mounts.entries())
    if (readFileSync(raw)[PAGE - 1] !== i) throw new Error(`mount ${i} does not hold what was written to it`)
  for (const mount of mounts) mount.umount()
}
