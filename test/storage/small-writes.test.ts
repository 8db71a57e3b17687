/** When folios are split: on a clock of the test's own, and once on a real ext4. */

import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { openFile } from '../../lib/storage/file.js'
import { type FolioMeans, SmallWrites } from '../../lib/storage/small-writes.js'
import { isInLargeFolio, needsLargeFolios } from '../support/page-cache.js'
import { atEnd, temporaryFolder } from '../support/temp.js'
import { mountedFileSystem } from './host.js'

const KiB = 1024
const MiB = 1024 * KiB

/** Milliseconds. */
const SLOW = 0.035
const FAST = 0.002
const SPLIT = 0.14
const WRITTEN_OUT = 0.2

/** Folios of 2 MiB that take long to write to, until they are split; `dirty` ones cannot be. */
function machine(options: { splitting?: boolean; slow?: number } = {}) {
  const { splitting = true, slow = SLOW } = options
  const dirty = new Set<number>()
  const pages = new Set<number>()
  const did: string[] = []
  let time = 0
  const folioOf = (offset: number) => Math.floor(offset / (2 * MiB))
  const means: FolioMeans = {
    now: () => time,
    split: (offset) => {
      did.push(`split ${folioOf(offset)}`)
      time += SPLIT
      if (splitting && !dirty.has(folioOf(offset))) pages.add(folioOf(offset))
    },
    writeOut: (offset, length) => {
      did.push(`write out ${offset / KiB}+${length / KiB}`)
      time += WRITTEN_OUT
      dirty.delete(folioOf(offset))
    },
  }
  const writes = new SmallWrites(means)
  /** @returns the milliseconds that it took in all */
  const write = (offset: number) => {
    const start = time
    const timed = writes.begin(offset)
    const folio = folioOf(offset)
    time += pages.has(folio) ? FAST : slow
    dirty.add(folio)
    if (timed) writes.end()
    return Math.round((time - start) * 1000) / 1000
  }
  return { write, did, dirty }
}

t.test('a folio that is written to again and again is split, once it is written out', async (t) => {
  const { write, did } = machine()
  let count = 0
  while (write(64 * KiB) >= SLOW && count < 100) count++
  t.equal(count, 6, 'the sixth waits for what the five before it have paid')
  t.same(did, ['write out 0+2048', 'split 0'])
  for (let i = 0; i < 100; i++) write((i % 500) * 4 * KiB)
  t.same(did.length, 2, 'and never again')
  t.equal(write(MiB), FAST)
})

t.test('one that nobody wrote to yet is split before the first write', async (t) => {
  const { write, did } = machine()
  for (let i = 0; i < 5; i++) write(0)
  did.length = 0
  write(10 * MiB)
  t.same(did, ['split 5'])
  t.equal(write(10 * MiB + 4 * KiB), FAST)
})

t.test('no more time is spent on it than was lost before', async (t) => {
  const { write, did } = machine({ splitting: false })
  let lost = 0
  for (let i = 0; i < 200; i++) {
    const before = did.length
    const took = write(i * 2 * MiB)
    lost += SLOW
    if (did.length > before) lost -= took - SLOW
    t.ok(lost >= 0, `after ${i} writes`)
  }
  t.equal(did.filter((what) => what.startsWith('split')).length, 32, 'and none when it never helps')
})

t.test('who waits for a disk does not wait because of a folio', async (t) => {
  const { write, did } = machine({ slow: 20 })
  write(0)
  write(2 * MiB)
  t.same(did, [], 'what was lost counts as a tenth of a millisecond each')
  write(4 * MiB)
  t.same(did, ['split 2'])
})

t.test('where writes are fast nothing is done', async (t) => {
  const { write, did } = machine({ slow: 0.007 })
  for (let i = 0; i < 10_000; i++) write((i * 4 * KiB * 37) % (64 * MiB))
  t.same(did, [])
})

t.test('all is looked at anew after a while, as folios come back', async (t) => {
  const { write, did } = machine()
  for (let i = 0; i < 6; i++) write(0)
  const before = did.length
  for (let i = 0; i < 2 ** 17; i++) write(0)
  t.equal(did.length, before, 'it is still fast')
})

t.test('a real ext4', needsLargeFolios, async (t) => {
  const folder = mountedFileSystem((undo) => atEnd(t, undo), temporaryFolder(t), 'ext4', '512M')
  const path = join(folder, 'x.img')
  // More than fits into a processor's caches, where nothing takes long.
  const data = Buffer.alloc(256 * MiB, 1)
  const storage = openFile(path, { create: true })
  storage.write(data, 0, data.length, 0)
  storage.sync()
  const fd = openSync(path, 'r')
  try {
    t.ok(isInLargeFolio(fd, 9 * MiB))
    const bytes = Buffer.alloc(4 * KiB)
    const start = performance.now()
    for (let i = 0; i < 20_000; i++) {
      const offset = ((i * 7919) % 65536) * 4 * KiB
      bytes.fill(i)
      storage.writeData(bytes, 0, bytes.length, offset, false)
      data.set(bytes, offset)
    }
    const each = (performance.now() - start) / 20_000
    const pages = Array.from({ length: 256 }, (_, i) => isInLargeFolio(fd, i * MiB)).filter((large) => !large).length
    if (pages === 0 && each < 0.008) t.pass('writes are fast here anyway')
    else t.ok(pages > 64, `${pages} of 256 places are in pages of their own`)
    t.ok(readFileSync(path).equals(data))
  } finally {
    closeSync(fd)
    storage.close()
  }
})
