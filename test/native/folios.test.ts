/** Splitting folios of a real ext4. */

import { closeSync, fdatasyncSync, fsyncSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { hasSlowFolios, splitFolio, writeOut } from '../../lib/native/folios.js'
import { mountedFileSystem } from '../storage/host.js'
import { FailingDisk } from '../support/failing-disk.js'
import { isInLargeFolio, needsLargeFolios } from '../support/page-cache.js'
import { must } from '../support/run.js'
import { atEnd, temporaryFolder } from '../support/temp.js'

const MiB = 2 ** 20

function onExt4(t: Test) {
  const path = join(
    mountedFileSystem((undo) => atEnd(t, undo), temporaryFolder(t), 'ext4', '512M'),
    'file',
  )
  const fd = openSync(path, 'wx+')
  atEnd(t, () => closeSync(fd))
  return { path, fd }
}

t.test('a folio is split where it is clean, and holds what it held', needsLargeFolios, async (t) => {
  const { path, fd } = onExt4(t)
  const data = Buffer.alloc(8 * MiB)
  for (let i = 0; i < data.length; i += 4) data.writeUInt32LE(i, i)
  writeSync(fd, data)
  t.ok(isInLargeFolio(fd, MiB), 'ext4 makes one')
  splitFolio(fd, MiB + 5)
  t.ok(isInLargeFolio(fd, MiB), 'it is dirty')
  fsyncSync(fd)
  splitFolio(fd, MiB + 5)
  t.notOk(isInLargeFolio(fd, MiB))
  t.ok(isInLargeFolio(fd, 5 * MiB), 'and no other one')
  writeSync(fd, Buffer.alloc(4096, 7), 0, 4096, 5 * MiB)
  data.fill(7, 5 * MiB, 5 * MiB + 4096)
  // It does not wait for long.
  for (let tries = 0; tries < 100 && isInLargeFolio(fd, 5 * MiB); tries++) {
    writeOut(fd, 5 * MiB, 4096)
    splitFolio(fd, 5 * MiB)
  }
  t.notOk(isInLargeFolio(fd, 5 * MiB), 'once it is written out')
  t.ok(readFileSync(path).equals(data))
})

t.test('where there is nothing to split nothing happens', needsLargeFolios, async (t) => {
  const { path, fd } = onExt4(t)
  splitFolio(fd, 0)
  ftruncateSync(fd, 4 * MiB)
  splitFolio(fd, MiB)
  const cached = () => Number(must('fincore', ['--bytes', '--noheadings', '--output', 'RES', path]))
  t.equal(cached(), 0, 'it reads nothing into the cache')
  splitFolio(fd, 100 * MiB)
  splitFolio(-1, 0)
  writeOut(-1, 0, 1)
  t.equal(hasSlowFolios(fd), true)
})

t.test('an error of writing out is left for the sync to tell', needsLargeFolios, async (t) => {
  const disk = new FailingDisk(t)
  const fd = openSync(join(disk.folder, 'file'), 'wx+')
  atEnd(t, () => closeSync(fd))
  disk.fail()
  writeSync(fd, Buffer.alloc(8 * MiB, 1))
  writeOut(fd, 0, 8 * MiB)
  t.throws(() => fdatasyncSync(fd), { code: /^(EIO|ENOSPC)$/ })
})

t.test('other file systems have none that matter', needsLargeFolios, async (t) => {
  const undo = (work: () => void) => atEnd(t, work)
  const fd = openSync(join(mountedFileSystem(undo, temporaryFolder(t), 'xfs', '512M'), 'file'), 'wx+')
  atEnd(t, () => closeSync(fd))
  t.equal(hasSlowFolios(fd), false)
  t.equal(hasSlowFolios(-1), false)
})
