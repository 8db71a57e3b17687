import { createHash } from 'node:crypto'
import { join } from 'node:path'
import t from 'tap'
import { createImage } from '../../../lib/image/create.js'
import { openImage } from '../../../lib/image/open.js'
import { openFile } from '../../../lib/storage/file.js'
import { must } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { corpusImage, needsCorpus } from '../vhd-images.js'
import { MiB } from './bytes.js'

function digestOf(path: string): string {
  const image = openImage(path, { readOnly: true })
  const hash = createHash('sha256')
  const buffer = new Uint8Array(16 * MiB)
  for (let at = 0; at < image.size; ) {
    const { length, zero } = image.map(at, Math.min(buffer.length, image.size - at))
    const piece = buffer.subarray(0, length)
    if (zero) piece.fill(0)
    else image.read(piece, 0, length, at)
    hash.update(piece)
    at += length
  }
  image.close()
  return hash.digest('hex')
}

/** Whether QEMU reads the same; only where one of the two has data is it looked at. */
function sameAsQemu(folder: string, path: string): boolean {
  const raw = join(folder, 'qemu.raw')
  must('qemu-img', ['convert', '-f', 'vhdx', '-O', 'raw', path, raw])
  const [ours, theirs] = [openImage(path, { readOnly: true }), openImage(raw, { readOnly: true, format: 'raw' })]
  const [a, b] = [new Uint8Array(4 * MiB), new Uint8Array(4 * MiB)]
  let same = ours.size === theirs.size
  for (let at = 0; at < ours.size && same; ) {
    const mine = ours.map(at, ours.size - at)
    const other = theirs.map(at, mine.length)
    const length = Math.min(a.length, mine.length, other.length)
    if (!mine.zero || !other.zero) {
      ours.read(a, 0, length, at)
      theirs.read(b, 0, length, at)
      same = Buffer.compare(a.subarray(0, length), b.subarray(0, length)) === 0
    }
    at += mine.zero && other.zero ? Math.min(mine.length, other.length) : length
  }
  ours.close()
  theirs.close()
  return same
}

for (const name of ['dynamic', 'swap', 'btrfs', 'dynamic-1G'])
  t.test(`${name}.vhdx of Windows`, needsCorpus, async (t) => {
    const { path, virtualSize, contentSha256 } = corpusImage(t, `vhdx/${name}.vhdx`)
    const image = openImage(path, { readOnly: true })
    t.equal(image.size, virtualSize)
    image.close()
    t.ok(sameAsQemu(temporaryFolder(t), path))
    if (virtualSize < 2 ** 26) t.equal(digestOf(path), contentSha256)
  })

t.test('an image of Windows that is written to, as QEMU reads it', needsCorpus, async (t) => {
  const { path, virtualSize } = corpusImage(t, 'vhdx/swap.vhdx')
  const image = openImage(path)
  const data = new Uint8Array(3 * MiB).fill(0x5a)
  image.write(data, 0, data.length, virtualSize - data.length)
  image.write(data, 0, 512, 5 * 1024 * MiB + 512)
  image.zero(32 * MiB, 32 * MiB, true)
  image.close()
  must('qemu-img', ['check', '-q', path])
  for (const pattern of [
    `read -P 0x5a ${virtualSize - data.length} 3M`,
    'read -P 0x5a 5368709632 512',
    'read -P 0 5368709120 512',
    'read -P 0 32M 32M',
  ])
    t.notMatch(must('qemu-io', ['-r', '-f', 'vhdx', '-c', pattern, path]), /failed/, pattern)
  t.match(must('vhdiinfo', [path]), /Media size\s*: 10 GiB \(10737418240 bytes\)/)
})

for (const options of [
  [],
  ['block_size=1M', 'log_size=2M'],
  ['subformat=fixed', 'block_size=2M'],
  ['block_state_zero=on', 'block_size=256M'],
])
  t.test(`made by vdiskfs or by QEMU, written by both: ${options.join() || 'defaults'}`, async (t) => {
    const folder = temporaryFolder(t)
    const size = 67 * MiB + 512
    const paths = [join(folder, 'ours.vhdx'), join(folder, 'theirs.vhdx')] as const
    createImage(paths[0], { format: 'vhdx', size, options })
    const flags = options.flatMap((option) => ['-o', option])
    must('qemu-img', ['create', '-q', '-f', 'vhdx', ...flags, paths[1], String(size)])
    for (const path of paths) {
      const qemu = (...commands: string[]) =>
        must('qemu-io', ['-f', 'vhdx', ...commands.flatMap((command) => ['-c', command]), path])
      t.notMatch(qemu('read -P 0 0 67M', 'write -P 1 1M 1M', 'write -P 2 20M 4k', 'write -P 3 64M 3M'), /failed/)
      const image = openImage(path)
      const bytes = new Uint8Array(MiB)
      for (const [offset, length, value] of [
        [MiB, MiB, 1],
        [20 * MiB, 4096, 2],
        [20 * MiB + 4096, 4096, 0],
        [66 * MiB, MiB, 3],
      ] as const) {
        image.read(bytes, 0, length, offset)
        t.equal(
          bytes.findIndex((byte, i) => i < length && byte !== value),
          -1,
          `what QEMU wrote at ${offset}`,
        )
      }
      image.write(bytes.fill(4), 0, 1000, MiB + 100)
      image.write(bytes, 0, MiB, 40 * MiB)
      image.flush()
      image.write(bytes, 0, 512, size - 512)
      image.close()
      t.notMatch(
        qemu(
          'read -P 1 1M 100',
          'read -P 4 1048676 1000',
          'read -P 1 1049676 1k',
          'read -P 4 40M 1M',
          'read -P 0 41M 20M',
        ),
        /failed/,
      )
      t.notMatch(qemu(`read -P 4 ${size - 512} 512`, 'write -P 7 45M 64k', 'write -P 8 40M 512'), /failed/)
      must('qemu-img', ['check', '-q', '-f', 'vhdx', path])
    }
    must('qemu-img', ['compare', '-q', ...paths])
    t.equal(digestOf(paths[0]), digestOf(paths[1]))
    t.match(must('vhdiinfo', [paths[0]]), /\(70255104 bytes\)/, 'as libvhdi sees it')
  })

t.test('a log that ends in a crash, as QEMU replays it: entries that wrap around, one without changes', async (t) => {
  const path = join(temporaryFolder(t), 'image.vhdx')
  createImage(path, { format: 'vhdx', size: 300 * 1024 * MiB, options: ['block_size=1M'] })
  const image = openImage(path, { lock: false })
  const data = new Uint8Array(512)
  let block = 0
  for (const count of [100, 120, 200, 3]) {
    for (let i = 0; i < count; i++) image.write(data.fill(block + 1), 0, 512, 513 * MiB * block++)
    image.flush()
  }
  // The image is left open: this is what a killed program leaves, with the pages that the log holds not in place.
  const crashed = `${path}.crashed`
  must('cp', ['--sparse=always', path, crashed])
  image.close()
  const storage = openFile(crashed)
  storage.zero(3 * MiB, MiB)
  storage.close()
  const wanted = openImage(crashed, { readOnly: true })
  const ours: number[] = []
  for (let i = block - 3; i < block; i++) {
    wanted.read(data, 0, 512, 513 * MiB * i)
    ours.push(data[0]!)
  }
  wanted.close()
  t.same(ours, [165, 166, 167])
  must('qemu-img', ['check', '-q', '-r', 'all', '-f', 'vhdx', crashed])
  for (let i = block - 3; i < block; i++)
    t.notMatch(
      must('qemu-io', ['-r', '-f', 'vhdx', '-c', `read -P ${(i + 1) % 256} ${513 * i}M 512`, crashed]),
      /failed/,
      `block ${i}`,
    )
})
