import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Region } from '../../lib/metadata/region.js'
import { openFile } from '../../lib/storage/file.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import type { Storage } from '../../lib/storage/storage.js'
import { Crew, pause } from './fixtures/crew.js'
import { contents } from './fixtures/metadata.js'
import { TABLE, TABLE_BYTES } from './fixtures/words.js'

/** What the table holds at first: every entry the same. */
function initial(): Uint8Array {
  const view = new DataView(new ArrayBuffer(TABLE_BYTES))
  for (let i = 0; i < TABLE.entries; i++) view.setUint32(4 * i, TABLE.each)
  return new Uint8Array(view.buffer)
}

/** Groups whose sum is not what it was. */
function wrongGroups(entry: (i: number) => number): number[] {
  const wrong: number[] = []
  for (let first = 0; first < TABLE.entries; first += TABLE.group) {
    let sum = 0
    for (let i = 0; i < TABLE.group; i++) sum += entry(first + i)
    if (sum !== TABLE.group * TABLE.each) wrong.push(first)
  }
  return wrong
}

async function hammer(t: Test, storage: Storage): Promise<void> {
  const crew = new Crew(t, storage)
  const { metadata } = crew
  const seed = 77
  const workers = [1, 2, 3, 4].map((thread) => crew.run('transfers', thread, { seed: seed + thread, steps: 20_000 }))
  const codes = await Promise.all(workers)
  // What a dead one held, nobody could have: to go on would be to wait for ever.
  if (codes.some((code) => code !== 0)) throw new Error(`seed ${seed}: workers ended with ${codes}`)
  t.equal(crew.word('WRONG'), 0, 'no reader saw half a change')
  const counts = metadata.counts()
  t.ok(counts.evictions > 1000, `the cache is too small for the table (${counts.evictions} evictions)`)
  t.ok(counts.commits > 3, `${counts.commits} commits`)
  const region = new Region(metadata, crew.setup.files[0]!, 0, TABLE_BYTES, 0)
  t.same(
    wrongGroups((i) => metadata.shared(() => region.u32be(4 * i))),
    [],
    'through the cache',
  )
  metadata.commit()
  t.equal(metadata.counts().dirty, 0)
  t.notOk(metadata.uncommitted)
  const after = contents(storage)
  const view = new DataView(after.buffer)
  t.same(
    wrongGroups((i) => view.getUint32(4 * i)),
    [],
    'in the file',
  )
  let same = 0
  for (let i = 0; i < TABLE.entries; i++)
    if (metadata.shared(() => region.u32be(4 * i)) === view.getUint32(4 * i)) same++
  t.equal(same, TABLE.entries, 'the cache and the file agree')
  t.notOk(Buffer.from(after).equals(initial()), 'something was changed')
}

t.test('four workers at one table in memory', (t) => hammer(t, MemoryStorage.create({ contents: initial() })))

t.test('four workers at one table in a file', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vdiskfs-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const file = openFile(join(folder, 'table'), { create: true })
  t.teardown(() => file.close())
  const bytes = initial()
  file.write(bytes, 0, bytes.length, 0)
  await hammer(t, file)
})

t.test('room that others have reserved is waited for: no commit would make any', async (t) => {
  const crew = new Crew(t, MemoryStorage.create({ contents: new Uint8Array(4096) }))
  const { metadata } = crew
  // Half of the 256 pages may be dirty.
  metadata.reserve(100)
  const ended = crew.run('reserving', 1, { steps: 100 })
  await crew.arrived(1)
  await pause(300)
  t.equal(crew.word('COMMIT_ENDED'), 0, 'it waits')
  t.equal(metadata.counts().commits, 0, 'and commits nothing')
  metadata.unreserve()
  t.equal(await ended, 0)
  t.equal(crew.word('COMMIT_ENDED'), 1, 'until there is room')
})
