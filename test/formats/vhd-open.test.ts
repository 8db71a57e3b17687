import { createHash } from 'node:crypto'
import t from 'tap'
import { vhd } from '../../lib/formats/vhd/format.js'
import type { Image } from '../../lib/image/image.js'
import { imageInfo } from '../../lib/image/info.js'
import { openImage, openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import {
  bytesOf,
  contextOf,
  corpusImage,
  dynamicImage,
  FooterAt,
  footerWith,
  HeaderAt,
  headerWith,
  needsCorpus,
  type Parts,
  WINDOWS_FIXED_FOOTER,
  WINDOWS_FOOTER,
  WINDOWS_HEADER,
} from './vhd-images.js'

const KiB = 1024
const MiB = KiB * KiB

const damaged = (bytes: Uint8Array, at: number) => {
  const copy = bytes.slice()
  copy[at]! ^= 1
  return copy
}
const wrongSum = damaged(WINDOWS_FOOTER, FooterAt.id)
const zeros = new Uint8Array(512)
const footerField = (at: number, value: number) => footerWith((view) => view.setUint32(at, value))
const headerField = (at: number, value: number) => headerWith((view) => view.setUint32(at, value))

t.test('a Windows image opens', async (t) => {
  const context = contextOf(dynamicImage(), false)
  const { size, layout, parent } = vhd.open(context)
  t.equal(size, 10 * MiB)
  t.equal(parent, undefined)
  t.match(layout, { type: 'dynamic', footerOffset: 0x2000, footerLength: 512 })
  t.same(context.warnings, [])
})

t.test('whatever is wrong is refused, with what was found and what was expected', async (t) => {
  const cases: [what: string, Parts, code: string, message: RegExp][] = [
    ['no footer at all', { footer: zeros, copy: zeros }, 'FORMAT', /not a VHD: no footer/],
    ['both checksums', { footer: wrongSum }, 'CORRUPT', /footer: checksum is 0xffffee6f: expected 0xffffee70/],
    [
      'no footer, copy damaged',
      { footer: zeros, copy: wrongSum },
      'CORRUPT',
      /missing at the end, and the checksum is 0xffffee6f: expected 0xffffee70/,
    ],
    [
      'no footer, a fixed disk at the beginning',
      { footer: zeros, copy: WINDOWS_FIXED_FOOTER },
      'CORRUPT',
      /a fixed disk has no copy/,
    ],
    ['disk type', { footer: footerField(FooterAt.type, 5) }, 'CORRUPT', /disk type is 5: expected 2 .* 3 .* 4/],
    [
      'version',
      { footer: footerField(FooterAt.version, 0x20000) },
      'UNSUPPORTED',
      /version is 0x00020000: expected 0x00010000/,
    ],
    ['no size', { footer: footerField(FooterAt.currentSize + 4, 0) }, 'CORRUPT', /size is 0: expected 512 to/],
    [
      'too large',
      { footer: footerField(FooterAt.currentSize, 511) },
      'CORRUPT',
      /size is 219\d+: expected 512 to 2190433320960 bytes/,
    ],
    [
      'a size beyond 2^53',
      { footer: footerField(FooterAt.currentSize, 0x200000) },
      'CORRUPT',
      /currentSize is 0x20000000a00000: expected a number below 2\^53/,
    ],
    [
      'no header',
      { footer: footerWith((v) => v.setBigUint64(FooterAt.dataOffset, 2n ** 64n - 1n)) },
      'CORRUPT',
      /Data Offset is none/,
    ],
    [
      'header not at a sector',
      { footer: footerField(FooterAt.dataOffset + 4, 520) },
      'CORRUPT',
      /Data Offset is 520: expected a multiple of 512/,
    ],
    ['header over the copy', { footer: footerField(FooterAt.dataOffset + 4, 0) }, 'CORRUPT', /Data Offset is 0/],
    [
      'header behind the end',
      { footer: footerField(FooterAt.dataOffset + 4, 0x2000) },
      'CORRUPT',
      /Data Offset is 8192: .* 512 bytes up to 8192/,
    ],
    [
      'header far behind the end',
      { footer: footerField(FooterAt.dataOffset, 0x1000) },
      'CORRUPT',
      /Data Offset is 17592186044928/,
    ],
    ['header cookie', { header: damaged(WINDOWS_HEADER, 0) }, 'CORRUPT', /cookie is "bxsparse": expected "cxsparse"/],
    [
      'header checksum',
      { header: damaged(WINDOWS_HEADER, 100) },
      'CORRUPT',
      /header: checksum is 0xfffff472: expected 0xfffff471/,
    ],
    ['header version', { header: headerField(HeaderAt.version, 0x20001) }, 'UNSUPPORTED', /version is 0x00020001/],
    [
      'block size 0',
      { header: headerField(HeaderAt.blockSize, 0) },
      'CORRUPT',
      /block size is 0: expected a power of two/,
    ],
    ['block size 256', { header: headerField(HeaderAt.blockSize, 256) }, 'CORRUPT', /block size is 256/],
    ['block size 3 MiB', { header: headerField(HeaderAt.blockSize, 3 * MiB) }, 'CORRUPT', /block size is 3145728/],
    [
      'too few entries',
      { header: headerField(HeaderAt.entries, 4) },
      'CORRUPT',
      /Max Table Entries is 4: expected at least 5/,
    ],
    [
      'a table beyond the end',
      { header: headerField(HeaderAt.entries, 0x40000001) },
      'CORRUPT',
      /Max Table Entries is 1073741825 at Table Offset 1536: .* end at byte 4294968836, .* up to 8192/,
    ],
    ['a table behind the end', { header: headerField(HeaderAt.table + 4, 0x2000) }, 'CORRUPT', /at Table Offset 8192/],
    [
      'a table far away',
      { header: headerField(HeaderAt.table, 0x1fffff) },
      'CORRUPT',
      /at Table Offset 9007194959775232/,
    ],
    [
      'a table beyond 2^53',
      { header: headerField(HeaderAt.table, 0x200000) },
      'CORRUPT',
      /tableOffset is 0x20000000000600/,
    ],
    [
      'a table not at a sector',
      { header: headerField(HeaderAt.table + 4, 0x604) },
      'CORRUPT',
      /Table Offset is 1540: expected a multiple of 512/,
    ],
    ['a table over the copy', { header: headerField(HeaderAt.table + 4, 0) }, 'CORRUPT', /at Table Offset 0/],
    [
      'a table over the header',
      { header: headerField(HeaderAt.table + 4, 1024) },
      'CORRUPT',
      /block allocation table at bytes 1024 to 1536 lies over the dynamic disk header at 512 to 1536/,
    ],
  ]
  for (const [what, parts, code, message] of cases)
    t.throws(() => vhd.open(contextOf(dynamicImage(parts))), { code, message, path: 'test.vhd' }, what)
})

t.test('files that are too short for a footer', async (t) => {
  for (const length of [0, 1, 510, 511, 512])
    t.throws(() => vhd.open(contextOf(MemoryStorage.create({ path: 'test.vhd', contents: new Uint8Array(length) }))), {
      code: 'FORMAT',
    })
})

t.test('a lost or damaged footer: its copy serves for reading', async (t) => {
  const cases: [what: string, Parts, warning: RegExp][] = [
    ['missing', { footer: zeros, copy: WINDOWS_FOOTER }, /footer is missing .* vdiskfs check --repair all test\.vhd/],
    [
      'damaged',
      { footer: wrongSum, copy: WINDOWS_FOOTER },
      /footer is damaged: its checksum is 0xffffee6f: expected 0xffffee70; .* vdiskfs check --repair all test\.vhd/,
    ],
  ]
  for (const [what, parts, warning] of cases) {
    const context = contextOf(dynamicImage(parts))
    const { layout } = vhd.open(context)
    t.match(context.warnings, [warning], what)
    t.match(layout, { footerLength: 0, footerOffset: 0x2200, size: 10 * MiB }, what)
    t.throws(() => vhd.open(contextOf(dynamicImage(parts), false)), {
      code: 'CORRUPT',
      message: /footer is lost, so it is opened read-only at most; repair it: vdiskfs check --repair all test\.vhd/,
    })
  }
})

t.test('a damaged copy is warned of', async (t) => {
  for (const copy of [zeros, wrongSum]) {
    const context = contextOf(dynamicImage({ copy }), false)
    vhd.open(context)
    t.match(context.warnings, [/copy of its footer at the beginning is damaged/])
  }
})

t.test('a disk in saved state is warned of', async (t) => {
  const context = contextOf(dynamicImage({ footer: footerWith((v) => v.setUint8(FooterAt.savedState, 1)) }))
  vhd.open(context)
  t.match(context.warnings, [/saved state/])
})

t.test('a footer of 511 bytes', async (t) => {
  const storage = dynamicImage()
  storage.truncate(storage.size() - 1)
  const context = contextOf(storage, false)
  t.match(vhd.open(context).layout, { footerOffset: 0x2000, footerLength: 511 })
  t.same(context.warnings, [])
})

t.test('fixed disks', async (t) => {
  const fixed = (footer: Uint8Array, size = 10 * MiB) => {
    const storage = MemoryStorage.create({ path: 'test.vhd', maxSize: 16 * MiB })
    storage.write(footer, 0, footer.length, size)
    return storage
  }
  const storage = fixed(WINDOWS_FIXED_FOOTER)
  // What the guest writes to its first sector must not matter.
  storage.write(WINDOWS_FOOTER, 0, 512, 0)
  const image = openStorages([storage])
  t.equal(image.size, 10 * MiB)
  const data = new Uint8Array(1000).fill(7)
  image.write(data, 0, 1000, 10 * MiB - 1000)
  image.close()
  t.equal(storage.size(), 10 * MiB + 512)
  const tail = new Uint8Array(513)
  storage.read(tail, 0, 513, 10 * MiB - 1)
  t.same(tail.subarray(1), WINDOWS_FIXED_FOOTER, 'the footer stays')
  t.equal(tail[0], 7)
  t.match(vhd.open(contextOf(fixed(WINDOWS_FIXED_FOOTER.subarray(0, 511)))).layout, {
    type: 'fixed',
    footerLength: 511,
  })
  t.throws(() => vhd.open(contextOf(fixed(WINDOWS_FIXED_FOOTER, 9 * MiB))), {
    code: 'CORRUPT',
    message: /disk's size is 10485760: the file holds 9437184 bytes of it/,
  })
  const broken = fixed(damaged(WINDOWS_FIXED_FOOTER, FooterAt.id))
  broken.write(WINDOWS_FOOTER, 0, 512, 0)
  t.throws(
    () => vhd.open(contextOf(broken)),
    { code: 'CORRUPT', message: /checksum is 0xffffe5f7/ },
    'no copy is believed',
  )
})

t.test('table entries are checked when they are used', async (t) => {
  const image = openStorages([dynamicImage({ table: [0x2000, 0, 2, 3, 0x0fffffff], end: 3 * MiB })], { readOnly: true })
  const read = (block: number) => image.read(new Uint8Array(512), 0, 512, block * 2 * MiB)
  const cases: [block: number, message: RegExp][] = [
    [0, /test\.vhd: block 0 is at byte 4194304: its 2097664 bytes would end at 6291968, and blocks end at 3145728/],
    [1, /block 1 is at byte 0: it would lie over the copy of the footer at bytes 0 to 512/],
    [2, /block 2 is at byte 1024: it would lie over the dynamic disk header at bytes 512 to 1536/],
    [3, /block 3 is at byte 1536: it would lie over the block allocation table at bytes 1536 to 2048/],
    [4, /block 4 is at byte 137438952960: /],
  ]
  for (const [block, message] of cases) t.throws(() => read(block), { code: 'CORRUPT', message })
  image.close()
})

t.test('the bits of a dynamic disk hide no data', async (t) => {
  const data = new Uint8Array(2 * MiB).fill(5)
  const bits = bytesOf('80', 512)
  const image = openStorages([
    dynamicImage({
      table: [8],
      more: [
        [0x1000, bits],
        [0x1200, data],
      ],
      end: 3 * MiB,
    }),
  ])
  const back = new Uint8Array(2 * MiB)
  image.read(back, 0, back.length, 0)
  t.same(Buffer.compare(back, data), 0)
  image.close()
})

t.test('opening reads little, however large the table is', async (t) => {
  const storage = MemoryStorage.create({ path: 'test.vhd', maxSize: 16 * MiB })
  vhd.create({ storage, path: '/test.vhd', size: 2040 * 2 ** 30, options: { block_size: 2 * MiB }, backing: undefined })
  t.ok(storage.size() > 3.9 * MiB, 'the table has nearly 4 MiB')
  let read = 0
  const counting = new Proxy(storage, {
    get(target, name) {
      const value = Reflect.get(target, name, target) as unknown
      if (typeof value !== 'function') return value
      return (...given: unknown[]) => {
        if (name === 'read') read += given[2] as number
        return (value as (...all: unknown[]) => unknown).apply(target, given)
      }
    },
  })
  t.equal(vhd.open(contextOf(counting)).size, 2040 * 2 ** 30)
  t.ok(read <= 4096, `${read} bytes were read`)
})

const sha256 = (image: Image) => {
  const hash = createHash('sha256')
  const buffer = new Uint8Array(MiB)
  for (let at = 0; at < image.size; at += MiB) {
    const n = Math.min(MiB, image.size - at)
    image.read(buffer, 0, n, at)
    hash.update(buffer.subarray(0, n))
  }
  return hash.digest('hex')
}

t.test('images of other programs', needsCorpus, async (t) => {
  const allocated: Record<string, number> = { dynamic: 3, 'd2v-zerofilled': 126, 'virtualpc-dynamic': 0 }
  for (const name of ['dynamic', 'fixed', 'virtualpc-dynamic', 'd2v-zerofilled']) {
    const { path, virtualSize, contentSha256 } = corpusImage(t, `vhd/${name}.vhd`)
    const warnings: string[] = []
    const image = openImage(path, { readOnly: true, warn: (message) => warnings.push(message) })
    t.equal(image.format, 'vhd', name)
    t.equal(image.size, virtualSize, `${name}: size`)
    if (contentSha256) t.equal(sha256(image), contentSha256, `${name}: content`)
    else t.equal(image.seek(0, true), -1, `${name}: no data`)
    image.close()
    t.same(warnings, [], name)
    t.equal(imageInfo(path)['format-specific']?.data['allocated-blocks'], allocated[name], `${name}: blocks`)
  }
})

t.test('damaged images of the corpus are refused', needsCorpus, async (t) => {
  const cases: [name: string, message: RegExp][] = [
    ['bad-checksum.vhd', /checksum is 0xfffff683: expected 0xffffef25/],
    ['afl5.img', /header: checksum is 0xfffff476: expected 0xffff74d4; Max Table Entries is 1073741825 /],
  ]
  for (const [name, message] of cases) {
    const { path } = corpusImage(t, `vhd/${name}`)
    for (const readOnly of [true, false])
      t.throws(() => openImage(path, { readOnly }), { code: 'CORRUPT', message }, name)
  }
})

t.test('facts', async (t) => {
  const storage = dynamicImage({ table: [8], end: 3 * MiB })
  t.same(vhd.facts(vhd.open(contextOf(storage)).layout, storage), {
    subformat: 'dynamic',
    footer: 'at the end',
    'unique-id': '4b6a0d04-f946-d74e-836f-d3dc87e1816b',
    created: '2020-03-24T16:36:31.000Z',
    creator: 'win',
    'creator-version': '10.0',
    'creator-host-os': 'Wi2k',
    'original-size': 10485760,
    'current-size': 10485760,
    geometry: '301/4/17',
    'geometry-size': 10479616,
    'saved-state': false,
    temporary: false,
    'block-size': 2 * MiB,
    'table-offset': 1536,
    'max-table-entries': 5,
    'allocated-blocks': 1,
    batmap: false,
  })
})
