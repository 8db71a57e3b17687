/** Metadata items that belong to the disk: a child has them from its parent. [MS-VHDX] 2.6.1.2, IsVirtualDisk */

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { commitImage } from '../../../lib/image/commit.js'
import { createImage } from '../../../lib/image/create.js'
import { openImage } from '../../../lib/image/open.js'
import { openFile } from '../../../lib/storage/file.js'
import { contents } from '../../metadata/fixtures/metadata.js'
import { temporaryFolder } from '../../support/temp.js'
import { At, bytesAt, hex, MiB, put, u32, WINDOWS_ITEMS, WINDOWS_METADATA, windowsImage } from './bytes.js'

const USER = 1
const DISK = 2

interface Given {
  readonly id: string
  readonly flags: number
  readonly data: string | Uint8Array
}

const bytes = (data: string | Uint8Array) => new Uint8Array(Buffer.from(data))

/** The image of Windows with more items in its metadata, as a file. */
function imageWith(path: string, given: readonly Given[]): void {
  const metadata = put(WINDOWS_METADATA.slice(), 10, Uint8Array.of(5 + given.length, 0))
  const items = new Uint8Array(WINDOWS_ITEMS.length + given.reduce((sum, { data }) => sum + data.length, 0))
  items.set(WINDOWS_ITEMS)
  let at = WINDOWS_ITEMS.length
  given.forEach(({ id, flags, data }, i) => {
    const entry = 32 + 32 * (5 + i)
    put(metadata, entry, hex(id))
    put(metadata, entry + 16, u32(data.length > 0 ? 65536 + at : 0))
    put(metadata, entry + 20, u32(data.length))
    put(metadata, entry + 24, u32(flags))
    items.set(bytes(data), at)
    at += data.length
  })
  writeFileSync(path, contents(windowsImage({ metadata, items })))
}

/** The items of a file that are none of the specification's, by the offsets of its tables. */
function itemsOf(path: string): Given[] {
  const storage = openFile(path, { readOnly: true })
  try {
    const table = Buffer.from(bytesAt(storage, At.metadata, 65536))
    const found: Given[] = []
    for (let i = 5; i < table.readUInt16LE(10); i++) {
      const entry = table.subarray(32 + 32 * i, 64 + 32 * i)
      const [offset, length] = [entry.readUInt32LE(16), entry.readUInt32LE(20)]
      if (length === 0 && offset !== 0) throw new Error('an empty item has a place')
      const data = Buffer.from(bytesAt(storage, At.metadata + offset, length)).toString('latin1')
      found.push({ id: entry.toString('hex', 0, 16), flags: entry.readUInt32LE(24), data })
    }
    return found
  } finally {
    storage.close()
  }
}

const OF_DISK: readonly Given[] = [
  { id: 'ee'.repeat(16), flags: USER | DISK, data: 'USERDATA' },
  { id: '11'.repeat(16), flags: DISK, data: 'of a later version' },
  { id: '22'.repeat(16), flags: USER | DISK, data: '' },
]
const OF_FILE: Given = { id: '33'.repeat(16), flags: USER, data: 'of the file' }
const LOCATOR = '2d5fd3a80bb34d45abf7d3d84834ab0c'

function chain(t: Test, given: readonly Given[]): { parent: string; child: string } {
  const folder = temporaryFolder(t)
  const [parent, child] = [join(folder, 'parent.vhdx'), join(folder, 'child.vhdx')]
  imageWith(parent, given)
  createImage(child, { format: 'vhdx', backing: parent, options: [] })
  return { parent, child }
}

t.test('a child has the items of its parent that belong to the disk, and no others', async (t) => {
  const { child } = chain(t, [OF_DISK[0]!, OF_FILE, ...OF_DISK.slice(1)])
  const grandchild = join(child, '..', 'grandchild.vhdx')
  createImage(grandchild, { format: 'vhdx', backing: child, options: [] })
  for (const path of [child, grandchild])
    t.same(
      itemsOf(path).filter(({ id }) => id !== LOCATOR),
      OF_DISK,
    )
})

t.test('more of them than a child has room for', async (t) => {
  t.throws(() => chain(t, [{ ...OF_DISK[0]!, data: new Uint8Array(600 * 1024) }]), {
    code: 'UNSUPPORTED',
    message: /parent.vhdx: its metadata has more items/,
  })
})

t.test('a commit keeps them where they are the same, and says so where it would have to replace them', async (t) => {
  const { parent, child } = chain(t, OF_DISK)
  const write = (value: number) => {
    const image = openImage(child)
    image.write(new Uint8Array(512).fill(value), 0, 512, MiB)
    image.close()
  }
  write(1)
  commitImage(child)
  t.same(itemsOf(parent), OF_DISK)
  write(2)
  const file = openFile(child)
  const before = contents(file)
  const at = Buffer.from(before).indexOf('USERDATA')
  file.write(bytes('changed!'), 0, 8, at)
  file.close()
  const untouched = openFile(parent, { readOnly: true })
  const held = contents(untouched)
  t.throws(() => commitImage(child), {
    code: 'UNSUPPORTED',
    message: /item eeeeeeee-eeee-eeee-eeee-eeeeeeeeeeee, .* replaced in .*parent.vhdx/,
  })
  t.equal(Buffer.compare(contents(untouched), held), 0, 'the parent is what it was')
  untouched.close()
  const image = openImage(child, { readOnly: true })
  const sector = new Uint8Array(512)
  image.read(sector, 0, 512, MiB)
  t.equal(sector[0], 2)
  image.close()
})
