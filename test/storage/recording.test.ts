import t from 'tap'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import type { Storage } from '../../lib/storage/storage.js'
import { testStorage } from './suite.js'

testStorage('a recording storage', {
  make: () => new Recorder().record(MemoryStorage.create()),
  // It has no handle; what it is made around can be read-only all the same.
  readOnly: (storage) => {
    const copy = MemoryStorage.create({ path: storage.path, contents: contents(storage) })
    return new Recorder().record(MemoryStorage.attach({ ...copy.handle(), readOnly: true }))
  },
  sparse: true,
  limit: 2 ** 30,
})

function contents(storage: Storage): Uint8Array {
  const bytes = new Uint8Array(storage.size())
  storage.read(bytes, 0, bytes.length, 0)
  return bytes
}

function text(storage: Storage | undefined): string {
  return Buffer.from(contents(storage!)).toString('latin1').replaceAll('\0', '.')
}

function recorded(initial: string): [Recorder, (offset: number, what: string) => void, Storage] {
  const recorder = new Recorder()
  const storage = recorder.record(MemoryStorage.create({ path: 'x', contents: Buffer.from(initial) }))
  return [recorder, (offset, what) => storage.write(Buffer.from(`__${what}`), 2, what.length, offset), storage]
}

t.test('every prefix, step by step', async (t) => {
  const [recorder, write, storage] = recorded('abcdef')
  write(1, 'XY')
  storage.sync()
  write(5, 'ZZ')
  storage.punch(0, 2)
  storage.zero(6, 100)
  storage.truncate(3)
  storage.truncate(5)
  const states = Array.from({ length: recorder.length + 1 }, (_, n) => text(recorder.prefix(n)[0]))
  t.same(states, ['abcdef', 'aXYdef', 'aXYdef', 'aXYdeZZ', '..YdeZZ', '..YdeZ.', '..Y', '..Y..'])
  t.equal(text(storage), '..Y..', 'and the storage itself is there')
  t.same(recorder.describe(0, 2), ['0: file 0 write {"offset":1,"length":2}', '1: file 0 sync {}'])
})

t.test('what is written is remembered, not the buffer', async (t) => {
  const recorder = new Recorder()
  const storage = recorder.record(MemoryStorage.create())
  const buffer = Buffer.from('one')
  storage.write(buffer, 0, 3, 0)
  buffer.write('two')
  t.equal(text(recorder.prefix(1)[0]), 'one')
})

/** All states that seeds lead to. */
function states(make: (seed: number) => Storage | undefined): Set<string> {
  return new Set(Array.from({ length: 400 }, (_, seed) => text(make(seed))))
}

t.test('a crash keeps what was synced, and any subset of the rest', async (t) => {
  const [recorder, write, storage] = recorded('......')
  write(0, 'A')
  storage.sync()
  write(1, 'B')
  write(2, 'C')
  write(3, 'D')
  const at = recorder.length
  write(4, 'E')
  storage.sync()
  const seen = states((seed) => recorder.crash(at, seed)[0])
  t.same([...seen].sort(), ['A.....', 'A..D..', 'A.C...', 'A.CD..', 'AB....', 'AB.D..', 'ABC...', 'ABCD..'].sort())
  t.same(
    states((seed) => recorder.crash(recorder.length, seed)[0]),
    new Set(['ABCDE.']),
  )
  t.equal(text(recorder.crash(at, 7)[0]), text(recorder.crash(at, 7)[0]), 'a seed is a state')
})

t.test('later writes over earlier ones keep their order', async (t) => {
  const [recorder, write] = recorded('..')
  write(0, 'AA')
  write(0, 'B')
  t.same([...states((seed) => recorder.crash(2, seed)[0])].sort(), ['..', 'AA', 'B.', 'BA'].sort())
})

t.test('torn writes tear at sectors of the file, and only where it is asked for', async (t) => {
  const recorder = new Recorder()
  const storage = recorder.record(MemoryStorage.create({ contents: new Uint8Array(2048) }))
  storage.write(new Uint8Array(1024).fill(1), 0, 1024, 256)
  const shapes = (tearing: 512 | 4096 | 'none') =>
    new Set(
      Array.from({ length: 200 }, (_, seed) => {
        const bytes = contents(recorder.crash(1, seed, tearing)[0]!)
        const parts = [0, 256, 512, 1024, 1280, 2048].slice(0, -1).map((from, i, all) => {
          const part = bytes.subarray(from, all[i + 1] ?? 2048)
          return part.every((byte) => byte === part[0]) ? String(part[0]) : '?'
        })
        return parts.join('')
      }),
    )
  t.same([...shapes('none')].sort(), ['00000', '01110'])
  t.same([...shapes(4096)].sort(), ['00000', '01110'])
  t.same([...shapes(512)].sort(), ['00000', '00010', '00100', '00110', '01000', '01010', '01100', '01110'])
})

t.test('truncations stay in order among themselves', async (t) => {
  const [recorder, , storage] = recorded('abcd')
  storage.truncate(2)
  storage.truncate(3)
  t.same([...states((seed) => recorder.crash(2, seed)[0])].sort(), ['ab', 'ab.', 'abcd'], 'never abc')
})

t.test('several files: one order, and a sync only for its own', async (t) => {
  const recorder = new Recorder()
  const [a, b] = ['a', 'b'].map((path) => recorder.record(MemoryStorage.create({ path, contents: Buffer.from('.') })))
  a!.write(Buffer.from('A'), 0, 1, 0)
  b!.write(Buffer.from('B'), 0, 1, 0)
  a!.sync()
  t.same(recorder.prefix(1).map(text), ['A', '.'])
  const seen = new Set(Array.from({ length: 100 }, (_, seed) => recorder.crash(3, seed).map(text).join('')))
  t.same([...seen].sort(), ['A.', 'AB'])
})
