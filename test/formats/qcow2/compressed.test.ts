import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { constants, deflateRawSync } from 'node:zlib'
import t, { type Test } from 'tap'
import {
  COMPRESSION_TYPES,
  type CompressionType,
  compressCluster,
  decompressCluster,
  inflateWithZlib,
} from '../../../lib/formats/qcow2/codec.js'
import { CompressedClusters } from '../../../lib/formats/qcow2/compressed.js'
import { implementations, type Zstd, zstd } from '../../../lib/formats/qcow2/zstd.js'
import { frameAt } from '../../../lib/formats/qcow2/zstd-frame.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import type { Storage } from '../../../lib/storage/storage.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'

const KiB = 1024
const CLUSTER = 64 * KiB

/** Bytes that compress somewhat: random letters of a small alphabet, another for every seed. */
function letters(length: number, seed: number): Uint8Array {
  let x = seed + 1
  return Uint8Array.from({ length }, () => {
    x = (Math.imul(x, 1103515245) + 12345) & 0x7fffffff
    return 97 + ((x >> 16) & 7)
  })
}

function decompressed(stored: Uint8Array, type: CompressionType): Uint8Array {
  const out = new Uint8Array(CLUSTER)
  decompressCluster(stored, out, type)
  return out
}

interface Stored {
  /** Index of the L2 entry's first byte in the file. */
  readonly entry: number
  readonly offset: number
  readonly length: number
}

/** The compressed clusters of an image, by the specification's layout of an L2 entry. */
function storedClusters(file: Buffer): Stored[] {
  const clusterBits = file.readUInt32BE(20)
  const l1 = Number(file.readBigUInt64BE(40))
  const l2 = Number(file.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n)
  const found: Stored[] = []
  const x = 62n - (BigInt(clusterBits) - 8n)
  for (let entry = l2; entry < l2 + 2 ** clusterBits; entry += 8) {
    const value = file.readBigUInt64BE(entry)
    if (!((value >> 62n) & 1n)) continue
    const offset = Number(value & ((1n << x) - 1n))
    const more = Number((value & ((1n << 62n) - 1n)) >> x)
    found.push({ entry, offset, length: 512 - (offset % 512) + more * 512 })
  }
  return found
}

/** An image in which QEMU compressed `content`. */
function qemuCompressed(folder: string, content: Uint8Array, type: CompressionType, clusterSize: number): string {
  const [raw, image] = [join(folder, 'raw'), join(folder, `${type}-${clusterSize}.qcow2`)]
  writeFileSync(raw, content)
  const options = `compression_type=${type},cluster_size=${clusterSize}`
  must('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', options, raw, image])
  return image
}

const storageOf = (contents: Uint8Array) => MemoryStorage.create({ path: 'image', contents, maxSize: 16 << 20 })

for (const type of COMPRESSION_TYPES)
  for (const clusterSize of [512, 4 * KiB, CLUSTER, 2048 * KiB])
    t.test(`what QEMU compressed: ${type}, clusters of ${clusterSize}`, async (t) => {
      const content = letters(clusterSize * 4, 1)
      const file = readFileSync(qemuCompressed(temporaryFolder(t), content, type, clusterSize))
      const clusters = storedClusters(file)
      t.equal(clusters.length, 4)
      const reader = new CompressedClusters(storageOf(file), clusterSize, type, () => 0)
      const out = new Uint8Array(clusterSize * 4)
      for (const [i, { offset, length }] of clusters.entries())
        reader.read(offset, length, 0, out, i * clusterSize, clusterSize)
      t.ok(Buffer.from(content).equals(out))
      const piece = new Uint8Array(10).fill(1)
      reader.read(clusters[2]!.offset, clusters[2]!.length, 100, piece, 3, 5)
      const at = 2 * clusterSize + 100
      t.same(piece, Uint8Array.of(1, 1, 1, ...content.subarray(at, at + 5), 1, 1))
    })

for (const type of COMPRESSION_TYPES)
  t.test(`QEMU reads what was compressed here: ${type}`, async (t) => {
    const folder = temporaryFolder(t)
    const image = qemuCompressed(folder, letters(2 * CLUSTER, 1), type, CLUSTER)
    const file = readFileSync(image)
    const content = letters(CLUSTER, 2)
    const stored = compressCluster(content, type)!
    t.ok(stored.length < CLUSTER / 2)
    // Behind the file's end, at an odd place, and the file ends with it rather than with a sector.
    const offset = Math.ceil(file.length / CLUSTER) * CLUSTER + 321
    const more = Math.ceil((321 + stored.length) / 512) - 1
    const x = 62n - (16n - 8n)
    file.writeBigUInt64BE((1n << 62n) | (BigInt(more) << x) | BigInt(offset), storedClusters(file)[0]!.entry)
    writeFileSync(image, Buffer.concat([file, Buffer.alloc(offset - file.length), stored]))
    const raw = join(folder, 'out')
    must('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', image, raw])
    t.ok(readFileSync(raw).subarray(0, CLUSTER).equals(content))

    const whole = readFileSync(image)
    const reader = new CompressedClusters(storageOf(whole), CLUSTER, type, () => 0)
    const out = new Uint8Array(CLUSTER)
    reader.read(offset, 512 - 321 + more * 512, 0, out, 0, CLUSTER)
    t.ok(Buffer.from(content).equals(out), 'and so is it read here, though the last sector is cut off')
  })

t.test('deflate is written with a window of 12 bits, and read with one of 15', async (t) => {
  const folder = temporaryFolder(t)
  // Repeats at a distance of more than 4 KiB: a larger window would make use of them.
  const part = letters(8 * KiB, 3)
  const content = Buffer.concat(Array.from({ length: 8 }, () => part))
  const stored = compressCluster(content, 'zlib')!
  writeFileSync(join(folder, 'stored'), stored)
  const script = 'import sys,zlib;sys.stdout.buffer.write(zlib.decompress(open(sys.argv[1],"rb").read(),wbits=-12))'
  const sum = must('bash', ['-c', `python3 -c '${script}' "$1" | sha256sum`, 'bash', join(folder, 'stored')])
  writeFileSync(join(folder, 'content'), content)
  t.equal(sum.split(' ')[0], must('sha256sum', [join(folder, 'content')]).split(' ')[0])
  const wide = deflateRawSync(content, { windowBits: 15 })
  t.ok(wide.length < stored.length / 2, 'the wide window is of use here')
  t.ok(content.equals(decompressed(wide, 'zlib')))
  const out = new Uint8Array(CLUSTER)
  t.equal(inflateWithZlib(wide, out), CLUSTER)
  t.ok(content.equals(out), 'with and without libdeflate')
})

t.test('deflate that lacks its end is whole when it has filled the cluster', async (t) => {
  const content = letters(CLUSTER, 11)
  const open = deflateRawSync(content, { finishFlush: constants.Z_SYNC_FLUSH })
  t.ok(Buffer.from(content).equals(decompressed(open, 'zlib')))
})

t.test('zstd: frames that others write', async (t) => {
  const folder = temporaryFolder(t)
  const content = letters(CLUSTER, 4)
  writeFileSync(join(folder, 'content'), content)
  const pipe = `cat "$1" | zstd -c $2 > "$1.zst"`
  // Through a pipe its size is not in the frame.
  for (const options of ['', '--no-check', '-19 --long=20', '--fast=5']) {
    must('bash', ['-c', pipe, 'bash', join(folder, 'content'), options])
    const frame = readFileSync(join(folder, 'content.zst'))
    t.equal(frameAt(frame, 0).length, frame.length, `zstd ${options}`)
    const followed = Buffer.concat([frame, frame.subarray(0, 300)])
    t.ok(Buffer.from(content).equals(decompressed(followed, 'zstd')), 'another frame begins behind it')
  }
  const half = zstd().compress(content.subarray(0, CLUSTER / 2), CLUSTER)!
  const rest = zstd().compress(content.subarray(CLUSTER / 2), CLUSTER)!
  const skipped = Buffer.from([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3])
  t.ok(Buffer.from(content).equals(decompressed(Buffer.concat([half, skipped, rest]), 'zstd')))
  const empty = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0])
  const many = Buffer.concat([...Array.from({ length: 1000 }, () => empty), zstd().compress(content, CLUSTER)!])
  t.throws(() => decompressed(many, 'zstd'), /more than 16 zstd frames/)
})

for (const [name, load] of Object.entries(implementations)) {
  const zstd = load()
  t.test(`zstd: ${name}`, zstd ? {} : { skip: 'not on this system' }, async (t) => testZstd(t, zstd!))
}

async function testZstd(t: Test, { compress, decompress }: Zstd) {
  const folder = temporaryFolder(t)
  const content = letters(CLUSTER, 5)
  const frame = compress(content, CLUSTER)!
  writeFileSync(join(folder, 'content.zst'), frame)
  must('zstd', ['-q', '-d', join(folder, 'content.zst')])
  t.ok(readFileSync(join(folder, 'content')).equals(content))
  const comesOut = (from: Uint8Array, room: number) => {
    const out = new Uint8Array(room + 1).fill(0xee)
    const length = decompress(from, out.subarray(0, room))
    t.equal(out[room], 0xee)
    return Buffer.from(out.subarray(0, length))
  }
  t.ok(comesOut(frame, CLUSTER).equals(content))
  t.ok(comesOut(frame, CLUSTER + 100).equals(content))
  t.throws(() => comesOut(frame, CLUSTER - 1), 'no more than there is room for')
  // Node's own says nothing of a frame that is cut off, which never gets there: see frameAt.
  let length = -1
  try {
    length = comesOut(frame.subarray(0, 50), CLUSTER).length
  } catch {
    t.pass('it says so')
  }
  t.not(length, CLUSTER)
  t.equal(compress(content, 1000), undefined)
  const large = letters(2048 * KiB, 6)
  t.ok(comesOut(compress(large, large.length)!, large.length).equals(large), 'its memory grows')
  t.ok(comesOut(frame, CLUSTER).equals(content))
}

t.test('not smaller: not compressed', async (t) => {
  const random = randomBytes(CLUSTER)
  for (const type of COMPRESSION_TYPES) t.equal(compressCluster(random, type), undefined)
})

for (const type of COMPRESSION_TYPES)
  t.test(`bytes that are no cluster: ${type}`, async (t) => {
    const stored = compressCluster(letters(CLUSTER, 7), type)!
    const cases: Record<string, Uint8Array> = {
      nothing: new Uint8Array(0),
      zeros: new Uint8Array(4 * KiB),
      'all ones': new Uint8Array(4 * KiB).fill(255),
      'cut off': stored.subarray(0, stored.length - 300),
      'half a cluster': compressCluster(letters(CLUSTER / 2, 8), type)!,
      'more than a cluster': compressCluster(letters(2 * CLUSTER, 8), type)!,
      'a bomb': compressCluster(new Uint8Array(64 << 20), type)!,
    }
    for (const [name, bytes] of Object.entries(cases)) {
      const reader = new CompressedClusters(storageOf(bytes), CLUSTER, type, () => 0)
      const out = new Uint8Array(CLUSTER)
      t.throws(
        () => reader.read(0, Math.max(512, bytes.length), 0, out, 0, CLUSTER),
        { code: 'CORRUPT', path: 'image', message: /^image: compressed cluster at byte 0, \d+ bytes of \w+: [^\n]+$/ },
        name,
      )
    }
  })

t.test('a cluster that is read in pieces is decompressed once, until the generation changes', async (t) => {
  const content = letters(CLUSTER, 9)
  const stored = compressCluster(content, 'zlib')!
  const storage = storageOf(stored)
  let reads = 0
  const counting = new Proxy(storage as Storage, {
    get(target, key) {
      if (key === 'read') reads++
      const value = Reflect.get(target, key) as unknown
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
  let generation = 1
  const reader = new CompressedClusters(counting, CLUSTER, 'zlib', () => generation)
  const out = new Uint8Array(CLUSTER)
  for (let at = 0; at < CLUSTER; at += 4 * KiB) reader.read(0, stored.length, at, out, at, 4 * KiB)
  t.ok(Buffer.from(content).equals(out))
  t.equal(reads, 1)
  const other = letters(CLUSTER, 10)
  const otherStored = compressCluster(other, 'zlib')!
  storage.write(otherStored, 0, otherStored.length, 0)
  generation = 2
  reader.read(0, otherStored.length, 0, out, 0, CLUSTER)
  t.ok(Buffer.from(other).equals(out))
  t.equal(reads, 2)
})
