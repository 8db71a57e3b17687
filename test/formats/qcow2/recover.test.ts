import { readFileSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { recoverRefcounts } from '../../../lib/formats/qcow2/recover.js'
import { openImage } from '../../../lib/image/open.js'
import { resizeImage } from '../../../lib/image/resize.js'
import { createSnapshot } from '../../../lib/image/snapshots.js'
import { temporaryFolder } from '../../support/temp.js'
import { type Bytes, change, create, differences, inMemory, io, KiB, MiB, qemuCheck, toFile } from './tools.js'

/** With lazy refcounts, two snapshots, and 1 MiB of data; as a writer leaves it that was killed. */
function leftInUse(t: Test): string {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M', 'cluster_size=64k,lazy_refcounts=on')
  io(path, 'write -P 1 0 1M')
  createSnapshot(path, 'one')
  io(path, 'write -P 2 0 512k')
  createSnapshot(path, 'two')
  io(path, 'write -P 3 0 256k')
  change(path, (b) => b.set64(72, 1))
  return path
}

t.test('an image that was left dirty is mended when it is opened for writing', async (t) => {
  const path = leftInUse(t)
  change(path, (b) => b.set16(b.refcountOf(b.u64(b.l2)), 0))
  const memory = inMemory(path)
  recoverRefcounts(memory)
  toFile(memory, path)
  t.equal(qemuCheck(path).code, 0)
  t.same(differences(path, 'read -P 3 0 256k', 'read -P 2 256k 256k', 'read -P 1 512k 512k'), [])
})

for (const [name, how] of [
  ['an L1 entry', (b: Bytes) => b.set64(b.l1, b.bytes.readBigUInt64BE(b.l1) ^ 0x200n)],
  ['an L2 entry', (b: Bytes) => b.set64(b.l2, b.bytes.readBigUInt64BE(b.l2) ^ 0x200n)],
  ['the first snapshot entry, in the size of its extra data', (b: Bytes) => b.set32(b.snapshots + 36, 0x80000018)],
] as const)
  t.test(`one wrong bit in ${name}: what was left dirty is not opened for writing, nor changed`, async (t) => {
    const path = leftInUse(t)
    change(path, how)
    isRefused(t, path, name !== 'an L1 entry')
  })

t.test('cut short: what was left dirty is not opened for writing, nor changed', async (t) => {
  const path = leftInUse(t)
  truncateSync(path, readFileSync(path).length - 128 * KiB)
  isRefused(t, path)
})

t.test('a cluster that more refer to than its refcount can say: what was left dirty is not changed', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, '8M', 'cluster_size=64k,lazy_refcounts=on,refcount_bits=1')
  io(path, 'write -P 1 0 1M')
  change(path, (b) => b.set64(72, 1).set64(b.l2 + 8, b.u64(b.l2)))
  isRefused(t, path)
})

/** @param table whether the table that maps the disk can be read */
function isRefused(t: Test, path: string, table = true): void {
  const before = readFileSync(path)
  const expected = {
    code: 'CORRUPT',
    message: /image.qcow2: not opened for writing: it was left in use, and has .*check --repair all/,
  }
  t.throws(() => openImage(path), expected)
  t.throws(() => resizeImage(path, { size: 16 * MiB }), expected)
  t.throws(() => createSnapshot(path, 'three'), expected)
  t.ok(readFileSync(path).equals(before), 'nothing was changed')
  const disk = openImage(path, { readOnly: true })
  const bytes = new Uint8Array(64 * KiB)
  if (table) disk.read(bytes, 0, bytes.length, 7 * MiB)
  disk.close()
  t.ok(readFileSync(path).equals(before))
}
