/** Small images to begin with: of every kind that we make, of crashes, of QEMU's, and real ones where there are some. */

import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { findFormat, formats } from '../../lib/formats/registry.js'
import { openStorages } from '../../lib/image/open.js'
import { crash, record } from '../crash/scenario.js'
import { CORPUS } from '../formats/vhd-images.js'
import { contents, randomFrom } from '../metadata/fixtures/metadata.js'
import { createInMemory, randomBytes, secret, type Variant, variants } from '../model/variants.js'
import type { Anatomy } from './anatomy/anatomy.js'
import { parallelsAnatomy } from './anatomy/parallels.js'
import { partitionAnatomy } from './anatomy/partitions.js'
import { qcow2Anatomy } from './anatomy/qcow2.js'
import { vhdAnatomy } from './anatomy/vhd.js'
import { vhdxAnatomy } from './anatomy/vhdx.js'
import { partitionedDisks } from './disks.js'
import { Pages } from './pages.js'

export interface SeedFile {
  readonly name: string
  readonly pages: Pages
  readonly anatomy: Anatomy
}

export interface Seed {
  readonly name: string
  readonly format: string
  /** The image, then its parents or parts. */
  readonly files: readonly SeedFile[]
  /** It is a folder: its files are opened by their names only. */
  readonly bundle: boolean
}

const ANATOMIES: Readonly<Record<string, (bytes: Pages) => Anatomy>> = {
  vhd: vhdAnatomy,
  vhdx: vhdxAnatomy,
  parallels: parallelsAnatomy,
  qcow2: qcow2Anatomy,
  raw: partitionAnatomy,
}

/** What is damaged: of a raw disk, its partition table. */
export const FUZZED = formats.map(({ name }) => name)

/** Larger ones make every input slow. */
const MOST_HELD = 3 * 2 ** 20
const NAMES = ['image', 'parent']

/** Where the fields of an image of a format are. */
export function anatomyOf(format: string, bytes: Pages): Anatomy {
  const find = ANATOMIES[format]
  if (!find) throw new Error(`nobody has said where the fields of ${format} are: see test/fuzz/anatomy/`)
  return find(bytes)
}

function seedOf(name: string, format: string, files: readonly (readonly [string, Pages])[], bundle = false): Seed {
  const withAnatomy = files.map(([name, pages]) => ({ name, pages, anatomy: anatomyOf(format, pages) }))
  return { name, format, bundle, files: withAnatomy }
}

/** Made by us: written to and closed, and left by a crash. */
function* ownSeeds(variant: Variant): Generator<Seed> {
  const random = randomFrom(5)
  const { storages } = createInMemory(variant, random)
  const image = openStorages(storages, { secret })
  for (let i = 0; i < 12; i++) {
    const length = Math.ceil(random() * 9000)
    const offset = Math.floor(random() * (image.size - length))
    image.write(randomBytes(length, random), 0, length, offset)
  }
  image.close()
  const pages = (list: typeof storages) => list.map((one, i) => [NAMES[i]!, Pages.of(contents(one))] as const)
  yield seedOf(`${variant.name}, closed`, variant.format.name, pages(storages))
  const recorded = record(variant, 3, 12)
  const moment = Math.floor(recorded.recorder.length * 0.7)
  yield seedOf(`${variant.name}, crashed`, variant.format.name, pages(crash(recorded, { moment })))
}

/**
 * Encrypted with LUKS, and by us: QEMU measures how fast the machine is, fails now and then on a busy one, and asks for so
 * many iterations elsewhere that every input would be slow.
 */
const LUKS: readonly Variant[] = [
  ['encrypt.cipher-alg=aes-128', 'cluster_size=4K'],
  ['encrypt.cipher-alg=serpent-128', 'encrypt.cipher-mode=cbc', 'encrypt.ivgen-alg=essiv', 'cluster_size=64K'],
].map((options) => ({
  name: `qcow2 LUKS ${options.join(' ')}`,
  format: findFormat('qcow2'),
  options: ['encrypt.format=luks', 'encrypt.iter-time=1', ...options],
  size: 300 * 1024,
  qemu: 'qcow2',
}))

const QEMU: readonly (readonly [format: string, qemu: string, options: string])[] = [
  ['vhd', 'vpc', 'subformat=dynamic'],
  ['vhd', 'vpc', 'subformat=fixed'],
  ['vhdx', 'vhdx', 'block_size=1M,log_size=1M'],
  ['parallels', 'parallels', 'cluster_size=64k'],
  ['qcow2', 'qcow2', 'compat=0.10'],
  ['qcow2', 'qcow2', 'compat=1.1,cluster_size=4k,lazy_refcounts=on'],
  ['qcow2', 'qcow2', 'cluster_size=16k,extended_l2=on,refcount_bits=64'],
  ['qcow2', 'qcow2', 'cluster_size=4k,compression_type=zstd'],
]

function* qemuSeeds(format: string, folder: string): Generator<Seed> {
  const qemu = (...args: string[]) => execFileSync(args[0]!, args.slice(1), { stdio: 'ignore' })
  for (const [, name, options] of QEMU.filter(([of]) => of === format)) {
    const path = join(folder, 'image')
    const raw = join(folder, 'raw')
    try {
      qemu('qemu-img', 'create', '-q', '-f', name, '-o', options, path, '2M')
      qemu('qemu-io', '-f', name, '-c', 'write -P 5 0 100k', '-c', 'write -P 6 1M 3k', '-c', 'write -z 70k 20k', path)
      if (name === 'qcow2') yield* qcow2Seeds(qemu, path, options)
      yield seedOf(`QEMU's, ${options}`, format, [['image', Pages.ofFile(path)]])
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
      throw error
    } finally {
      rmSync(path, { force: true })
      rmSync(raw, { force: true })
    }
  }
}

/** With a snapshot and a bitmap, compressed, over a parent. */
function* qcow2Seeds(qemu: (...args: string[]) => void, path: string, options: string): Generator<Seed> {
  const other = `${path}2`
  qemu('qemu-img', 'convert', '-c', '-f', 'qcow2', '-O', 'qcow2', '-o', options, path, other)
  yield seedOf(`QEMU's, compressed, ${options}`, 'qcow2', [['image', Pages.ofFile(other)]])
  rmSync(other)
  const parent = join(dirname(path), 'parent')
  copyFileSync(path, parent)
  qemu('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, '-F', 'qcow2', '-b', 'parent', other, '2M')
  qemu('qemu-io', '-f', 'qcow2', '-c', 'write 4k 4k', other)
  rmSync(parent)
  yield seedOf(`QEMU's, with a parent, ${options}`, 'qcow2', [
    ['image', Pages.ofFile(other)],
    ['parent', Pages.ofFile(path)],
  ])
  rmSync(other)
  qemu('qemu-img', 'snapshot', '-c', 'first', path)
  qemu('qemu-io', '-f', 'qcow2', '-c', 'write -P 9 0 8k', path)
  if (!options.includes('0.10')) qemu('qemu-img', 'bitmap', '--add', path, 'changes')
}

function* corpusSeeds(format: string): Generator<Seed> {
  const folder = join(CORPUS, format)
  if (!existsSync(folder)) return
  if (format === 'qcow2') yield* corpusChains(folder)
  for (const name of readdirSync(folder)) {
    if (name.endsWith('.hdd')) {
      yield bundleSeed(join(folder, name))
      continue
    }
    if (!name.endsWith('.gz')) continue
    const packed = readFileSync(join(folder, name))
    // The last four bytes of gzip: the size of what is packed.
    if (packed.readUInt32LE(packed.length - 4) > 2 ** 27) continue
    const pages = Pages.of(gunzipSync(packed))
    if (pages.held <= MOST_HELD && pages.size >= 512) yield seedOf(`real, ${name}`, format, [['image', pages]])
  }
}

/** Images of several files, which name each other. */
const TOGETHER: readonly (readonly string[])[] = [
  ['data-file.qcow2', 'data-file.bin'],
  ['backing-chain-1.qcow2', 'backing-chain-2.qcow2', 'backing-chain-3.qcow2'],
]

function* corpusChains(folder: string): Generator<Seed> {
  for (const names of TOGETHER) {
    const paths = names.map((name) => join(folder, `${name}.gz`))
    if (!paths.every((path) => existsSync(path))) continue
    const files = paths.map((path, i) => [names[i]!, small(Pages.of(gunzipSync(readFileSync(path))))] as const)
    yield seedOf(`real, ${names[0]}`, 'qcow2', files, true)
  }
}

/** Where there is much in a file, only its size. */
const small = (pages: Pages): Pages => (pages.held > MOST_HELD ? new Pages(pages.size) : pages)

/** The descriptor, and parts: what is in them does not matter. */
function bundleSeed(folder: string): Seed {
  const names = readdirSync(folder)
  const files = names.map((name) => {
    const bytes = readFileSync(join(folder, name))
    const pages = Pages.of(name.endsWith('.gz') ? gunzipSync(bytes) : bytes)
    return [name.replace(/\.gz$/, ''), small(pages)] as const
  })
  files.sort(([a]) => (a.endsWith('.xml') ? -1 : 1))
  return seedOf('real, a bundle', 'parallels', files, true)
}

function* diskSeeds(folder: string): Generator<Seed> {
  for (const [name, disk] of partitionedDisks(folder)) yield seedOf(name, 'raw', [['image', disk]])
}

export function seedsOf(format: string): Seed[] {
  const folder = mkdtempSync(join(tmpdir(), 'vdiskfs-test-'))
  try {
    return [
      ...[...variants, ...LUKS]
        .filter((variant) => variant.format.name === format)
        .flatMap((variant) => [...ownSeeds(variant)]),
      ...qemuSeeds(format, folder),
      ...(format === 'raw' ? diskSeeds(folder) : []),
      ...corpusSeeds(format),
    ]
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
