/** Writing compressed clusters: content and refcounts, as QEMU sees them, between everything else that changes an image. */

import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { convert } from '../../../lib/image/convert/convert.js'
import { createImage } from '../../../lib/image/create.js'
import { openImage } from '../../../lib/image/open.js'
import { must, run, vdiskfs } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'

// A busy machine is no fault of the program.
t.setTimeout(300_000)

const KiB = 1024
const MiB = KiB * KiB

function randomFrom(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
    return (state >>> 8) % below
  }
}

/** Bytes that become smaller by about a third. */
function text(length: number, random: (below: number) => number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let i = 0; i < length; i++) bytes[i] = 97 + random(26)
  return bytes
}

/** Random work, with a model beside it. */
function work(path: string, model: Buffer, random: (below: number) => number): void {
  const image = openImage(path)
  const { blockSize, size } = image
  const blocks = Math.ceil(size / blockSize)
  for (let i = 0; i < 400; i++) {
    const block = random(Math.min(blocks, 40))
    const at = block * blockSize
    const length = Math.min(blockSize, size - at)
    const dice = random(20)
    if (dice < 12) {
      const data = text(length, random)
      image.writeEncoded(data, 0, length, at)
      data.copy(model, at)
    } else if (dice < 15) {
      const start = at + random(length)
      const data = text(Math.min(700, at + length - start), random)
      image.write(data, 0, data.length, start)
      data.copy(model, start)
    } else if (dice < 18) {
      image.zero(at, length, true)
      model.fill(0, at, at + length)
    } else image.flush()
  }
  image.close()
}

function judge(t: Test, path: string, model: Buffer): void {
  const raw = `${path}.raw`
  const { code, out, err } = run('qemu-img', ['check', path])
  t.equal(code, 0, `qemu-img check: ${out}${err}`)
  must('qemu-img', ['convert', '-O', 'raw', path, raw])
  t.ok(readFileSync(raw).equals(model), 'the content, as QEMU reads it')
}

for (const options of [
  ['cluster_size=64K'],
  ['cluster_size=4K', 'compression_type=zstd'],
  ['cluster_size=512'],
  ['cluster_size=4K', 'refcount_bits=1'],
  ['cluster_size=4K', 'refcount_bits=2'],
  ['cluster_size=4K', 'refcount_bits=64'],
  ['cluster_size=16K', 'extended_l2=on'],
  ['cluster_size=4K', 'compat=0.10'],
])
  t.test(`among other changes: ${options}`, async (t) => {
    const path = join(temporaryFolder(t), 'x.qcow2')
    const size = 2 * MiB + 512
    createImage(path, { format: 'qcow2', size, options })
    const model = Buffer.alloc(size)
    for (const seed of [1, 2, 3]) {
      work(path, model, randomFrom(seed))
      judge(t, path, model)
    }
  })

/** Half of it text, some of it noise, some of it nothing. */
function disk(folder: string): { raw: string; bytes: Buffer } {
  const raw = join(folder, 'disk.raw')
  const random = randomFrom(7)
  const noise = Buffer.alloc(MiB)
  for (let i = 0; i < noise.length; i++) noise[i] = random(256)
  const bytes = Buffer.concat([text(5 * MiB + 300, random), Buffer.alloc(3 * MiB), noise, Buffer.alloc(9 * MiB, 'abc')])
  writeFileSync(raw, bytes.subarray(0, 17 * MiB + 512))
  return { raw, bytes: bytes.subarray(0, 17 * MiB + 512) }
}

for (const [type, cluster, threads] of [
  ['zlib', '64K', 1],
  ['zlib', '2M', 3],
  ['zstd', '64K', 3],
  ['zstd', '512', 2],
] as const)
  t.test(`convert -c: ${type}, clusters of ${cluster}, ${threads} threads`, async (t) => {
    const folder = temporaryFolder(t)
    const { raw, bytes } = disk(folder)
    const target = join(folder, 'x.qcow2')
    const options = [`compression_type=${type}`, `cluster_size=${cluster}`]
    await convert(raw, target, { format: 'qcow2', compress: true, options, threads })
    judge(t, target, bytes)
    if (cluster === '512') return
    const theirs = join(folder, 'theirs.qcow2')
    must('qemu-img', ['convert', '-c', '-O', 'qcow2', '-o', options.join(), raw, theirs])
    const [ours, other] = [statSync(target).size, statSync(theirs).size]
    t.ok(ours < 1.1 * other + 2 * MiB, `${ours} bytes, and QEMU's ${other}`)
    // A source whose data begins and ends inside of the target's clusters.
    const vhd = join(folder, 'x.vhd')
    await convert(raw, vhd, { format: 'vhd', options: ['block_size=4096'] })
    const again = join(folder, 'again.qcow2')
    await convert(vhd, again, { format: 'qcow2', compress: true, options, threads })
    judge(t, again, bytes)
  })

t.test('where nothing can be compressed', async (t) => {
  const folder = temporaryFolder(t)
  const { raw } = disk(folder)
  for (const [format, options] of [
    ['vhd', []],
    ['qcow2', ['-o', `data_file=${join(folder, 'data')}`]],
  ] as const) {
    const target = join(folder, `x.${format}`)
    const { code, err } = vdiskfs(['convert', '-c', '-O', format, ...options, raw, target])
    t.equal(code, 2)
    t.match(err, /cannot be compressed/)
  }
})
