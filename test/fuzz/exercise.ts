/** What is done with every damaged image, in memory: all that a user could do with it. */

import type { CheckContext, Finding, Format, Repair } from '../../lib/formats/driver.js'
import { detectFormat } from '../../lib/image/chain.js'
import type { Image } from '../../lib/image/image.js'
import { openStorages } from '../../lib/image/open.js'
import { readPartitionTable } from '../../lib/partitions/table.js'
import type { Storage } from '../../lib/storage/storage.js'
import { VdiskError } from '../../lib/util/errors.js'
import { secret } from '../model/variants.js'
import type { Random } from './mutate.js'
import { Misuse, PagedStorage, type Pages } from './pages.js'
import type { Seed } from './seeds.js'

const SMALL_CACHE = 2 ** 20
const MAP_STEPS = 256
const READS = 8
const READ_BYTES = 20_000
const ROUNDS = 3
const MOST_FINDINGS = 1000
const LONGEST_MESSAGE = 6000

/** Something that no image may bring about. */
export class Find extends Error {
  override readonly name = 'Find'
}

/** How often things came to what, to see that the code behind the checks is reached. */
export type Counts = Record<string, number>

/** Does something that may fail, but only as it should. @returns what it returned; undefined where it failed */
export function attempt<T>(what: string, counts: Counts, work: () => T): T | undefined {
  try {
    const result = work()
    counts[what] = (counts[what] ?? 0) + 1
    return result
  } catch (error) {
    if (error instanceof Find) throw error
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error)
    if (error instanceof Misuse || !(error instanceof VdiskError)) throw new Find(`${what}: ${text}`)
    if (error.code === 'INTERNAL') throw new Find(`${what}: ${text}`)
    checkMessage(what, error.message)
    const kind = `${what} refused`
    counts[kind] = (counts[kind] ?? 0) + 1
    return undefined
  }
}

/** One line, of characters that do nothing to a terminal. */
export function checkMessage(what: string, message: string): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what is looked for
  if (/[\u0000-\u001f\u007f-\u009f]/.test(message))
    throw new Find(`${what}: not one clean line: ${JSON.stringify(message)}`)
  if (message.length > LONGEST_MESSAGE) throw new Find(`${what}: a message of ${message.length} characters`)
}

/** Opens, looks, checks, changes and repairs. `files` are the image and its parents. @throws Find */
export function exercise(seed: Seed, files: readonly Pages[], random: Random, counts: Counts): void {
  const readOnly = () => files.map((pages, i) => new PagedStorage(pages, seed.files[i]!.name, true))
  const writable = () =>
    files.map((pages, i) => new PagedStorage(i === 0 ? pages.copy() : pages, seed.files[i]!.name, i > 0))
  const format = attempt('detect', counts, () => detectFormat(readOnly()[0]!))
  look(readOnly(), random, counts)
  if (!format || format.name === 'raw') return
  const checked = check(format, readOnly()[0]!, 'none', counts)
  const sound = checked !== undefined && !checked.some(({ severity }) => severity !== 'leak')
  change(writable(), random, counts, sound)
  repair(format, writable()[0]!, 'leaks', counts)
  repair(format, writable()[0]!, 'all', counts)
  tools(format, readOnly()[0]!, counts)
  const stays = (what: string, work: (files: Storage[]) => void): void => {
    const changed = writable()
    work(changed)
    if (sound) stillSound(what, format, changed[0]!, counts)
  }
  if (random() < 0.3) stays('snapshots', ([storage]) => snapshots(format, storage!, counts))
  if (random() < 0.3) stays('bitmaps', ([storage]) => bitmaps(format, storage!, random, counts))
  if (random() < 0.3) stays('resizing', (storages) => resize(format, storages, random, counts))
}

/** What was found to have no faults has none after the tools have changed it, whether they did all that was asked or not. */
function stillSound(what: string, format: Format, storage: Storage, counts: Counts): void {
  const findings = check(format, storage, 'none', counts)
  const fault = findings?.find(({ severity }) => severity === 'corruption')
  if (!findings) throw new Find(`it was sound, and cannot be checked after ${what}`)
  if (fault) throw new Find(`it was sound, and is not after ${what}: ${fault.message}`)
}

/** Their texts are made clean where they are handed on: looked at in disk.ts. */
const warn = (): void => {}

export function open(storages: readonly Storage[], readOnly: boolean): Image {
  return openStorages(storages, { readOnly, secret, cacheSize: SMALL_CACHE, warn })
}

function look(storages: readonly Storage[], random: Random, counts: Counts): void {
  const image = attempt('open', counts, () => open(storages, true))
  if (!image) return
  lookAt(image, random, counts)
  attempt('close', counts, () => image.close())
}

/** The map from the beginning and from places between, and bytes at some of them. */
export function lookAt(image: Image, random: Random, counts: Counts): void {
  const { size } = image
  const buffer = new Uint8Array(READ_BYTES)
  for (const start of [0, Math.floor(random() * size)])
    attempt('map', counts, () => {
      for (let at = start, steps = 0; at < size && steps < MAP_STEPS; steps++) {
        const entry = image.map(at, size - at)
        if (entry.length < 1 || entry.start !== at || entry.length > size - at)
          throw new Find(`map at ${at} of ${size} says ${JSON.stringify(entry)}`)
        at += entry.length
      }
    })
  for (let i = 0; i < READS; i++) {
    const at = Math.floor(random() * size * (i < 2 ? 0.01 : 1))
    attempt('read', counts, () => image.read(buffer, 0, Math.min(READ_BYTES, size - at), at))
  }
  attempt('seek', counts, () => image.seek(0, true))
  attempt('partitions', counts, () => lookAtPartitions(image, random() < 0.8 ? 512 : 4096))
}

/** They lie in the disk; what is said of them is clean. */
function lookAtPartitions(image: Image, sectorSize: number): void {
  const { partitions, warnings, label } = readPartitionTable(image, sectorSize)
  for (const warning of warnings) checkMessage('a warning', warning)
  for (const { number, start, size } of partitions)
    if (!Number.isSafeInteger(start) || size < 0 || start < 0 || start + size > image.size)
      throw new Find(`partition ${number} of ${label} has ${size} bytes at byte ${start}: the disk ${image.size}`)
}

function change(storages: readonly Storage[], random: Random, counts: Counts, sound: boolean): void {
  const image = attempt('open for writing', counts, () => open(storages, false))
  if (!image) return
  const { size } = image
  const written: (readonly [offset: number, bytes: Uint8Array])[] = []
  for (let i = 0; i < 3; i++) {
    const offset = Math.floor((random() * size * (i === 0 ? 0.001 : 1)) / 512) * 512
    const bytes = new Uint8Array(Math.min(size - offset, Math.ceil(random() * 12) * 512)).fill(0xa0 + i)
    if (attempt('write', counts, () => done(() => image.write(bytes, 0, bytes.length, offset))))
      written.push([offset, bytes])
  }
  attempt('zero', counts, () => {
    const offset = Math.floor(random() * size)
    image.zero(offset, Math.min(size - offset, 2 ** Math.floor(random() * 24)), random() < 0.5)
    written.length = 0
  })
  attempt('flush', counts, () => image.flush())
  const first = attempt('write', counts, () => {
    const bytes = new Uint8Array(Math.min(size, 1000)).fill(0xbb)
    image.write(bytes, 0, bytes.length, 0)
    return bytes
  })
  const closed = attempt('close', counts, () => done(() => image.close()))
  if (sound && closed && first) readBack(storages, first)
}

/** What was written to an image without faults is there. */
function readBack(storages: readonly Storage[], wanted: Uint8Array): void {
  let image: Image
  try {
    image = open(storages, true)
  } catch (error) {
    throw new Find(`it was sound, was written and closed, and does not open: ${error}`)
  }
  const bytes = new Uint8Array(wanted.length)
  image.read(bytes, 0, bytes.length, 0)
  image.close()
  if (Buffer.compare(bytes, wanted) !== 0) throw new Find('it was sound, and does not hold what was written to it')
}

/** For work that returns nothing. */
function done(work: () => void): true {
  work()
  return true
}

/** A context for `Format.check` without files. */
function contextOf(storage: Storage, repair: Repair, found: (finding: Finding) => void): CheckContext {
  const { path } = storage
  return { storage, path: `/${path}`, readOnly: repair === 'none', repair, secret: () => secret, warn, found }
}

/** @returns what it found; undefined where it gave up */
export function check(format: Format, storage: Storage, repair: Repair, counts: Counts): Finding[] | undefined {
  const findings: Finding[] = []
  const done = attempt(repair === 'none' ? 'check' : `repair ${repair}`, counts, () => {
    format.check?.(
      contextOf(storage, repair, (finding) => {
        if (findings.length < MOST_FINDINGS) findings.push(finding)
      }),
    )
    return true
  })
  return done ? findings : undefined
}

/** What a repair says it mended is mended: after a few, of which one may lay bare what another can mend, all is. */
function repair(format: Format, storage: Storage, how: Repair, counts: Counts): void {
  for (let round = 0; round < ROUNDS; round++) {
    const findings = check(format, storage, how, counts)
    if (how !== 'all' || !findings?.some(({ repaired }) => repaired) || findings.length >= MOST_FINDINGS) return
    // Where something cannot be mended, what depends on it cannot either.
    if (findings.some(({ repaired, severity }) => !repaired && severity === 'corruption')) return
    const again = check(format, storage, 'none', counts)?.find(
      ({ repairable, severity }) => repairable && severity === 'corruption',
    )
    if (!again) return
    if (round < ROUNDS - 1 || !opens(storage)) continue
    const before = findings.map(({ message, repaired }) => `  ${repaired ? 'mended: ' : 'left: '}${message}`)
    throw new Find(`after ${ROUNDS} repairs of all there is: ${again.message}\n${before.slice(0, 10).join('\n')}`)
  }
}

/** What cannot be opened all the same (its key is gone, …) need not be mended to the end. */
function opens(storage: Storage): boolean {
  try {
    open([storage], true).close()
    return true
  } catch {
    return false
  }
}

/** One layer alone, as the tools of its format want it. */
function openLayer(format: Format, storage: Storage, readOnly: boolean) {
  const {
    layout,
    size,
    storage: inside = storage,
  } = format.open({
    storage,
    path: `/${storage.path}`,
    readOnly,
    secret: () => secret,
    warn,
  })
  return { layout, size, files: [inside] }
}

function tools(format: Format, storage: Storage, counts: Counts): void {
  if (format.log) attempt('log', counts, () => JSON.stringify(format.log!(storage)))
  const opened = attempt('layout', counts, () => openLayer(format, storage, true))
  if (!opened) return
  const { layout, files } = opened
  attempt('facts', counts, () => JSON.stringify(format.facts(layout, files[0]!, files)))
  const { bitmaps } = format
  if (!bitmaps) return
  attempt('bitmaps', counts, () => {
    for (const { name } of bitmaps.list(layout, files)) {
      let ranges = 0
      for (const _ of bitmaps.extents(layout, files, name)) if (++ranges > 1000) break
    }
  })
}

function resize(format: Format, storages: readonly Storage[], random: Random, counts: Counts): void {
  if (!format.resize) return
  const [storage] = storages
  attempt('resize', counts, () => {
    const opened = openLayer(format, storage!, false)
    const factor = [0.5, 1.5, 3, 1000][Math.floor(random() * 4)]!
    const size = Math.max(512, Math.floor((opened.size * factor) / 4096) * 4096)
    const help = { below: () => 0, zeroBehind: () => {} }
    format.resize!(opened.layout, opened.files, size, help)
  })
  attempt('open after resize', counts, () => open(storages, true).close())
}

/** Those that are there are listed and gone back to; one is made, and all are deleted. */
function snapshots(format: Format, storage: Storage, counts: Counts): void {
  const { snapshotTools } = format
  if (!snapshotTools) return
  const layout = () => openLayer(format, storage, false).layout
  const list = attempt('list snapshots', counts, () => snapshotTools.list(layout(), [storage])) ?? []
  for (const { id } of list.slice(0, 3)) attempt('apply', counts, () => snapshotTools.apply(layout(), [storage], id))
  attempt('snapshot', counts, () => snapshotTools.create(layout(), [storage], 'new'))
  for (const { id } of list.slice(0, 3))
    attempt('delete snapshot', counts, () => snapshotTools.delete(layout(), [storage], id))
}

/** Those that are there are cleared and removed; one is made in between, where there is room for it or is not. */
function bitmaps(format: Format, storage: Storage, random: Random, counts: Counts): void {
  const { bitmaps: tools } = format
  if (!tools) return
  const use = (what: string, work: (layout: unknown, files: Storage[]) => void) =>
    attempt(what, counts, () => {
      const { layout, files } = openLayer(format, storage, false)
      work(layout, files)
      return true
    })
  const names: string[] = []
  use('list bitmaps', (layout, files) => {
    for (const { name } of tools.list(layout, files).slice(0, 2)) names.push(name)
  })
  const granularity = random() < 0.5 ? undefined : 2 ** (9 + Math.floor(random() * 16))
  for (const name of names) use('clear bitmap', (layout, files) => tools.clear(layout, files, name))
  use('add bitmap', (layout, files) => tools.add(layout, files, random() < 0.5 ? 'new' : undefined, granularity))
  for (const name of names) use('remove bitmap', (layout, files) => tools.remove(layout, files, name))
}
