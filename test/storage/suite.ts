/** What every Storage must do, run by the tests of each one. */

import t from 'tap'
import type { Storage } from '../../lib/storage/storage.js'

export interface Subject {
  /** A new, empty storage, open for writing. What it leaves behind goes with `teardown`. */
  make(teardown: (undo: () => void) => void): Storage
  /** A read-only view or opening of the same bytes. */
  readOnly(storage: Storage): Storage
  /** True where freed space is given back and holes are found, in units of 4 KiB. */
  sparse: boolean
  /** Bytes that it can grow to, roughly. */
  limit: number
}

type Test = (test: typeof t, storage: Storage, subject: Subject) => void

function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + seed * 31 + (i >> 8)) & 0xff || 1)
}

function readAll(storage: Storage, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  return bytes.subarray(0, storage.read(bytes, 0, length, offset))
}

const KiB4 = 4096

const TESTS: Readonly<Record<string, Test>> = {
  'is empty at first': (t, storage) => {
    t.equal(storage.size(), 0)
    t.equal(storage.readOnly, false)
    t.equal(storage.read(new Uint8Array(10), 0, 10, 0), 0)
    t.equal(storage.nextData(0), 0)
    t.equal(storage.nextHole(0), 0)
  },

  'writes and reads at offsets, and only there': (t, storage) => {
    const data = pattern(1000)
    storage.write(data, 100, 500, 777)
    t.equal(storage.size(), 1277)
    const into = new Uint8Array(1000).fill(0xee)
    t.equal(storage.read(into, 3, 500, 777), 500)
    t.same(into.subarray(0, 3), [0xee, 0xee, 0xee])
    t.same(into.subarray(3, 503), data.subarray(100, 600))
    t.ok(into.subarray(503).every((byte) => byte === 0xee))
    t.same(readAll(storage, 0, 777), new Uint8Array(777), 'what was skipped is zeros')
  },

  'reads less only at the end': (t, storage) => {
    storage.write(pattern(100), 0, 100, 0)
    t.equal(storage.read(new Uint8Array(200), 0, 200, 0), 100)
    t.equal(storage.read(new Uint8Array(200), 0, 200, 99), 1)
    t.equal(storage.read(new Uint8Array(200), 0, 200, 100), 0)
    t.equal(storage.read(new Uint8Array(200), 0, 200, 5000), 0)
    t.equal(storage.read(new Uint8Array(200), 0, 0, 0), 0)
  },

  'a write of nothing changes nothing': (t, storage) => {
    storage.write(new Uint8Array(10), 0, 0, 500)
    t.equal(storage.size(), 0)
  },

  'reads into and writes from shared memory': (t, storage) => {
    const shared = new Uint8Array(new SharedArrayBuffer(64)).fill(5)
    storage.write(shared, 8, 16, 0)
    shared.fill(0)
    t.equal(storage.read(shared, 32, 16, 0), 16)
    t.same(Array.from(shared.subarray(30, 34)), [0, 0, 5, 5])
  },

  'truncation cuts, and what comes back is zeros': (t, storage) => {
    storage.write(pattern(10000), 0, 10000, 0)
    storage.truncate(5000)
    t.equal(storage.size(), 5000)
    t.equal(storage.read(new Uint8Array(100), 0, 100, 4990), 10)
    storage.truncate(20000)
    t.equal(storage.size(), 20000)
    t.same(readAll(storage, 0, 5000), pattern(10000).subarray(0, 5000))
    t.same(readAll(storage, 5000, 15000), new Uint8Array(15000))
  },

  'punch and zero clear exactly their range and never change the size': (t, storage) => {
    for (const clear of ['punch', 'zero'] as const) {
      storage.write(pattern(20000), 0, 20000, 0)
      storage[clear](100, 12000)
      t.equal(storage.size(), 20000)
      t.same(readAll(storage, 0, 100), pattern(20000).subarray(0, 100), `${clear}: in front`)
      t.same(readAll(storage, 100, 12000), new Uint8Array(12000), `${clear}: the range`)
      t.same(readAll(storage, 12100, 7900), pattern(20000).subarray(12100), `${clear}: behind`)
      storage[clear](19000, 50000)
      t.equal(storage.size(), 20000, `${clear} over the end`)
      t.same(readAll(storage, 19000, 1000), new Uint8Array(1000))
      storage[clear](30000, 10)
      storage[clear](0, 0)
      t.equal(storage.size(), 20000, `${clear} behind the end, and of nothing`)
      t.equal(readAll(storage, 0, 1)[0], pattern(1)[0])
    }
  },

  'reserve changes neither contents nor size': (t, storage) => {
    storage.write(pattern(5000), 0, 5000, 0)
    storage.reserve(4000, 100000)
    t.equal(storage.size(), 5000)
    t.same(readAll(storage, 0, 5000), pattern(5000))
    storage.reserve(0, 0)
  },

  'finds data and holes': (t, storage, { sparse }) => {
    storage.truncate(40 * KiB4)
    storage.write(pattern(KiB4), 0, KiB4, 10 * KiB4)
    storage.write(pattern(KiB4), 0, KiB4, 11 * KiB4)
    storage.write(pattern(10), 0, 10, 20 * KiB4 + 5)
    storage.sync()
    t.equal(storage.nextHole(40 * KiB4), 40 * KiB4, 'no hole behind the end')
    t.equal(storage.nextData(40 * KiB4), 40 * KiB4)
    t.equal(storage.nextData(99 * KiB4), 40 * KiB4)
    if (!sparse) return
    t.equal(storage.nextData(0), 10 * KiB4)
    t.equal(storage.nextData(11 * KiB4 + 7), 11 * KiB4 + 7, 'in data: there')
    t.equal(storage.nextHole(10 * KiB4 + 7), 12 * KiB4)
    t.equal(storage.nextHole(3), 3, 'in a hole: there')
    t.equal(storage.nextData(12 * KiB4), 20 * KiB4)
    t.equal(storage.nextHole(20 * KiB4), 21 * KiB4)
    t.equal(storage.nextData(21 * KiB4), 40 * KiB4, 'no data left: the size')
    storage.write(pattern(KiB4), 0, KiB4, 39 * KiB4)
    t.equal(storage.nextHole(39 * KiB4), 40 * KiB4, 'the end is a hole')
  },

  'punching gives space back': (t, storage, { sparse }) => {
    if (!sparse) return
    storage.write(pattern(64 * KiB4), 0, 64 * KiB4, 0)
    storage.sync()
    t.equal(storage.allocated(), 64 * KiB4)
    storage.punch(KiB4 + 1, 60 * KiB4)
    t.equal(storage.allocated(), 5 * KiB4, 'the pages that are wholly in the range')
    t.equal(storage.nextHole(0), 2 * KiB4)
    t.equal(storage.nextData(2 * KiB4), 61 * KiB4)
    storage.punch(0, 64 * KiB4)
    t.equal(storage.allocated(), 0)
    t.equal(storage.size(), 64 * KiB4)
  },

  'goes far beyond 2 and 4 GiB': (t, storage, { sparse, limit }) => {
    for (const base of [2 ** 31, 2 ** 32, 2 ** 40].filter((each) => each + 4 * KiB4 < limit)) {
      storage.write(pattern(2 * KiB4), 0, 2 * KiB4, base - KiB4)
      t.same(readAll(storage, base - KiB4, 2 * KiB4), pattern(2 * KiB4), `${base}`)
      t.equal(storage.size(), base + KiB4)
      storage.truncate(base + 4 * KiB4)
      storage.punch(base - KiB4, KiB4)
      t.same(readAll(storage, base - KiB4, KiB4), new Uint8Array(KiB4), `${base}: punched`)
      t.same(readAll(storage, base, KiB4), pattern(2 * KiB4).subarray(KiB4), `${base}: not punched`)
      storage.sync()
      if (sparse) {
        t.equal(storage.nextData(base - KiB4), base)
        t.equal(storage.nextHole(base), base + KiB4)
      }
      storage.zero(base, 8 * KiB4)
      t.same(readAll(storage, base, 8 * KiB4), new Uint8Array(4 * KiB4), `${base}: zeroed to the end`)
    }
  },

  'read-only refuses every change and changes nothing': (t, storage, { readOnly }) => {
    storage.write(pattern(5000), 0, 5000, 0)
    const view = readOnly(storage)
    t.equal(view.readOnly, true)
    t.equal(view.size(), 5000)
    t.same(readAll(view, 0, 5000), pattern(5000))
    const changes: readonly ((s: Storage) => void)[] = [
      (s) => s.write(new Uint8Array(1), 0, 1, 0),
      (s) => s.truncate(1),
      (s) => s.punch(0, 1),
      (s) => s.zero(0, 1),
      (s) => s.reserve(0, 1),
    ]
    for (const change of changes) t.throws(() => change(view), { code: 'READ_ONLY', message: storage.path })
    view.sync()
    view.close()
    t.same(readAll(storage, 0, 5001), pattern(5000))
  },
}

/** Runs the suite. */
export function testStorage(name: string, subject: Subject): void {
  t.test(name, (t) => {
    for (const [title, test] of Object.entries(TESTS)) {
      t.test(title, (t) => {
        const storage = subject.make((undo) => t.teardown(undo))
        t.teardown(() => storage.close())
        test(t as typeof import('tap').t, storage, subject)
        t.end()
      })
    }
    t.end()
  })
}
