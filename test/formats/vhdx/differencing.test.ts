import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { checkImage } from '../../../lib/image/check.js'
import { commitImage } from '../../../lib/image/commit.js'
import { createImage } from '../../../lib/image/create.js'
import { chainInfo, imageInfo } from '../../../lib/image/info.js'
import { openImage } from '../../../lib/image/open.js'
import { openFile } from '../../../lib/storage/file.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { corpusImage, needsCorpus } from '../vhd-images.js'
import { bytesAt, contextOf, entry, MiB, u64At } from './bytes.js'

const OUR_BAT = 3 * MiB

interface Chain {
  readonly folder: string
  readonly parent: string
  readonly child: string
}

/** A child over a parent that holds ones. */
function chain(t: Test, size: number, options: readonly string[] = ['block_size=1M']): Chain {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhdx'), join(folder, 'child.vhdx')]
  createImage(parent, { format: 'vhdx', size, options: options.filter((o) => !o.startsWith('block')) })
  write(parent, 0, size, 1)
  createImage(child, { format: 'vhdx', backing: parent, options })
  return { folder, parent, child }
}

function write(path: string, offset: number, length: number, value: number): void {
  const image = openImage(path)
  image.write(new Uint8Array(length).fill(value), 0, length, offset)
  image.close()
}

function read(path: string, offset: number, length: number): Uint8Array {
  const image = openImage(path, { readOnly: true })
  const bytes = new Uint8Array(length)
  image.read(bytes, 0, length, offset)
  image.close()
  return bytes
}

/** tap takes minutes to compare megabytes. */
function same(t: Test, found: Uint8Array, expected: Uint8Array): void {
  t.equal(Buffer.compare(found, expected), 0)
}

/** The child's file, looked at by its offsets. */
function look<T>(path: string, use: (storage: ReturnType<typeof openFile>) => T): T {
  const storage = openFile(path, { readOnly: true })
  try {
    return use(storage)
  } finally {
    storage.close()
  }
}

t.test('512 bytes set one bit', async (t) => {
  const { child } = chain(t, 8 * MiB)
  write(child, 5 * MiB + 512 * 11, 512, 2)
  look(child, (storage) => {
    // 4096 blocks of 1 MiB make a chunk; its sector bitmap block's entry comes behind theirs.
    t.equal(u64At(storage, OUR_BAT + 8 * 4096), entry(6, storage.size() / MiB - 2), 'the bitmap block')
    t.equal(u64At(storage, OUR_BAT + 8 * 5), entry(7, storage.size() / MiB - 1), 'partially present')
    const bitmap = bytesAt(storage, storage.size() - 2 * MiB, MiB)
    const expected = new Uint8Array(MiB)
    // 2048 sectors to a block: 256 bytes each; sector 11 is bit 3 of byte 1, the least significant first.
    expected[5 * 256 + 1] = 8
    t.equal(Buffer.compare(bitmap, expected), 0, 'one bit of the bitmap block')
  })
  t.same(read(child, 5 * MiB + 512 * 10, 3 * 512), new Uint8Array(1536).fill(1).fill(2, 512, 1024))
})

t.test('parts of sectors take the rest from the parent', async (t) => {
  for (const sectorSize of [512, 4096]) {
    const { child } = chain(t, 4 * MiB, ['block_size=2M', `logical_sector_size=${sectorSize}`])
    write(child, 3 * sectorSize + 100, 10, 2)
    const bytes = read(child, 0, 8 * sectorSize)
    const expected = new Uint8Array(8 * sectorSize).fill(1).fill(2, 3 * sectorSize + 100, 3 * sectorSize + 110)
    t.same(bytes, expected)
    look(child, (storage) => {
      t.same(bytesAt(storage, storage.size() - 3 * MiB, 2), Uint8Array.of(8, 0), `one sector of ${sectorSize} bytes`)
    })
  }
})

t.test('a block whose sectors are all there becomes fully present', async (t) => {
  for (const options of [['block_size=1M'], ['block_size=4M'], ['block_size=2M', 'logical_sector_size=4096']]) {
    // The last block is not whole.
    const size = 6 * MiB + MiB / 2
    const { child } = chain(t, size, options)
    const { blockSize } = look(child, (storage) => vhdx.open(contextOf(storage)).layout)
    const last = Math.floor(size / blockSize)
    const stateOf = (block: number) => look(child, (storage) => Number(u64At(storage, OUR_BAT + 8 * block) & 7n))
    const image = openImage(child)
    const piece = new Uint8Array(65536).fill(3)
    // From the end on, so that the beginning is the last that is missing.
    for (let at = blockSize - piece.length; at > 0; at -= piece.length) image.write(piece, 0, piece.length, at)
    for (let at = last * blockSize; at < size; at += piece.length) image.write(piece, 0, piece.length, at)
    image.flush()
    t.same([stateOf(0), stateOf(last)], [7, 6], options.join())
    image.write(piece, 0, piece.length - 4096, 0)
    image.flush()
    t.equal(stateOf(0), 7)
    image.write(piece, 0, 4096, piece.length - 4096)
    image.close()
    t.equal(stateOf(0), 6)
    same(t, read(child, 0, blockSize), new Uint8Array(blockSize).fill(3))
  }
})

t.test('a whole block needs no bitmap', async (t) => {
  const { child } = chain(t, 8 * MiB)
  write(child, 2 * MiB, MiB, 2)
  look(child, (storage) => {
    t.equal(Number(u64At(storage, OUR_BAT + 16) & 7n), 6)
    t.equal(u64At(storage, OUR_BAT + 8 * 4096), 0n)
  })
})

t.test('zeros hide the parent', async (t) => {
  const { child } = chain(t, 8 * MiB)
  write(child, 3 * MiB, 4096, 2)
  const image = openImage(child)
  image.zero(2 * MiB, 3 * MiB, true)
  image.zero(6 * MiB + 512, 512, true)
  image.close()
  same(t, read(child, 2 * MiB - 1, 3 * MiB + 2), new Uint8Array(3 * MiB + 2).fill(1, 0, 1).fill(1, 3 * MiB + 1))
  t.same(read(child, 6 * MiB, 1536), new Uint8Array(1536).fill(1).fill(0, 512, 1024))
  look(child, (storage) => {
    t.same(
      [2, 3, 4].map((block) => u64At(storage, OUR_BAT + 8 * block)),
      [2n, 2n, 2n],
    )
  })
  write(child, 3 * MiB + 4096, 512, 5)
  t.same(read(child, 3 * MiB + 4000, 700), new Uint8Array(700).fill(5, 96, 608), 'written again: zeros around it')
})

t.test('bits that somebody left in the bitmap of a block that is not present mean nothing', async (t) => {
  const { child } = chain(t, 8 * MiB)
  write(child, 0, 512, 2)
  const bitmap = look(child, (storage) => storage.size() - 2 * MiB)
  const storage = openFile(child)
  storage.write(new Uint8Array(256).fill(0xff), 0, 256, bitmap + 256)
  storage.close()
  t.same(read(child, MiB, 4096), new Uint8Array(4096).fill(1))
  write(child, MiB + 512, 512, 4)
  t.same(read(child, MiB, 1536), new Uint8Array(1536).fill(1).fill(4, 512, 1024))
})

t.test('a partially present block without a bitmap block is refused', async (t) => {
  const { child } = chain(t, 8 * MiB)
  write(child, 0, 512, 2)
  const storage = openFile(child)
  storage.write(new Uint8Array(8), 0, 8, OUR_BAT + 8 * 4096)
  storage.close()
  t.throws(() => read(child, 0, 512), { code: 'CORRUPT', message: /its chunk has no sector bitmap block/ })
})

t.test('a parent that changed is refused, and the reason is told', async (t) => {
  const { parent, child } = chain(t, 4 * MiB)
  write(child, 0, 512, 2)
  const made = imageInfo(parent)['format-specific']!.data['data-write-guid']
  openImage(parent).close()
  t.equal(read(child, 512, 1)[0], 1, 'opening alone changes nothing')
  write(parent, 0, 1, 1)
  const now = imageInfo(parent)['format-specific']!.data['data-write-guid']
  t.throws(() => openImage(child), {
    code: 'CORRUPT',
    message: new RegExp(
      `^${child}: its parent .*parent.vhdx.* cannot be opened: looked for ${parent} \\(its data has the GUID ${now}, and the child was made over ${made}: it was changed after`,
    ),
  })
})

t.test('check looks for the parent', async (t) => {
  const { folder, parent, child } = chain(t, 4 * MiB)
  write(child, MiB, 100, 2)
  t.same(checkImage(child).findings, [])
  const moved = join(temporaryFolder(t), 'child.vhdx')
  copyFileSync(child, moved)
  t.match(checkImage(moved), {
    corruptions: 0,
    findings: [{ severity: 'warning', what: 'parent', repairable: false, message: /parent\.vhdx/ }],
  })
  t.same(checkImage(moved, { backingDirs: [folder] }).findings, [])
  write(parent, 0, 100, 3)
  t.match(checkImage(child, { repair: 'all' }), {
    corruptions: 1,
    corruptionsFixed: 0,
    findings: [
      { severity: 'corruption', what: 'parent-mismatch', repairable: false, message: /changed after the child/ },
    ],
  })
})

t.test('what a child takes over, and what it says of its parent', async (t) => {
  const { parent, child } = chain(t, 4 * MiB, ['logical_sector_size=4096'])
  const [c, p] = [imageInfo(child), imageInfo(parent)].map((info) => info['format-specific']!.data)
  t.match(c, {
    subformat: 'differencing',
    'logical-sector-size': 4096,
    'block-size': 2 * MiB,
    'virtual-disk-id': p!['virtual-disk-id'],
    'parent-locator': [
      `parent_linkage: {${p!['data-write-guid']}}`,
      'parent_linkage2: {00000000-0000-0000-0000-000000000000}',
      'relative_path: .\\parent.vhdx',
      `volume_path: \\\\?\\Volume{00000000-0000-0000-0000-000000000000}${parent.replaceAll('/', '\\')}`,
      `absolute_win32_path: \\\\?\\C:${parent.replaceAll('/', '\\')}`,
    ],
  })
  t.match(must('vhdiinfo', [child]), /Differential[\s\S]*Parent identifier\s*: [\da-f-]{36}\n[\s\S]*parent\.vhdx/)
  t.throws(() => createImage(`${child}2`, { format: 'vhdx', backing: parent, options: ['logical_sector_size=512'] }), {
    code: 'USAGE',
  })
  t.throws(() => createImage(`${child}2`, { format: 'vhdx', backing: parent, options: ['subformat=fixed'] }), {
    code: 'USAGE',
  })
  t.notOk(existsSync(`${child}2`))
})

/** Lets more keys of the parent locator have one and the same value than there is room for when each has its own. */
function inflate(path: string, keys: number): void {
  const storage = openFile(path)
  const metadata = 2 * MiB
  const table = Buffer.from(bytesAt(storage, metadata, 65536))
  // [MS-VHDX] 2.6.1.2, 2.6.2.6
  const row = table.indexOf('2d5fd3a80bb34d45abf7d3d84834ab0c', 0, 'hex')
  const at = metadata + table.readUInt32LE(row + 16)
  const item = Buffer.from(bytesAt(storage, at, table.readUInt32LE(row + 20)))
  const found = item.readUInt16LE(18)
  const longer = 12 * keys
  const rows: Buffer[] = []
  for (let i = 0; i < found; i++) {
    const one = item.subarray(20 + 12 * i, 32 + 12 * i)
    for (const field of [0, 4]) one.writeUInt32LE(one.readUInt32LE(field) + longer, field)
    rows.push(one)
  }
  const value = Buffer.alloc(60_000, 'x\0')
  const names = Array.from({ length: keys }, (_, i) => Buffer.from(`key${i}`, 'utf16le'))
  const texts = [...item.subarray(20 + 12 * found)]
  const shared = 20 + 12 * found + longer + texts.length
  let end = shared + value.length
  for (const name of names) {
    const one = Buffer.alloc(12)
    one.writeUInt32LE(end, 0)
    one.writeUInt32LE(shared, 4)
    one.writeUInt16LE(name.length, 8)
    one.writeUInt16LE(value.length, 10)
    rows.push(one)
    end += name.length
  }
  item.writeUInt16LE(found + keys, 18)
  const bytes = Buffer.concat([item.subarray(0, 20), ...rows, Buffer.from(texts), value, ...names])
  table.writeUInt32LE(bytes.length, row + 20)
  storage.write(table, 0, table.length, metadata)
  storage.write(bytes, 0, bytes.length, at)
  storage.close()
}

t.test('a parent locator that is too long when it is written anew is refused before anything is', async (t) => {
  for (const [keys, message] of [
    [14, /pages change at once, and its log takes 126$/],
    [18, /no room for \d+ bytes more$/],
  ] as const) {
    const { parent, child } = chain(t, 2 * MiB)
    write(child, 0, 4096, 2)
    inflate(child, keys)
    const before = [parent, child].map((path) => readFileSync(path))
    t.throws(() => commitImage(child), { code: 'NO_SPACE', message })
    same(t, readFileSync(parent), before[0]!)
    same(t, readFileSync(child), before[1]!)
    same(t, read(child, 0, 4096), new Uint8Array(4096).fill(2))
  }
})

t.test('parents of parents, of other block sizes, smaller and moved', async (t) => {
  const { folder, parent, child } = chain(t, 6 * MiB)
  write(child, MiB, 512, 2)
  const top = join(folder, 'top.vhdx')
  createImage(top, { format: 'vhdx', backing: child, size: 10 * MiB, options: ['block_size=4M'] })
  write(top, MiB + 512, 512, 3)
  const moved = join(folder, 'moved')
  mkdirSync(moved)
  for (const path of [parent, child, top]) renameSync(path, path.replace(folder, moved))
  const path = join(moved, 'top.vhdx')
  t.equal(chainInfo(path).length, 3)
  const bytes = read(path, 0, 10 * MiB)
  const expected = new Uint8Array(10 * MiB)
    .fill(1, 0, 6 * MiB)
    .fill(2, MiB, MiB + 512)
    .fill(3, MiB + 512, MiB + 1024)
  t.equal(Buffer.compare(bytes, expected), 0)
  renameSync(join(moved, 'parent.vhdx'), join(moved, 'gone.vhdx'))
  t.throws(() => read(path, 0, 1), { code: 'NOT_FOUND', message: /child.vhdx: its parent .*parent\.vhdx/ })
})

t.test('a parent with a dirty log is read as if it were replayed, and stays as it is', needsCorpus, async (t) => {
  const { path } = corpusImage(t, 'vhdx/dirtylog-10G.vhdx')
  const child = join(temporaryFolder(t), 'child.vhdx')
  const before = look(path, (storage) => bytesAt(storage, 0, 4 * MiB))
  createImage(child, { format: 'vhdx', backing: path })
  const image = openImage(child, { backingDirs: [path.slice(0, path.lastIndexOf('/'))] })
  const bytes = new Uint8Array(512)
  image.read(bytes, 0, 512, 17 * MiB + 4096)
  t.same(bytes, new Uint8Array(512).fill(0xa5), 'the block that is in the log only')
  image.close()
  t.equal(
    Buffer.compare(
      look(path, (storage) => bytesAt(storage, 0, 4 * MiB)),
      before,
    ),
    0,
  )
})

t.test('a differencing disk of Hyper-V: its bitmaps', needsCorpus, async (t) => {
  const { path } = corpusImage(t, 'vhdx/differencing.avhdx')
  t.throws(() => openImage(path), {
    code: 'NOT_FOUND',
    message:
      /Generation 1_49C4BAF3-4B25-4406-8C4B-D39E65C32385.avhdx' cannot be opened: looked for .*Generation 1_49C4BAF3/,
  })
  t.match(imageInfo(path)['format-specific']!.data, {
    blocks: { 'partially-present': 32, 'sector-bitmaps': 2, 'not-present': 4064 },
  })
})

t.test('the largest blocks with the smallest cache', async (t) => {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhdx'), join(folder, 'child.vhdx')]
  createImage(parent, { format: 'vhdx', size: 300 * MiB })
  createImage(child, { format: 'vhdx', backing: parent, options: ['block_size=256M'] })
  const image = openImage(child, { cacheSize: MiB })
  image.write(new Uint8Array(4096).fill(7), 0, 4096, 8192)
  image.close()
  t.same(read(child, 8192, 4097), [...new Uint8Array(4096).fill(7), 0])
})
