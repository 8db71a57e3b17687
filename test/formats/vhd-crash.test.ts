/**
 * Crashes at every moment of a session: whatever was flushed is there, every sector that was not holds its old or its
 * new content, the image opens with a sound footer and a sound table, and can be written to again.
 */

import t from 'tap'
import { vhd } from '../../lib/formats/vhd/format.js'
import { scanTable } from '../../lib/formats/vhd/table.js'
import type { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import type { Storage, StorageHandle } from '../../lib/storage/storage.js'
import { contextOf } from './vhd-images.js'

const KiB = 1024
const SECTOR = 512
const DISK = 600 * KiB
const SECTORS = DISK / SECTOR
const SMALL_CACHE = { cacheSize: 1024 * KiB }

function newImage(blockSize: number, parent?: MemoryStorage): MemoryStorage {
  const storage = MemoryStorage.create({ path: parent ? 'child.vhd' : 'test.vhd' })
  const backing = parent && {
    path: '/images/test.vhd',
    format: 'vhd',
    layout: vhd.open(contextOf(parent)).layout,
    size: DISK,
    mtimeMs: 0,
  }
  vhd.create({ storage, path: `/images/${storage.path}`, size: DISK, options: { block_size: blockSize }, backing })
  return storage
}

const viewOf = (storage: Storage) =>
  MemoryStorage.attach(storage.handle() as StorageHandle & { readonly kind: 'memory' })

/** Something that was done: sectors that were given a value, or (with no sectors) a flush. */
interface Step {
  readonly first: number
  readonly count: number
  readonly value: number
  /** Length of the record before it and after it. */
  readonly began: number
  readonly ended: number
}

class Random {
  #state: number
  constructor(seed: number) {
    this.#state = seed
  }
  below(n: number): number {
    this.#state = (Math.imul(this.#state, 1103515245) + 12345) & 0x7fffffff
    return (this.#state >>> 4) % n
  }
}

/** Works on an image at random; every sector is filled with one value, so that a torn one shows. */
function work(image: Image, recorder: Recorder, random: Random): Step[] {
  const steps: Step[] = []
  for (let i = 0; i < 24; i++) {
    const first = random.below(SECTORS)
    const count = Math.min(SECTORS - first, 1 + random.below(random.below(4) === 0 ? 300 : 6))
    const kind = random.below(10)
    const value = kind < 2 ? 0 : 10 + random.below(200)
    const began = recorder.length
    if (kind < 2) image.zero(first * SECTOR, count * SECTOR, true)
    else if (kind < 8) image.write(new Uint8Array(count * SECTOR).fill(value), 0, count * SECTOR, first * SECTOR)
    else image.flush()
    steps.push({ first, count: kind < 8 ? count : 0, value, began, ended: recorder.length })
  }
  const began = recorder.length
  image.close()
  return [...steps, { first: 0, count: 0, value: 0, began, ended: recorder.length }]
}

/** The values that each sector may have after a crash behind `count` entries of the record. */
function allowedAfter(before: readonly number[], steps: readonly Step[], count: number): number[][] {
  const allowed = before.map((value) => [value])
  for (const { first, count: sectors, value, began, ended } of steps) {
    if (began > count) break
    if (sectors > 0) for (let s = first; s < first + sectors; s++) allowed[s]!.push(value)
    else if (ended <= count) for (const values of allowed) values.splice(0, values.length - 1)
  }
  return allowed
}

/** What is wrong with the disk, or undefined. */
function fault(disk: Uint8Array, allowed: readonly (readonly number[])[]): string | undefined {
  for (let sector = 0; sector < SECTORS; sector++) {
    const bytes = disk.subarray(sector * SECTOR, (sector + 1) * SECTOR)
    const value = bytes[0]!
    if (Buffer.compare(bytes.subarray(1), bytes.subarray(0, -1)) !== 0) return `sector ${sector} is torn`
    if (!allowed[sector]!.includes(value)) return `sector ${sector} is ${value}, not ${allowed[sector]!.join(' or ')}`
  }
  return undefined
}

function read(image: Image): Uint8Array {
  const disk = new Uint8Array(DISK)
  image.read(disk, 0, DISK, 0)
  return disk
}

/** Opens what a crash left, looks at it, writes to it; what is wrong, or undefined. */
function faultAfterCrash(
  file: MemoryStorage,
  parent: readonly MemoryStorage[],
  allowed: number[][],
): string | undefined {
  const context = contextOf(file, false)
  const { layout } = vhd.open(context)
  if (context.warnings.length > 0) return context.warnings.join()
  scanTable(layout, file, layout.footerOffset)
  const kept = viewOf(file)
  const image = openStorages([file, ...parent.map(viewOf)], SMALL_CACHE)
  const disk = read(image)
  const wrong = fault(disk, allowed)
  if (wrong) return wrong
  // Blocks that come to lie where something was left must not show it.
  for (const at of [100, 200 * KiB + 7, 599 * KiB]) {
    image.write(new Uint8Array(700).fill(255), 0, 700, at)
    disk.fill(255, at, at + 700)
  }
  image.close()
  const again = openStorages([kept, ...parent.map(viewOf)], { ...SMALL_CACHE, readOnly: true })
  return Buffer.compare(read(again), disk) === 0 ? undefined : 'writing afterwards changed something else'
}

const cases: [what: string, differencing: boolean, blockSize: number, seeds: number[]][] = [
  ['dynamic, small blocks', false, 4096, [1]],
  ['dynamic, aligned blocks', false, 65536, [3, 4]],
  ['differencing, small blocks', true, 4096, [6]],
  ['differencing, aligned blocks', true, 65536, [7, 8]],
]

for (const [what, differencing, blockSize, seeds] of cases)
  t.test(what, async (t) => {
    for (const seed of seeds) {
      const parents: MemoryStorage[] = []
      const before = new Array<number>(SECTORS).fill(0)
      if (differencing) {
        const parent = newImage(65536)
        const image = openStorages([viewOf(parent)])
        image.write(new Uint8Array(200 * KiB).fill(9), 0, 200 * KiB, 100 * KiB)
        image.close()
        before.fill(9, 200, 600)
        parents.push(parent)
      }
      const recorder = new Recorder()
      const recorded = recorder.record(newImage(blockSize, parents[0]))
      const steps = work(openStorages([recorded, ...parents.map(viewOf)]), recorder, new Random(seed))
      let states = 0
      for (let count = 0; count <= recorder.length; count++)
        for (const lost of [0, 1]) {
          const [file] = lost === 0 ? recorder.prefix(count) : recorder.crash(count, seed * 7919 + count, SECTOR)
          const wrong = faultAfterCrash(file!, parents, allowedAfter(before, steps, count))
          states++
          if (wrong) {
            t.fail(`seed ${seed}, ${count} entries, ${lost ? 'some lost' : 'nothing lost'}: ${wrong}`)
            t.comment(recorder.describe(Math.max(0, count - 20), count).join('\n'))
            return
          }
        }
      t.ok(states > 50, `seed ${seed}: ${states} states`)
    }
  })
