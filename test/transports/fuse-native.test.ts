/** fuse-native without a mount: the operations over a tree, open files, and what is said where it is missing. */

import { constants } from 'node:fs'
import { constants as os } from 'node:os'
import t from 'tap'
import { Handles } from '../../lib/transports/fuse-native/handles.js'
import { type Stat, type Statfs, whyNot } from '../../lib/transports/fuse-native/library.js'
import { serveTree } from '../../lib/transports/fuse-native/operations.js'
import { RequestRecorder } from '../../lib/transports/statistics.js'
import { Control, MemoryTree, memoryDisk } from './fixtures/memory-tree.js'

const MiB = 1 << 20
const { O_DSYNC, O_RDONLY, O_RDWR, O_SYNC, O_WRONLY } = constants
const { EBADF, EINVAL, EIO, EISDIR, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS } = os.errno
const RAW = '/disk.raw'

/** The operations over a tree in memory, each answered with what it called back with. */
function setUp(readOnly = false, size = 4 * MiB) {
  const tree = new MemoryTree(memoryDisk(size, readOnly))
  const { operations, stop } = serveTree(tree, new RequestRecorder(RequestRecorder.allocate(1), 0))
  const ask = (name: string, ...args: unknown[]): unknown[] => {
    const answers: unknown[][] = []
    const operation = operations[name as keyof typeof operations] as (...args: unknown[]) => void
    operation(...args, (...answer: unknown[]) => answers.push(answer))
    if (answers.length !== 1) throw new Error(`${name} answered ${answers.length} times`)
    return answers[0]!
  }
  const open = (flags: number) => ask('open', RAW, flags)[1] as number
  return { tree, ask, open, stop }
}

t.test('attributes as the addon takes them', async (t) => {
  const { ask } = setUp()
  const [errno, stat] = ask('getattr', RAW) as [number, Stat]
  t.equal(errno, 0)
  t.match(stat, { mode: 0o100640, size: 4194304, blocks: 8, ino: 2, nlink: 1, uid: 0, gid: 6, blksize: 4096 })
  t.match(stat, { atime: 1_000_000_000_123, mtime: 1_000_000_001_456, ctime: 0 }, 'before 1970 it would be 2^32 off')
  t.match(ask('getattr', '/'), [0, { mode: 0o040755, ino: 1, nlink: 2 }])
  t.same(ask('getattr', '/disk.raw/below'), [-ENOENT])
  t.same(ask('getattr', '/none'), [-ENOENT])
  t.match(ask('fgetattr', RAW, 5), [0, { ino: 2 }])
})

t.test('directories', async (t) => {
  const { ask } = setUp()
  t.same(ask('readdir', '/'), [0, ['.', '..', 'disk.raw']])
  t.same(ask('readdir', RAW), [-ENOTDIR])
  t.same(ask('open', '/', O_RDONLY), [-EISDIR])
})

t.test('statfs: counts of blocks fit into 32 bits', async (t) => {
  const { ask, tree } = setUp()
  t.match(ask('statfs', '/'), [0, { bsize: 4096, frsize: 4096, blocks: 1000, bfree: 400, bavail: 300, files: 2 }])
  // 64 TiB in blocks of 4 KiB.
  const blocks = 2 ** 34
  tree.statistics = () => ({
    blockSize: 4096,
    blocks,
    freeBlocks: blocks - 8,
    availableBlocks: 9,
    files: 2,
    nameLength: 255,
  })
  const [, large] = ask('statfs', '/') as [number, Statfs]
  t.match(large, { bsize: 32768, blocks: 2 ** 31, bfree: 2 ** 31 - 1, bavail: 1 })
})

t.test('reading and writing at offsets, to the end', async (t) => {
  const { ask, open, tree } = setUp()
  const handle = open(O_RDWR)
  const data = Buffer.from('vdiskfs!')
  t.same(ask('write', RAW, handle, data, 8, 3 * MiB + 5), [8])
  t.equal(tree.data.toString('latin1', 3 * MiB + 5, 3 * MiB + 13), 'vdiskfs!')
  const buffer = Buffer.alloc(16)
  t.same(ask('read', RAW, handle, buffer, 16, 3 * MiB + 1), [16])
  t.equal(buffer.toString('latin1', 4, 12), 'vdiskfs!')
  t.same(ask('read', RAW, handle, buffer, 16, 4 * MiB - 3), [3], 'short at the end')
  t.same(ask('read', RAW, handle, buffer, 16, 4 * MiB), [0])
  t.same(ask('write', RAW, handle, data, 8, 4 * MiB - 2), [2])
  t.same(ask('write', RAW, handle, data, 8, 4 * MiB), [-ENOSPC])
  t.same(ask('read', RAW, 77, buffer, 16, 0), [-EBADF])
  t.same(ask('release', RAW, handle), [0])
  t.same(ask('read', RAW, handle, buffer, 16, 0), [-EBADF])
})

t.test('fsync, flush, fsyncdir commit; nothing to commit costs nothing', async (t) => {
  const { ask, open, tree } = setUp()
  const handle = open(O_RDWR)
  const flushes = () => tree.control[Control.FLUSHES]
  t.same(ask('fsync', RAW, 0, handle), [0])
  t.equal(flushes(), 0)
  const commits = [
    ['fsync', RAW, 1, handle] as const,
    ['flush', RAW, handle] as const,
    ['fsyncdir', '/', 0, 0] as const,
  ]
  for (const [name, ...args] of commits) {
    const before = flushes()!
    ask('write', RAW, handle, Buffer.from('x'), 1, 0)
    t.same(ask(name, ...args), [0], name)
    t.equal(flushes(), before + 1, name)
  }
  ask('write', RAW, handle, Buffer.from('x'), 1, 0)
  tree.control[Control.FLUSH_FAILS] = 1
  t.same(ask('fsync', RAW, 0, handle), [-ENOSPC])
})

t.test('what is written with O_SYNC or O_DSYNC is committed by then', async (t) => {
  const { ask, open, tree } = setUp()
  const put = (flags: number) => ask('write', RAW, open(O_RDWR | flags), Buffer.from('x'), 1, 0)
  const flushes = () => tree.control[Control.FLUSHES]
  t.same(put(0), [1])
  t.equal(flushes(), 0)
  t.same(put(O_DSYNC), [1])
  t.equal(flushes(), 1)
  t.same(put(O_SYNC), [1])
  t.equal(flushes(), 2)
  tree.control[Control.FLUSH_FAILS] = 1
  t.same(put(O_DSYNC), [-ENOSPC])
})

t.test('opened with O_TRUNC it keeps its size; another size is refused', async (t) => {
  const { ask, open } = setUp()
  t.same(ask('truncate', RAW, 0), [-EINVAL], 'nobody has it open')
  const reader = open(O_RDONLY)
  t.same(ask('truncate', RAW, 0), [-EINVAL], 'nor for writing')
  const writer = open(O_WRONLY)
  t.same(ask('truncate', RAW, 0), [0], 'the kernel’s second half of an O_TRUNC')
  t.same(ask('truncate', RAW, 0), [-EINVAL], 'once')
  const second = open(O_WRONLY)
  ask('write', RAW, second, Buffer.from('x'), 1, 0)
  t.same(ask('truncate', RAW, 0), [-EINVAL], 'who has written did not begin with it')
  t.same(ask('truncate', RAW, 4 * MiB), [0], 'the size that it has')
  t.same(ask('truncate', RAW, 8 * MiB), [-EINVAL])
  t.same(ask('ftruncate', RAW, writer, 0), [-EINVAL])
  t.same(ask('ftruncate', RAW, writer, 4 * MiB), [0])
  t.same(ask('truncate', '/', 0), [-EISDIR])
  ask('release', RAW, reader)
})

t.test('nothing comes, goes or changes its owner', async (t) => {
  const { ask } = setUp()
  t.same(ask('chmod', RAW, 0o100640), [0], 'as it is')
  t.same(ask('chmod', RAW, 0o600), [-EPERM])
  t.same(ask('chown', RAW, 0, 2 ** 32 - 1), [0])
  t.same(ask('chown', RAW, 1, 2 ** 32 - 1), [-EPERM])
  t.same(ask('utimens', RAW, 1, 2), [0])
  t.same(ask('unlink', RAW), [-EPERM])
  t.same(ask('rename', RAW, '/x'), [-EPERM])
  t.same(ask('create', '/x', 0o644), [-EPERM])
  t.same(ask('mkdir', '/x', 0o755), [-EPERM])
})

t.test('read-only', async (t) => {
  const { ask, open } = setUp(true)
  t.same(ask('open', RAW, O_RDWR), [-EROFS])
  const handle = open(O_RDONLY)
  t.same(ask('write', RAW, handle, Buffer.from('x'), 1, 0), [-EROFS])
  for (const [name, ...args] of [['truncate', 4 * MiB] as const, ['utimens', 1, 2] as const, ['unlink'] as const])
    t.same(ask(name, RAW, ...args), [-EROFS], name)
})

t.test('after the end nothing reaches the tree', async (t) => {
  const { ask, open, stop, tree } = setUp()
  const handle = open(O_RDWR)
  stop()
  tree.read =
    tree.write =
    tree.flush =
      () => {
        throw new Error('reached')
      }
  t.same(ask('read', RAW, handle, Buffer.alloc(1), 1, 0), [-EIO])
  t.same(ask('write', RAW, handle, Buffer.alloc(1), 1, 0), [-EIO])
  t.same(ask('fsync', RAW, 0, handle), [-EIO])
  t.same(ask('flush', RAW, handle), [-EIO])
  t.same(ask('getattr', RAW), [-EIO])
})

t.test('what a tree throws is an errno, whatever it is', async (t) => {
  const { ask, open, tree } = setUp()
  tree.read = () => {
    throw new TypeError('a fault of ours')
  }
  t.same(ask('read', RAW, open(O_RDONLY), Buffer.alloc(1), 1, 0), [-EIO])
})

t.test('handles are used again, and none is left', async (t) => {
  const handles = new Handles()
  t.equal(handles.open(2, false), 1, 'libfuse takes 0 for none')
  t.equal(handles.open(3, false), 2)
  handles.close(1)
  handles.close(1)
  t.equal(handles.open(4, true), 1)
  t.equal(handles.open(4, true), 3)
  t.ok(handles.truncates(4))
  t.same([handles.use(1), handles.use(2), handles.use(9)], [4, 3, 0])
  for (const handle of [1, 2, 3]) handles.close(handle)
  t.equal(handles.size, 0)
})

t.test('what is missing is said in one line', async (t) => {
  const missing = Object.assign(new Error("Cannot find module 'fuse-native'\nRequire stack:\n- x"), {
    code: 'MODULE_NOT_FOUND',
  })
  t.equal(whyNot(missing), 'the package is not installed (npm install fuse-native@2.2.6)')
  // As dlopen of glibc says it, through Node.
  const library = 'libfuse.so.2: cannot open shared object file: No such file or directory'
  t.equal(
    whyNot(Object.assign(new Error(library), { code: 'ERR_DLOPEN_FAILED' })),
    'libfuse.so.2 is missing (on Debian: apt install libfuse2)',
  )
  t.match(whyNot(new Error('No native build was found for platform=linux arch=arm64\n…')), /npm rebuild fuse-native/)
  t.equal(whyNot(new Error('something\nelse')), 'something')
})
