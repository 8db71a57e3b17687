/**
 * Crashes of a disk with a large table, so that commits take many pages and the log goes round; and crashes while a log
 * is being replayed.
 */

import t from 'tap'
import { parseOptions } from '../../../lib/formats/options.js'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { scanTable } from '../../../lib/formats/vhdx/scan.js'
import { openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { bytesAt, contextOf, MiB } from './bytes.js'

const GiB = 1024 * MiB
/** One page of the table is 512 blocks, less the entries of bitmaps. */
const APART = 513 * MiB
const PLACES = 600

/** What was done to one sector: value, and the moments before and after. */
interface Done {
  readonly place: number
  readonly value: number
  readonly began: number
  flushed: number
}

function newImage(): MemoryStorage {
  const storage = MemoryStorage.create({ path: 'image.vhdx', maxSize: GiB })
  const options = parseOptions('vhdx', vhdx.createOptions, ['block_size=1M'])
  vhdx.create({ storage, path: '/image.vhdx', size: PLACES * APART, options, backing: undefined })
  return storage
}

/** Writes and frees blocks that are far apart, in commits of very different sizes. */
function live(recorder: Recorder, storage: MemoryStorage, seed: number): Done[] {
  const random = randomFrom(seed)
  const recording = recorder.record(storage)
  const done: Done[] = []
  let image = openStorages([recording])
  for (let commit = 0; commit < 8; commit++) {
    const count = Math.ceil(random() ** 3 * 180)
    for (let i = 0; i < count; i++) {
      const place = Math.floor(random() * PLACES)
      const value = random() < 0.3 ? 0 : 1 + Math.floor(random() * 255)
      done.push({ place, value, began: recorder.length, flushed: Number.POSITIVE_INFINITY })
      if (value === 0) image.zero(place * APART, MiB, true)
      else image.write(new Uint8Array(512).fill(value), 0, 512, place * APART)
    }
    if (random() < 0.2) {
      image.close()
      image = openStorages([recording])
    } else image.flush()
    for (const step of done) if (step.flushed === Number.POSITIVE_INFINITY) step.flushed = recorder.length
  }
  image.close()
  return done
}

/** The values that the place may have when a crash comes at a moment. */
function allowed(steps: readonly Done[], moment: number): number[] {
  const values = [0]
  for (const { value, began, flushed } of steps) {
    if (flushed <= moment) values.length = 0
    if (began <= moment) values.push(value)
  }
  return values
}

/** @returns what is wrong, or undefined */
function check(storage: MemoryStorage, done: readonly Done[], moment: number, readOnly: boolean): string | undefined {
  try {
    const image = openStorages([storage], { readOnly })
    const sector = new Uint8Array(512)
    let wrong: string | undefined
    for (let place = 0; place < PLACES; place++) {
      image.read(sector, 0, 512, place * APART)
      const values = allowed(
        done.filter((step) => step.place === place),
        moment,
      )
      if (!values.includes(sector[0]!) || sector.some((byte) => byte !== sector[0]))
        wrong = `place ${place} holds ${sector[0]}, and may hold ${values}`
    }
    image.close()
    const { layout } = vhdx.open(contextOf(storage))
    if (!readOnly) scanTable(layout, storage, storage.size())
    return wrong
  } catch (error) {
    return String(error)
  }
}

for (const seed of [1, 2, 3])
  t.test(`crashes of commits of many pages, seed ${seed}`, async (t) => {
    const recorder = new Recorder()
    const storage = newImage()
    const done = live(recorder, storage, seed)
    const random = randomFrom(seed + 100)
    let states = 0
    let replays = 0
    for (; states < 45; states++) {
      const moment = Math.floor(random() * (recorder.length + 1))
      const [crashed] = recorder.crash(moment, Math.floor(random() * 2 ** 31), random() < 0.5 ? 512 : 4096)
      const context = () => `moment ${moment}\n${recorder.describe(Math.max(0, moment - 8), moment).join('\n')}`
      const wrong = check(crashed!, done, moment, true)
      if (wrong !== undefined) {
        t.fail(`${wrong}; ${context()}`)
        break
      }
      if (vhdx.open(contextOf(crashed!)).layout.log === 'empty') continue
      replays++
      const wrongReplay = crashOfReplay(crashed!, done, moment, random)
      if (wrongReplay !== undefined) {
        t.fail(`${wrongReplay}; ${context()}`)
        break
      }
    }
    t.equal(states, 45)
    t.ok(replays > 5, `${replays} logs were replayed`)
  })

/** Replays the log with a crash in between, then again. @returns what is wrong, or undefined */
function crashOfReplay(
  crashed: MemoryStorage,
  done: readonly Done[],
  moment: number,
  random: () => number,
): string | undefined {
  const replay = new Recorder()
  const recording = replay.record(crashed)
  vhdx.open(contextOf(recording, false))
  const whole = bytesAt(crashed, 3 * MiB, 5 * MiB)
  for (let i = 0; i < 4; i++) {
    const stop = Math.floor(random() * (replay.length + 1))
    const [again] = replay.crash(stop, Math.floor(random() * 2 ** 31), 512)
    const wrong = check(again!, done, moment, false)
    if (wrong !== undefined) return `replay stopped at ${stop} of ${replay.length}: ${wrong}`
    if (Buffer.compare(bytesAt(again!, 3 * MiB, 5 * MiB), whole) !== 0)
      return `replay stopped at ${stop} of ${replay.length}: the table is not the same`
  }
  return undefined
}
