/**
 * Crashes of a disk with a large table, so that commits take many pages and the log goes round; and crashes while a log
 * is being replayed.
 */

import t from 'tap'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { openStorages } from '../../../lib/image/open.js'
import type { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { bytesAt, contextOf, MiB } from './bytes.js'
import { check, type Done, KINDS, type Kind, type Life, newImage } from './far-apart.js'

/** More than any of the tables. */
const TABLE = 8 * MiB

/** Writes and frees blocks that are far apart, in commits of very different sizes. */
function live(recorder: Recorder, kind: Kind, [top, ...parents]: MemoryStorage[], seed: number): Done[] {
  const random = randomFrom(seed)
  const recording = recorder.record(top!)
  const done: Done[] = []
  let image = openStorages([recording, ...parents])
  for (let commit = 0; commit < 8; commit++) {
    const count = Math.ceil(random() ** 3 * 0.3 * kind.places)
    for (let i = 0; i < count; i++) {
      const place = Math.floor(random() * kind.places)
      const value = random() < 0.3 ? 0 : 1 + Math.floor(random() * 255)
      done.push({ place, value, began: recorder.length, flushed: Number.POSITIVE_INFINITY })
      if (value === 0) image.zero(place * kind.apart, MiB, true)
      else image.write(new Uint8Array(512).fill(value), 0, 512, place * kind.apart)
    }
    if (random() < 0.2) {
      image.close()
      image = openStorages([recording, ...parents])
    } else image.flush()
    for (const step of done) if (step.flushed === Number.POSITIVE_INFINITY) step.flushed = recorder.length
  }
  image.close()
  return done
}

for (const [kind, seed] of KINDS.flatMap((kind) => [1, 2].map((seed) => [kind, seed] as const)))
  t.test(`crashes of commits of many pages: ${kind.name}, seed ${seed}`, async (t) => {
    const recorder = new Recorder()
    const storages = newImage(kind)
    const life = { kind, done: live(recorder, kind, storages, seed), parents: storages.slice(1) }
    const random = randomFrom(seed + 100)
    let states = 0
    let replays = 0
    for (; states < 45; states++) {
      const moment = Math.floor(random() * (recorder.length + 1))
      const [crashed] = recorder.crash(moment, Math.floor(random() * 2 ** 31), random() < 0.5 ? 512 : 4096)
      const context = () => `moment ${moment}\n${recorder.describe(Math.max(0, moment - 8), moment).join('\n')}`
      const wrong = check(life, crashed!, moment, true)
      if (wrong !== undefined) {
        t.fail(`${wrong}; ${context()}`)
        break
      }
      if (vhdx.open(contextOf(crashed!)).layout.log === 'empty') continue
      replays++
      const wrongReplay = crashOfReplay(life, crashed!, moment, random)
      if (wrongReplay !== undefined) {
        t.fail(`${wrongReplay}; ${context()}`)
        break
      }
    }
    t.equal(states, 45)
    t.ok(replays > 5, `${replays} logs were replayed`)
  })

/** Replays the log with a crash in between, then again. @returns what is wrong, or undefined */
function crashOfReplay(life: Life, crashed: MemoryStorage, moment: number, random: () => number): string | undefined {
  const replay = new Recorder()
  const recording = replay.record(crashed)
  vhdx.open(contextOf(recording, false))
  const whole = bytesAt(crashed, 3 * MiB, TABLE)
  for (let i = 0; i < 4; i++) {
    const stop = Math.floor(random() * (replay.length + 1))
    const [again] = replay.crash(stop, Math.floor(random() * 2 ** 31), 512)
    const wrong = check(life, again!, moment, false)
    if (wrong !== undefined) return `replay stopped at ${stop} of ${replay.length}: ${wrong}`
    if (Buffer.compare(bytesAt(again!, 3 * MiB, TABLE), whole) !== 0)
      return `replay stopped at ${stop} of ${replay.length}: the table is not the same`
  }
  return undefined
}

t.test('a commit of several entries, of which the first alone came to the disk', async (t) => {
  const kind = KINDS[1]!
  const recorder = new Recorder()
  const [top, ...parents] = newImage(kind)
  const image = openStorages([recorder.record(top!), ...parents])
  const done: Done[] = []
  const commit = (from: number, to: number) => {
    for (let place = from; place < to; place++) {
      done.push({ place, value: 9, began: recorder.length, flushed: Number.POSITIVE_INFINITY })
      image.write(new Uint8Array(512).fill(9), 0, 512, place * kind.apart)
    }
    const before = recorder.length
    image.flush()
    for (const step of done) step.flushed = Math.min(step.flushed, recorder.length)
    return before
  }
  commit(0, 1)
  const before = commit(1, 80)
  const entries = recorder
    .describe(before)
    .map((line, i) => (/"offset":1[0-9]{6},"length":[0-9]{5,}/.test(line) ? before + i : -1))
    .filter((moment) => moment >= 0)
  t.equal(entries.length, 2, 'entries')
  image.close()
  const life = { kind, done, parents }
  let partial = 0
  for (const moment of [before, entries[0]!, entries[0]! + 1, entries[1]!, entries[1]! + 1, entries[1]! + 2]) {
    const [crashed] = recorder.prefix(moment)
    t.equal(check(life, crashed!, moment, true), undefined, `moment ${moment}`)
    const { layout } = vhdx.open(contextOf(crashed!))
    const whole = openStorages([crashed!, ...parents], { readOnly: true })
    const sector = new Uint8Array(512)
    let there = 0
    for (let place = 0; place < 80; place++) {
      whole.read(sector, 0, 512, place * kind.apart)
      if (sector[0] === 9) there++
    }
    whole.close()
    if (layout.logEntries === 1 && there > 1 && there < 80) partial++
  }
  t.ok(partial > 0, 'a part of the commit was replayed')
})
