/**
 * What log entries say of the file's size, looked at when they are written. [MS-VHDX] 2.3.1.1, FlushedFileOffset and
 * LastFileOffset
 */

import t, { type Test } from 'tap'
import { parseOptions } from '../../../lib/formats/options.js'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { At, bytesAt, contextOf, MiB, u64At } from './bytes.js'

const SIZE = 300 * MiB
const BLOCK = MiB
/** What a file has more at first: room for some blocks, and no multiple of 1 MiB. */
const MORE = 5 * MiB + 12345

function newImage(child: boolean): MemoryStorage[] {
  const options = parseOptions('vhdx', vhdx.createOptions, ['block_size=1M'])
  const parent = MemoryStorage.create({ path: 'parent.vhdx' })
  vhdx.create({ storage: parent, path: '/parent.vhdx', size: SIZE, options, backing: undefined })
  if (!child) return [parent]
  const storage = MemoryStorage.create({ path: 'image.vhdx' })
  const { layout } = vhdx.open(contextOf(parent))
  const backing = { path: '/parent.vhdx', format: 'vhdx', layout, size: SIZE, mtimeMs: 0 }
  vhdx.create({ storage, path: '/image.vhdx', size: SIZE, options, backing })
  return [storage, parent]
}

/** Where the last block in the table ends, by the table's bytes. */
function endOfBlocks(storage: MemoryStorage): number {
  const entries = Array.from({ length: MiB / 8 }, (_, i) => u64At(storage, At.bat + 8 * i))
  const present = entries.filter((entry) => (entry & 7n) >= 6n)
  return Math.max(...present.map((entry) => Number(entry >> 20n) * MiB + BLOCK))
}

/** Looks at every entry of the log that was written. @returns how many there were */
function lookAtEntries(t: Test, recorder: Recorder): number {
  const lines = recorder.describe()
  let entries = 0
  let durable = recorder.prefix(0)[0]!.size()
  lines.forEach((line, i) => {
    if (/ sync /.test(line)) durable = recorder.prefix(i)[0]!.size()
    const [, offset] = / write {"offset":(\d+)/.exec(line) ?? []
    if (offset === undefined || Number(offset) < At.log || Number(offset) >= At.log + MiB) return
    entries++
    const [storage] = recorder.prefix(i + 1)
    const entry = bytesAt(storage!, Number(offset), 64)
    t.equal(Buffer.from(entry).toString('latin1', 0, 4), 'loge')
    const [flushed, last] = [u64At(storage!, Number(offset) + 48), u64At(storage!, Number(offset) + 56)].map(Number)
    t.equal(flushed! % MiB, 0, 'flushed: whole MiB')
    t.ok(flushed! <= durable, `flushed is ${flushed}: a crash could leave ${durable} bytes`)
    t.ok(flushed! > durable - MiB, `flushed is ${flushed}: as large as may be, of ${durable} bytes`)
    t.equal(last! % MiB, 0, 'last: whole MiB')
    // The pages of the entry are in place at the next sync but one; so is the table that it makes.
    const behind = lines.findIndex((line, at) => at > i && / sync /.test(line))
    const next = lines.findIndex((line, at) => at > behind && / sync /.test(line))
    const end = endOfBlocks(recorder.prefix(next < 0 ? lines.length : next)[0]!)
    t.ok(last! >= end, `last is ${last}: the last block ends at ${end}`)
  })
  return entries
}

for (const child of [false, true])
  t.test(`the offsets in log entries of a ${child ? 'differencing' : 'dynamic'} disk`, async (t) => {
    const [top, ...parents] = newImage(child)
    top!.truncate(top!.size() + MORE)
    const recorder = new Recorder()
    const image = openStorages([recorder.record(top!), ...parents])
    // The file grows by 64 MiB, then by twice as much.
    for (let block = 0; block < 100; block++) {
      image.write(new Uint8Array(512).fill(1), 0, 512, 2 * block * BLOCK)
      if (block % 9 === 0) image.flush()
    }
    image.close()
    t.ok(lookAtEntries(t, recorder) >= 12)
  })

t.test('the offsets in the log entry of a resize', async (t) => {
  const [storage] = newImage(false)
  const image = openStorages([storage!])
  image.write(new Uint8Array(512).fill(1), 0, 512, 0)
  image.close()
  const recorder = new Recorder()
  const recording = recorder.record(storage!)
  vhdx.resize!(vhdx.open(contextOf(recording, false)).layout, [recording], 2 * SIZE, {
    below: () => 0,
    zeroBehind: () => {},
  })
  t.equal(lookAtEntries(t, recorder), 1)
})
