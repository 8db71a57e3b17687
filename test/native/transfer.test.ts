import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { makePipe } from '../../lib/native/pipes.js'
import { readAt, readNext, writeAt, writeNext } from '../../lib/native/transfer.js'

function fileWith(t: Test, text: string) {
  const path = join(t.testdir({}), 'file')
  writeFileSync(path, text)
  const fd = openSync(path, 'r+')
  t.teardown(() => closeSync(fd))
  return { path, fd }
}

t.test('at offsets, from and to any part of a buffer', async (t) => {
  const { path, fd } = fileWith(t, 'abcdefgh')
  const buffer = Buffer.alloc(12, '.')
  t.equal(readAt(fd, buffer, 3, 4, 2), 4)
  t.equal(buffer.toString(), '...cdef.....')
  t.equal(readAt(fd, buffer, 0, 12, 5), 3, 'what there is')
  t.equal(buffer.toString(), 'fghcdef.....')
  t.equal(readAt(fd, buffer, 0, 12, 8), 0, 'the end')
  t.equal(writeAt(fd, Buffer.from('0123456789'), 2, 3, 7), 3)
  t.equal(readFileSync(path, 'latin1'), 'abcdefg234')
})

t.test('far behind 4 GiB', async (t) => {
  const { fd } = fileWith(t, '')
  t.equal(writeAt(fd, Buffer.from('far'), 0, 3, 5 * 2 ** 40), 3)
  const buffer = Buffer.alloc(3)
  t.equal(readAt(fd, buffer, 0, 3, 5 * 2 ** 40), 3)
  t.equal(buffer.toString(), 'far')
})

t.test('one behind the other', async (t) => {
  const { reader, writer } = makePipe()
  t.teardown(() => closeSync(reader))
  t.equal(writeNext(writer, Buffer.from('hello, you'), 5), 5)
  closeSync(writer)
  const buffer = Buffer.alloc(4, '.')
  t.equal(readNext(reader, buffer), 4)
  t.equal(buffer.toString(), 'hell')
  t.equal(readNext(reader, buffer), 1)
  t.equal(buffer.toString(), 'oell')
  t.equal(readNext(reader, buffer), 0)
})

t.test('many buffers by turns, views of one memory, and small ones, which the collector may move', async (t) => {
  const { fd } = fileWith(t, '0123456789')
  const large = Buffer.alloc(64, '.')
  const views = [large.subarray(8, 16), large.subarray(40), new Uint8Array(2), new Uint8Array(large.buffer, 0, 0)]
  for (let round = 0; round < 20; round++) {
    const garbage = Array.from({ length: 1e5 }, () => new Uint8Array(8))
    for (const [i, view] of views.entries()) {
      const length = Math.min(2, view.length)
      t.equal(readAt(fd, view, view.length - length, length, i + (round % 5)), length)
      t.equal(Buffer.from(view.subarray(view.length - length)).toString(), '0123456789'.substr(i + (round % 5), length))
    }
    t.equal(garbage.length, 1e5)
  }
  t.match(large.toString(), /^\.{14}\d\d\.{46}\d\d$/, 'nothing beside them')
})

t.test('never outside of the buffer', async (t) => {
  const { path, fd } = fileWith(t, 'abcdefgh')
  const buffer = Buffer.alloc(8)
  const outside = [
    [0, 9],
    [8, 1],
    [-1, 2],
    [4, -1],
    [Number.NaN, 1],
    [0, Number.NaN],
    [0.5, 1],
    [0, 1.5],
  ] as const
  for (const [at, length] of outside) {
    t.throws(() => readAt(fd, buffer, at, length, 0), RangeError)
    t.throws(() => writeAt(fd, buffer, at, length, 0), RangeError)
    if (at === 0) t.throws(() => writeNext(fd, buffer, length), RangeError)
  }
  for (const offset of [Number.NaN, Number.POSITIVE_INFINITY, 0.5, 2 ** 53]) {
    t.throws(() => readAt(fd, buffer, 0, 1, offset), RangeError)
    t.throws(() => writeAt(fd, buffer, 0, 1, offset), RangeError)
  }
  const given = new Uint8Array(8)
  t.equal(readAt(fd, given, 0, 8, 0), 8)
  structuredClone(given, { transfer: [given.buffer] })
  t.throws(() => readAt(fd, given, 0, 8, 0), RangeError, 'its memory is somebody else’s now')
  t.equal(readFileSync(path, 'latin1'), 'abcdefgh')
})

t.test('failures', async (t) => {
  const { fd } = fileWith(t, 'x')
  const buffer = Buffer.alloc(1)
  t.throws(() => readAt(-1, buffer, 0, 1, 0), { code: 'EBADF', syscall: 'pread' })
  t.throws(() => writeAt(fd, buffer, 0, 1, -1), { code: 'EINVAL', syscall: 'pwrite' })
  t.throws(() => readNext(-1, buffer), { code: 'EBADF', syscall: 'read' })
  t.throws(() => writeNext(-1, buffer, 1), { code: 'EBADF', syscall: 'write' })
})
