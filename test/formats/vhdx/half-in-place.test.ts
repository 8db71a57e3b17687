/**
 * A commit that fails while it writes in place, and the one that comes behind it: whenever a crash comes, the image is
 * whole.
 */

import t from 'tap'
import { openStorages } from '../../../lib/image/open.js'
import { FaultStorage } from '../../../lib/storage/fault.js'
import type { MemoryStorage } from '../../../lib/storage/memory.js'
import { Recorder } from '../../../lib/storage/recording.js'
import { randomFrom } from '../../metadata/fixtures/metadata.js'
import { check, type Done, KINDS, newImage } from './far-apart.js'

/** Places of the differencing disk, of which the commit that fails takes two entries of the log. */
const WRITTEN = 70

for (const nth of [1, 41, 2 * WRITTEN])
  for (const failures of [1, 2])
    t.test(`write ${nth} in place fails, in ${failures} commits`, async (t) => {
      const kind = KINDS[1]!
      const recorder = new Recorder()
      const [top, ...parents] = newImage(kind)
      const storage = new FaultStorage(recorder.record(top!))
      const image = openStorages([storage, ...parents])
      const done: Done[] = []
      const write = (place: number, value: number) => {
        done.push({ place, value, began: recorder.length, flushed: Number.POSITIVE_INFINITY })
        image.write(new Uint8Array(512).fill(value), 0, 512, place * kind.apart)
      }
      const flush = () => {
        image.flush()
        for (const step of done) step.flushed = Math.min(step.flushed, recorder.length)
      }
      write(0, 1)
      flush()
      for (let place = 1; place <= WRITTEN; place++) write(place, 9)
      const from = recorder.length
      // Two entries of the log come first; then again what is in them, in place.
      storage.fail({ kinds: ['write'], nth: 2 + nth, errno: 'EIO', shortWrite: 512 })
      t.throws(flush, { code: 'IO' })
      if (failures === 2) {
        storage.fail({ kinds: ['write'], nth, errno: 'EIO', shortWrite: 512 })
        t.throws(flush, { code: 'IO' })
      }
      storage.heal()
      const failed = recorder.length
      for (let place = 40; place <= WRITTEN; place++) write(place, 7)
      flush()
      const end = recorder.length
      image.abandon()
      const expect = (crashed: MemoryStorage, moment: number) => {
        const wrong = check({ kind, done, parents }, crashed, moment, false)
        if (wrong !== undefined) t.fail(`moment ${moment} of ${from} to ${end}: ${wrong}`)
      }
      const random = randomFrom(nth)
      for (let moment = failed; moment <= end; moment += random() < 0.5 ? 1 : 2)
        expect(recorder.prefix(moment)[0]!, moment)
      for (let i = 0; i < 20; i++) {
        const moment = from + Math.floor(random() * (end - from + 1))
        expect(recorder.crash(moment, Math.floor(random() * 2 ** 31), 512)[0]!, moment)
      }
      t.pass(`${end - from} moments`)
    })
