import { createHash } from 'node:crypto'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { vhdx } from '../../../lib/formats/vhdx/format.js'
import { describeLog } from '../../../lib/formats/vhdx/log-facts.js'
import { openImage, openStorages } from '../../../lib/image/open.js'
import { attachStorage } from '../../../lib/storage/attach.js'
import { openFile } from '../../../lib/storage/file.js'
import type { MemoryStorage } from '../../../lib/storage/memory.js'
import { ReplayedStorage } from '../../../lib/storage/replayed.js'
import { must, vdiskfs, vdiskfsMust } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { corpusImage, needsCorpus } from '../vhd-images.js'
import {
  At,
  bytesAt,
  contextOf,
  type EntryParts,
  HeaderAt,
  header,
  hex,
  logEntry,
  MiB,
  type Parts,
  put,
  u32,
  u64,
  u64At,
  windowsImage,
} from './bytes.js'

const GUID = hex('11111111222233334444555555555555')
const OTHER = hex('99999999222233334444555555555555')
const NIL = new Uint8Array(16)
/** The first sequence number of a log of Windows: it does not fit into a double. */
const FIRST = 2766278055522667019n

/** A page that tells where it is. */
const page = (fill: number) => new Uint8Array(4096).map((_, i) => (i < 8 || i >= 4092 ? fill + 1 : fill))

const dirty = header([[HeaderAt.logGuid, GUID]])

/** An image whose log has these entries, each at its place. */
function logged(entries: readonly (EntryParts & { at: number })[], parts: Parts = {}): MemoryStorage {
  return windowsImage({ header2: dirty, ...parts, log: entries.map((e) => [e.at, logEntry(e)]) })
}

/** An entry that fills the pages of the table from a number on. */
function filling(
  at: number,
  sequence: bigint,
  pages: readonly number[],
  tail = at,
  guid = GUID,
): EntryParts & { at: number } {
  return { at, sequence, guid, tail, changes: pages.map((n) => [At.bat + 4096 * n, page(n + Number(sequence % 100n))]) }
}

const entryBytes = (pages: number) => 4096 * (1 + pages)

/** First bytes of the pages of the table, as the two ways of replaying leave them. */
function replayed(t: Test, storage: MemoryStorage, pages: readonly number[]): number[] {
  const before = createHash('sha256')
    .update(bytesAt(storage, 0, storage.size()))
    .digest('hex')
  const opened = vhdx.open(contextOf(storage))
  t.ok(opened.storage instanceof ReplayedStorage)
  const view = opened.storage!
  t.equal(
    createHash('sha256')
      .update(bytesAt(storage, 0, storage.size()))
      .digest('hex'),
    before,
    'nothing was changed',
  )
  const inMemory = bytesAt(view, 0, view.size())
  const again = attachStorage(view.handle())
  t.equal(Buffer.compare(bytesAt(again, 0, again.size()), inMemory), 0, 'another thread sees the same')
  const unaligned = new Uint8Array(10000)
  for (const at of [At.bat + 1, At.bat + 4095, At.bat - 3000, At.bat + 8190]) {
    view.read(unaligned, 0, unaligned.length, at)
    t.equal(Buffer.compare(unaligned, inMemory.subarray(at, at + unaligned.length)), 0, `10000 bytes at ${at}`)
  }
  vhdx.open(contextOf(storage, false))
  const file = bytesAt(storage, 0, storage.size())
  for (const at of [At.header1, At.header2]) file.set(inMemory.subarray(at, at + 4096), at)
  t.equal(Buffer.compare(file, inMemory), 0, 'both ways of replaying agree')
  return pages.map((n) => file[At.bat + 4096 * n + 100]!)
}

t.test('one entry', async (t) => {
  const storage = logged([filling(0, FIRST, [0, 5])])
  t.same(replayed(t, storage, [0, 1, 5]), [19, 0, 24])
  t.same(bytesAt(storage, At.bat, 8), page(19).subarray(0, 8), 'the bytes that the descriptor holds')
  t.same(bytesAt(storage, At.bat + 4092, 4), page(19).subarray(4092))
})

t.test('a replay ends with an empty log and other GUIDs', async (t) => {
  const storage = logged([filling(0, FIRST, [0])])
  vhdx.open(contextOf(storage, false))
  for (const at of [At.header1, At.header2]) {
    t.same(bytesAt(storage, at + HeaderAt.logGuid, 16), NIL)
    t.notSame(bytesAt(storage, at + HeaderAt.fileWriteGuid, 16), dirty.slice(16, 32), 'FileWriteGuid')
    t.same(
      bytesAt(storage, at + HeaderAt.dataWriteGuid, 16),
      dirty.slice(32, 48),
      'DataWriteGuid: the disk is the same',
    )
  }
  t.same([u64At(storage, At.header1 + 8), u64At(storage, At.header2 + 8)].sort(), [22n, 23n])
  const { layout, storage: none } = vhdx.open(contextOf(storage, false))
  t.equal(layout.log, 'empty')
  t.equal(none, undefined)
})

t.test('a sequence of several entries, of which the tail is the first that counts', async (t) => {
  const second = entryBytes(2)
  const third = second + entryBytes(1)
  const entries = [filling(0, 110n, [0, 1]), filling(second, 111n, [1], second), filling(third, 112n, [2], second)]
  t.same(replayed(t, logged(entries), [0, 1, 2]), [0, 12, 14], 'the entry in front of the tail is left out')
  const all = entries.map((e) => ({ ...e, tail: 0 }))
  t.same(replayed(t, logged(all), [0, 1, 2]), [10, 12, 14], 'later entries come later')
})

t.test('a sequence that wraps around, and an entry that does', async (t) => {
  const at = MiB - 8192
  const wrapped = [filling(at, 7n, [0, 1, 2]), filling(8192, 8n, [1], at)]
  t.same(replayed(t, logged(wrapped), [0, 1, 2]), [7, 9, 9])
})

t.test('the newest of several sequences', async (t) => {
  const far = 65536
  t.same(replayed(t, logged([filling(0, 5n, [0]), filling(far, 9n, [1])]), [0, 1]), [0, 10])
  t.same(replayed(t, logged([filling(0, 9n, [0]), filling(far, 5n, [1])]), [0, 1]), [9, 0])
  const gap = filling(entryBytes(1), 7n, [1])
  t.same(replayed(t, logged([filling(0, 5n, [0]), gap]), [0, 1]), [0, 8], 'numbers that do not follow each other')
})

t.test('entries of another log count for nothing', async (t) => {
  const other = filling(0, 9n, [0], 0, OTHER)
  t.same(replayed(t, logged([other, filling(entryBytes(1), 5n, [1])]), [0, 1]), [0, 6])
  const stale = logged([filling(0, 9n, [0])], { header2: header([]) })
  t.equal(vhdx.open(contextOf(stale)).storage, undefined, 'an empty log with valid entries is not replayed')
  t.throws(() => vhdx.open(contextOf(logged([other]))), {
    code: 'CORRUPT',
    message: /^test.vhdx: VHDX log: the header says that it is in use .* and it has no valid entries/,
  })
})

t.test('a head without its tail is no sequence', async (t) => {
  const orphan = filling(65536, 9n, [1], 4096)
  t.same(replayed(t, logged([filling(0, 5n, [0]), orphan]), [0, 1]), [5, 0])
})

t.test('an entry that is not whole', async (t) => {
  const good = filling(0, 5n, [0])
  const bytes = logEntry(filling(0, 6n, [1]))
  const at = entryBytes(1)
  for (const [what, where, change] of [
    ['torn in a page', 4096 + 2000, '55'],
    ['sequence number at the end of a page', 8188, '55'],
    ['no page behind it', 4096, '00000000'],
    ['a page of another entry', 4100, '01'],
    ['descriptor', 64, '00'],
    ["descriptor's sequence number", 64 + 24, '07'],
    ['crooked file offset', 64 + 16, '01'],
    ['count of descriptors', 24, '02'],
    ['length', 8, '0030'],
    ['length of nothing', 8, '00000000'],
    ['checksum', 4, '00000000'],
  ] as const) {
    const torn = put(bytes.slice(), where, hex(change))
    const storage = logged([good])
    storage.write(torn, 0, torn.length, At.log + at)
    t.same(replayed(t, storage, [0, 1]), [5, 0], what)
  }
  const whole = logged([good])
  whole.write(bytes, 0, bytes.length, At.log + at)
  t.same(replayed(t, whole, [0, 1]), [5, 7], 'whole')
})

t.test('zeros, and pages that were written before and after them', async (t) => {
  const changes: EntryParts['changes'] = [
    [At.bat, page(1)],
    [At.bat + 4096, page(2)],
    [At.bat, 5 * 4096],
    [At.bat + 4096, page(3)],
    [At.bat + 3 * 4096, 4096],
  ]
  const storage = logged([{ at: 0, sequence: 1n, guid: GUID, tail: 0, changes }])
  storage.write(page(9), 0, 4096, At.bat + 4 * 4096)
  storage.write(page(9), 0, 4096, At.bat + 5 * 4096)
  t.same(replayed(t, storage, [0, 1, 2, 3, 4, 5]), [0, 3, 0, 0, 0, 9])
})

t.test('an entry with more descriptors than fit into one sector', async (t) => {
  const pages = Array.from({ length: 200 }, (_, i) => i)
  const storage = logged([{ ...filling(0, 1n, pages), changes: pages.map((n) => [At.bat + 4096 * n, page(n)]) }])
  t.same(replayed(t, storage, pages), pages)
})

t.test('an entry without changes, as Windows begins a log', async (t) => {
  t.same(replayed(t, logged([{ at: 0, sequence: FIRST, guid: GUID, tail: 0 }]), [0]), [0])
})

t.test('the length of the file', async (t) => {
  const longer = { ...filling(0, 1n, [0]), last: 6 * MiB }
  const storage = logged([longer])
  t.equal(vhdx.open(contextOf(storage)).storage!.size(), 6 * MiB)
  vhdx.open(contextOf(storage, false))
  t.equal(storage.size(), 6 * MiB, 'LastFileOffset')
  const cut = logged([{ ...filling(0, 1n, [0]), flushed: 5 * MiB }])
  for (const readOnly of [true, false])
    t.throws(() => vhdx.open(contextOf(cut, readOnly)), {
      code: 'CORRUPT',
      message: /the file was 5242880 bytes when it was written, and is 4194304 now: it was cut short/,
    })
  const behind = logged([{ at: 0, sequence: 1n, guid: GUID, tail: 0, changes: [[7 * MiB, page(4)]] }])
  t.equal(vhdx.open(contextOf(behind)).storage!.size(), 7 * MiB + 4096)
  vhdx.open(contextOf(behind, false))
  t.equal(behind.size(), 7 * MiB + 4096, 'pages behind the end')
})

t.test('a log that would write over the headers or over itself is refused', async (t) => {
  for (const [at, what] of [
    [0, /over the headers/],
    [At.header2, /over the headers/],
    [At.log + 65536, /over the log itself/],
  ] as const) {
    const storage = logged([{ at: 0, sequence: 1n, guid: GUID, tail: 0, changes: [[at, page(1)]] }])
    const before = bytesAt(storage, 0, 4 * MiB)
    t.throws(() => vhdx.open(contextOf(storage, false)), { code: 'CORRUPT', message: what })
    t.equal(Buffer.compare(bytesAt(storage, 0, 4 * MiB), before), 0)
  }
  const across = logged([{ at: 0, sequence: 1n, guid: GUID, tail: 0, changes: [[192 * 1024, MiB]] }])
  t.throws(() => vhdx.open(contextOf(across)), { message: /over the log itself/ }, 'zeros')
})

t.test('a log that is looked at', async (t) => {
  const storage = logged([filling(0, FIRST, [0, 3]), filling(65536, 4n, [1], 65536, OTHER)])
  const { entries, logGuid, offset, length } = describeLog(storage)
  t.same([logGuid, offset, length], ['11111111-2222-3333-4444-555555555555', MiB, MiB])
  t.match(entries, [
    { at: 0, length: 12288, tail: 0, sequenceNumber: '2766278055522667019', active: true, lastFileOffset: 4 * MiB },
    { at: 65536, sequenceNumber: '4', logGuid: '99999999-2222-3333-4444-555555555555', active: false },
  ])
  t.same(entries[0]!.changes, [
    { offset: At.bat, length: 4096, zeros: false, where: 'block allocation table' },
    { offset: At.bat + 3 * 4096, length: 4096, zeros: false, where: 'block allocation table' },
  ])
  t.match(describeLog(windowsImage()).entries, [])
})

t.test('a log at a place where none can be is not listed', async (t) => {
  const entryAt = (at: number) => [at, logEntry({ sequence: 1n, guid: GUID, tail: 0 })] as const
  for (const [what, at, bytes, message] of [
    ['a length of no whole sectors', 68, u32(5000), /log length is 5000: expected a multiple of 1 MiB/],
    ['no length', 68, u32(0), /log length is 0/],
    ['inside of the header section', 72, u64(65536), /log offset is 65536: expected a multiple of 1 MiB from/],
    ['another version', 64, u32(0x10001), /log version is 1: expected 0/],
  ] as const) {
    const storage = windowsImage({ header2: header([[at, bytes]]), log: [entryAt(0), entryAt(4096)] })
    t.throws(() => describeLog(storage), { message }, what)
  }
})

t.test('info --log', needsCorpus, async (t) => {
  const { path } = corpusImage(t, 'vhdx/dirtylog-10G.vhdx')
  const before = readFileSync(path)
  const { entries } = JSON.parse(vdiskfsMust(['info', '--log', '--json', path]))
  t.equal(entries.length, 7)
  t.match(entries[6], { at: 0xc000, active: true, changes: [{ length: 4096, where: 'block allocation table' }] })
  const text = vdiskfsMust(['info', '--log', path])
  t.match(text, /^log: 1 MiB at 1048576 of the file\n/)
  t.match(text, /^entries: 7, of which a replay applies 1$/m)
  t.match(
    text,
    /^\[49152\] to replay: sequence number \d+, 8192 bytes, log .*\n {4}4096 bytes at \d+: block allocation table$/m,
  )
  t.ok(readFileSync(path).equals(before))
  const raw = join(temporaryFolder(t), 'i.raw')
  writeFileSync(raw, 'x')
  t.match(vdiskfs(['info', '--log', raw]), { code: 1, err: `vdiskfs: ${raw}: images of format raw have no log\n` })
})

t.test(
  'a dirty log that QEMU left: read without a change, replayed, and as QEMU replays it',
  needsCorpus,
  async (t) => {
    const { path, virtualSize } = corpusImage(t, 'vhdx/dirtylog-10G.vhdx')
    const storage = openFile(path, { readOnly: true })
    const { entries } = describeLog(storage)
    storage.close()
    t.same(
      entries.map(({ at, active }) => [at, active]),
      [0, 1, 2, 3, 4, 5, 6].map((i) => [0x2000 * i, i === 6]),
    )
    const before = readFileSync(path)
    // The manifest has the hash of all of its 10 GiB; this is where its data are.
    const image = openImage(path, { readOnly: true })
    const data = new Uint8Array(32 * MiB)
    image.read(data, 0, data.length, 0)
    const [last, ...rest] = [image.map(18 * MiB, virtualSize - 18 * MiB), image.map(0, 18 * MiB)]
    image.close()
    t.match(last, { start: 18 * MiB, zero: true })
    t.match(rest, [{ start: 0, zero: false }])
    t.equal(
      data.findIndex((byte, i) => byte !== (i < 18 * MiB ? 0xa5 : 0)),
      -1,
      'up to 17 MiB only without the log',
    )
    t.ok(readFileSync(path).equals(before), 'not a byte was changed')
    const theirs = join(temporaryFolder(t), 'qemu.vhdx')
    copyFileSync(path, theirs)
    must('qemu-img', ['check', '-q', '-r', 'all', theirs])
    openImage(path).close()
    const [ours, qemus] = [readFileSync(path), readFileSync(theirs)]
    t.ok(ours.subarray(MiB).equals(qemus.subarray(MiB, ours.length)), 'all but the headers is as QEMU leaves it')
    must('qemu-img', ['compare', '-q', path, theirs])
  },
)

t.test('a log is replayed once: opening again finds nothing to do', async (t) => {
  const storage = logged([filling(0, FIRST, [500])])
  openStorages([storage]).close()
  const after = bytesAt(storage, 0, storage.size())
  openStorages([storage]).close()
  t.equal(Buffer.compare(bytesAt(storage, 0, storage.size()), after), 0)
  t.equal(u64At(storage, At.bat), 0n)
})
