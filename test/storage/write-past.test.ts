/** Writing past the host's cache: what stays in it, as the kernel tells it, and that it is a write all the same. */

import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { hasUncachedWrites } from '../../lib/native/files.js'
import { cachedPages } from '../../lib/native/folios.js'
import { openFile } from '../../lib/storage/file.js'
import { mountedFileSystem, run, temporaryFolder } from './host.js'

const MiB = 2 ** 20

/** Bytes of a range of a file that are in the host's cache. */
function cached(path: string, offset: number, length: number): number {
  const fd = openSync(path, 'r')
  const { present } = cachedPages(fd, offset, length)
  closeSync(fd)
  return present * 4096
}

/** Bytes that tell where they come from. */
function pattern(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let i = 0; i < length; i++) bytes[i] = i * 31 + seed + (i >> 8)
  return bytes
}

/** A file of `size` bytes, all hole, on a file system of its own. */
function sparse(t: Test, type: string, size: number) {
  const undo = (f: () => void) => t.teardown(f)
  const folder = mountedFileSystem(undo, temporaryFolder(undo), type, '512M')
  const storage = openFile(join(folder, 'x.img'), { create: true })
  storage.truncate(size)
  return storage
}

const here = hasUncachedWrites() ? {} : { skip: 'needs Linux 6.16' }

for (const type of ['ext4', 'xfs'])
  t.test(`${type}: what is new does not stay in the cache, what was there does`, here, async (t) => {
    const storage = sparse(t, type, 16 * MiB)
    const { path } = storage
    try {
      const bytes = pattern(4 * MiB + 10, 1)
      storage.writeData(bytes, 10, 4 * MiB, 2 * MiB, true)
      storage.sync()
      // Some pages are kept that the kernel was busy with when their data was on the disk.
      const left = cached(path, 2 * MiB, 4 * MiB)
      t.ok(left < 3 * MiB, `new: ${left} bytes`)
      storage.write(bytes, 0, 4 * MiB, 8 * MiB)
      storage.sync()
      t.equal(cached(path, 8 * MiB, 4 * MiB), 4 * MiB, 'written otherwise')
      storage.writeData(bytes, 5, 4 * MiB, 8 * MiB, true)
      storage.sync()
      t.equal(cached(path, 8 * MiB, 4 * MiB), 4 * MiB, 'overwritten')
      storage.reserve(12 * MiB, 4 * MiB)
      storage.writeData(bytes, 0, 4 * MiB, 12 * MiB, true)
      storage.sync()
      t.ok(cached(path, 12 * MiB, 4 * MiB) < 3 * MiB, 'set aside, and new')
      const disk = Buffer.alloc(16 * MiB)
      disk.set(bytes.subarray(10, 10 + 4 * MiB), 2 * MiB)
      disk.set(bytes.subarray(5, 5 + 4 * MiB), 8 * MiB)
      disk.set(bytes.subarray(0, 4 * MiB), 12 * MiB)
      t.ok(readFileSync(path).equals(disk), 'all is where it belongs')
    } finally {
      storage.close()
    }
  })

t.test('new data is noticed again after many overwrites', here, async (t) => {
  const storage = sparse(t, 'ext4', 128 * MiB)
  try {
    const bytes = pattern(MiB, 6)
    storage.write(bytes, 0, MiB, 0)
    for (let i = 0; i < 40; i++) storage.writeData(bytes, 0, MiB, 0, true)
    storage.sync()
    for (let i = 1; i <= 64; i++) storage.writeData(bytes, 0, MiB, i * MiB, true)
    storage.sync()
    const kept = cached(storage.path, MiB, 64 * MiB) / MiB
    t.ok(kept < 40, `${kept} of 64 MiB are in the cache`)
    const back = readFileSync(storage.path)
    for (let i = 0; i <= 64; i++) t.ok(back.subarray(i * MiB, (i + 1) * MiB).equals(bytes), `MiB ${i}`)
  } finally {
    storage.close()
  }
})

t.test('small writes go through the cache, as more of them may follow', here, async (t) => {
  const storage = sparse(t, 'ext4', MiB)
  try {
    storage.writeData(pattern(65536, 2), 0, 65536, 0, true)
    storage.sync()
    t.equal(cached(storage.path, 0, MiB), 65536)
  } finally {
    storage.close()
  }
})

t.test('any place, any length, from any place of a buffer', async (t) => {
  const storage = sparse(t, 'ext4', 0)
  const shared = pattern(3 * MiB, 3).buffer as ArrayBuffer
  const expected = Buffer.alloc(40 * MiB)
  try {
    const places = [
      [0, 256 * 1024, 7, 0],
      [1, 300_000, 1, MiB + 1],
      [4096, 2 * MiB, 512, 3 * MiB],
      [77, 1_234_567, 3, 10 * MiB - 5],
      [0, 262_145, 0, 38 * MiB + 511],
    ] as const
    for (const [start, length, at, offset] of places) {
      const view = new Uint8Array(shared, start)
      storage.writeData(view, at, length, offset, true)
      expected.set(view.subarray(at, at + length), offset)
    }
    const end = 38 * MiB + 511 + 262_145
    t.equal(storage.size(), end, 'it grows')
    t.ok(readFileSync(storage.path).equals(expected.subarray(0, end)))
  } finally {
    storage.close()
  }
})

t.test('a host that cannot do it', async (t) => {
  const undo = (f: () => void) => t.teardown(f)
  const folder = temporaryFolder(undo)
  run('mount', '-t', 'ramfs', 'none', folder)
  undo(() => run('umount', folder))
  const storage = openFile(join(folder, 'x.img'), { create: true })
  try {
    const bytes = pattern(MiB, 4)
    for (const offset of [0, 4 * MiB]) storage.writeData(bytes, 0, MiB, offset, true)
    t.ok(
      readFileSync(storage.path)
        .subarray(4 * MiB)
        .equals(bytes),
    )
  } finally {
    storage.close()
  }
})

t.test('a full file system, and a storage that may not be written', async (t) => {
  const undo = (f: () => void) => t.teardown(f)
  const folder = mountedFileSystem(undo, temporaryFolder(undo), 'ext4', '16M')
  const storage = openFile(join(folder, 'x.img'), { create: true })
  const bytes = pattern(MiB, 5)
  let written = 0
  try {
    t.throws(
      () => {
        for (; written < 64; written++) storage.writeData(bytes, 0, MiB, written * MiB, true)
      },
      { code: 'NO_SPACE', message: /^cannot write .* at byte \d+: no space left on the device$/ },
    )
    storage.sync()
    t.ok(written > 4)
    const back = readFileSync(storage.path)
    for (let i = 0; i < written; i++) t.ok(back.subarray(i * MiB, (i + 1) * MiB).equals(bytes), `MiB ${i} is there`)
    const readOnly = openFile(storage.path, { readOnly: true })
    t.throws(() => readOnly.writeData(bytes, 0, MiB, 100 * MiB, true), { code: 'READ_ONLY' })
    readOnly.close()
  } finally {
    storage.close()
  }
})
