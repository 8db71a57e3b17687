/** Both ways with QEMU: its images written here, ours read, written and judged there, bitmaps read by it. */

import { copyFileSync, existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { eachBitmapExtent, listBitmaps } from '../../../lib/image/bitmaps.js'
import { checkImage } from '../../../lib/image/check.js'
import { createImage } from '../../../lib/image/create.js'
import { openImage } from '../../../lib/image/open.js'
import { must, run, start } from '../../support/run.js'
import { type TestCase, temporaryFolder } from '../../support/temp.js'
import { BITMAP, bitmapData, extensionBytes, fromCorpus, imageBytes, KiB, needsCorpus } from './bytes.js'

const MiB = 1024 * KiB
const ID = '00112233-4455-6677-8899-aabbccddeeff'

/** Writes, zeros and discards in a pattern; returns what the disk holds then. */
function scribble(path: string, size: number, cluster: number): Buffer {
  const model = Buffer.alloc(size)
  const disk = openImage(path)
  const put = (offset: number, length: number, byte: number) => {
    model.fill(byte, offset, offset + length)
    disk.write(Buffer.alloc(length, byte), 0, length, offset)
  }
  put(0, 512, 1)
  put(3 * cluster - 100, 200, 2)
  put(size - 1000, 1000, 3)
  put(5 * cluster, 4 * cluster, 4)
  disk.flush()
  disk.zero(6 * cluster, 2 * cluster, true)
  model.fill(0, 6 * cluster, 8 * cluster)
  disk.flush()
  put(10 * cluster + 512, 3 * cluster, 5)
  disk.close()
  return model
}

function asQemuReads(path: string): Buffer {
  must('qemu-img', ['convert', '-f', 'parallels', '-O', 'raw', path, `${path}.raw`])
  return readFileSync(`${path}.raw`)
}

t.test('images of QEMU, written here', async (t) => {
  for (const [cluster, size] of [
    [MiB, 20 * MiB],
    [64 * KiB, 2 * MiB + 512],
    [4 * KiB, 512 * KiB],
  ] as const) {
    const path = join(temporaryFolder(t), 'q.hds')
    must('qemu-img', ['create', '-q', '-f', 'parallels', '-o', `cluster_size=${cluster}`, path, String(size)])
    const model = scribble(path, size, cluster)
    t.ok(asQemuReads(path).equals(model), `clusters of ${cluster}`)
    must('qemu-img', ['check', '-f', 'parallels', path])
    t.same(checkImage(path).findings, [])
  }
})

t.test('images made here, written by QEMU', async (t) => {
  for (const cluster of [MiB, 64 * KiB, 63 * 512]) {
    const path = join(temporaryFolder(t), 'v.hds')
    const size = 20 * cluster + 512
    createImage(path, { format: 'parallels', size, options: [`cluster_size=${cluster}`] })
    const info = JSON.parse(must('qemu-img', ['info', '--output=json', path]))
    t.match(info, { format: 'parallels', 'virtual-size': size })
    const first = scribble(path, size, cluster)
    must('qemu-io', ['-f', 'parallels', '-c', `write -P 9 ${7 * cluster} ${512 * 3}`, path])
    first.fill(9, 7 * cluster, 7 * cluster + 512 * 3)
    must('qemu-img', ['check', '-f', 'parallels', path])
    const disk = openImage(path, { readOnly: true })
    const all = Buffer.alloc(size)
    disk.read(all, 0, size, 0)
    disk.close()
    t.ok(all.equals(first), `clusters of ${cluster}`)
    t.same(checkImage(path).findings, [])
  }
})

t.test('what QEMU finds wrong, and what it makes of what was mended here', async (t) => {
  const path = join(temporaryFolder(t), 'q.hds')
  must('qemu-img', ['create', '-q', '-f', 'parallels', path, '8M'])
  must('qemu-io', ['-f', 'parallels', '-c', 'write -P 7 2M 2M', path])
  const image = readFileSync(path)
  image.writeUInt32LE(0x746f6e59, 44)
  image.writeUInt32LE(77, 64)
  writeFileSync(path, image)
  truncateSync(path, statSync(path).size + 3 * MiB)
  t.equal(run('qemu-img', ['check', '-f', 'parallels', path]).code, 2)
  t.match(
    checkImage(path)
      .findings.map(({ what }) => what)
      .sort(),
    ['bat-range', 'in-use', 'leak'],
  )
  checkImage(path, { repair: 'all' })
  must('qemu-img', ['check', '-f', 'parallels', path])
  t.ok(
    asQemuReads(path)
      .subarray(2 * MiB, 4 * MiB)
      .equals(Buffer.alloc(2 * MiB, 7)),
  )
})

/** What QEMU reads in a bitmap of an image. */
async function qemuExtents(t: TestCase, path: string, name: string): Promise<{ start: number; length: number }[]> {
  const socket = join(temporaryFolder(t), 'nbd')
  const server = start(t, 'qemu-nbd', ['-r', '-f', 'parallels', '-B', name, '-k', socket, path])
  for (let tries = 0; !existsSync(socket) && tries < 200; tries++) await sleep(20)
  const opts = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:${name}`
  const map = JSON.parse(must('qemu-img', ['map', '--output=json', '--image-opts', opts])) as {
    start: number
    length: number
    data: boolean
  }[]
  await server.ended
  // With such a bitmap, "data" is what is clean.
  return map.filter(({ data }) => !data).map(({ start, length }) => ({ start, length }))
}

function ourExtents(path: string, name: string): { start: number; length: number }[] {
  const found: { start: number; length: number }[] = []
  eachBitmapExtent(path, name, (range) => found.push(range))
  return found
}

t.test('the bits of a real image, before and after writing, as QEMU reads them', needsCorpus, async (t) => {
  const path = join(temporaryFolder(t), 'real.hds')
  writeFileSync(path, fromCorpus('with-bitmap.hds'))
  const name = listBitmaps(path)[0]!.name
  t.same(ourExtents(path, name), await qemuExtents(t, path, name))
  const disk = openImage(path)
  disk.write(Buffer.alloc(3 * MiB, 1), 0, 3 * MiB, 1000 * MiB - 7)
  disk.zero(5000 * MiB, 10 * MiB, true)
  disk.close()
  const found = ourExtents(path, name)
  t.equal(found.length, 5)
  t.same(found, await qemuExtents(t, path, name))
  t.equal(statSync(path).size, 8 * MiB, 'header, bits, extension, four clusters, and a gap where the stand-in was')
  const again = openImage(path)
  again.write(Buffer.alloc(1), 0, 1, 9000 * MiB)
  again.close()
  t.equal(statSync(path).size, 8 * MiB, 'which is used before the file grows')
  t.equal(run('qemu-img', ['check', '-f', 'parallels', path]).code, 0, 'what it knows is sound')
})

t.test('QEMU writes an image and destroys its bitmap: found, and mended without losing data', async (t) => {
  const path = join(temporaryFolder(t), 'x.hds')
  const cluster = 64 * KiB
  const image = imageBytes({ cluster: 128, sectors: 64 * 128, dataOff: 128, extOff: 256, size: 3 * cluster })
  const data = bitmapData(64 * 128, ID, 128, [128])
  extensionBytes(cluster, [{ magic: BITMAP, data }]).copy(image, 2 * cluster)
  image[cluster] = 5
  writeFileSync(path, image)
  copyFileSync(path, `${path}.before`)
  t.same(ourExtents(path, ID), await qemuExtents(t, path, ID))
  must('qemu-io', ['-f', 'parallels', '-c', `write -P 0x77 0 ${2 * cluster}`, path])
  const report = checkImage(path)
  t.ok(report.corruptions > 0, 'it wrote over the cluster of the bits, and over the extension')
  t.throws(() => openImage(path), { code: 'CORRUPT' })
  checkImage(path, { repair: 'all' })
  t.same(checkImage(path).findings, [])
  const disk = openImage(path)
  const all = Buffer.alloc(3 * cluster)
  disk.read(all, 0, all.length, 0)
  disk.close()
  t.ok(all.equals(Buffer.concat([Buffer.alloc(2 * cluster, 0x77), Buffer.alloc(cluster)])))
})
