import { closeSync, openSync, readFileSync, statSync, symlinkSync, writeFileSync, writeSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { attachStorage } from '../../lib/storage/attach.js'
import { openFile } from '../../lib/storage/file.js'
import type { FileStorage } from '../../lib/storage/file-storage.js'
import { loopDevice, mountedFileSystem, run, temporaryFolder } from './host.js'
import { testStorage } from './suite.js'

const MiB = 1024 * 1024

testStorage('a file', {
  make: (teardown) => openFile(join(temporaryFolder(teardown), 'x.img'), { create: true }),
  readOnly: (storage) => openFile(storage.path, { readOnly: true }),
  sparse: true,
  limit: 2 ** 43,
})

testStorage("another thread's view of a file", {
  make: (teardown) => {
    const storage = openFile(join(temporaryFolder(teardown), 'x.img'), { create: true })
    teardown(() => storage.close())
    return attachStorage(storage.handle())
  },
  readOnly: (storage) => attachStorage({ ...(storage as FileStorage).handle(), readOnly: true } as never),
  sparse: true,
  limit: 2 ** 43,
})

t.test('other programs see the same bytes, and it sees theirs', async (t) => {
  const path = join(
    temporaryFolder((undo) => t.teardown(undo)),
    'x.img',
  )
  writeFileSync(path, 'hello there')
  const storage = openFile(path)
  t.teardown(() => storage.close())
  storage.write(Buffer.from('HELLO'), 1, 3, 1)
  storage.sync()
  t.equal(readFileSync(path, 'latin1'), 'hELLo there')
  t.equal(storage.allocated(), statSync(path).blocks * 512)
})

t.test('opens only what it can hold an image in', async (t) => {
  const folder = temporaryFolder((undo) => t.teardown(undo))
  const at = (name: string) => join(folder, name)
  run('mkfifo', at('fifo'))
  const server = createServer().listen(at('socket'))
  t.teardown(() => server.close())
  await new Promise((resolve) => server.once('listening', resolve))
  symlinkSync(at('nowhere'), at('dangling'))
  const refused: readonly (readonly [string, string, string])[] = [
    [folder, 'USAGE', `${folder} is a directory, not a file or a block device`],
    [at('fifo'), 'USAGE', `${at('fifo')} is a FIFO, not a file or a block device`],
    [at('socket'), 'USAGE', `${at('socket')} is a socket, not a file or a block device`],
    ['/dev/null', 'USAGE', '/dev/null is a character device, not a file or a block device'],
    [at('nowhere'), 'NOT_FOUND', `cannot open ${at('nowhere')}: no such file or directory`],
    [at('dangling'), 'NOT_FOUND', `cannot open ${at('dangling')}: no such file or directory`],
  ]
  for (const readOnly of [false, true]) {
    for (const [path, code, message] of refused) t.throws(() => openFile(path, { readOnly }), { code, message })
  }
})

t.test('creates only what is not there', async (t) => {
  const path = join(
    temporaryFolder((undo) => t.teardown(undo)),
    'x.img',
  )
  openFile(path, { create: true }).close()
  t.throws(() => openFile(path, { create: true }), { code: 'EXISTS', message: `cannot create ${path}: exists already` })
  t.throws(() => openFile(join(path, 'y'), { create: true }), { code: 'NOT_FOUND' })
})

t.test('a view closes nothing; a closed storage says so and touches no other file', async (t) => {
  const folder = temporaryFolder((undo) => t.teardown(undo))
  const storage = openFile(join(folder, 'a'), { create: true })
  const view = attachStorage(storage.handle())
  view.close()
  storage.write(Buffer.from('x'), 0, 1, 0)
  storage.close()
  storage.close()
  const other = openSync(join(folder, 'b'), 'w+')
  t.teardown(() => closeSync(other))
  writeSync(other, 'untouched')
  const closed = { code: 'INTERNAL', message: `${join(folder, 'a')}: it was closed` }
  t.throws(() => storage.write(Buffer.from('x'), 0, 1, 0), closed)
  t.throws(() => storage.read(new Uint8Array(1), 0, 1, 0), closed)
  t.throws(() => storage.truncate(0), closed)
  t.throws(() => storage.sync(), closed)
  t.equal(readFileSync(join(folder, 'b'), 'latin1'), 'untouched')
})

t.test('a full file system: NO_SPACE naming the file, what was written stays', async (t) => {
  const undo = (f: () => void) => t.teardown(f)
  const folder = mountedFileSystem(undo, temporaryFolder(undo), 'ext4', '8M')
  const storage = openFile(join(folder, 'x.img'), { create: true })
  const block = Buffer.alloc(MiB, 7)
  const full = { code: 'NO_SPACE', errno: 'ENOSPC', path: storage.path, message: /no space left on the device$/ }
  try {
    storage.write(block, 0, MiB, 0)
    t.throws(() => storage.reserve(0, 64 * MiB), { ...full, message: `cannot reserve space in ${storage.path}` })
    storage.truncate(MiB)
    t.throws(
      () => {
        for (let i = 1; i < 64; i++) storage.write(block, 0, MiB, i * MiB)
      },
      { ...full, message: /^cannot write .* at byte \d+: no space left on the device$/ },
    )
    t.ok(storage.size() > MiB)
    const back = Buffer.alloc(MiB)
    t.equal(storage.read(back, 0, MiB, 0), MiB)
    t.ok(back.equals(block))
    storage.punch(0, MiB)
    storage.sync()
    storage.write(block, 0, 4096, 128 * MiB)
    t.equal(storage.size(), 128 * MiB + 4096, 'punching made room')
  } finally {
    storage.close()
  }
})

t.test('reserve secures space: a later write on a full file system succeeds', async (t) => {
  const undo = (f: () => void) => t.teardown(f)
  const folder = mountedFileSystem(undo, temporaryFolder(undo), 'ext4', '8M')
  const storage = openFile(join(folder, 'x.img'), { create: true })
  const filler = openFile(join(folder, 'filler'), { create: true })
  storage.reserve(MiB, MiB)
  t.equal(storage.size(), 0)
  t.equal(storage.allocated(), MiB)
  try {
    t.throws(
      () => {
        for (let at = 0; ; at += 4096) filler.write(Buffer.alloc(4096, 1), 0, 4096, at)
      },
      { code: 'NO_SPACE' },
    )
    storage.write(Buffer.alloc(MiB, 9), 0, MiB, MiB)
    storage.sync()
    t.equal(storage.size(), 2 * MiB)
  } finally {
    storage.close()
    filler.close()
  }
})

// ramfs can do none of it and says it has no holes; tmpfs punches and finds holes, and cannot zero a range.
for (const type of ['ramfs', 'tmpfs']) {
  t.test(`${type}, which cannot do all of it`, async (t) => {
    const undo = (f: () => void) => t.teardown(f)
    const folder = temporaryFolder(undo)
    run('mount', '-t', type, 'none', folder)
    undo(() => run('umount', folder))
    const storage = openFile(join(folder, 'x.img'), { create: true })
    try {
      const data = Buffer.alloc(3 * MiB, 5)
      for (const clear of ['punch', 'zero', 'punch'] as const) {
        storage.write(data, 0, data.length, 0)
        storage[clear](4095, 2 * MiB + 2)
        const back = Buffer.alloc(data.length)
        storage.read(back, 0, back.length, 0)
        t.ok(back.equals(Buffer.from(data).fill(0, 4095, 4095 + 2 * MiB + 2)), clear)
        storage[clear](2 * MiB, 2 * MiB)
        t.equal(storage.size(), data.length, `${clear} over the end`)
      }
      t.equal(storage.nextData(5), 5)
      t.equal(storage.nextHole(5), type === 'ramfs' ? data.length : 4096)
      storage.reserve(0, 4 * MiB)
      t.equal(storage.size(), data.length)
    } finally {
      storage.close()
    }
  })
}

t.test('a block device', async (t) => {
  const undo = (f: () => void) => t.teardown(f)
  const size = 16 * MiB + 512
  const device = loopDevice(undo, temporaryFolder(undo), size)
  const storage = openFile(device)
  try {
    t.equal(storage.size(), size)
    t.equal(storage.allocated(), size)
    const data = Buffer.alloc(3 * MiB, 5)
    storage.write(data, 0, data.length, MiB)
    storage.punch(MiB, MiB)
    storage.punch(3 * MiB + 7, 100)
    storage.zero(2 * MiB, 512)
    storage.sync()
    const back = Buffer.alloc(3 * MiB)
    t.equal(storage.read(back, 0, back.length, MiB), back.length)
    const expected = Buffer.from(data)
      .fill(0, 0, MiB)
      .fill(0, 2 * MiB + 7, 2 * MiB + 107)
      .fill(0, MiB, MiB + 512)
    t.ok(back.equals(expected), 'whole sectors and parts of them')
    t.equal(storage.read(back, 0, 1024, size - 512), 512)
    storage.reserve(0, MiB)
    storage.truncate(size)
    t.throws(() => storage.truncate(size + 1), { code: 'NO_SPACE', message: `it is a block device of ${size} bytes` })
    t.throws(() => storage.truncate(1), { code: 'UNSUPPORTED' })
    t.throws(() => storage.write(data, 0, 1024, size - 512), { code: 'NO_SPACE' })
    t.throws(() => openFile(device), { code: 'IN_USE' }, 'written by one at a time')
    openFile(device, { readOnly: true }).close()
  } finally {
    storage.close()
  }
  run('mkfs.ext4', '-q', device)
  const mountPoint = temporaryFolder(undo)
  run('mount', device, mountPoint)
  undo(() => run('umount', mountPoint))
  t.throws(
    () => openFile(device),
    { code: 'IN_USE', path: device, message: /in use: it is mounted/ },
    'not while it is mounted',
  )
})
