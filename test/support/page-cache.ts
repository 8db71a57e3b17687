/** How the kernel keeps a file in its cache, as root can see it. */

import { closeSync, openSync, readSync } from 'node:fs'
import { kernelIsAtLeast } from '../../lib/native/kernel.js'
import { PAGE, withMappedPage } from '../../lib/native/mapping.js'
import { canMount } from './mounts.js'

/** A test that needs ext4 with large folios, on a file system of its own. */
export const needsLargeFolios = canMount && kernelIsAtLeast(6, 16) ? {} : { skip: 'needs root and Linux 6.16' }

/** Bits of /proc/kpageflags: COMPOUND_HEAD and COMPOUND_TAIL. */
const COMPOUND = (1n << 15n) | (1n << 16n)
const FRAME = (1n << 55n) - 1n

function word(path: string, index: number): bigint {
  const fd = openSync(path, 'r')
  const bytes = Buffer.alloc(8)
  readSync(fd, bytes, 0, 8, index * 8)
  closeSync(fd)
  return bytes.readBigUInt64LE()
}

/** True where the page of a file at `offset`, which must be in the cache or is brought there, is a part of a large folio. */
export function isInLargeFolio(fd: number, offset: number): boolean {
  return withMappedPage(fd, offset, (address) => {
    const frame = Number(word('/proc/self/pagemap', address / PAGE) & FRAME)
    return (word('/proc/kpageflags', frame) & COMPOUND) !== 0n
  })
}
