/** Extents as people and programs see them: `map`, SEEK_DATA, SEEK_HOLE. */

import { type Driver, type Extent, type FileRef, Kind } from '../formats/driver.js'

/** A run of the disk, with the names and meanings of `qemu-img map --output=json`. */
export interface MapEntry {
  /** Guest offset and length in bytes. */
  readonly start: number
  readonly length: number
  /** The layer that decides: 0 is the image itself. */
  readonly depth: number
  /** Some layer has it; false: nothing says anything about it, so it reads as zeros. */
  readonly present: boolean
  /** It reads as zeros. */
  readonly zero: boolean
  /** It takes up space in an image file. */
  readonly data: boolean
  readonly compressed?: boolean
  /** Where it is, in which file. */
  readonly offset?: number
  readonly file?: string
}

/** Joins what `map` says of an extent. Where a driver maps a whole file as it is, the file's own holes count too. */
export function mapOne(e: Extent, depth: number, start: number, files: readonly FileRef[], driver: Driver): MapEntry {
  if (e.kind === Kind.ZERO) {
    return { start, length: e.length, depth, present: e.explicit, zero: true, data: false }
  }
  if (e.kind === Kind.ENCODED)
    return { start, length: e.length, depth, present: true, zero: false, data: true, compressed: true }
  // Nobody could do anything with the place of encrypted bytes, and holes of the file are no zeros among them.
  if (driver.cipher) return { start, length: e.length, depth, present: true, zero: false, data: true }
  const { storage } = files[e.file]!
  const base = { start, depth, present: true, offset: e.offset, file: storage.path }
  if (driver.locked) return { ...base, length: e.length, zero: false, data: true }
  const end = e.offset + e.length
  // Behind the file's end there is nothing.
  const data = e.offset < storage.size() ? storage.nextData(e.offset) : end
  if (data > e.offset) return { ...base, length: Math.min(data, end) - e.offset, zero: true, data: false }
  return { ...base, length: Math.min(storage.nextHole(e.offset), end) - e.offset, zero: false, data: true }
}

/** The first data (or hole) at or behind `at` in the extent that begins there; -1 where it has none. */
export function seekExtent(e: Extent, at: number, data: boolean, files: readonly FileRef[], driver: Driver): number {
  if (e.kind !== Kind.DATA || driver.cipher) return (e.kind === Kind.ZERO) === data ? -1 : at
  const { storage } = files[e.file]!
  if (e.offset >= storage.size()) return data ? -1 : at
  const found = data ? storage.nextData(e.offset) : storage.nextHole(e.offset)
  const none = found >= e.offset + e.length || (data && found >= storage.size())
  return none ? -1 : at + found - e.offset
}

/** An extent that begins at guest byte `start`, in one line of a trace. */
export function describeExtent(e: Extent, depth: number, start: number): string {
  const range = `bytes ${start}+${e.length}:`
  if (e.kind === Kind.ZERO) return `${range} zeros`
  if (e.kind === Kind.ENCODED) return `${range} encoded, in layer ${depth}`
  return `${range} at ${e.offset} of file ${e.file}, in layer ${depth}${e.writable ? ', writable' : ''}`
}

/** The runs of a range, neighbours that say the same joined. */
export function* runs(
  image: { map(offset: number, length: number): MapEntry },
  start: number,
  end: number,
): Generator<MapEntry> {
  let last: MapEntry | undefined
  for (let at = start; at < end; ) {
    const run = image.map(at, end - at)
    at += run.length
    if (last && continues(last, run)) last = { ...last, length: last.length + run.length }
    else {
      if (last) yield last
      last = run
    }
  }
  if (last) yield last
}

function continues(a: MapEntry, b: MapEntry): boolean {
  return (
    a.depth === b.depth &&
    a.present === b.present &&
    a.zero === b.zero &&
    a.data === b.data &&
    a.compressed === b.compressed &&
    a.file === b.file &&
    (a.offset === undefined ? b.offset === undefined : a.offset + a.length === b.offset)
  )
}
