/**
 * Crashes of images that share clusters: with snapshots, and with compressed clusters. Whatever a crash leaves, nothing
 * that is referred to is counted too seldom, and the snapshots are as they were.
 */

import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { qcow2 } from '../../../lib/formats/qcow2/format.js'
import { openStorages } from '../../../lib/image/open.js'
import { MemoryStorage } from '../../../lib/storage/memory.js'
import {
  checkGoingOn,
  checkState,
  crash,
  describe,
  type Recorded,
  record,
  type State,
  statesOf,
} from '../../crash/scenario.js'
import { contents } from '../../metadata/fixtures/metadata.js'
import type { Variant } from '../../model/variants.js'
import { must, run } from '../../support/run.js'
import { temporaryFolder } from '../../support/temp.js'
import { asQemuReads, KiB, MiB, qemuCreate, qemuIo } from './images.js'

const SIZE = 300 * KiB
const SEEDS = [1, 2]
const LOSSES = 150

/** How the images are made: by QEMU. @returns path */
const KINDS: readonly (readonly [name: string, make: (folder: string) => string, device?: number])[] = [
  ['with snapshots', (folder) => withSnapshots(folder, 'cluster_size=4k')],
  ['with snapshots and small clusters', (folder) => withSnapshots(folder, 'cluster_size=512,refcount_bits=8')],
  ['with snapshots and subclusters', (folder) => withSnapshots(folder, 'cluster_size=16k,extended_l2=on')],
  ['with compressed clusters', compressed],
  ['whose refcount table grows', growing],
  ['with snapshots, on a device', (folder) => withSnapshots(folder, 'cluster_size=512,refcount_bits=64'), 2 * MiB],
  ['whose refcount table grows, on a device', growingInside, 3 * MiB],
]

/** The refcount table has room for 2 MiB, and the file ends just below that. */
function growing(folder: string): string {
  const path = qemuCreate(folder, 'g.qcow2', SIZE, 'cluster_size=512,refcount_bits=64')
  truncateSync(path, 2 * MiB - 20 * KiB)
  return path
}

/** As much as that is in use, by the snapshot of a disk that was larger. */
function growingInside(folder: string): string {
  const path = qemuCreate(folder, 'g.qcow2', 1880 * KiB, 'cluster_size=512,refcount_bits=64')
  qemuIo(path, 'write -P 1 0 1880k')
  must('qemu-img', ['snapshot', '-c', 'large', path])
  must('qemu-img', ['resize', '-q', '--shrink', '-f', 'qcow2', path, String(SIZE)])
  return path
}

function withSnapshots(folder: string, options: string): string {
  const path = qemuCreate(folder, 's.qcow2', SIZE, options)
  qemuIo(path, `write -P 1 0 ${SIZE}`)
  must('qemu-img', ['snapshot', '-c', 'one', path])
  qemuIo(path, 'write -P 2 10k 100k', 'discard 150k 50k')
  must('qemu-img', ['snapshot', '-c', 'two', path])
  return path
}

function compressed(folder: string): string {
  const source = qemuCreate(folder, 's.qcow2', SIZE)
  qemuIo(source, 'write -P 3 0 200k', 'write -P 4 210k 40k')
  const path = join(folder, 'c.qcow2')
  const options = ['-o', 'cluster_size=4k']
  must('qemu-img', ['convert', '-c', '-f', 'qcow2', '-O', 'qcow2', ...options, source, path])
  return path
}

const inMemory = (path: string) =>
  MemoryStorage.create({ path: 'image', contents: readFileSync(path), maxSize: 2 ** 26 })

/** What QEMU says of a state: only leaks, and the snapshots hold what they did. @returns what is wrong, or undefined */
function askQemu(recorded: Recorded, state: State, snapshots: ReadonlyMap<string, Buffer>): string | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'vdiskfs-test-'))
  try {
    const path = join(folder, 'image.qcow2')
    writeFileSync(path, contents(crash(recorded, state)[0]!))
    const { code, out } = run('qemu-img', ['check', '-f', 'qcow2', path])
    if (code !== 0 && code !== 3) return `qemu-img check: ${out}`
    for (const [name, bytes] of snapshots)
      if (!asQemuReads(path, name).equals(bytes)) return `snapshot ${name} holds something else`
    return undefined
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

function tableClusters(recorded: Recorded): number {
  const [file] = recorded.recorder.prefix(recorded.recorder.length)
  return Buffer.from(contents(file!)).readUInt32BE(56)
}

for (const [name, make, device] of KINDS)
  t.test(`crashes of an image ${name}`, async (t) => {
    const path = make(temporaryFolder(t))
    const listed = name.includes('snapshots') ? ['one', 'two'] : []
    const snapshots = new Map(listed.map((id) => [id, asQemuReads(path, id)]))
    const variant: Variant = { name, format: qcow2, options: [], size: SIZE }
    for (const seed of SEEDS) {
      const disk = new Uint8Array(asQemuReads(path))
      const made = { storages: [inMemory(path)], contents: disk, ...(device !== undefined && { device }) }
      const recorded = record(variant, seed, 40, made)
      let states = 0
      for (const state of statesOf(recorded, LOSSES)) {
        const wrong =
          checkState(recorded, state) ??
          (states % 12 === 0 ? checkGoingOn(recorded, state) : undefined) ??
          (states % 10 === 0 ? askQemu(recorded, state, snapshots) : undefined)
        if (wrong !== undefined) {
          t.fail(`${wrong}\n${describe(recorded, state)}`)
          break
        }
        states++
      }
      t.ok(states > LOSSES, `seed ${seed}: ${states} states`)
      const end = { moment: recorded.recorder.length }
      t.equal(askQemu(recorded, end, snapshots), undefined, 'at the end')
      if (name.includes('grows')) t.ok(readFileSync(path).readUInt32BE(56) < tableClusters(recorded), 'it has grown')
      const image = openStorages(crash(recorded, end), { readOnly: true })
      t.equal(image.size, SIZE)
      image.close()
    }
  })
