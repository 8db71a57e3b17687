/** A seeded life of an image under a Recorder, and the states in which crashes could have left it. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Finding, Format, Repair } from '../../lib/formats/driver.js'
import type { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import type { MemoryStorage } from '../../lib/storage/memory.js'
import { Recorder } from '../../lib/storage/recording.js'
import type { Storage } from '../../lib/storage/storage.js'
import { contents, randomFrom } from '../metadata/fixtures/metadata.js'
import { createInMemory, forQemu, randomBytes, secret, type Variant } from '../model/variants.js'
import { Device } from '../support/device.js'
import { must, run } from '../support/run.js'
import { History } from './history.js'
import type { Beginning, Life } from './lives.js'
import { WholeSectors } from './sectors.js'

export interface Recorded {
  readonly variant: Variant
  readonly seed: number
  readonly recorder: Recorder
  readonly history: History
  /** The files below, which nobody changes. */
  readonly parents: readonly MemoryStorage[]
  readonly keeps?: Beginning['keeps']
}

/**
 * Lets an image live for so many operations, and ends it with a close.
 * @param made an image that holds something already, instead of a new one
 */
export function record(variant: Variant, seed: number, operations: number, made?: Beginning): Recorded {
  const random = randomFrom(seed)
  const chain = made ?? createInMemory(variant, random)
  const [top, ...parents] = chain.storages
  const recorder = new Recorder()
  const recorded = recorder.record(made?.device === undefined ? top! : new Device(top!, made.device))
  const storages: Storage[] = [new WholeSectors(recorded), ...parents]
  const history = new History(chain.contents)
  let image = openStorages(storages, { secret })
  for (let i = 0; i < operations; i++) {
    const dice = random()
    if (dice < 0.78) change(image, recorder, history, random)
    else if (dice < 0.96) {
      image.flush()
      history.flushed(recorder.length)
    } else {
      image.close()
      history.flushed(recorder.length)
      image = openStorages(storages, { secret })
    }
  }
  image.close()
  history.flushed(recorder.length)
  return { variant, seed, recorder, history, parents, ...(made?.keeps && { keeps: made.keeps }) }
}

/** A write of a few sectors, of any bytes, or of much; or zeros, or a discard, of blocks mostly. */
function change(image: Image, recorder: Recorder, history: History, random: () => number): void {
  const began = recorder.length
  const { size } = image
  const zeros = random() < 0.25
  let length = Math.ceil(random() * (random() < 0.2 ? 100_000 : 6000))
  if (random() < 0.5) length = Math.ceil(length / 512) * 512
  length = Math.min(size, length)
  let offset = Math.floor(random() * (size - length + 1))
  if (random() < 0.5) offset -= offset % 512
  if (zeros && random() < 0.7) {
    const unit = [512, 4096, 16384, 65536][Math.floor(random() * 4)]!
    offset -= offset % unit
    length = Math.min(size - offset, unit * Math.ceil(random() * 4))
  }
  const data = zeros ? new Uint8Array(length) : randomBytes(length, random)
  if (zeros) image.zero(offset, length, random() < 0.5)
  else image.write(data, 0, length, offset)
  history.changed(began, offset, data)
}

/** A life that begins in one of these ways; undefined where this kind of image cannot. */
export function recordLife(variant: Variant, life: Life, seed: number, operations: number): Recorded | undefined {
  const made = life.begin(variant, randomFrom(seed + 100))
  return made && record(variant, seed, operations, made)
}

/** One state: what a crash at a moment leaves. Without a seed nothing is lost. */
export interface State {
  readonly moment: number
  readonly seed?: number
  readonly tearing?: 512 | 4096 | 'none'
}

/** Sectors mostly, pages and whole writes. */
const TEARING = [512, 512, 4096, 'none'] as const

/** Every moment with nothing lost, then so many with losses. */
export function* statesOf({ recorder, seed }: Recorded, losses: number): Generator<State> {
  for (let moment = 0; moment <= recorder.length; moment++) yield { moment }
  const random = randomFrom(seed + 1)
  for (let i = 0; i < losses; i++)
    yield {
      moment: Math.floor(random() * (recorder.length + 1)),
      seed: Math.floor(random() * 2 ** 31),
      tearing: TEARING[Math.floor(random() * TEARING.length)]!,
    }
}

export function describe({ variant, seed, recorder }: Recorded, state: State): string {
  const lines = recorder.describe(Math.max(0, state.moment - 12), state.moment)
  return `${variant.name}, seed ${seed}, state ${JSON.stringify(state)}; before it:\n${lines.join('\n')}`
}

/** The files as the crash left them. */
export function crash({ recorder, parents }: Recorded, { moment, seed, tearing }: State): MemoryStorage[] {
  const files = seed === undefined ? recorder.prefix(moment) : recorder.crash(moment, seed, tearing)
  return [...files, ...parents]
}

/** What a disk holds, and what opening it warned of. */
export function readAll(storages: readonly Storage[]): { bytes: Uint8Array; warnings: string[] } {
  const warnings: string[] = []
  const image = openStorages(storages, { readOnly: true, secret, warn: (message) => warnings.push(message) })
  const bytes = new Uint8Array(image.size)
  image.read(bytes, 0, image.size, 0)
  image.close()
  return { bytes, warnings }
}

/** Opens a state for reading and looks at all of it. @returns what is wrong, or undefined */
export function checkState(recorded: Recorded, state: State): string | undefined {
  try {
    const files = crash(recorded, state)
    const { bytes, warnings } = readAll(files)
    const { unclean } = recorded.variant
    const warning = warnings.find((text) => !unclean?.test(text))
    if (warning !== undefined) return `a warning: ${warning}`
    return (
      recorded.history.check(state.moment, bytes) ??
      recorded.keeps?.(files, bytes) ??
      corruption(recorded.variant, files[0]!)
    )
  } catch (error) {
    return `it does not open or read: ${error}`
  }
}

/** What `check` finds that is worse than a leak. @returns it, or undefined */
export function corruption({ format, unclean }: Variant, storage: Storage): string | undefined {
  const bad = check(format, storage, 'none').find(
    ({ severity, what }) => severity === 'corruption' && !(unclean && OLD_REFCOUNTS.includes(what)),
  )
  return bad && `check says: ${bad.message}`
}

/** Lazy refcounts are old until somebody opens the image that was left in use, and flags are judged by them. */
const OLD_REFCOUNTS = ['refcount', 'copied']

/** Checks an image, and mends what it finds. @returns the findings */
export function check(format: Format, storage: Storage, repair: Repair): Finding[] {
  const findings: Finding[] = []
  const { path } = storage
  const found = (finding: Finding) => findings.push(finding)
  format.check?.({ storage, path, readOnly: repair === 'none', repair, secret: () => secret, warn: () => {}, found })
  return findings
}

/** Goes on with a state: writes to it, closes it, opens it again. @returns what is wrong, or undefined */
export function checkGoingOn(recorded: Recorded, state: State): string | undefined {
  const { variant, seed, keeps } = recorded
  return goOn(variant, crash(recorded, state), seed + state.moment, keeps)
}

export function goOn(
  variant: Variant,
  storages: readonly MemoryStorage[],
  seed: number,
  keeps?: Beginning['keeps'],
): string | undefined {
  const before = readAll(storages).bytes
  const recorder = new Recorder()
  const history = new History(before)
  const random = randomFrom(seed)
  const image = openStorages(storages, { secret })
  for (let i = 0; i < 8; i++) change(image, recorder, history, random)
  image.close()
  const { bytes, warnings } = readAll(storages)
  if (warnings.length > 0) return `a warning after going on: ${warnings[0]}`
  if (Buffer.compare(bytes, history.contents) !== 0) return 'after going on it holds something else'
  const wrong = keeps?.(storages, bytes) ?? corruption({ ...variant, unclean: undefined }, storages[0]!)
  return wrong && `after going on: ${wrong}`
}

/** What QEMU makes of a state, before and behind our repair of leaks. @returns what is wrong, or undefined */
export function checkWithQemu(recorded: Recorded, state: State): string | undefined {
  return askQemu(recorded.variant, crash(recorded, state))
}

/** @param leaks space may be leaked, and no more, before our repair, too */
export function askQemu(variant: Variant, storages: readonly MemoryStorage[], leaks = true): string | undefined {
  const { qemu } = variant
  if (!qemu) return undefined
  const folder = mkdtempSync(join(tmpdir(), 'vdiskfs-test-'))
  try {
    const path = join(folder, 'image')
    writeFileSync(path, contents(storages[0]!))
    const known = forQemu(variant, path)!
    if (qemu === 'qcow2' && leaks && ![0, 3].includes(run('qemu-img', ['check', ...known]).code))
      must('qemu-img', ['check', ...known])
    const ours = readAll(storages).bytes
    // QEMU replays a log only when it may write, and only so; refcounts that are old are more than leaks.
    check(variant.format, storages[0]!, variant.unclean ? 'all' : 'leaks')
    writeFileSync(path, contents(storages[0]!))
    if (qemu === 'qcow2' || qemu === 'vhdx') must('qemu-img', ['check', '-q', ...known])
    // It takes the format extension, where bitmaps are, for leaked space.
    if (qemu === 'parallels' && run('qemu-img', ['check', ...known]).code !== 3)
      must('qemu-img', ['check', '-q', ...known])
    must('qemu-img', ['convert', '-O', 'raw', ...known, join(folder, 'disk')])
    const theirs = readFileSync(join(folder, 'disk'))
    if (theirs.length !== ours.length) return `QEMU sees ${theirs.length} bytes, not ${ours.length}`
    return theirs.equals(ours) ? undefined : 'QEMU reads something else'
  } catch (error) {
    return `QEMU: ${error}`
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
