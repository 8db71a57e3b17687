import { join } from 'node:path'
import t from 'tap'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import { must } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'
import { createFiles, enlarge, open } from './files.js'
import { forQemu, randomBytes, type Variant, variants } from './variants.js'

const MiB = 2 ** 20
const STEPS = 500

/** A length in bytes: often of a few sectors, sometimes of much. */
function lengthOf(random: () => number, size: number): number {
  const dice = random()
  const most = dice < 0.3 ? 512 : dice < 0.8 ? 20_000 : size / 8
  return Math.min(size, Math.ceil(random() * most))
}

/** Random operations on an image, and the same on a buffer. */
async function live(folder: string, variant: Variant, seed: number): Promise<string | undefined> {
  const random = randomFrom(seed)
  const [path, model] = createFiles(folder, variant, random)
  const { size } = variant
  const buffer = new Uint8Array(size + 2)
  let image = open(path, variant)
  if (image.size !== size) return `the disk has ${image.size} bytes`
  for (let step = 0; step < STEPS; step++) {
    const length = lengthOf(random, size)
    let offset = Math.floor(random() * (size - length + 1))
    if (random() < 0.3) offset -= offset % 65536
    const dice = random()
    if (dice < 0.4) {
      const data = randomBytes(length + 1, random)
      image.write(data, 1, length, offset)
      model.set(data.subarray(1), offset)
    } else if (dice < 0.55) {
      image.zero(offset, length, random() < 0.5)
      model.fill(0, offset, offset + length)
    } else if (dice < 0.94) {
      buffer.fill(0xaa, 0, length + 2)
      image.read(buffer, 1, length, offset)
      const same = Buffer.compare(buffer.subarray(1, length + 1), model.subarray(offset, offset + length)) === 0
      if (!same || buffer[0] !== 0xaa || buffer[length + 1] !== 0xaa)
        return `step ${step}: ${length} bytes at ${offset}`
    } else if (dice < 0.98) image.flush()
    else {
      image.close()
      image = open(path, variant)
    }
  }
  image.read(buffer, 0, size, 0)
  if (Buffer.compare(buffer.subarray(0, size), model) !== 0) return 'all of it at the end'
  let wrong = zerosOf(image, model)
  image.close()
  image = open(path, variant, { readOnly: true })
  image.read(buffer, 0, size, 0)
  image.close()
  if (Buffer.compare(buffer.subarray(0, size), model) !== 0) wrong ??= 'all of it when it was opened again'
  return wrong ?? askQemu(folder, path, variant, model)
}

/** What map and seek say of zeros and data must be true. */
function zerosOf(image: ReturnType<typeof open>, model: Uint8Array): string | undefined {
  for (let at = 0; at < image.size; ) {
    const { start, length, zero } = image.map(at, image.size - at)
    if (start !== at || length < 1) return `map at ${at}: ${length} bytes at ${start}`
    if (zero && model.subarray(at, at + length).some((byte) => byte !== 0)) return `map: no zeros at ${at}`
    at += length
  }
  for (let at = 0; ; ) {
    const data = image.seek(at, true)
    const zerosEnd = data < 0 ? image.size : data
    if (model.subarray(at, zerosEnd).some((byte) => byte !== 0)) return `seek: data between ${at} and ${zerosEnd}`
    if (data < 0) return undefined
    at = image.seek(data, false)
    if (at <= data) return `seek: the data at ${data} ends at ${at}`
  }
}

function askQemu(folder: string, path: string, variant: Variant, model: Uint8Array): string | undefined {
  const known = forQemu({ ...variant, qemu: variant.format.name === 'qcow2' ? 'qcow2' : variant.qemu }, path)
  if (variant.format.name === 'qcow2') must('qemu-img', ['check', '-q', ...known!])
  if (!variant.qemu) return undefined
  const raw = join(folder, 'qemu.raw')
  must('qemu-img', ['convert', '-O', 'raw', ...known!, raw])
  const disk = open(raw, { ...variant, format: variants.find(({ format }) => format.name === 'raw')!.format })
  const bytes = new Uint8Array(disk.size)
  disk.read(bytes, 0, disk.size, 0)
  disk.close()
  return Buffer.compare(bytes, model) === 0 ? undefined : 'what QEMU reads'
}

for (const small of variants) {
  for (const [seed, size] of [
    [1, small.size],
    [2, 9 * MiB + 512],
  ] as const) {
    const variant = enlarge(small, size)
    t.test(`random operations on ${variant.name}, ${size} bytes`, async (t) => {
      t.equal(await live(temporaryFolder(t), variant, seed), undefined, `seed ${seed}`)
    })
  }
}
