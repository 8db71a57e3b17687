/** Checking VHDs and mending them: images that are broken byte by byte, judged by what is read from them afterwards. */

import { spawnSync } from 'node:child_process'
import {
  closeSync,
  copyFileSync,
  fsyncSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { CheckTotals, Finding, Repair } from '../../lib/formats/driver.js'
import { vhd } from '../../lib/formats/vhd/format.js'
import { checkImage } from '../../lib/image/check.js'
import { openImage, openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import type { Storage } from '../../lib/storage/storage.js'
import { needsMounts } from '../support/mounts.js'
import { must } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'
import {
  batmapOf,
  contextOf,
  corpusImage,
  deviceWith,
  dynamicImage,
  FooterAt,
  footerWith,
  HeaderAt,
  headerWith,
  needsCorpus,
  type Parts,
  shortImage,
  WINDOWS_FIXED_FOOTER,
  WINDOWS_FOOTER,
  withBatmap,
} from './vhd-images.js'

const SECTOR = 512
const BLOCK = 4096
const BITMAP = 512
const BLOCK_SECTORS = (BITMAP + BLOCK) / SECTOR
const TABLE = 0x600
const FREE = 0xffffffff

const footer = footerWith((view) => view.setBigUint64(FooterAt.currentSize, BigInt(5 * BLOCK)))
const header = headerWith((view) => view.setUint32(HeaderAt.blockSize, BLOCK))

/** The sector at which the nth block of a file lies that has no gaps. */
const place = (n: number) => 4 + n * BLOCK_SECTORS
const endOf = (blocks: number) => place(blocks) * SECTOR

/** A block's bitmap, all bits set, and its data. */
function block(value: number, bits = 0xff): Uint8Array {
  const bytes = new Uint8Array(BITMAP + BLOCK).fill(value)
  return bytes.fill(bits, 0, BITMAP)
}

/** A disk of 5 blocks of 4 KiB of which 3 are there, out of order: block 1, 3, 0 with 0x11, 0x33, 0x10. */
function image(parts: Parts = {}): MemoryStorage {
  return dynamicImage({
    footer,
    header,
    table: [place(2), place(0), FREE, place(1), FREE],
    end: endOf(3),
    ...parts,
    more: [[endOf(0), block(0x11)], [endOf(1), block(0x33)], [endOf(2), block(0x10)], ...(parts.more ?? [])],
  })
}

const CONTENT = [0x10, 0x11, 0, 0x33, 0]

interface Checked {
  readonly totals: CheckTotals
  readonly findings: Finding[]
  readonly kinds: string[]
}

function check(storage: Storage, repair: Repair = 'none'): Checked {
  const findings: Finding[] = []
  const context = { storage, path: '/images/test.vhd', readOnly: repair === 'none', repair, warn: () => {} }
  const totals = vhd.check!({ ...context, found: (finding) => void findings.push(finding) })
  return { totals, findings, kinds: findings.map(({ what }) => what) }
}

const corruptionsOf = (storage: Storage) =>
  check(storage).findings.flatMap(({ severity, what }) => (severity === 'corruption' ? what : []))

/** The first byte of every sector; -1 where it cannot be read. */
function sectorsOf(storage: MemoryStorage, size = 5 * BLOCK): number[] {
  const bytes = new Uint8Array(1)
  const values = new Array<number>(size / SECTOR).fill(-1)
  let disk: ReturnType<typeof openStorages>
  try {
    disk = openStorages([storage], { readOnly: true })
  } catch {
    return values
  }
  for (let i = 0; i < values.length; i++) {
    try {
      disk.read(bytes, 0, 1, i * SECTOR)
      values[i] = bytes[0]!
    } catch {}
  }
  disk.close()
  return values
}

/** The value of each block; -2 where its sectors differ. */
function contentOf(storage: MemoryStorage): number[] {
  const sectors = sectorsOf(storage)
  return Array.from({ length: 5 }, (_, i) => {
    const values = new Set(sectors.slice(i * 8, i * 8 + 8))
    return values.size === 1 ? [...values][0]! : -2
  })
}

function bytesAt(storage: Storage, offset: number, length: number): Buffer {
  const buffer = Buffer.alloc(length)
  storage.read(buffer, 0, length, offset)
  return buffer
}
const allOf = (storage: Storage) => bytesAt(storage, 0, storage.size())
const entry = (storage: Storage, index: number) => bytesAt(storage, TABLE + 4 * index, 4).readUInt32BE()
const put = (storage: Storage, offset: number, ...bytes: number[]) =>
  storage.write(Uint8Array.from(bytes), 0, bytes.length, offset)

/** A copy that shares nothing. */
const clone = (storage: MemoryStorage) => MemoryStorage.create({ path: 'test.vhd', contents: allOf(storage) })

/**
 * Repairs with a crash at every moment and every order of writes: whatever could be read before can be read after it,
 * or its final value; and a second repair ends where the first would have.
 */
function crashes(t: Test, broken: MemoryStorage, repair: Repair = 'all'): void {
  const before = sectorsOf(broken)
  const corrupt = corruptionsOf(broken)
  const whole = clone(broken)
  check(whole, repair)
  const after = sectorsOf(whole)
  const recorder = new Recorder()
  check(recorder.record(clone(broken)), repair)
  const wrong: string[] = []
  for (let count = 0; count <= recorder.length; count++) {
    for (let seed = 0; seed < 6; seed++) {
      const crashed = recorder.crash(count, seed, 512)[0]!
      const now = sectorsOf(crashed)
      const worse = now.findIndex((value, i) => value !== after[i] && value !== before[i])
      if (worse >= 0) wrong.push(`${count}/${seed}: sector ${worse} is ${now[worse]}`)
      for (const kind of corruptionsOf(crashed))
        if (!corrupt.includes(kind)) wrong.push(`${count}/${seed}: ${kind}, which it was not before`)
      check(crashed, repair)
      if (check(crashed, 'leaks').findings.some(({ severity }) => severity === 'corruption' && repair === 'all'))
        wrong.push(`${count}/${seed}: corrupt after a second repair`)
      const again = sectorsOf(crashed)
      const lost = again.findIndex((value, i) => value !== after[i])
      if (lost >= 0) wrong.push(`${count}/${seed}: sector ${lost} is ${again[lost]} after a second repair`)
    }
  }
  t.same(wrong.slice(0, 5), [], `crashes at ${recorder.length} moments`)
}

/** Looks, mends, looks again. */
function mends(t: Test, broken: MemoryStorage, kinds: readonly string[], content: readonly number[] = CONTENT) {
  const bytes = allOf(broken)
  const found = check(broken)
  t.same(found.kinds, kinds)
  t.ok(allOf(broken).equals(bytes), 'nothing is written where nothing is to be repaired')
  t.ok(found.findings.every(({ repaired }) => !repaired))
  crashes(t, broken)
  const repaired = check(broken, 'all')
  t.same(repaired.kinds, kinds)
  t.ok(repaired.findings.every(({ severity, repaired }) => repaired || severity === 'leak'))
  t.same(
    check(broken, 'leaks').findings.filter(({ severity }) => severity !== 'leak'),
    [],
  )
  t.same(check(broken).kinds, [], 'clean in the end')
  t.same(contentOf(broken), content)
  return found.findings
}

/** Says that it is broken, and leaves it as it is. */
function refuses(t: Test, broken: MemoryStorage, kinds: readonly string[]) {
  const bytes = allOf(broken)
  const { findings } = check(broken, 'all')
  t.same(
    findings.map(({ what }) => what),
    kinds,
  )
  t.ok(findings.every(({ repaired }) => !repaired))
  t.ok(findings.some(({ severity, repairable }) => severity === 'corruption' && !repairable))
  t.ok(allOf(broken).equals(bytes), 'nothing is written')
  return findings
}

t.test('a sound image: no findings, and the totals', async (t) => {
  const { totals, findings } = check(image())
  t.same(findings, [])
  t.same(totals, { imageEnd: endOf(3) + 512, clusters: 5, allocated: 3, fragmented: 1, compressed: 0 })
  t.same(contentOf(image()), CONTENT)
  const whole = image()
  check(whole, 'all')
  t.ok(allOf(whole).equals(allOf(image())), 'a repair writes nothing')
})

t.test('the footer at the end', async (t) => {
  const end = endOf(3)
  t.test('cut off', async (t) => {
    const broken = image()
    broken.truncate(end)
    t.match(mends(t, broken, ['footer-missing']), [{ severity: 'corruption', offset: end, repairable: true }])
    t.ok(allOf(broken).equals(allOf(image())), 'byte for byte')
  })
  t.test('cut through', async (t) => {
    const broken = image()
    broken.truncate(end + 412)
    mends(t, broken, ['footer-missing'])
    t.ok(allOf(broken).equals(allOf(image())), 'byte for byte')
  })
  t.test('any byte of it changed', async (t) => {
    for (let i = 0; i < 512; i++) {
      const broken = image()
      put(broken, end + i, bytesAt(broken, end + i, 1)[0]! ^ 0x41)
      const { findings } = check(broken, 'all')
      if (!t.match(findings, [{ severity: 'corruption', repaired: true, offset: i < 8 ? end + 512 : end }])) break
      if (!t.ok(allOf(broken).equals(allOf(image())), `byte ${i}`)) break
    }
  })
  t.test('its checksum is named', async (t) => {
    const broken = image()
    put(broken, end + FooterAt.id, 0)
    const right = `0x${bytesAt(image(), FooterAt.checksum, 4).toString('hex')}`
    // A byte of 0x4b is gone from the sum.
    const expected = `0x${(Number(right) + 0x4b).toString(16)}`
    t.match(mends(t, broken, ['footer-checksum']), [{ found: right, expected }])
  })
  t.test('511 bytes of an old program', async (t) => {
    const broken = image()
    broken.truncate(end + 511)
    t.match(mends(t, broken, ['footer-short']), [{ severity: 'warning', found: 511, expected: 512 }])
    t.equal(broken.size(), end + 512)
  })
  t.test('at no multiple of 512', async (t) => {
    const broken = image({ end: end + 100 })
    mends(t, broken, ['footer-alignment'])
    t.equal(broken.size() % 512, 0)
  })
  t.test('lost, with room for more blocks in front of where it was', async (t) => {
    const broken = image({ end: endOf(20) })
    broken.truncate(endOf(20))
    mends(t, broken, ['footer-missing', 'leak'])
    t.equal(broken.size(), end + 512)
  })
})

t.test('the copy of the footer', async (t) => {
  t.test('any byte of it changed', async (t) => {
    for (let i = 0; i < 512; i++) {
      const broken = image()
      put(broken, i, bytesAt(broken, i, 1)[0]! ^ 0x41)
      const { kinds } = check(broken, 'all')
      if (!t.same(kinds, ['footer-copy']) || !t.ok(allOf(broken).equals(allOf(image())), `byte ${i}`)) break
    }
  })
  t.test('crashes', async (t) => {
    const broken = image()
    put(broken, 100, 1)
    mends(t, broken, ['footer-copy'])
  })
  t.test('differs in a field that decides nothing', async (t) => {
    const copy = changedFooter((view) => view.setUint32(24, 1))
    t.match(mends(t, image({ copy }), ['footer-differs']), [{ severity: 'warning' }])
  })
  t.test('says another size, for which the table is too small', async (t) => {
    const copy = changedFooter((view) => view.setBigUint64(FooterAt.currentSize, BigInt(6 * BLOCK)))
    t.match(mends(t, image({ copy }), ['footer-differs']), [{ found: '24576 bytes', expected: '20480 bytes' }])
  })
  t.test('is right, and the table too small for what the footer says', async (t) => {
    const wrong = changedFooter((view) => view.setBigUint64(FooterAt.currentSize, BigInt(6 * BLOCK)))
    const broken = image({ footer: wrong, copy: footer })
    t.match(mends(t, broken, ['footer-differs']), [{ found: '24576 bytes', expected: '20480 bytes' }])
    t.ok(allOf(broken).equals(allOf(image())), 'byte for byte')
  })
  t.test('says another size, and both could be', async (t) => {
    const copy = changedFooter((view) => view.setBigUint64(FooterAt.currentSize, BigInt(4 * BLOCK)))
    const text = /a change of it was interrupted, and the one at the end counts/
    t.match(mends(t, image({ copy }), ['footer-differs']), [{ severity: 'warning', message: text }])
  })
  t.test('says that it is the footer of another disk', async (t) => {
    const copy = changedFooter((view) => view.setUint8(FooterAt.id, 0xff))
    t.match(refuses(t, image({ copy }), ['footer-differs']), [{ message: /nothing says which/ }])
  })
})

const changedFooter = (change: (view: DataView) => void) => footerWith(change, footer)

t.test('both footers with a wrong checksum', async (t) => {
  const edited = footer.slice()
  edited[FooterAt.id] = 0x77
  t.test('alike', async (t) => {
    mends(t, image({ footer: edited }), ['footer-checksum', 'footer-copy'])
  })
  t.test('that say different things', async (t) => {
    const other = footer.slice()
    other[FooterAt.id] = 0x78
    refuses(t, image({ footer: edited, copy: other }), ['footer-checksum', 'footer-copy'])
  })
  t.test('and a table that contradicts them', async (t) => {
    refuses(t, image({ footer: edited, table: [place(9), place(0), FREE, place(1), FREE] }), [
      'footer-checksum',
      'footer-copy',
      'bat-range',
      'leak',
    ])
  })
  t.test('and data that the table does not know', async (t) => {
    refuses(t, image({ footer: edited, table: [place(2), FREE, FREE, place(1), FREE] }), [
      'footer-checksum',
      'footer-copy',
      'leak',
    ])
  })
  t.test('the one at the end is missing', async (t) => {
    const broken = image({ footer: edited })
    broken.truncate(endOf(3))
    mends(t, broken, ['footer-missing', 'footer-copy'])
  })
})

t.test('the dynamic disk header', async (t) => {
  t.test('a wrong checksum', async (t) => {
    const broken = image()
    put(broken, 512 + HeaderAt.checksum, 1)
    const found = mends(t, broken, ['header-checksum'])
    const right = bytesAt(image(), 512 + HeaderAt.checksum, 4).toString('hex')
    t.match(found, [{ offset: 512, found: `0x01${right.slice(2)}`, expected: `0x${right}` }])
    t.ok(allOf(broken).equals(allOf(image())), 'byte for byte')
  })
  t.test('fields without which nothing is found', async (t) => {
    for (const [field, value] of [
      [HeaderAt.cookie, 0],
      [HeaderAt.blockSize, 12345],
      [HeaderAt.entries, 4],
      [HeaderAt.entries, 0x40000001],
      [HeaderAt.table + 4, 0x200],
    ] as const)
      refuses(t, image({ header: changedHeader((view) => view.setUint32(field, value)) }), ['header'])
  })
  t.test('a table offset that leads to other bytes of ones is not made official', async (t) => {
    const wrong = header.slice()
    // The bitmap of the first block.
    new DataView(wrong.buffer).setUint32(HeaderAt.table + 4, endOf(0))
    refuses(t, image({ header: wrong }), ['header-checksum', 'leak'])
  })
  t.test('a disk type that there is not', async (t) => {
    refuses(t, image({ footer: changedFooter((view) => view.setUint32(FooterAt.type, 5)) }), ['header'])
  })
  t.test('another version cannot be checked', async (t) => {
    const other = changedHeader((view) => view.setUint32(HeaderAt.version, 0x20000))
    t.throws(() => check(image({ header: other })), { code: 'UNSUPPORTED' })
  })
})

function changedHeader(change: (view: DataView) => void): Uint8Array {
  return headerWith((view) => {
    view.setUint32(HeaderAt.blockSize, BLOCK)
    change(view)
  })
}

t.test('the block allocation table', async (t) => {
  t.test('entries that point behind the file', async (t) => {
    const broken = image({ table: [place(2), place(0), 0x7fffffff, place(1), 0xfffffffe] })
    const found = mends(t, broken, ['bat-range', 'bat-range'])
    t.match(found, [
      { offset: TABLE + 8, guest: 2 * BLOCK, found: 0x7fffffff * 512 },
      { offset: TABLE + 16, found: 0xfffffffe * 512 },
    ])
    t.ok(allOf(broken).equals(allOf(image())), 'byte for byte')
  })
  t.test('entries that point to a header, and to the table', async (t) => {
    const broken = image({ table: [place(2), place(0), 1, place(1), 3] })
    t.match(mends(t, broken, ['bat-overlap', 'bat-overlap']), [{ message: /header/ }, { message: /table/ }])
  })
  t.test('entries of zeros are one finding', async (t) => {
    const broken = image({ table: [0, 0, 0, place(1), FREE] })
    const { findings } = check(broken, 'all')
    t.match(findings, [
      { what: 'bat-overlap', count: 3, repaired: true },
      { what: 'leak', repaired: false },
      { what: 'leak', repaired: false },
    ])
    t.same(contentOf(broken), [0, 0, 0, 0x33, 0])
    t.equal(bytesAt(broken, endOf(2) + BITMAP, 1)[0], 0x10, 'what may be a lost block is kept')
    t.match(check(broken, 'leaks').kinds, ['leak', 'leak'])
    t.same(check(broken).findings, [])
  })
  t.test('two entries with one block', async (t) => {
    const broken = image({ table: [place(2), place(0), place(0), place(1), FREE] })
    t.match(mends(t, broken, ['shared-block'], [0x10, 0x11, 0x11, 0x33, 0]), [{ offset: TABLE + 8 }])
    t.equal(entry(broken, 2), place(3), 'a copy behind the last block')
  })
  t.test('a copy lies behind the place of a last block that is not there whole', async (t) => {
    const { storage: broken } = shortImage()
    put(broken, TABLE + 4, 0, 0, 0, place(0))
    t.same(check(broken, 'all').kinds, ['shared-block'])
    t.same(check(broken).kinds, [])
    t.equal(entry(broken, 1), place(2))
    t.same(contentOf(broken).slice(0, 4), [0x10, 0x10, 0, 0])
  })
  t.test('a block that begins in the middle of another', async (t) => {
    for (const shift of [-1, 1]) {
      const broken = image({ table: [place(2), place(0), place(1) + shift, place(1), FREE] })
      const { kinds } = check(broken)
      t.ok(kinds.includes('shared-block'))
      const before = sectorsOf(broken)
      crashes(t, broken)
      check(broken, 'all')
      t.same(
        check(broken).findings.filter(({ severity }) => severity === 'corruption'),
        [],
      )
      t.same(sectorsOf(broken), before, 'every block shows what it showed')
    }
  })
  t.test('a block that ends in another, and one that begins in it', async (t) => {
    for (const sector of [place(1) + 1, place(0) + 1]) {
      const broken = image({ table: [place(sector > place(1) ? 2 : 0), FREE, sector] })
      t.match(check(broken).findings[0], { what: 'shared-block', guest: 2 * BLOCK, found: sector * 512 })
    }
  })
  t.test('the last block is cut', async (t) => {
    const broken = image()
    broken.truncate(endOf(3) - 1024)
    const found = check(broken)
    t.same(found.kinds, ['footer-missing', 'block-cut'])
    crashes(t, broken)
    t.ok(check(broken, 'all').findings.every(({ repaired }) => repaired))
    t.same(check(broken).findings, [])
    t.same(sectorsOf(broken).slice(0, 8), [16, 16, 16, 16, 16, 16, 0, 0], 'what is there is kept')
    t.same(contentOf(broken).slice(1), CONTENT.slice(1))
  })
  t.test('the last block lies over the footer', async (t) => {
    const broken = image({ end: endOf(3) - 512 })
    broken.truncate(endOf(3))
    t.same(check(broken).kinds, ['block-cut'])
    crashes(t, broken)
    check(broken, 'all')
    t.same(check(broken).findings, [])
    t.same(sectorsOf(broken).slice(0, 8), [16, 16, 16, 16, 16, 16, 16, 0x63], 'what it showed')
    t.equal(broken.size(), endOf(3) + 512)
  })
  t.test('a block behind the end of the disk', async (t) => {
    const more = changedHeader((view) => view.setUint32(HeaderAt.entries, 6))
    const storage = image({ header: more, table: [place(2), FREE, FREE, place(1), FREE, place(0)] })
    t.match(check(storage), { findings: [{ what: 'bat-unused', severity: 'warning' }], totals: { allocated: 2 } })
  })
})

t.test("an entry that is taken out of the table leaves XenServer's map, too", async (t) => {
  const withMap = (...table: number[]) => {
    const before = image({ table: table.map((sector) => (sector === FREE ? FREE : sector + 2)) })
    const contents = withBatmap(allOf(before), Uint8Array.of(0xd8))
    return MemoryStorage.create({ path: 'test.vhd', contents })
  }
  t.same(check(withMap(place(2), place(0), FREE, place(1), FREE)).kinds, [])
  for (const wrong of [99999, 1]) {
    const broken = withMap(place(2), place(0), FREE, place(1), wrong)
    mends(t, broken, [wrong === 1 ? 'bat-overlap' : 'bat-range'])
    t.equal(entry(broken, 4), FREE)
    t.equal(batmapOf(allOf(broken)), 'd0', 'blocks 0, 1 and 3 are left')
  }
  t.test('a block that lies over the map is moved before the map changes', async (t) => {
    const broken = withMap(place(2), place(0), FREE, place(0) - 1, 99999)
    const data = bytesAt(broken, (place(0) + 1) * SECTOR + BITMAP, BLOCK)
    check(broken, 'all')
    t.same(corruptionsOf(broken), [])
    t.equal(batmapOf(allOf(broken)), 'd0')
    t.ok(bytesAt(broken, entry(broken, 3) * SECTOR + BITMAP, BLOCK).equals(data), 'as it was')
  })
})

t.test('sector bitmaps of a dynamic disk', async (t) => {
  t.test('clear bits over zeros are as they should be', async (t) => {
    t.same(check(image({ more: [[endOf(0), block(0, 0)]] })).findings, [])
  })
  t.test('clear bits over data', async (t) => {
    const partly = block(0x11).fill(0b1011_0111, 0, 1)
    const broken = image({ more: [[endOf(0), partly]] })
    const found = mends(t, broken, ['bitmap'])
    t.match(found, [{ severity: 'warning', guest: BLOCK + 512, offset: endOf(0) + BITMAP + 512, message: /2 sectors/ }])
    t.equal(bytesAt(broken, endOf(0), 1)[0], 0xff)
  })
  t.test('clear bits over data, in front of a table that has moved behind the blocks', async (t) => {
    const table = Buffer.alloc(SECTOR, 0xff)
    for (const [i, sector] of [place(2), place(0), FREE, place(1)].entries()) table.writeUInt32BE(sector, 4 * i)
    const header = headerWith((view) => {
      view.setUint32(HeaderAt.blockSize, BLOCK)
      view.setBigUint64(HeaderAt.table, BigInt(endOf(3)))
    })
    const partly = block(0x11).fill(0b1011_0111, 0, 1)
    const moved = image({
      header,
      more: [
        [endOf(0), partly],
        [endOf(3), table],
      ],
      end: endOf(3) + SECTOR,
    })
    t.match(mends(t, moved, ['bitmap']), [{ severity: 'warning', guest: BLOCK + 512, message: /2 sectors/ }])
    t.equal(bytesAt(moved, endOf(0), 1)[0], 0xff)
  })
})

/** A child with one block, whose parent is nowhere. */
function child(bits: number, locator?: readonly [offset: number, length: number], table = [FREE, place(0)]) {
  const differencing = changedFooter((view) => view.setUint32(FooterAt.type, 4))
  const named = changedHeader((view) => {
    if (!locator) return
    view.setUint32(HeaderAt.locators, 0x57327275) // W2ru
    view.setUint32(HeaderAt.locators + 8, locator[1])
    view.setBigUint64(HeaderAt.locators + 16, BigInt(locator[0]))
  })
  return dynamicImage({
    footer: differencing,
    header: named,
    table,
    end: endOf(2),
    more: [
      [endOf(0), block(0x11, 0).fill(bits, 0, 8)],
      [endOf(1), block(0x22, 0)],
    ],
  })
}

t.test('a differencing disk', async (t) => {
  t.test('bits behind the end of a block', async (t) => {
    const storage = child(0xff)
    t.match(check(storage).findings, [{ what: 'bitmap-end', severity: 'warning' }, { what: 'leak' }])
    t.same(
      check(storage, 'all').findings.map(({ repaired }) => repaired),
      [true, true],
    )
    t.same([...bytesAt(storage, endOf(0), 3)], [0xff, 0, 0], '8 sectors')
    t.same(check(storage).findings, [])
  })
  t.test('a locator that lies outside of the file', async (t) => {
    t.match(refusedKinds(child(0, [2 ** 40, 10])), ['parent-locator', 'leak'])
  })
  t.test('a block that lies over a locator', async (t) => {
    const storage = child(0, [endOf(0) + 100, 20], [FREE, place(0), place(1)])
    t.same(check(storage).kinds, ['bat-overlap'])
    check(storage, 'all')
    t.same(
      check(storage).findings.filter(({ severity }) => severity === 'corruption'),
      [],
    )
    t.same(bytesAt(storage, entry(storage, 1) * 512 + BITMAP, 1)[0], 0x11, 'its data is in a place of its own')
  })
})

function refusedKinds(storage: MemoryStorage): string[] {
  const bytes = allOf(storage)
  const { kinds } = check(storage, 'all')
  t.ok(allOf(storage).equals(bytes), 'nothing is written')
  return kinds
}

t.test('leaked space', async (t) => {
  t.test('between blocks', async (t) => {
    const leaky = image({ table: [place(2), FREE, FREE, FREE, FREE] })
    const { findings } = check(leaky)
    t.match(findings, [{ severity: 'leak', offset: endOf(0), count: 2, found: 2 * BLOCK_SECTORS * 512 }])
    crashes(t, leaky, 'leaks')
    t.match(check(leaky, 'leaks').findings, [{ repaired: true }])
    t.same(check(leaky).findings, [], 'zeros are free, not leaked')
    t.same(contentOf(leaky), [0x10, 0, 0, 0, 0])
    t.equal(bytesAt(leaky, endOf(1) + BITMAP, 1)[0], 0)
  })
  t.test('behind the last block, a hole or not', async (t) => {
    for (const more of [[], [[endOf(5), block(0x99)]]] as const) {
      const leaky = image({ end: endOf(20), more })
      t.match(check(leaky).findings, [{ severity: 'leak', offset: endOf(3), count: 17 }])
      crashes(t, leaky, 'leaks')
      check(leaky, 'leaks')
      t.ok(allOf(leaky).equals(allOf(image())), 'the file is cut, byte for byte')
    }
  })
  t.test('is kept while the image is corrupt', async (t) => {
    const leaky = image({ end: endOf(20) })
    put(leaky, 100, 1)
    const bytes = allOf(leaky)
    t.match(check(leaky, 'leaks').findings, [{ what: 'footer-copy', repaired: false }, { repaired: false }])
    t.ok(allOf(leaky).equals(bytes))
    t.ok(check(leaky, 'all').findings.every(({ repaired }) => repaired))
    t.ok(allOf(leaky).equals(allOf(image())))
  })
  t.test('a session that was killed leaves leaks at most', async (t) => {
    const recorder = new Recorder()
    const disk = openStorages([recorder.record(image())])
    disk.write(new Uint8Array(BLOCK).fill(0x22), 0, BLOCK, 2 * BLOCK)
    disk.flush()
    disk.write(new Uint8Array(BLOCK).fill(0x44), 0, BLOCK, 4 * BLOCK)
    for (let count = 0; count <= recorder.length; count++)
      for (let seed = 0; seed < 5; seed++) {
        t.same(corruptionsOf(recorder.crash(count, seed, 512)[0]!), [], `${count}/${seed}`)
      }
    const killed = recorder.prefix(recorder.length)[0]!
    t.match(check(killed).findings, [{ severity: 'leak' }])
    check(killed, 'leaks')
    t.same(check(killed).findings, [])
    disk.close()
  })
})

t.test('remarks', async (t) => {
  const saved = changedFooter((view) => view.setUint8(FooterAt.savedState, 1))
  t.match(check(image({ footer: saved })).findings, [{ what: 'saved-state', severity: 'warning', repairable: false }])
  // 301 cylinders, 4 heads, 17 sectors: 10479616 bytes.
  const qemu = (size: number) =>
    footerWith((view) => {
      view.setUint32(FooterAt.creator, 0x71656d75)
      view.setBigUint64(FooterAt.currentSize, BigInt(size))
    })
  t.same(check(dynamicImage({ footer: qemu(10485760) })).findings, [], 'rounded down to a cylinder')
  t.match(check(dynamicImage({ footer: qemu(10485760 + 65536) })).findings, [
    { what: 'geometry', severity: 'warning', found: 10479616, expected: 10551296 },
  ])
})

t.test('a fixed disk', async (t) => {
  const SIZE = 10485760
  const fixed = (bytes = WINDOWS_FIXED_FOOTER, offset = SIZE) => {
    const storage = MemoryStorage.create({ path: 'test.vhd' })
    storage.write(bytes, 0, 512, offset)
    return storage
  }
  const seal = (change: (view: DataView) => void) => footerWith(change, WINDOWS_FIXED_FOOTER)
  const { findings, totals } = check(fixed())
  t.same(findings, [])
  t.same(totals, { imageEnd: SIZE + 512, clusters: 0, allocated: 0, fragmented: 0, compressed: 0 })
  t.test('a wrong checksum', async (t) => {
    const edited = WINDOWS_FIXED_FOOTER.slice()
    edited[FooterAt.id] = 0x00
    const storage = fixed(edited)
    t.throws(() => vhd.open(contextOf(storage)), { code: 'CORRUPT' })
    t.match(check(storage, 'all').findings, [{ found: '0xffffe5f7', expected: '0xffffe6af', repaired: true }])
    t.equal(vhd.open(contextOf(storage)).size, SIZE)
    t.same(check(storage).findings, [])
  })
  t.test('a wrong checksum and a size that cannot be', async (t) => {
    const edited = WINDOWS_FIXED_FOOTER.slice()
    edited[FooterAt.currentSize + 5] = 0x90
    refuses(t, fixed(edited), ['size', 'footer-checksum'])
    edited[FooterAt.currentSize + 5] = 0xb0
    refuses(t, fixed(edited), ['footer-checksum', 'size'])
  })
  t.test('the file is shorter than the disk', async (t) => {
    refuses(t, fixed(WINDOWS_FIXED_FOOTER, SIZE - 512), ['size'])
  })
  t.test('the file is longer', async (t) => {
    t.match(check(fixed(WINDOWS_FIXED_FOOTER, SIZE + 512)).findings, [{ what: 'size', severity: 'warning' }])
  })
  t.test('511 bytes', async (t) => {
    const storage = fixed()
    storage.truncate(SIZE + 511)
    t.match(check(storage, 'all').findings, [{ what: 'footer-short', repaired: true }])
    t.ok(allOf(storage).equals(allOf(fixed())))
  })
  t.test("a guest's data that looks like a copy of a footer", async (t) => {
    const storage = fixed()
    storage.write(WINDOWS_FOOTER, 0, 512, 0)
    t.same(check(storage).findings, [])
  })
  t.test('saved state', async (t) => {
    const storage = fixed(seal((view) => view.setUint8(FooterAt.savedState, 1)))
    t.match(check(storage).findings, [{ what: 'saved-state' }])
  })
})

t.test('a device', needsMounts, async (t) => {
  const SIZE = 1 << 20
  const file = allOf(image())
  const write = (path: string, bytes: Uint8Array, offset: number) => {
    const fd = openSync(path, 'r+')
    writeSync(fd, bytes, 0, bytes.length, offset)
    fsyncSync(fd)
    closeSync(fd)
  }
  const kinds = (path: string, repair: Repair = 'none') => checkImage(path, { repair }).findings.map(({ what }) => what)
  const firsts = (path: string) => {
    const disk = openImage(path)
    const bytes = Buffer.alloc(5 * BLOCK)
    disk.read(bytes, 0, bytes.length, 0)
    disk.close()
    return Array.from({ length: 5 }, (_, i) => bytes[i * BLOCK])
  }
  t.test('that a shorter image was copied to, without a footer at its end', async (t) => {
    const path = deviceWith(t, file, SIZE)
    write(path, Buffer.alloc(512), SIZE - 512)
    write(path, file, 0)
    t.same(kinds(path), ['footer-missing', 'leak'])
    t.same(kinds(path, 'all'), ['footer-missing', 'leak'])
    t.same(kinds(path), [])
    t.same(firsts(path), CONTENT)
  })
  t.test('with a lost footer and a wrong entry', async (t) => {
    const path = deviceWith(t, allOf(image({ table: [place(2), place(0), FREE, place(1), 0x7fffffff] })), SIZE)
    write(path, Buffer.alloc(512), SIZE - 512)
    kinds(path, 'all')
    kinds(path, 'all')
    t.same(kinds(path), [])
    t.same(firsts(path), CONTENT)
  })
  t.test('with no room for a copy', async (t) => {
    const shared = image({
      table: [place(2), place(0), place(0), place(1), FREE],
      more: [[endOf(1), block(0x33, 0)]],
    })
    const path = deviceWith(t, allOf(shared), file.length)
    const before = readFileSync(path)
    t.match(checkImage(path, { repair: 'all' }).findings, [
      { what: 'shared-block', repairable: false, repaired: false, message: /no room for a copy on the device/ },
      { what: 'bitmap', repaired: false },
    ])
    t.ok(readFileSync(path).equals(before), 'nothing is written')
  })
  t.test('with no room for a footer', async (t) => {
    const path = deviceWith(t, file, file.length)
    write(path, Uint8Array.of(0, 0, 0, place(2) + 1), TABLE)
    write(path, Buffer.alloc(512), file.length - 512)
    const before = readFileSync(path)
    t.throws(() => kinds(path, 'all'), { code: 'NO_SPACE', message: /no room for the footer/ })
    t.ok(readFileSync(path).equals(before), 'nothing is written')
  })
})

t.test('what is no VHD cannot be checked', async (t) => {
  t.throws(() => check(MemoryStorage.create({ contents: new Uint8Array(4096) })), { code: 'FORMAT' })
  t.throws(() => check(MemoryStorage.create({ contents: new Uint8Array(0) })), { code: 'FORMAT' })
})

t.test('the parent', async (t) => {
  const folder = temporaryFolder(t)
  const parent = join(folder, 'parent.vhd')
  const path = join(folder, 'child.vhd')
  writeFileSync(parent, allOf(image()))
  const opened = vhd.open(contextOf(image()))
  const storage = MemoryStorage.create({ path: 'child.vhd' })
  const backing = {
    path: parent,
    format: 'vhd',
    layout: opened.layout,
    size: opened.size,
    mtimeMs: Date.UTC(2001, 0, 1),
  }
  vhd.create({ storage, path, size: opened.size, options: { block_size: BLOCK }, backing })
  writeFileSync(path, allOf(storage))
  t.match(checkImage(path).findings, [{ what: 'parent-changed', severity: 'warning' }], 'the time is another')
  const other = changedFooter((view) => view.setUint32(FooterAt.id, 1))
  writeFileSync(parent, allOf(image({ footer: other })))
  t.match(checkImage(path), { corruptions: 1, findings: [{ what: 'parent-mismatch', repairable: false }] })
  truncateSync(parent, 0)
  t.match(
    checkImage(path),
    { corruptions: 1, findings: [{ what: 'parent-mismatch' }] },
    'an empty file is another disk',
  )
  writeFileSync(path, allOf(storage))
  const moved = join(temporaryFolder(t), 'child.vhd')
  copyFileSync(path, moved)
  t.match(checkImage(moved), { corruptions: 0, findings: [{ what: 'parent', severity: 'warning' }] })
})

/** Makes an image with qemu-img, or says that there is none. */
const hasQemu = spawnSync('qemu-img', ['--version']).status === 0 ? {} : { skip: 'needs qemu-img' }

t.test("QEMU's images, broken and repaired, as QEMU reads them", hasQemu, async (t) => {
  const folder = temporaryFolder(t)
  const model = join(folder, 'model')
  const path = join(folder, 'q.vhd')
  const content = Buffer.alloc(16 * 2 ** 20)
  for (const at of [0, 5, 6, 15]) content.fill(at + 1, at * 2 ** 20, at * 2 ** 20 + 300000)
  writeFileSync(model, content)
  const asQemuReads = () => {
    must('qemu-img', ['convert', '-f', 'vpc', '-O', 'raw', path, join(folder, 'back')])
    return readFileSync(join(folder, 'back')).subarray(0, content.length).equals(content)
  }
  for (const subformat of ['dynamic', 'fixed']) {
    const options = `subformat=${subformat},force_size=on`
    must('qemu-img', ['convert', '-f', 'raw', '-O', 'vpc', '-o', options, model, path])
    t.same(checkImage(path).findings, [], `${subformat}: as it is`)
    const bytes = readFileSync(path)
    const end = bytes.length - 512
    const breakIt: [string, (image: Buffer) => Buffer, number][] = [
      ['the checksum', (image) => fill(image, end + 64, 1), 1],
      ['the unique id', (image) => fill(image, end + 70, 1), 1],
      ...(subformat === 'fixed'
        ? []
        : ([
            ['the copy', (image) => fill(image, 60, 100), 1],
            ['the footer is missing', (image) => image.subarray(0, end), 1],
            ['the footer is cut', (image) => image.subarray(0, end + 9), 1],
            ['the header', (image) => fill(image, 512 + 36, 2), 1],
            ['an entry behind the last', (image) => fill(image, 1536 + 4 * 1, 2), 1],
            [
              'room behind the last block',
              (image) => Buffer.concat([image.subarray(0, end), Buffer.alloc(2 ** 23), image.subarray(end)]),
              0,
            ],
          ] as [string, (image: Buffer) => Buffer, number][])),
    ]
    for (const [name, change, corruptions] of breakIt) {
      writeFileSync(path, change(Buffer.from(bytes)))
      t.match(checkImage(path), { corruptions }, `${subformat}: ${name}`)
      const { corruptionsFixed, leaks, leaksFixed } = checkImage(path, { repair: 'all' })
      t.equal(corruptionsFixed, corruptions, `${subformat}: ${name}: repaired`)
      t.equal(leaks, leaksFixed)
      t.same(checkImage(path).findings, [], `${subformat}: ${name}: clean`)
      t.ok(asQemuReads(), `${subformat}: ${name}: content`)
    }
  }
})

function fill(image: Buffer, at: number, count: number): Buffer {
  for (let i = at; i < at + count; i++) image[i] = 0x5a
  return image
}

t.test('images of other programs', needsCorpus, async (t) => {
  for (const name of ['dynamic', 'fixed', 'd2v-zerofilled', 'virtualpc-dynamic']) {
    const { path } = corpusImage(t, `vhd/${name}.vhd`)
    t.same(checkImage(path).findings, [], name)
  }
  t.test('a wrong checksum', async (t) => {
    const { path } = corpusImage(t, 'vhd/bad-checksum.vhd')
    const size = statSync(path).size
    t.match(checkImage(path, { format: 'vhd' }).findings, [
      { what: 'footer-checksum', found: '0xfffff683', expected: '0xffffef25', offset: size - 512 },
      { what: 'footer-copy', found: '0xfffff683', expected: '0xffffef25', offset: 0 },
    ])
    t.match(checkImage(path, { repair: 'all' }), { corruptions: 2, corruptionsFixed: 2 })
    t.same(checkImage(path).findings, [])
    must('qemu-img', ['convert', '-f', 'vpc', '-O', 'raw', path, `${path}.raw`])
  })
  t.test('what a fuzzer made', async (t) => {
    const { path } = corpusImage(t, 'vhd/afl5.img')
    const before = readFileSync(path)
    const { corruptions, corruptionsFixed } = checkImage(path, { repair: 'all' })
    t.ok(corruptions > corruptionsFixed)
    t.ok(readFileSync(path).equals(before))
  })
})
