/** The files of a mount, over a disk in memory. */

import t from 'tap'
import { ImageTree, type TreeImage, treeSettings } from '../../lib/mount/tree.js'
import { ROOT_INODE } from '../../lib/transports/transport.js'

const SIZE = 10_000

function memoryImage({ readOnly = false, allocated = 4096 } = {}): TreeImage & { bytes: Uint8Array } {
  const bytes = new Uint8Array(SIZE)
  const inside = (length: number, offset: number) => {
    if (offset < 0 || length <= 0 || offset + length > SIZE) throw new Error(`${length} bytes at ${offset}`)
  }
  return {
    bytes,
    path: '/nowhere/disk.vhd',
    size: SIZE,
    readOnly,
    unflushed: false,
    allocated: () => allocated,
    flush() {},
    read(buffer, at, length, offset) {
      inside(length, offset)
      buffer.set(bytes.subarray(offset, offset + length), at)
    },
    lend: () => false,
    write(buffer, at, length, offset) {
      inside(length, offset)
      bytes.set(buffer.subarray(at, at + length), offset)
    },
    zero(offset, length) {
      inside(length, offset)
      bytes.fill(0, offset, offset + length)
    },
    // Data in [2000, 3000), holes around it.
    seek: (offset, data) =>
      data ? (offset < 2000 ? 2000 : offset < 3000 ? offset : -1) : offset >= 2000 && offset < 3000 ? 3000 : offset,
  }
}

const owner = { uid: 1000, gid: 100, umask: 0o077 }
const times = { atimeMs: 111_000, mtimeMs: 222_000 }
const treeOf = (image: TreeImage, umask = 0o077) => new ImageTree(image, treeSettings({ ...owner, umask }, times))

t.test('one file in one folder', async (t) => {
  const tree = treeOf(memoryImage())
  t.same(tree.list(ROOT_INODE), [{ name: 'disk.raw', inode: 2, directory: false }])
  t.equal(tree.lookup(ROOT_INODE, 'disk.raw'), 2)
  t.equal(tree.lookup(ROOT_INODE, 'disk.RAW'), undefined)
  t.equal(tree.lookup(2, 'disk.raw'), undefined)
  t.same(tree.list(2), [])
  t.equal(tree.attributes(3), undefined)
})

t.test('attributes: the disk’s size, the host’s blocks, the image’s times', async (t) => {
  const tree = treeOf(memoryImage({ allocated: 4096 }))
  t.same(tree.attributes(2), {
    inode: 2,
    directory: false,
    size: SIZE,
    blocks: 8,
    mode: 0o600,
    uid: 1000,
    gid: 100,
    links: 1,
    atimeMs: 111_000,
    mtimeMs: 222_000,
    ctimeMs: 222_000,
  })
  t.match(tree.attributes(ROOT_INODE), { inode: 1, directory: true, mode: 0o700, links: 2, uid: 1000, gid: 100 })
  // Tables and headers of a full image take more than the disk: no file has more blocks than bytes.
  t.equal(treeOf(memoryImage({ allocated: SIZE * 3 })).attributes(2)!.blocks, Math.ceil(SIZE / 512))
})

t.test('permissions follow the umask; read-only there is no w', async (t) => {
  const modes = (umask: number, readOnly: boolean) => {
    const tree = treeOf(memoryImage({ readOnly }), umask)
    return [tree.attributes(2)!.mode, tree.attributes(ROOT_INODE)!.mode]
  }
  t.same(modes(0o077, false), [0o600, 0o700])
  t.same(modes(0o022, false), [0o644, 0o755])
  t.same(modes(0o077, true), [0o400, 0o500])
  t.same(modes(0, true), [0o444, 0o555])
})

t.test('writing moves the time, in all threads at once', async (t) => {
  const image = memoryImage()
  const settings = treeSettings(owner, times)
  const one = new ImageTree(image, settings)
  const two = new ImageTree(image, structuredClone(settings))
  one.read(2, new Uint8Array(10), 0, 10, 0)
  t.equal(two.attributes(2)!.mtimeMs, 222_000, 'reading does not')
  one.write(2, new Uint8Array(10), 0, 10, 0)
  t.ok(two.attributes(2)!.mtimeMs > 222_000)
  t.equal(two.attributes(2)!.atimeMs, 111_000)
})

t.test('reading and writing end at the end of the disk', async (t) => {
  const image = memoryImage()
  const tree = treeOf(image)
  const buffer = new Uint8Array(100).fill(7)
  t.equal(tree.write(2, buffer, 0, 100, SIZE - 30), 30)
  t.equal(image.bytes[SIZE - 1], 7)
  t.throws(() => tree.write(2, buffer, 0, 1, SIZE), { code: 'RANGE' })
  t.equal(tree.write(2, buffer, 0, 0, SIZE), 0)
  const read = new Uint8Array(100)
  t.equal(tree.read(2, read, 20, 80, SIZE - 30), 30)
  t.same([read[19], read[20], read[49], read[50]], [0, 7, 7, 0])
  t.equal(tree.read(2, read, 0, 100, SIZE), 0)
  t.equal(tree.read(2, read, 0, 100, SIZE + 5), 0)
  tree.zero(2, SIZE - 10, 1000, true)
  t.same([image.bytes[SIZE - 11], image.bytes[SIZE - 10]], [7, 0])
  tree.zero(2, SIZE, 10, true)
  t.throws(() => tree.read(ROOT_INODE, read, 0, 1, 0), { code: 'NOT_FOUND' })
})

t.test('SEEK_DATA and SEEK_HOLE; the end is a hole', async (t) => {
  const tree = treeOf(memoryImage())
  t.equal(tree.seek(2, 0, true), 2000)
  t.equal(tree.seek(2, 2500, true), 2500)
  t.equal(tree.seek(2, 3000, true), -1)
  t.equal(tree.seek(2, 2500, false), 3000)
  t.equal(tree.seek(2, SIZE, false), -1)
  const full = memoryImage()
  full.seek = (offset, data) => (data ? offset : -1)
  t.equal(treeOf(full).seek(2, 5, false), SIZE)
})

t.test('read-only: nothing is changed, whoever asks', async (t) => {
  const image = memoryImage({ readOnly: true })
  const tree = treeOf(image)
  t.ok(tree.readOnly)
  t.throws(() => tree.write(2, new Uint8Array([1]), 0, 1, 0), { code: 'READ_ONLY' })
  t.throws(() => tree.zero(2, 0, 1, false), { code: 'READ_ONLY' })
  t.equal(image.bytes[0], 0)
})

t.test('statfs: the disk is the total, what the image takes is used', async (t) => {
  // Rounded up to blocks of 4096: 3 of them, 1 of them allocated.
  t.same(treeOf(memoryImage({ allocated: 4096 })).statistics(), {
    blockSize: 4096,
    blocks: 3,
    freeBlocks: 2,
    availableBlocks: 2,
    files: 2,
    nameLength: 255,
  })
  t.match(treeOf(memoryImage({ allocated: SIZE })).statistics(), { blocks: 3, freeBlocks: 0, availableBlocks: 0 })
  t.match(treeOf(memoryImage({ readOnly: true })).statistics(), { freeBlocks: 2, availableBlocks: 0 })
})

t.test('partitions: files of their own, which are windows of the disk', async (t) => {
  const image = memoryImage()
  const partitions = [
    { number: 1, start: 1000, size: 1500, type: '83' },
    { number: 5, start: 2600, size: 200, type: '83' },
  ]
  const tree = new ImageTree(image, structuredClone(treeSettings(owner, times, partitions)))
  t.match(tree.list(ROOT_INODE), [
    { name: 'disk.raw', directory: false },
    { name: 'partitions', directory: true },
  ])
  const folder = tree.lookup(ROOT_INODE, 'partitions')!
  t.match(tree.attributes(folder), { directory: true, mode: 0o700, links: 2 })
  t.equal(tree.attributes(ROOT_INODE)!.links, 3)
  t.match(tree.list(folder), [{ name: '1.raw' }, { name: '5.raw' }])
  t.equal(tree.lookup(folder, '2.raw'), undefined)
  const [one, five] = [tree.lookup(folder, '1.raw')!, tree.lookup(folder, '5.raw')!]
  t.equal(new Set([ROOT_INODE, 2, folder, one, five]).size, 5)
  t.match(tree.attributes(one), { directory: false, size: 1500, mode: 0o600 })

  t.equal(tree.write(one, new Uint8Array(100).fill(7), 0, 100, 1450), 50)
  t.same([image.bytes[2449], image.bytes[2450], image.bytes[2499], image.bytes[2500]], [0, 7, 7, 0])
  const read = new Uint8Array(60)
  t.equal(tree.read(one, read, 0, 60, 1440), 60)
  t.same([read[9], read[10], read[59]], [0, 7, 7])
  t.throws(() => tree.write(five, read, 0, 1, 200), { code: 'RANGE' })
  tree.zero(one, 1450, 1000, true)
  t.equal(image.bytes[2499], 0)
  // Of the data in [2000, 3000) each sees its own part.
  t.equal(tree.seek(one, 0, true), 1000)
  t.equal(tree.seek(one, 1200, false), 1500)
  t.equal(tree.seek(five, 0, true), 0)
  t.equal(tree.seek(five, 0, false), 200)
})
