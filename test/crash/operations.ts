/** Crashes in the middle of what is not writing: resizing, repairing, replaying, snapshots, bitmaps, emptying. */

import type { Format } from '../../lib/formats/driver.js'
import { layersOver, openStorages } from '../../lib/image/open.js'
import { resizeLayer } from '../../lib/image/resize.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import type { Storage } from '../../lib/storage/storage.js'
import { contents, randomFrom } from '../metadata/fixtures/metadata.js'
import { secret, type Variant } from '../model/variants.js'
import { openedAlone } from './lives.js'
import { askQemu, check, corruption, crash, goOn, type Recorded, readAll, record } from './scenario.js'
import { WholeSectors } from './sectors.js'

const SECTOR = 512
const UNIT = 4096

interface Operation {
  readonly name: string
  /** Whether it begins with what a crash left, or with an image that was closed. */
  readonly after: 'crash' | 'close'
  /** What is done before, and is not recorded. */
  prepare?(format: Format, storages: readonly Storage[]): void
  /** @param storages the image, whose changes are recorded, and its parents */
  run(format: Format, storages: readonly Storage[], size: number): void
  /** Whether this format has it. */
  exists(format: Format): boolean
  /** It takes long, and is left out of the tests. */
  readonly long?: boolean
}

function resize(factor: number): Operation['run'] {
  return (_, storages, size) => {
    const [top, ...parents] = layersOver(storages, { secret })
    resizeLayer(top!, Math.ceil((size * factor) / UNIT) * UNIT, () => parents)
  }
}

/** What lies behind the end of the disk in its last block must not show when the disk is larger. */
function cutOff(format: Format, storages: readonly Storage[]): void {
  const disk = openStorages(storages, { secret })
  const { size, sectorSize, blockSize } = disk
  const last = size - (size % blockSize || blockSize)
  const bytes = new Uint8Array(size - last).fill(0x44)
  if (disk.encodes) disk.writeEncoded(bytes, 0, bytes.length, last)
  else disk.write(bytes, 0, bytes.length, last)
  disk.close()
  const [top, ...parents] = layersOver(storages, { secret })
  if (format.resize) resizeLayer(top!, last + sectorSize, () => parents)
}

function snapshots(what: 'create' | 'apply' | 'delete'): Operation['run'] {
  return (format, [storage]) => {
    const { layout, files } = openedAlone(format, storage!)
    format.snapshotTools![what](layout, files, what === 'create' ? 'second' : 'first')
  }
}

/** A snapshot, behind which the disk goes on. */
function oneSnapshot(format: Format, storages: readonly Storage[]): void {
  const [storage] = storages
  const { layout, files } = openedAlone(format, storage!)
  format.snapshotTools!.create(layout, files, 'first')
  const disk = openStorages(storages, { secret })
  disk.write(new Uint8Array(3 * UNIT).fill(0x33), 0, Math.min(disk.size, 3 * UNIT), 0)
  disk.close()
}

const canResize = ({ resize }: Format): boolean => resize !== undefined
const hasSnapshots = ({ snapshotTools }: Format): boolean => snapshotTools !== undefined

const OPERATIONS: readonly Operation[] = [
  { name: 'resize, larger', after: 'close', run: resize(1.7), exists: canResize },
  { name: 'resize, much larger', after: 'close', run: resize(300), exists: canResize, long: true },
  { name: 'resize, larger than cut off', after: 'close', prepare: cutOff, run: resize(1.3), exists: canResize },
  { name: 'resize, smaller', after: 'close', run: resize(0.4), exists: canResize },
  { name: 'repair', after: 'crash', run: repair, exists: ({ check }) => check !== undefined },
  { name: 'opening, log replay, writing', after: 'crash', run: write, exists: () => true },
  { name: 'snapshot', after: 'close', run: snapshots('create'), exists: hasSnapshots },
  { name: 'snapshot apply', after: 'close', prepare: oneSnapshot, run: snapshots('apply'), exists: hasSnapshots },
  { name: 'snapshot delete', after: 'close', prepare: oneSnapshot, run: snapshots('delete'), exists: hasSnapshots },
  { name: 'bitmap', after: 'close', run: bitmap, exists: ({ bitmaps }) => bitmaps !== undefined },
]

function repair(format: Format, [storage]: readonly Storage[]): void {
  check(format, storage!, 'all')
  storage!.sync()
}

function write(_: Format, storages: readonly Storage[], size: number): void {
  const image = openStorages(storages, { secret })
  image.write(new Uint8Array(SECTOR).fill(0x77), 0, SECTOR, size - (size % SECTOR) - SECTOR)
  image.flush()
  image.close()
}

function bitmap(format: Format, [storage]: readonly Storage[]): void {
  const use = () => openedAlone(format, storage!)
  const tools = format.bitmaps!
  const { layout, files } = use()
  const name = tools.add(layout, files, undefined, undefined)
  for (const again of [tools.clear, tools.remove]) {
    const { layout, files } = use()
    again.call(tools, layout, files, name)
  }
}

/** A run of an operation on an image. */
export interface RecordedOperation {
  readonly name: string
  readonly variant: Variant
  readonly seed: number
  readonly recorder: Recorder
  readonly parents: readonly MemoryStorage[]
  /** The disk before it and after it. */
  readonly before: Uint8Array
  readonly after: Uint8Array
}

/** Every operation that a variant has, each on an image of its own. */
export function* recordOperations(variant: Variant, seed: number, long = true): Generator<RecordedOperation> {
  const { format } = variant
  const life = record(variant, seed, 14)
  for (const operation of OPERATIONS) {
    if (!operation.exists(format) || (operation.long && !long)) continue
    const recorder = new Recorder()
    let image: MemoryStorage
    let parents: MemoryStorage[]
    let before: Uint8Array
    try {
      const start = startOf(life, operation)
      image = start[0]!
      parents = start.slice(1)
      before = readAll(start).bytes
      operation.run(format, [new WholeSectors(recorder.record(image)), ...parents], before.length)
    } catch (error) {
      // Not every variant has everything: a fixed disk cannot become smaller.
      if (!['USAGE', 'UNSUPPORTED', 'NO_SPACE'].includes((error as { code: string }).code)) throw error
      continue
    }
    const after = readAll([image, ...parents]).bytes
    if (after.subarray(before.length).some((byte) => byte !== 0)) throw new Error('a larger disk shows old bytes')
    yield { name: operation.name, variant, seed, recorder, parents, before, after }
  }
}

function startOf(life: Recorded, { after, prepare }: Operation): MemoryStorage[] {
  const { recorder, seed, variant } = life
  const moment = after === 'close' ? recorder.length : Math.floor(recorder.length * (0.4 + 0.5 * randomFrom(seed)()))
  const [image, ...parents] = crash(life, { moment })
  const copy = MemoryStorage.create({ path: 'image', contents: contents(image!), maxSize: 2 ** 29 })
  if (prepare) {
    prepare(variant.format, [copy, ...parents])
  }
  return [copy, ...parents]
}

/** Looks at what a crash left of an operation. @returns what is wrong, or undefined */
export function checkOperation(run: RecordedOperation, files: readonly MemoryStorage[]): string | undefined {
  const { before, after, variant, parents } = run
  try {
    const { bytes } = readAll([...files, ...parents])
    if (bytes.length !== before.length && bytes.length !== after.length) return `the disk has ${bytes.length} bytes`
    const wrong = differs(bytes, before, after)
    if (wrong !== undefined) return wrong
    return corruption(variant, files[0]!)
  } catch (error) {
    return `it does not open or read: ${(error as Error).stack}`
  }
}

/** Goes on from there, on a copy of its own: writes, closes, reads. @returns what is wrong, or undefined */
export function checkOperationGoingOn(run: RecordedOperation, files: readonly MemoryStorage[]): string | undefined {
  try {
    return goOn(run.variant, [...files, ...run.parents], run.seed)
  } catch (error) {
    return `it cannot be gone on with: ${(error as Error).stack}`
  }
}

/** What QEMU makes of it behind our repair of leaks; flags that are missing it calls errors before that. */
export function checkOperationWithQemu(run: RecordedOperation, files: readonly MemoryStorage[]): string | undefined {
  return askQemu(run.variant, [...files, ...run.parents], false)
}

/** Every sector is what it was or what it becomes; what is new of a larger disk is zeros. */
function differs(found: Uint8Array, before: Uint8Array, after: Uint8Array): string | undefined {
  const common = Math.min(before.length, after.length)
  for (let at = 0; at < found.length; at += SECTOR) {
    const sector = found.subarray(at, at + SECTOR)
    const same = (other: Uint8Array) => Buffer.compare(sector, other.subarray(at, at + sector.length)) === 0
    // What a smaller disk loses may be gone before it is smaller.
    if (at >= common && before.length > after.length) return undefined
    if (same(before) || same(after)) continue
    // The last sector of a smaller disk, which ended inside of it.
    if (at + SECTOR > common && sector.subarray(common - at).every((byte) => byte === 0)) continue
    return `the sector at byte ${at} holds neither what it held nor what it is to hold`
  }
  return undefined
}
