// What an image may name as its parent, its data or its part, and what becomes of it: one clear line, and nothing is
// opened that lies elsewhere.
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { checkImage } from '../../lib/image/check.js'
import { chainInfo, imageInfo } from '../../lib/image/info.js'
import { openImage } from '../../lib/image/open.js'
import { VdiskError } from '../../lib/util/errors.js'
import { MiB } from '../../lib/util/sizes.js'
import { imageOf, rename } from '../fuzz/damage.js'
import { openedSince, watchOpens } from '../fuzz/disk.js'
import type { Pages } from '../fuzz/pages.js'
import { secret } from '../model/variants.js'
import { must } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

watchOpens()

/** A name, and what has to be said of it where a parent of this name cannot be taken. */
const NAMES: readonly (readonly [name: string, says: RegExp])[] = [
  ['/etc/passwd', /lies outside of|cannot be opened|cannot open/],
  ['../../../../../../../../etc/passwd', /lies outside of|cannot be opened|cannot open/],
  ['..', /.|directory/],
  ['.', /.|directory/],
  ['link', /lies outside of/],
  ['fifo', /is a FIFO/],
  ['folder', /directory|folder/],
  ['zero', /character device|lies outside of/],
  ['image', /names no place to look in|is a loop/],
  ['json:{"driver":"file","filename":"/etc/passwd"}', /json:/],
  ['nbd://localhost:10809/x', /nbd:/],
  ['x'.repeat(250), /xxx/],
  [`${'y/'.repeat(100)}z`, /y.y/],
  ['a\u001b[31mred', /./],
  ['nothing', /nothing/],
]

function folderWithTraps(t: TestCase): string {
  const folder = temporaryFolder(t)
  symlinkSync('/etc/passwd', join(folder, 'link'))
  spawnSync('mkfifo', [join(folder, 'fifo')])
  spawnSync('mknod', [join(folder, 'zero'), 'c', '1', '5'])
  mkdirSync(join(folder, 'folder'))
  return folder
}

function write(path: string, pages: Pages): void {
  writeFileSync(path, pages.get(0, pages.size))
  chmodSync(path, 0o600)
}

/** Images of which the first names another file. */
const VARIANTS: readonly (readonly [format: string, variant: string])[] = [
  ['vhd', 'vhd block_size=16K over block_size=4K'],
  ['vhdx', 'vhdx block_size=1M over block_size=2M'],
  ['qcow2', 'qcow2 cluster_size=16K over cluster_size=4K'],
]

for (const [format, variant] of VARIANTS)
  t.test(`names in ${format}`, async (t) => {
    const folder = folderWithTraps(t)
    const path = join(folder, 'image')
    for (const [name, says] of NAMES) {
      const [image] = imageOf(variant)
      rename(image!, format, name)
      write(path, image!)
      const opened = openedSince()
      const outcome = tried(() => openImage(path, { secret }).close())
      t.match(outcome, says, `${JSON.stringify(name.slice(0, 40))}: ${outcome}`)
      t.ok(outcome.length < 4000)
      // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what is looked for
      t.notMatch(outcome, /[\u0000-\u001f\u007f]/, 'one line')
      tried(() => imageInfo(path))
      tried(() => chainInfo(path))
      tried(() => checkImage(path))
      tried(() => checkImage(path, { repair: 'all' }))
      t.same(
        opened().filter((other) => !other.startsWith(`${folder}/`) && !other.startsWith('/proc/')),
        [],
        'nothing else was opened',
      )
    }
  })

/** An image that QEMU makes with an external data file, which is then called something else. */
function withDataFile(folder: string, name: string): Buffer {
  const placeholder = 'n'.repeat(Buffer.byteLength(name))
  must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', `data_file=${placeholder}`, 'image', '1M'], { cwd: folder })
  rmSync(join(folder, placeholder))
  const bytes = readFileSync(join(folder, 'image'))
  // A header extension is its type, its length, and here the name.
  const at = bytes.indexOf('DATA') + 8
  t.equal(bytes.toString('utf8', at, at + placeholder.length), placeholder)
  bytes.write(name, at)
  return bytes
}

t.test('names of data files in qcow2', async (t) => {
  const folder = folderWithTraps(t)
  const path = join(folder, 'image')
  for (const [name, says] of NAMES) {
    writeFileSync(path, withDataFile(folder, name))
    const opened = openedSince()
    const outcome = tried(() => openImage(path).close())
    t.match(outcome, says, `${JSON.stringify(name.slice(0, 40))}: ${outcome}`)
    tried(() => imageInfo(path))
    tried(() => checkImage(path, { repair: 'all' }))
    const elsewhere = opened().filter((other) => !other.startsWith(`${folder}/`) && !other.startsWith('/proc/'))
    t.same(elsewhere, [], 'nothing else was opened')
  }
})

t.test('a raw disk into which its guest writes the header of an image stays raw', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'disk')
  const trap = join(folder, 'trap')
  writeFileSync(path, Buffer.alloc(MiB))
  writeFileSync(join(folder, 'secret'), Buffer.alloc(MiB, 'secret'))
  must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'secret', '-F', 'raw', trap])
  const header = readFileSync(trap)
  const guest = openImage(path, { format: 'raw', readOnly: false })
  guest.write(header, 0, header.length, 0)
  guest.flush()
  guest.close()

  const again = openImage(path, { format: 'raw' })
  const bytes = Buffer.alloc(header.length)
  again.read(bytes, 0, bytes.length, 0)
  t.equal(again.format, 'raw')
  t.equal(again.size, MiB)
  t.ok(bytes.equals(header), 'what the guest wrote is what it reads')
  again.close()
  const overlay = join(folder, 'overlay')
  must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'disk', '-F', 'raw', overlay])
  const child = openImage(overlay)
  child.read(bytes, 0, bytes.length, 0)
  t.ok(bytes.equals(header), 'also below an image that says so')
  child.close()
})

t.test('two parents in a circle', async (t) => {
  const folder = temporaryFolder(t)
  for (const [name, parent] of [
    ['image', 'second'],
    ['second', 'image'],
  ] as const) {
    const [image] = imageOf('qcow2 cluster_size=16K over cluster_size=4K')
    rename(image!, 'qcow2', parent)
    write(join(folder, name), image!)
  }
  t.match(
    tried(() => openImage(join(folder, 'image'))),
    /the chain of images is a loop/,
  )
})

/** The message; fails for anything but a VdiskError, and where nothing is thrown. */
function tried(work: () => unknown): string {
  try {
    work()
    return 'nothing was thrown'
  } catch (error) {
    if (error instanceof VdiskError && error.code !== 'INTERNAL') return error.message
    throw error
  }
}

const DESCRIPTOR = (name: string) => `<?xml version="1.0" encoding="UTF-8"?>
<Parallels_disk_image Version="1.0">
  <Disk_Parameters><Disk_size>2048</Disk_size><Cylinders>2</Cylinders><Heads>16</Heads><Sectors>63</Sectors>
    <Padding>0</Padding></Disk_Parameters>
  <StorageData><Storage><Start>0</Start><End>2048</End><Blocksize>2048</Blocksize>
    <Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Plain</Type><File>${name}</File></Image>
  </Storage></StorageData>
  <Snapshots><Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>
    <ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot></Snapshots>
</Parallels_disk_image>`

t.test('names in a bundle of parallels', async (t) => {
  const folder = folderWithTraps(t)
  for (const [name, says] of NAMES) {
    // XML has no such character; and this is the descriptor's own place.
    if (name.includes('\u001b') || name === 'image') continue
    writeFileSync(join(folder, 'DiskDescriptor.xml'), DESCRIPTOR(name.replaceAll('"', '&quot;')))
    const opened = openedSince()
    const outcome = tried(() => openImage(folder).close())
    t.match(outcome, says, `${JSON.stringify(name.slice(0, 40))}: ${outcome}`)
    tried(() => checkImage(folder))
    const elsewhere = opened().filter((other) => !other.startsWith(`${folder}/`) && !other.startsWith('/proc/'))
    t.same(elsewhere, [], 'nothing else was opened')
  }
})
