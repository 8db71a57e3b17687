/** Disks with partition tables to begin with, as sfdisk(8) makes them: what a raw image has of structure. */

import { execFileSync } from 'node:child_process'
import { rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Pages } from './pages.js'

const SIZE = 16 * 2 ** 20

/** Input of sfdisk, by the name of the disk. */
const TABLES: Readonly<Record<string, string>> = {
  'four partitions of an MBR': 'label: dos\nsize=1M,type=83,bootable\nsize=1M,type=82\nsize=1M,type=7\ntype=83\n',
  'logical partitions': 'label: dos\nsize=1M\ntype=5\nsize=1M\nsize=1M\nsize=1M\n',
  'a GPT':
    'label: gpt\nlabel-id: 11111111-2222-3333-4444-555555555555\nsize=1M,name=first\nsize=2M,type=uefi\nsize=1M\n',
  'a GPT in sectors of 4096 bytes': 'label: gpt\nsector-size: 4096\nsize=1M,name=first\nsize=2M\n',
}

/** None where there is no sfdisk. */
export function* partitionedDisks(folder: string): Generator<readonly [name: string, disk: Pages]> {
  const path = join(folder, 'disk')
  for (const [name, script] of Object.entries(TABLES)) {
    writeFileSync(path, '')
    truncateSync(path, SIZE)
    try {
      execFileSync('sfdisk', ['-q', '--no-reread', '--no-tell-kernel', path], { input: script, stdio: 'pipe' })
      yield [name, Pages.ofFile(path)]
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
      throw error
    } finally {
      rmSync(path, { force: true })
    }
  }
}
