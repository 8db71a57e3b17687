/**
 * Crashes at every moment of a session, on disks that keep what they like of what was not synced: every flushed sector is
 * there, every other one is old or new, a check finds no corruption but the mark, and no bitmap calls unchanged what was
 * changed.
 */

import t from 'tap'
import { parallels } from '../../../lib/formats/parallels/format.js'
import { resizeExpanding } from '../../../lib/formats/parallels/resize.js'
import type { Image } from '../../../lib/image/image.js'
import { openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder, type RecordingStorage, type Tearing } from '../../../lib/storage/recording.js'
import { BITMAP, bitmapData, extensionBytes, imageBytes, KiB } from './bytes.js'

const CLUSTER = 4 * KiB
const SECTOR = 512
const SECTORS = 24 * 8
const ID = '00112233-4455-6677-8899-aabbccddeeff'

/** Clusters 1 and 2 are bits and extension, 3 and 5 are data, 4 is a gap with something old in it. */
function start(bitmap: boolean): MemoryStorage {
  const file = imageBytes({
    cluster: 8,
    sectors: SECTORS,
    dataOff: 8,
    bat: [3, 0, 0, 5],
    size: 6 * CLUSTER,
    ...(bitmap ? { extOff: 16 } : {}),
  })
  if (bitmap)
    extensionBytes(CLUSTER, [{ magic: BITMAP, data: bitmapData(SECTORS, ID, 8, [8]) }]).copy(file, 2 * CLUSTER)
  for (const n of [3, 4, 5]) file.fill(0xe0 + n, n * CLUSTER, (n + 1) * CLUSTER)
  return MemoryStorage.create({ path: 'x.hds', contents: file })
}

/** Numbers that a seed determines. */
function random(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

/** Every value that each sector has had since it was flushed last, the flushed one first. */
class History {
  readonly sectors: number[][]
  /** Sectors whose content was ever changed. */
  readonly changed = new Set<number>()

  constructor(first: readonly number[]) {
    this.sectors = first.map((value) => [value])
  }

  put(at: number, count: number, value: number): void {
    for (let i = at; i < at + count; i++) {
      this.sectors[i]!.push(value)
      this.changed.add(i)
    }
  }

  flush(): void {
    for (const values of this.sectors) values.splice(0, values.length - 1)
  }

  copy(): History {
    const copy = new History([])
    for (const values of this.sectors) copy.sectors.push([...values])
    for (const sector of this.changed) copy.changed.add(sector)
    return copy
  }
}

/** The first byte of every sector. */
function look(disk: Image): number[] {
  const all = Buffer.alloc(SECTORS * SECTOR)
  disk.read(all, 0, all.length, 0)
  return Array.from({ length: SECTORS }, (_, i) => {
    const sector = all.subarray(i * SECTOR, (i + 1) * SECTOR)
    return sector.every((byte) => byte === sector[0]) ? sector[0]! : -1
  })
}

/** A session of some operations; gives, for every length of the log, what may be there then. */
function session(storage: RecordingStorage, recorder: Recorder, seed: number): (moment: number) => History {
  const rand = random(seed)
  const disk = openStorages([storage])
  const history = new History(look(disk))
  const marks: { at: number; history: History }[] = [{ at: 0, history: history.copy() }]
  // What is written counts as possible from the moment on before it began, what is flushed from the moment after.
  const possible = () => {
    marks.at(-1)!.history = history.copy()
  }
  for (let step = 0; step < 14; step++) {
    const kind = rand(10)
    const at = rand(SECTORS)
    const count = 1 + rand(Math.min(kind < 5 ? 4 : 40, SECTORS - at))
    if (kind < 7) {
      history.put(at, count, step + 1)
      possible()
      disk.write(Buffer.alloc(count * SECTOR, step + 1), 0, count * SECTOR, at * SECTOR)
    } else if (kind < 9) {
      history.put(at, count, 0)
      possible()
      disk.zero(at * SECTOR, count * SECTOR, kind === 8)
    }
    if (kind === 9 || step === 6) {
      disk.flush()
      history.flush()
      marks.push({ at: recorder.length, history: history.copy() })
    }
  }
  disk.close()
  return (moment) => marks.findLast(({ at }) => at <= moment)!.history
}

function judge(
  t: { same(found: unknown, wanted: unknown, name: string): void },
  storage: MemoryStorage,
  expected: History,
  bitmap: boolean,
  name: string,
): void {
  const wrong: string[] = []
  const disk = openStorages([storage], { readOnly: true })
  for (const [i, value] of look(disk).entries())
    if (!expected.sectors[i]!.includes(value)) wrong.push(`sector ${i} is ${value}, expected ${expected.sectors[i]}`)
  disk.close()
  parallels.check!({
    storage,
    path: 'x.hds',
    readOnly: true,
    repair: 'none',
    warn: () => {},
    found: ({ severity, what, message }) => {
      if (severity !== 'leak' && what !== 'in-use') wrong.push(`${what}: ${message}`)
    },
  })
  if (bitmap) wrong.push(...forgotten(storage, expected))
  const writable = openStorages([storage])
  writable.write(Buffer.alloc(SECTOR, 0x55), 0, SECTOR, 9 * SECTOR)
  writable.close()
  if (wrong.length > 0) t.same(wrong.slice(0, 5), [], name)
}

/** Sectors that were changed for certain, and that the bitmap calls unchanged. */
function forgotten(storage: MemoryStorage, { sectors, changed }: History): string[] {
  const { layout } = parallels.open({ storage, path: 'x.hds', readOnly: true, warn: () => {} })
  const ranges = [...parallels.bitmaps!.extents(layout, [storage], ID)]
  const covered = (at: number) => ranges.some(({ start, length }) => at >= start && at < start + length)
  const disk = openStorages([storage], { readOnly: true })
  const now = look(disk)
  disk.close()
  const before = look(openStorages([start(true)], { readOnly: true }))
  return [...changed]
    .filter((i) => now[i] !== before[i] && sectors[i] && !covered(i * SECTOR))
    .map((i) => `sector ${i} changed and is not in the bitmap`)
}

for (const bitmap of [false, true])
  for (const seed of bitmap ? [3, 4] : [1, 2])
    t.test(`${bitmap ? 'with a bitmap' : 'without bitmaps'}, seed ${seed}`, async (t) => {
      const recorder = new Recorder()
      const allowed = session(recorder.record(start(bitmap)), recorder, seed)
      for (let moment = 0; moment <= recorder.length; moment++) {
        judge(t, recorder.prefix(moment)[0]!, allowed(moment), bitmap, `the first ${moment} entries`)
        for (const [sample, tearing] of (['none', 512, 4096] satisfies Tearing[]).entries()) {
          const crashed = recorder.crash(moment, 1000 * seed + 10 * moment + sample, tearing)[0]!
          const last = recorder.describe(Math.max(0, moment - 3), moment).join('; ')
          judge(t, crashed, allowed(moment), bitmap, `a crash behind entry ${moment}, tearing ${tearing}: ${last}`)
        }
      }
      t.ok(recorder.length > 20, 'there was something to lose')
    })

/** Changed ranges in sectors; undefined: there is no such bitmap. */
function bitmapOf(storage: MemoryStorage): [start: number, length: number][] | undefined {
  const { layout } = parallels.open({ storage, path: 'x.hds', readOnly: true, warn: () => {} })
  if (!parallels.bitmaps!.list(layout, [storage]).some(({ name }) => name === ID)) return undefined
  const ranges = [...parallels.bitmaps!.extents(layout, [storage], ID)]
  return ranges.map(({ start, length }) => [start / SECTOR, length / SECTOR])
}

t.test('a smaller disk: a crash leaves the old one whole, or the new one', async (t) => {
  for (const bitmap of [false, true]) {
    const recorder = new Recorder()
    const before = start(bitmap)
    const data = look(openStorages([before], { readOnly: true }))
    resizeExpanding(recorder.record(before), 3 * CLUSTER + 2 * SECTOR)
    const small = 3 * 8 + 2
    const judgeShrink = (crashed: MemoryStorage, moment: string) => {
      const disk = openStorages([crashed], { readOnly: true })
      const sectors = disk.size / SECTOR
      const all = Buffer.alloc(disk.size)
      disk.read(all, 0, all.length, 0)
      disk.close()
      t.ok(sectors === SECTORS || sectors === small, `${moment}: one of two sizes`)
      const found = Array.from({ length: sectors }, (_, i) => all[i * SECTOR])
      t.same(found, data.slice(0, sectors), `${moment}: content of ${sectors} sectors`)
    }
    for (let moment = 0; moment <= recorder.length; moment++) {
      judgeShrink(recorder.prefix(moment)[0]!, `the first ${moment}`)
      for (const [sample, tearing] of (['none', 512, 4096] satisfies Tearing[]).entries())
        judgeShrink(recorder.crash(moment, 10 * moment + sample, tearing)[0]!, `${moment}, ${tearing}`)
    }
    resizeExpanding(before, 8 * CLUSTER)
    const disk = openStorages([before], { readOnly: true })
    const last = Buffer.alloc(6 * SECTOR, 1)
    disk.read(last, 0, last.length, small * SECTOR)
    disk.close()
    t.ok(last.equals(Buffer.alloc(last.length)), 'what was cut off does not come back')
  }
})

/** Clusters that data, the extension and a bitmap's bits may have, each in the way of a larger table, or not. */
const PLACES: readonly { readonly name: string; readonly extension: number; readonly bits: number }[] = [
  { name: 'the extension alone in the way', extension: 1, bits: 5 },
  { name: 'the extension and bits in the way', extension: 2, bits: 1 },
  { name: 'bits in the way', extension: 5, bits: 1 },
]

for (const { name, extension, bits } of PLACES)
  t.test(`a resize with ${name}`, async (t) => {
    for (const clusters of [1100, 5000]) {
      const file = imageBytes({
        cluster: 8,
        sectors: SECTORS,
        dataOff: 8,
        bat: [3, 0, 0, 4],
        size: 6 * CLUSTER,
        extOff: extension * 8,
      })
      const feature = { magic: BITMAP, data: bitmapData(SECTORS, ID, 8, [bits * 8]) }
      extensionBytes(CLUSTER, [feature]).copy(file, extension * CLUSTER)
      file[bits * CLUSTER] = 1 << 3
      for (const n of [3, 4]) file.fill(0xe0 + n, n * CLUSTER, (n + 1) * CLUSTER)
      const recorder = new Recorder()
      const before = MemoryStorage.create({ path: 'x.hds', contents: file })
      const data = look(openStorages([before], { readOnly: true }))
      const storage = recorder.record(before)
      resizeExpanding(storage, clusters * CLUSTER)
      const judgeResize = (crashed: MemoryStorage, moment: string) => {
        const disk = openStorages([crashed], { readOnly: true })
        t.same(look(disk), data, `${moment}: content`)
        const sectors = disk.size / SECTOR
        disk.close()
        t.ok(sectors === SECTORS || sectors === clusters * 8, `${moment}: one of two sizes`)
        const found = bitmapOf(crashed)
        const all = found?.length === 1 && found[0]![0] === 0 && found[0]![1] === sectors
        if (!all) t.same(found, [[24, 8]], `${moment}: the bitmap says what it said, or all`)
        const writable = openStorages([crashed])
        writable.write(Buffer.alloc(SECTOR, 0x55), 0, SECTOR, 9 * SECTOR)
        writable.close()
        const after = bitmapOf(crashed)
        t.ok(
          after?.some(([start, length]) => start <= 8 && start + length >= 16),
          `${moment}: what is written then is in it`,
        )
        const again = openStorages([crashed], { readOnly: true })
        t.same(look(again), data.with(9, 0x55), `${moment}: content after a write`)
        again.close()
      }
      for (let moment = 0; moment <= recorder.length; moment++) {
        judgeResize(recorder.prefix(moment)[0]!, `${clusters}, the first ${moment}`)
        for (const [sample, tearing] of (['none', 512, 4096] satisfies Tearing[]).entries())
          judgeResize(recorder.crash(moment, 10 * moment + sample, tearing)[0]!, `${clusters}, ${moment}, ${tearing}`)
      }
    }
  })
