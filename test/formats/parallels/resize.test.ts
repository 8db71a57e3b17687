/** Resizing: the table moves into the data, bitmaps follow, nothing old shows up in what is new. */

import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { eachBitmapExtent } from '../../../lib/image/bitmaps.js'
import { checkImage } from '../../../lib/image/check.js'
import { openImage } from '../../../lib/image/open.js'
import { resizeImage } from '../../../lib/image/resize.js'
import { attachLoop } from '../../support/mounts.js'
import { must } from '../../support/run.js'
import { type TestCase, temporaryFolder } from '../../support/temp.js'
import { BITMAP, bitmapData, CLOSED, extensionBytes, type ImageParts, imageBytes, KiB } from './bytes.js'

const CLUSTER = 4 * KiB
const ID = '00112233-4455-6677-8899-aabbccddeeff'

function image(t: TestCase, parts: Partial<ImageParts>, change: (file: Buffer) => void = () => {}): string {
  const path = join(temporaryFolder(t), 'x.hds')
  const file = imageBytes({ cluster: 8, sectors: 64 * 8, dataOff: 8, size: 4 * CLUSTER, ...parts })
  for (let n = 1; n * CLUSTER < file.length; n++) file.fill(n, n * CLUSTER, Math.min(file.length, (n + 1) * CLUSTER))
  change(file)
  writeFileSync(path, file)
  return path
}

/** What each cluster of the disk is filled with; -1 where it is mixed. */
function clusters(path: string, indexes: readonly number[]): number[] {
  const disk = openImage(path, { readOnly: true })
  const found = indexes.map((index) => {
    const bytes = Buffer.alloc(Math.min(CLUSTER, disk.size - index * CLUSTER))
    disk.read(bytes, 0, bytes.length, index * CLUSTER)
    return bytes.every((byte) => byte === bytes[0]) ? bytes[0]! : -1
  })
  disk.close()
  return found
}

t.test('larger, within the room that the table has', async (t) => {
  const path = image(t, { bat: [1, 2, 3] })
  t.same(resizeImage(path, { size: 36 * CLUSTER, relative: true }), { before: 64 * CLUSTER, after: 100 * CLUSTER })
  t.same(clusters(path, [0, 1, 2, 3, 99]), [1, 2, 3, 0, 0])
  t.equal(statSync(path).size, 4 * CLUSTER)
  t.same(checkImage(path).findings, [])
  must('qemu-img', ['check', '-f', 'parallels', path])
})

t.test('larger, so that clusters must make room for the table', async (t) => {
  for (const parts of [
    { bat: [1, 2, 3] },
    { magic: 'WithoutFreeSpace' as const, bat: [8, 16, 24] },
    { magic: 'WithoutFreeSpace' as const, dataOff: 0, bat: [1, 9, 17], size: 25 * 512 },
  ]) {
    const path = image(t, parts)
    const before = clusters(path, [0, 1, 2])
    resizeImage(path, { size: 3000 * CLUSTER })
    t.same(clusters(path, [0, 1, 2, 3, 1000, 2999]), [...before, 0, 0, 0])
    t.same(checkImage(path).findings, [])
    must('qemu-img', ['check', '-f', 'parallels', path])
    const disk = openImage(path)
    disk.write(Buffer.alloc(CLUSTER, 9), 0, CLUSTER, 2999 * CLUSTER)
    disk.close()
    t.same(clusters(path, [0, 1, 2, 2999]), [...before, 9])
  }
})

t.test('a copy that was cut short keeps its size: nothing is put where its clusters were', async (t) => {
  const path = image(t, { bat: [1, 2, 3], size: 3 * CLUSTER })
  const before = readFileSync(path)
  for (const request of [{ size: 3000 * CLUSTER }, { size: CLUSTER, shrink: true }])
    t.throws(() => resizeImage(path, request), { code: 'CORRUPT', message: /BAT entry 2 says byte 12288/ })
  t.ok(readFileSync(path).equals(before))
})

t.test('smaller only where that is meant; what was cut off does not come back', async (t) => {
  const path = image(t, { bat: [1, 2, 3] })
  const size = CLUSTER + 512
  t.throws(() => resizeImage(path, { size }), { code: 'USAGE', message: /--shrink/ })
  resizeImage(path, { size, shrink: true })
  t.same(clusters(path, [0, 1]), [1, 2])
  t.equal(statSync(path).size, 3 * CLUSTER)
  resizeImage(path, { size: 8 * CLUSTER })
  t.same(clusters(path, [0, 1, 2, 3]), [1, -1, 0, 0])
  const disk = openImage(path, { readOnly: true })
  const bytes = Buffer.alloc(CLUSTER)
  disk.read(bytes, 0, CLUSTER, CLUSTER)
  disk.close()
  t.ok(bytes.equals(Buffer.concat([Buffer.alloc(512, 2)], CLUSTER)))
  t.same(checkImage(path).findings, [])
})

t.test('bitmaps get the new size, and move where they are in the way', async (t) => {
  const path = image(t, { extOff: 16, size: 3 * CLUSTER }, (file) => {
    file.fill(0, CLUSTER)
    file[CLUSTER] = 5
    extensionBytes(CLUSTER, [{ magic: BITMAP, data: bitmapData(64 * 8, ID, 8, [8]) }]).copy(file, 2 * CLUSTER)
  })
  const extents = () => {
    const found: [number, number][] = []
    eachBitmapExtent(path, ID, ({ start, length }) => found.push([start / CLUSTER, length / CLUSTER]))
    return found
  }
  for (const count of [100, 3000, 200000]) {
    resizeImage(path, { size: count * CLUSTER })
    t.same(
      extents(),
      [
        [0, 1],
        [2, 1],
      ],
      `${count} clusters`,
    )
    t.same(checkImage(path).findings, [])
  }
  resizeImage(path, { size: 3 * CLUSTER, shrink: true })
  t.same(extents(), [
    [0, 1],
    [2, 1],
  ])
  t.same(checkImage(path).findings, [])
})

t.test('an image that says it is empty: where its BAT refers to, nothing is touched', async (t) => {
  // The last cluster of the disk has one sector; its stale entry says the cluster of the bitmap's bits.
  const sectors = 64 * 8 - 7
  const bat = [...Array(63).fill(0), 1]
  for (const size of [sectors + 100, 3000 * 8, 2 * 8]) {
    const path = image(t, { sectors, flags: 1, bat, extOff: 16, size: 3 * CLUSTER }, (file) => {
      file.fill(0xff, CLUSTER)
      extensionBytes(CLUSTER, [{ magic: BITMAP, data: bitmapData(sectors, ID, 1, [8]) }]).copy(file, 2 * CLUSTER)
      file.fill(0xff, CLUSTER, 2 * CLUSTER)
    })
    const bits = () => readFileSync(path).subarray(readL1(path), readL1(path) + CLUSTER)
    resizeImage(path, { size: size * 512, shrink: true })
    t.ok(bits().equals(Buffer.alloc(CLUSTER, 0xff)), `${size} sectors`)
    t.same(clusters(path, [0, 1]), [0, 0])
    t.same(checkImage(path).findings, [])
  }
})

/** Where the bits of the only bitmap are in the file. */
function readL1(path: string): number {
  const file = readFileSync(path)
  return Number(file.readBigUInt64LE(Number(file.readBigUInt64LE(56)) * 512 + 24 + 24 + 32)) * 512
}

t.test('bitmaps that would be too large: nothing is changed', async (t) => {
  const path = image(t, { extOff: 8, size: 2 * CLUSTER }, (file) => {
    extensionBytes(CLUSTER, [{ magic: BITMAP, data: bitmapData(64 * 8, ID, 1, [1]) }]).copy(file, CLUSTER)
  })
  const before = readFileSync(path)
  t.throws(() => resizeImage(path, { size: 2 ** 34 }), { code: 'NO_SPACE', message: /do not fit/ })
  t.ok(readFileSync(path).equals(before))
})

t.test('sizes that cannot be', async (t) => {
  const older = image(t, { magic: 'WithoutFreeSpace', bat: [8, 16, 24] })
  t.throws(() => resizeImage(older, { size: 2 ** 41 + 512 }), { code: 'USAGE', message: /cannot count/ })
  t.throws(() => resizeImage(older, { size: -(2 ** 40), relative: true, shrink: true }), { code: 'USAGE' })
  t.same(clusters(older, [0, 1, 2]), [1, 2, 3])
})

t.test('on a block device, which keeps its size', async (t) => {
  const path = image(t, { bat: [1, 2, 3], size: 16 * CLUSTER }, (file) => file.fill(0, 4 * CLUSTER))
  const device = attachLoop(t, path)
  t.same(checkImage(device).findings, [])
  t.same(resizeImage(device, { size: 100 * CLUSTER }), { before: 64 * CLUSTER, after: 100 * CLUSTER })
  t.equal(readFileSync(path).readUInt32LE(44), CLOSED)
  t.same(clusters(device, [0, 1, 2, 3, 99]), [1, 2, 3, 0, 0])
  const disk = openImage(device)
  disk.write(Buffer.alloc(CLUSTER, 9), 0, CLUSTER, 99 * CLUSTER)
  disk.close()
  t.same(clusters(device, [0, 1, 2, 3, 99]), [1, 2, 3, 0, 9])
  for (const repair of ['none', 'leaks', 'all'] as const) t.same(checkImage(device, { repair }).findings, [])
  resizeImage(device, { size: 2 * CLUSTER, shrink: true })
  t.equal(readFileSync(path).readUInt32LE(44), CLOSED)
  t.same(clusters(device, [0, 1]), [1, 2])
  t.same(checkImage(device).findings, [])
  t.equal(statSync(path).size, 16 * CLUSTER)
})
