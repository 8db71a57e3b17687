/** Bundles in folders: parts side by side, snapshots, parts that are missing, and writing through the right part. */

import { copyFileSync, existsSync, linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Repair } from '../../../lib/formats/driver.js'
import { parallels } from '../../../lib/formats/parallels/format.js'
import { checkImage } from '../../../lib/image/check.js'
import { createImage } from '../../../lib/image/create.js'
import type { Image } from '../../../lib/image/image.js'
import { chainInfo, imageInfo } from '../../../lib/image/info.js'
import { imageOver, openImage } from '../../../lib/image/open.js'
import { openOverlay } from '../../../lib/image/overlay.js'
import { FaultStorage } from '../../../lib/storage/fault.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import type { Storage } from '../../../lib/storage/storage.js'
import { must } from '../../support/run.js'
import { type TestCase, temporaryFolder } from '../../support/temp.js'
import { type BundleParts, bundleXml, guid, NIL, TOP } from './bundles.js'
import { BITMAP, bitmapData, corpusText, extensionBytes, fromCorpus, imageBytes, KiB, needsCorpus } from './bytes.js'

const CLUSTER = 4 * KiB
/** Sizes of the six parts in sectors: some end inside a cluster. */
const PARTS = [80, 63, 8, 77, 100, 16] as const
const SECTORS = PARTS.reduce((sum, size) => sum + size, 0)
const SIZE = SECTORS * 512

interface Part {
  readonly start: number
  readonly end: number
  readonly plain: boolean
}

const parts: Part[] = PARTS.map((_, i) => ({
  start: PARTS.slice(0, i).reduce((sum, size) => sum + size, 0),
  end: PARTS.slice(0, i + 1).reduce((sum, size) => sum + size, 0),
  plain: i % 3 === 1,
}))

const emptyImage = (sectors: number) => imageBytes({ cluster: 8, sectors, dataOff: 8, size: CLUSTER })

/** A bundle of six parts with a chain of snapshots; only the first can have plain parts. */
function bundle(t: TestCase, snapshots: readonly string[], xml: Partial<BundleParts> = {}): string {
  const folder = join(temporaryFolder(t), 'disk.hdd')
  mkdirSync(folder)
  const shots = snapshots.map((id, i) => [id, i === 0 ? NIL : snapshots[i - 1]!] as const)
  const storages = parts.map(({ start, end, plain }, p) => ({
    start,
    end,
    images: snapshots.map((id, i) => {
      const file = `part${p}.${i}.hds`
      const isPlain = plain && i === 0
      writeFileSync(join(folder, file), isPlain ? Buffer.alloc((end - start) * 512) : emptyImage(end - start))
      return [id, isPlain ? 'Plain' : 'Compressed', file] as const
    }),
  }))
  writeFileSync(join(folder, 'DiskDescriptor.xml'), bundleXml({ sectors: SECTORS, storages, shots, ...xml }))
  return folder
}

/** Bytes that differ from place to place. */
function pattern(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let i = 0; i < length; i++) bytes[i] = (i * 7 + (i >> 8) * 13 + seed) & 0xff
  return bytes
}

function all(disk: Image): Buffer {
  const buffer = Buffer.alloc(disk.size)
  disk.read(buffer, 0, buffer.length, 0)
  return buffer
}

function contents(path: string, options: Parameters<typeof openImage>[1] = {}): Buffer {
  const disk = openImage(path, { readOnly: true, ...options })
  try {
    return all(disk)
  } finally {
    disk.close()
  }
}

t.test('a bundle that Parallels Desktop wrote', needsCorpus, async (t) => {
  const folder = join(temporaryFolder(t), 'plain.hdd')
  mkdirSync(folder)
  const part = 'plain.hdd.0.{5fbaabe3-6958-40ff-92a7-860e329aab41}.hds'
  writeFileSync(join(folder, 'DiskDescriptor.xml'), corpusText('plain.hdd/DiskDescriptor.xml'))
  writeFileSync(join(folder, part), fromCorpus(`plain.hdd/${part}`))
  const disk = openImage(folder, { readOnly: true })
  const byte = Buffer.alloc(1)
  for (const mib of [0, 1, 57, 99]) {
    disk.read(byte, 0, 1, mib * 1048576 + 1048575)
    t.equal(byte[0], mib)
  }
  disk.close()
  t.match(imageInfo(folder), { 'virtual-size': 104857600, format: 'parallels', filename: folder })
  t.equal(imageInfo(join(folder, 'DiskDescriptor.xml'))['virtual-size'], 104857600, 'by its descriptor too')
})

/** A bundle over storages: parts of 16 clusters each. */
function over(parts: readonly Storage[]): Image {
  const sectors = 16 * 8
  const xml = bundleXml({
    sectors: sectors * parts.length,
    storages: parts.map((_, i) => ({
      start: sectors * i,
      end: sectors * (i + 1),
      images: [[TOP, 'Compressed', String(i)]],
    })),
    shots: [[TOP, NIL]],
  })
  const storage = MemoryStorage.create({ path: 'x.hdd/DiskDescriptor.xml', contents: Buffer.from(xml) })
  const { path } = storage
  const openFile = (name: string) => ({ index: 1 + Number(name), storage: parts[Number(name)]! })
  const opened = parallels.open({ storage, path, readOnly: false, openFile, warn: () => {} })
  return imageOver([{ path, format: parallels, guessedRaw: false, storage, files: parts, snapshot: undefined, opened }])
}

t.test('a part whose writing cannot begin: the parts in front of it do not begin twice', async (t) => {
  const sectors = 16 * 8
  const extended = (magic: bigint, data: Buffer) => {
    const file = imageBytes({ cluster: 8, sectors, dataOff: 8, extOff: 16, size: 3 * CLUSTER })
    extensionBytes(CLUSTER, [{ magic, data }]).copy(file, 2 * CLUSTER)
    return MemoryStorage.create({ path: 'x.hds', contents: file })
  }
  for (let nth = 1, fired = 1; fired > 0; nth++) {
    // Its extension is dropped, and its cluster is free then.
    const first = extended(0x1122n, Buffer.alloc(8))
    const second = extended(BITMAP, bitmapData(sectors, '00112233-4455-6677-8899-aabbccddeeff', 8, [0]))
    const failing = new FaultStorage(second)
    const disk = over([first, failing])
    failing.fail({ kinds: ['write', 'reserve'], nth, errno: 'ENOSPC' })
    for (let i = 0; i < 6; i++) {
      const put = () => disk.write(Buffer.alloc(CLUSTER, 0xa0 + i), 0, CLUSTER, i * CLUSTER)
      try {
        put()
      } catch {
        put()
      }
    }
    fired = failing.fired
    failing.heal()
    const found = all(disk)
    disk.close()
    t.same(
      [0, 1, 2, 3, 4, 5].map((i) => found[i * CLUSTER]),
      [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5],
      `the ${nth}.`,
    )
    for (const part of [first, second]) {
      const findings: string[] = []
      parallels.check!({
        storage: part,
        path: 'x.hds',
        readOnly: true,
        repair: 'none',
        warn: () => {},
        found: ({ message }) => void findings.push(message),
      })
      t.same(findings, [], `the ${nth}., a check`)
    }
    t.ok(nth < 20)
  }
})

t.test('six parts are one disk, read and written across every seam', async (t) => {
  const folder = bundle(t, [TOP])
  const model = Buffer.alloc(SIZE)
  const disk = openImage(folder)
  t.equal(disk.size, SIZE)
  for (const { end } of parts) {
    const offset = end * 512 - 700
    const data = pattern(Math.min(1500, SIZE - offset), end)
    disk.write(data, 0, data.length, offset)
    data.copy(model, offset)
  }
  t.ok(all(disk).equals(model))
  disk.close()
  t.ok(contents(folder).equals(model))
  const plain = readFileSync(join(folder, 'part1.0.hds'))
  t.ok(plain.equals(model.subarray(parts[1]!.start * 512, parts[1]!.end * 512)), 'a plain part has its bytes')
  for (const [p, { start, end, plain }] of parts.entries()) {
    if (plain) continue
    const alone = contents(join(folder, `part${p}.0.hds`))
    t.ok(alone.equals(model.subarray(start * 512, end * 512)), `part ${p} has its bytes, and nothing of its neighbours`)
  }
  t.same(checkImage(folder).findings, [])
})

t.test('one write over the whole disk, then zeros over most of it', async (t) => {
  const folder = bundle(t, [TOP])
  const model = pattern(SIZE, 3)
  const disk = openImage(folder)
  disk.write(model, 0, SIZE, 0)
  t.ok(all(disk).equals(model))
  disk.zero(1000, SIZE - 2000, true)
  model.fill(0, 1000, SIZE - 1000)
  t.ok(all(disk).equals(model))
  disk.write(pattern(5000, 9), 0, 5000, 70 * 512)
  pattern(5000, 9).copy(model, 70 * 512)
  disk.close()
  t.ok(contents(folder).equals(model))
  t.same(checkImage(folder).findings, [])
})

/** As `bundle`, with images of so many sectors more than their storages, as programs make them that round up. */
function largerBundle(t: TestCase, snapshots: readonly string[], more: number): string {
  const folder = bundle(t, snapshots)
  for (const [p, { start, end, plain }] of parts.entries())
    for (const i of snapshots.keys())
      if (!plain || i > 0) writeFileSync(join(folder, `part${p}.${i}.hds`), emptyImage(end - start + more))
  return folder
}

/** The disk of one file, as QEMU reads it. */
function byQemu(t: TestCase, path: string): Buffer {
  const raw = join(temporaryFolder(t), 'x.raw')
  must('qemu-img', ['convert', '-f', 'parallels', '-O', 'raw', path, raw])
  return readFileSync(raw)
}

t.test('images that are larger than their storages: what lies behind a seam goes to the next part', async (t) => {
  for (const more of [1, 8, 20]) {
    const folder = largerBundle(t, [TOP], more)
    const model = pattern(SIZE, more)
    let disk = openImage(folder)
    disk.write(model, 0, SIZE, 0)
    t.ok(all(disk).equals(model))
    disk.close()
    t.ok(contents(folder).equals(model), 'one write')
    for (const [p, { start, end, plain }] of parts.entries()) {
      if (plain) continue
      const alone = byQemu(t, join(folder, `part${p}.0.hds`))
      t.ok(alone.subarray(0, (end - start) * 512).equals(model.subarray(start * 512, end * 512)), `part ${p}`)
      t.ok(alone.subarray((end - start) * 512).equals(Buffer.alloc(more * 512)), `nothing behind part ${p}`)
    }
    disk = openImage(folder)
    for (const { end } of parts) {
      const from = end * 512 - 5000
      const to = Math.min(SIZE, end * 512 + 3000)
      disk.zero(from, to - from, true)
      model.fill(0, from, to)
      const small = pattern(Math.min(1500, SIZE - end * 512 + 700), end)
      disk.write(small, 0, small.length, end * 512 - 700)
      small.copy(model, end * 512 - 700)
    }
    t.ok(all(disk).equals(model))
    disk.close()
    t.ok(contents(folder).equals(model), 'zeros and writes at the seams')
    t.same(checkImage(folder).findings, [])
  }
})

t.test('images that are larger than their storages, over a snapshot', async (t) => {
  const folder = largerBundle(t, [guid(1), TOP], 5)
  const xml = readFileSync(join(folder, 'DiskDescriptor.xml'), 'utf8')
  const withTop = (id: string) => xml.replace('<Snapshots>', `<Snapshots><TopGUID>{${id}}</TopGUID>`)
  writeFileSync(join(folder, 'DiskDescriptor.xml'), withTop(guid(1)))
  const below = pattern(SIZE, 1)
  const first = openImage(folder)
  first.write(below, 0, SIZE, 0)
  first.close()
  writeFileSync(join(folder, 'DiskDescriptor.xml'), withTop(TOP))
  const model = Buffer.from(below)
  const disk = openImage(folder)
  for (const { end } of parts) {
    const from = end * 512 - 100
    const data = pattern(Math.min(600, SIZE - from), end)
    disk.write(data, 0, data.length, from)
    data.copy(model, from)
  }
  disk.zero(75 * 512, 10 * 512, true)
  model.fill(0, 75 * 512, 85 * 512)
  disk.close()
  t.ok(contents(folder).equals(model), 'around what is written is what the parent has')
  t.ok(contents(folder, { snapshot: guid(1) }).equals(below))
})

t.test('snapshots: a chain by GUID, of which the top is written', async (t) => {
  const folder = bundle(t, [guid(1), guid(2), TOP])
  const models = [pattern(SIZE, 1)]
  // Each level is written as long as it is the top.
  for (const [level, id] of [guid(1), guid(2), TOP].entries()) {
    const xml = readFileSync(join(folder, 'DiskDescriptor.xml'), 'utf8')
    writeFileSync(
      join(folder, 'DiskDescriptor.xml'),
      xml.replace('<Snapshots>', `<Snapshots><TopGUID>{${id}}</TopGUID>`),
    )
    const disk = openImage(folder)
    t.equal(disk.layers.length, level + 1)
    if (level === 0) disk.write(models[0]!, 0, SIZE, 0)
    else {
      const model = Buffer.from(models[level - 1]!)
      for (const { end } of parts) {
        const offset = Math.min(end * 512 - 100 * level, SIZE - 300)
        disk.write(pattern(300, level), 0, 300, offset)
        pattern(300, level).copy(model, offset)
      }
      disk.zero(20 * 512, CLUSTER * 2, true)
      model.fill(0, 20 * 512, 20 * 512 + CLUSTER * 2)
      models.push(model)
      t.ok(all(disk).equals(model), 'zeros hide what the parent has')
    }
    disk.close()
    writeFileSync(join(folder, 'DiskDescriptor.xml'), xml)
  }
  t.ok(contents(folder).equals(models[2]!))
  for (const [level, id] of [guid(1), guid(2), TOP].entries())
    t.ok(contents(folder, { snapshot: `{${id.toUpperCase()}}` }).equals(models[level]!), `snapshot ${level}`)
  t.ok(contents(folder, { snapshot: `snapshot.id=${guid(1)}` }).equals(contents(folder, { snapshot: guid(1) })))
  t.throws(() => openImage(folder, { snapshot: guid(9) }), {
    code: 'NOT_FOUND',
    message: /no snapshot.*it has: \{0000/,
  })
  t.throws(() => openImage(folder, { snapshot: guid(1), readOnly: false }), { code: 'USAGE', message: /read-only/ })
  t.equal(chainInfo(folder).length, 3)
  const before = readFileSync(join(folder, 'part0.1.hds'))
  const disk = openImage(folder)
  disk.write(pattern(SIZE, 77), 0, SIZE, 0)
  disk.close()
  t.ok(readFileSync(join(folder, 'part0.1.hds')).equals(before), 'a snapshot is never written')
  t.same(checkImage(folder).findings, [])
})

t.test('a bundle that was moved, whose parts are named by where they were', async (t) => {
  const folder = bundle(t, [TOP])
  const xml = readFileSync(join(folder, 'DiskDescriptor.xml'), 'utf8')
  writeFileSync(join(folder, 'DiskDescriptor.xml'), xml.replaceAll('<File>', '<File>/gone/disk.hdd/'))
  renameSync(folder, `${folder}.moved`)
  t.equal(contents(`${folder}.moved`).length, SIZE)
})

t.test('what is missing is named', async (t) => {
  const folder = bundle(t, [guid(1), TOP])
  rmSync(join(folder, 'part3.1.hds'))
  t.throws(() => openImage(folder), {
    code: 'NOT_FOUND',
    message: /its part 'part3\.1\.hds' is missing: looked for .*disk\.hdd\/part3\.1\.hds/,
  })
  t.match(checkImage(folder).findings, [{ what: 'part', message: 'part3.1.hds: it is missing' }])
  copyFileSync(join(folder, 'part3.0.hds'), join(folder, 'part3.1.hds'))
  rmSync(join(folder, 'part2.0.hds'))
  t.throws(() => openImage(folder), { message: /parent '\{0000.*part 'part2\.0\.hds' is missing/ }, 'of a parent too')
  const incomplete = bundle(t, [TOP], { shots: [[guid(7), NIL]] })
  t.throws(() => openImage(incomplete), {
    code: 'CORRUPT',
    message: /sectors 0 to 80 has no image of snapshot \{0000.*07\}/,
  })
  const orphan = bundle(t, [guid(1), TOP], { shots: [[TOP, guid(8)]] })
  t.throws(() => openImage(orphan), { message: /parent '\{.*08\}' cannot be opened.*no snapshot/ })
  const loop = bundle(t, [guid(1), guid(2)], {
    shots: [
      [guid(1), guid(2)],
      [guid(2), guid(1)],
    ],
    topGuid: guid(1),
  })
  t.throws(() => openImage(loop), { message: /loop|cannot have a parent/ })
})

/** What a check says, which finds fault with everything that cannot be opened. */
function faults(folder: string, repair: Repair = 'none'): string[] {
  const { findings } = checkImage(folder, { repair })
  return findings.filter(({ severity }) => severity === 'corruption').map(({ message }) => message)
}

t.test('a check finds what keeps a bundle from being opened: its snapshots', async (t) => {
  const refused = (folder: string, snapshot: string | undefined, found: readonly RegExp[]) => {
    t.throws(() => openImage(folder, { readOnly: true, snapshot }), { code: /CORRUPT|NOT_FOUND/ })
    for (const repair of ['none', 'all'] as const) {
      const said = faults(folder, repair)
      t.equal(said.length, found.length, said.join('\n'))
      for (const pattern of found)
        t.ok(
          said.some((line) => pattern.test(line)),
          `${pattern} in ${said.join(', ')}`,
        )
    }
  }
  const loop = bundle(t, [guid(1), guid(2), TOP], {
    shots: [
      [guid(1), guid(2)],
      [guid(2), guid(1)],
      [TOP, guid(1)],
    ],
  })
  const plain = parts.filter(({ plain }) => plain).map((_, i) => new RegExp(`part${3 * i + 1}.0.hds: a plain image`))
  refused(loop, undefined, [/\{.*01\} lies over itself.*loop/, ...plain])
  const self = bundle(t, [TOP], { shots: [[TOP, TOP]] })
  refused(self, undefined, [/lies over itself/, ...plain])
  const orphan = bundle(t, [guid(1), TOP], {
    shots: [
      [guid(1), NIL],
      [TOP, guid(8)],
    ],
  })
  refused(orphan, undefined, [/parent \{.*08\} of snapshot \{5fba.*\} is not in its list/])
  const noTop = bundle(t, [guid(1)], { shots: [[guid(1), NIL]], topGuid: TOP })
  refused(noTop, undefined, [/top snapshot \{5fba.*\} is not in its list/])
  const lacking = bundle(t, [guid(1), TOP])
  const xml = readFileSync(join(lacking, 'DiskDescriptor.xml'), 'utf8')
  const image = (file: string, id: string) =>
    `<Image><GUID>{${id}}</GUID><Type>Compressed</Type><File>${file}</File></Image>`
  t.ok(xml.includes(image('part2.1.hds', TOP)))
  writeFileSync(join(lacking, 'DiskDescriptor.xml'), xml.replace(image('part2.1.hds', TOP), ''))
  refused(lacking, undefined, [/sectors 143 to 151 has no image of snapshot \{5fba/])
  writeFileSync(join(lacking, 'DiskDescriptor.xml'), xml.replace(image('part2.0.hds', guid(1)), ''))
  refused(lacking, guid(1), [/sectors 143 to 151 has no image of snapshot \{0000/])
})

t.test('a check finds what keeps a bundle from being opened: its images', async (t) => {
  const folder = bundle(t, [TOP])
  writeFileSync(join(folder, 'part0.0.hds'), emptyImage(79))
  writeFileSync(join(folder, 'part1.0.hds'), Buffer.alloc(62 * 512))
  writeFileSync(join(folder, 'part2.0.hds'), 'no image')
  writeFileSync(join(folder, 'part3.0.hds'), emptyImage(77).fill(3, 16, 20))
  rmSync(join(folder, 'part4.0.hds'))
  mkdirSync(join(folder, 'part4.0.hds'))
  rmSync(join(folder, 'part5.0.hds'))
  t.throws(() => openImage(folder, { readOnly: true }))
  for (const repair of ['none', 'all'] as const) {
    const said = faults(folder, repair)
    t.equal(said.length, 6, said.join('\n'))
    t.match(said[0], /^part0\.0\.hds: its disk has 40448 bytes, expected 40960 for .*sectors 0 to 80/)
    t.match(said[1], /^part1\.0\.hds: it has 31744 bytes, expected 32256/)
    t.match(said[2], /^part2\.0\.hds: it is no Parallels image/)
    t.match(said[3], /^part3\.0\.hds: Parallels image of version \d+, expected 2/)
    t.match(said[4], /^part4\.0\.hds: .*is a directory/)
    t.match(said[5], /^part5\.0\.hds: it is missing/)
  }
})

t.test('one file for two storages', async (t) => {
  const wanted = /part4\.0\.hds' (is the same file as .*part3\.0\.hds|for two)/
  const linked = bundle(t, [TOP])
  rmSync(join(linked, 'part4.0.hds'))
  writeFileSync(join(linked, 'part3.0.hds'), emptyImage(100))
  linkSync(join(linked, 'part3.0.hds'), join(linked, 'part4.0.hds'))
  const named = bundle(t, [TOP])
  const descriptor = join(named, 'DiskDescriptor.xml')
  writeFileSync(join(named, 'part4.0.hds'), emptyImage(100))
  writeFileSync(descriptor, readFileSync(descriptor, 'utf8').replace('part3.0.hds', 'part4.0.hds'))
  const itself = bundle(t, [TOP])
  const other = join(itself, 'DiskDescriptor.xml')
  writeFileSync(other, readFileSync(other, 'utf8').replace('part2.0.hds', 'DiskDescriptor.xml'))
  for (const readOnly of [true, false]) {
    t.throws(() => openImage(linked, { readOnly }), { code: 'CORRUPT', message: wanted })
    t.throws(() => openImage(named, { readOnly }), { code: 'CORRUPT', message: wanted })
    t.throws(() => openImage(itself, { readOnly }), { code: 'CORRUPT', message: /same file/ })
  }
  for (const repair of ['none', 'all'] as const)
    for (const folder of [linked, named, itself]) {
      const said = faults(folder, repair)
      t.equal(said.length, 1, said.join('\n'))
      t.match(said[0], /is the same file as/)
    }
  const snapshots = bundle(t, [guid(1), TOP])
  const both = join(snapshots, 'DiskDescriptor.xml')
  writeFileSync(both, readFileSync(both, 'utf8').replace('part0.1.hds', 'part0.0.hds'))
  t.throws(
    () => openImage(snapshots),
    { code: 'CORRUPT', message: /'part0\.0\.hds' for two/ },
    'a snapshot and the top',
  )
  t.match(faults(snapshots), [/is the same file as/])
})

t.test('parts that do not fit, and parts from elsewhere', async (t) => {
  const folder = bundle(t, [TOP])
  writeFileSync(join(folder, 'part1.0.hds'), Buffer.alloc(512))
  t.throws(() => openImage(folder), { code: 'CORRUPT', message: /part1\.0\.hds: .*512 bytes, expected 32256/ })
  t.equal(contents(folder).length, SIZE, 'read-only, with zeros')
  writeFileSync(join(folder, 'part0.0.hds'), emptyImage(79))
  t.throws(() => contents(folder), { code: 'CORRUPT', message: /40448 bytes, expected 40960/ })
  const outside = bundle(t, [TOP])
  const xml = readFileSync(join(outside, 'DiskDescriptor.xml'), 'utf8')
  writeFileSync(join(outside, 'DiskDescriptor.xml'), xml.replace('part1.0.hds', '/etc/passwd'))
  t.throws(() => contents(outside), { code: 'GATE', message: /\/etc\/passwd.*--backing-dir/ })
})

t.test('a descriptor that cannot be read is no disk', async (t) => {
  const folder = bundle(t, [TOP])
  const path = join(folder, 'DiskDescriptor.xml')
  const xml = readFileSync(path, 'utf8')
  const swapped = (bytes: Buffer) => bytes.swap16()
  const broken: readonly (readonly [bytes: Buffer, message: RegExp])[] = [
    [Buffer.alloc(0), /it is empty/],
    [Buffer.alloc(10000), /no XML in UTF-8/],
    [Buffer.from(`\uFEFF${xml}`, 'utf16le'), /no XML in UTF-8/],
    [swapped(Buffer.from(`\uFEFF${xml}`, 'utf16le')), /no XML in UTF-8/],
    [Buffer.from(xml, 'utf16le'), /no XML in UTF-8/],
    [Buffer.from('no XML at all'), /line 1/],
    [Buffer.from(xml.slice(0, 20)), /DiskDescriptor\.xml: ./],
    [Buffer.from(xml.replace('<StorageData>', '<!--')), /DiskDescriptor\.xml: ./],
  ]
  for (const [bytes, message] of broken) {
    writeFileSync(path, bytes)
    for (const image of [folder, path]) {
      const wanted = { code: 'CORRUPT', message }
      for (const readOnly of [true, false]) t.throws(() => openImage(image, { readOnly }), wanted)
      t.throws(() => imageInfo(image), wanted)
      for (const repair of ['none', 'all'] as const) t.throws(() => checkImage(image, { repair }), wanted)
      t.throws(() => openOverlay(image, undefined), wanted)
    }
    t.ok(readFileSync(path).equals(bytes), 'nothing was written')
  }
  writeFileSync(path, xml.replace('<Parallels_disk_image', `<!--${'c'.repeat(9000)}--><Parallels_disk_image`))
  for (const image of [folder, path]) t.equal(contents(image).length, SIZE, 'a long comment in front')
  t.same(checkImage(folder).findings, [])
})

t.test('a folder that is no bundle; a snapshot of what has none', async (t) => {
  const folder = temporaryFolder(t)
  t.throws(() => openImage(folder), { code: 'USAGE', message: /is a directory; expected .*DiskDescriptor\.xml/ })
  const single = join(folder, 'x.hds')
  createImage(single, { format: 'parallels', size: 1048576 })
  t.throws(() => openImage(single, { snapshot: TOP }), { code: 'USAGE', message: /only bundles have/ })
  t.ok(existsSync(single))
})

t.test('two users at once: every part is locked', async (t) => {
  const folder = bundle(t, [guid(1), TOP])
  const disk = openImage(folder)
  t.throws(() => openImage(folder), { code: 'IN_USE' })
  t.throws(() => openImage(join(folder, 'part0.1.hds')), { code: 'IN_USE' })
  t.throws(() => openImage(join(folder, 'part0.0.hds')), { code: 'IN_USE' }, 'the parent is being read')
  disk.close()
  openImage(folder).close()
})
