import t, { type Test } from 'tap'
import type { CheckTotals, Finding, Repair } from '../../../lib/formats/driver.js'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { openStorages } from '../../../lib/image/open.js'
import type { MemoryStorage } from '../../../lib/storage/memory.js'
import {
  At,
  bytesAt,
  contextOf,
  entry,
  HeaderAt,
  header,
  hex,
  logEntry,
  MiB,
  put,
  u64At,
  WINDOWS_HEADER,
  WINDOWS_ITEMS,
  WINDOWS_METADATA,
  WINDOWS_REGIONS,
  windowsImage,
} from './bytes.js'

function check(storage: MemoryStorage, repair: Repair = 'none'): { totals: CheckTotals; findings: Finding[] } {
  const findings: Finding[] = []
  const context = { ...contextOf(storage, repair === 'none'), repair, found: (f: Finding) => void findings.push(f) }
  return { totals: vhdx.check!(context), findings }
}

type Expected = Partial<Omit<Finding, 'message'> & { message: string | RegExp }>

/** A fault that can be mended: it is found, a repair mends it, and then it is gone. */
function mendable(t: Test, storage: MemoryStorage, expected: Expected, repair: Repair = 'all'): void {
  const before = bytesAt(storage, 0, storage.size())
  t.match(check(storage).findings, [{ ...expected, repairable: true, repaired: false }])
  t.equal(Buffer.compare(bytesAt(storage, 0, storage.size()), before), 0, 'looking changes nothing')
  t.match(check(storage, repair).findings, [{ ...expected, repairable: true, repaired: true }])
  t.same(check(storage).findings, [])
  t.notSame(bytesAt(storage, At.header1 + HeaderAt.fileWriteGuid, 16), WINDOWS_HEADER.slice(16, 32), 'FileWriteGuid')
}

const broken = (bytes: Uint8Array) => put(bytes.slice(), 3000, hex('01'))

t.test('an image without faults', async (t) => {
  const storage = windowsImage({
    bat: [entry(6, 36), entry(2, 0), entry(3, 0), entry(6, 68), entry(6, 4)],
    size: 100 * MiB,
  })
  t.same(check(storage), {
    totals: { imageEnd: 100 * MiB, clusters: 32, allocated: 3, fragmented: 1, compressed: 0 },
    findings: [],
  })
})

t.test('a damaged header', async (t) => {
  mendable(t, windowsImage({ header1: broken(WINDOWS_HEADER) }), { severity: 'corruption', what: 'header' })
  mendable(t, windowsImage({ header2: broken(WINDOWS_HEADER) }), { severity: 'corruption', what: 'header' })
  const both = windowsImage({ header1: broken(WINDOWS_HEADER), header2: broken(WINDOWS_HEADER) })
  t.throws(() => check(both), { code: 'CORRUPT' })
})

t.test('a damaged copy of the region table', async (t) => {
  for (const parts of [{ regions1: broken(WINDOWS_REGIONS) }, { regions2: broken(WINDOWS_REGIONS) }]) {
    const storage = windowsImage(parts)
    mendable(t, storage, { severity: 'corruption', what: 'region-table' })
    for (const at of [At.regions1, At.regions2])
      t.equal(Buffer.compare(bytesAt(storage, at, 65536), WINDOWS_REGIONS), 0)
  }
})

t.test('a log that was not emptied', async (t) => {
  const guid = hex('11111111222233334444555555555555')
  const page = put(new Uint8Array(4096), 8, hex('0200000000000000'))
  const dirty = () =>
    windowsImage({
      header2: header([[HeaderAt.logGuid, guid]]),
      log: [[0, logEntry({ sequence: 5n, guid, tail: 0, changes: [[At.bat, page]] })]],
    })
  mendable(t, dirty(), { severity: 'warning', what: 'log', message: 'the log was not emptied: 1 entry to replay' })
  mendable(t, dirty(), { severity: 'warning', what: 'log' }, 'leaks')
  const storage = dirty()
  check(storage, 'all')
  t.equal(u64At(storage, At.bat + 8), 2n)
})

t.test('structures that nobody can go by', async (t) => {
  for (const parts of [
    { metadata: put(WINDOWS_METADATA.slice(), 0, hex('00')) },
    { items: put(WINDOWS_ITEMS.slice(), 0, hex('01')) },
    { regions1: broken(WINDOWS_REGIONS), regions2: broken(WINDOWS_REGIONS) },
  ]) {
    const storage = windowsImage(parts)
    for (const repair of ['none', 'all'] as const)
      t.match(check(storage, repair), {
        totals: { clusters: 0 },
        findings: [{ severity: 'corruption', what: 'structure', repairable: false, repaired: false }],
      })
  }
})

t.test('blocks', async (t) => {
  const found = (bat: bigint[], expected: object) => {
    const storage = windowsImage({ bat, size: 100 * MiB })
    t.match(check(storage, 'all').findings, [
      { severity: 'corruption', repairable: false, repaired: false, ...expected },
    ])
    bat.forEach((value, i) => {
      t.equal(u64At(storage, At.bat + 8 * i), value)
    })
    t.equal(storage.size(), 100 * MiB, 'nothing is given back where the table is wrong')
  }
  const guest = 32 * MiB
  found([0n, entry(4, 0)], { what: 'block-state', guest, message: 'block 1: its state is 4: expected 0 to 3, 6 or 7' })
  found([0n, entry(7, 4)], { what: 'block-state', guest, message: /^block 1: it is partially present, and the disk/ })
  found([0n, entry(6, 2)], {
    what: 'block-place',
    guest,
    offset: 2 * MiB,
    message: /would lie over the metadata region/,
  })
  found([0n, entry(6, 0)], {
    what: 'block-place',
    guest,
    offset: 0,
    message: 'block 1 is at byte 0: it would lie over the header section at bytes 0 to 1048576',
  })
  found([0n, entry(6, 90)], { what: 'block-place', message: /would end at 127926272, and the file ends at 104857600/ })
  found([entry(6, 4), entry(6, 35)], {
    what: 'shared-block',
    message: 'block 1 is at byte 36700160, where another block lies',
  })
})

t.test('a block with content that is nowhere: nothing is given back, nothing is written', async (t) => {
  const storage = windowsImage({ bat: [entry(6, 0), entry(6, 36)], size: 68 * MiB })
  storage.write(hex('07'), 0, 1, 4 * MiB)
  t.match(check(storage, 'leaks').findings, [{ severity: 'corruption', what: 'block-place', repaired: false }])
  t.equal(bytesAt(storage, 4 * MiB, 1)[0], 7)
  const image = openStorages([storage])
  t.throws(() => image.write(hex('01'), 0, 1, 32 * MiB), { code: 'CORRUPT', message: /block 0 is at byte 0/ })
  image.abandon()
})

t.test('what blocks without content have as their place is never a fault', async (t) => {
  // NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, and what drafts call UNMAPPED; over the log, the metadata, in the file, far behind it.
  for (const place of [0, 1, 2, 36, 2 ** 40])
    for (const state of [0, 1, 2, 3, 5]) {
      const storage = windowsImage({ bat: [entry(6, 4), entry(state, place)], size: 68 * MiB })
      const faults = check(storage).findings.filter(({ severity }) => severity !== 'warning')
      t.same(faults, [], `state ${state}, place ${place}`)
      const image = openStorages([storage])
      image.write(hex('01'), 0, 1, 64 * MiB)
      image.finish()
      const found = Number(u64At(storage, At.bat + 16) >> 20n)
      t.ok(found === 36 || found === 68, `state ${state}, place ${place}: the next block is at ${found} MiB`)
    }
})

t.test('the place of a block without content is that of another block, in any order', async (t) => {
  // What is wrong with it is the same wherever it comes in the table: nobody's data is in danger.
  for (const state of [1, 3, 5])
    for (const bat of [
      [entry(state, 4), entry(6, 4)],
      [entry(6, 4), entry(state, 4)],
      [entry(6, 36), entry(state, 4), entry(state, 4)],
    ]) {
      const storage = windowsImage({ bat, size: 68 * MiB })
      const blocks = () => bat.map((_, i) => u64At(storage, At.bat + 8 * i))
      const image = openStorages([storage])
      image.write(hex('01'), 0, 1, 96 * MiB)
      image.finish()
      t.same(blocks(), bat, 'writing elsewhere is no matter')
      mendable(t, storage, {
        severity: 'warning',
        what: 'block-entry',
        message: /^block [0-2] is at byte 4194304, where another block lies, and has no content$/,
      })
      const mended = bat.map((value, i) => (i === clearedIn(bat) ? BigInt(state) : value))
      t.same(blocks(), mended)
    }
})

/** Which entry loses its place: the one beside a block with content, or the last. */
function clearedIn(bat: readonly bigint[]): number {
  return bat.length === 3 ? 2 : bat.findIndex((value) => value !== entry(6, 4))
}

t.test('entries that say more than they may', async (t) => {
  for (const [bad, good] of [
    [entry(2, 50), 2n],
    [entry(0, 50), 0n],
    [entry(6, 4) | 8n, entry(6, 4)],
    [entry(3, 36) | 0x80000n, entry(3, 36)],
  ] as const) {
    const storage = windowsImage({ bat: [0n, bad, entry(6, 68)], size: 100 * MiB })
    mendable(t, storage, { severity: 'warning', what: 'block-entry' })
    t.equal(u64At(storage, At.bat + 8), good)
  }
})

t.test('sector bitmaps', async (t) => {
  // 129 entries to a chunk with blocks of 32 MiB: the last is the bitmap's. A disk of 1 GiB has 32 blocks.
  const items = put(WINDOWS_ITEMS.slice(), 8, hex('0000000002000000'))
  const bat: bigint[] = new Array(129).fill(0n)
  bat[128] = entry(6, 4)
  const storage = windowsImage({ items, bat, size: 5 * MiB })
  t.match(check(storage).findings, [
    { what: 'block-state', message: 'sector bitmap block 0: its state is 6: expected 0' },
  ])
})

t.test('space that belongs to nothing', async (t) => {
  const make = () => {
    const storage = windowsImage({ bat: [entry(6, 20)], size: 60 * MiB })
    for (const at of [6 * MiB + 5, 7 * MiB, 15 * MiB, 55 * MiB]) storage.write(hex('01'), 0, 1, at)
    // Zeros are free space.
    storage.write(hex('00'), 0, 1, 10 * MiB)
    storage.write(hex('07'), 0, 1, 30 * MiB)
    return storage
  }
  const leaks = [
    { severity: 'leak', offset: 6 * MiB, count: 2 },
    { severity: 'leak', offset: 15 * MiB, count: 1 },
    { severity: 'leak', offset: 55 * MiB, count: 1 },
  ]
  for (const repair of ['leaks', 'all'] as const) {
    const storage = make()
    t.match(check(storage).findings, leaks)
    t.match(
      check(storage, repair).findings,
      leaks.map((leak) => ({ ...leak, repaired: true })),
    )
    t.same(check(storage).findings, [])
    t.equal(storage.size(), 52 * MiB)
    t.equal(bytesAt(storage, 30 * MiB, 1)[0], 7)
  }
})
