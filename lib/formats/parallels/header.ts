/**
 * The header of an expanding image, and the rules about what it says. Source: the Parallels Expandable Image File Format
 * as QEMU documents it (docs/interop/parallels.rst); what real images hold beyond that is said where it matters.
 */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { ascii, type FieldType, type RecordOf, Struct, u32, u64 } from '../../util/struct.js'

export const SECTOR = 512
export const HEADER_SIZE = 64
export const BAT_ENTRY_SIZE = 4
/** The largest BAT entry. */
export const MAX_ENTRY = 2 ** 32 - 1

/** The BAT is in sectors, and the data area may begin at any sector. */
export const MAGIC_SECTORS = 'WithoutFreeSpace'
/** The BAT is in clusters, and the data area begins at one. */
export const MAGIC_CLUSTERS = 'WithouFreSpacExt'
export const VERSION = 2

/**
 * Values of `inUse`. Real images hold others too ("pd17" and "pd22" from Parallels Desktop), which were closed cleanly:
 * only OPEN says that somebody did not come to an end.
 */
export const InUse = {
  /** Open for writing, or left so by a crash. */
  OPEN: 0x746f6e59,
  /** Closed by software that knows the format extension ("v2.1"). */
  CLOSED: 0x312e3276,
  /** Written by software that does not: bitmaps are out of date. */
  OLD: 0,
} as const

/** Bit of `flags`: the disk reads as zeros, whatever the BAT says. */
export const FLAG_EMPTY = 1

/** A number of 64 bits; one that JavaScript cannot hold is as good as infinite, and beyond every limit. */
export const u64Limitless: FieldType<number> = {
  width: 8,
  read({ view }, at) {
    const value = view.getBigUint64(at, true)
    return value > Number.MAX_SAFE_INTEGER ? Number.POSITIVE_INFINITY : Number(value)
  },
  /** What could not be read stays: a header is written over the bytes that it was read from. */
  write: (access, at, value) => {
    if (value !== Number.POSITIVE_INFINITY) u64.write(access, at, value)
  },
}

export const HEADER = new Struct('Parallels header', HEADER_SIZE, 'little', {
  magic: ascii(16),
  version: u32,
  heads: u32,
  cylinders: u32,
  /** Cluster size in sectors. */
  tracks: u32,
  nbBatEntries: u32,
  /** Disk size in sectors; in images whose BAT is in sectors the low 32 bits only. */
  nbSectors: u64Limitless,
  inUse: u32,
  /** Where the data area begins, in sectors. */
  dataOff: u32,
  flags: u32,
  /** The format extension's cluster, in sectors; 0: none. */
  extOff: u64Limitless,
})

export type Header = RecordOf<typeof HEADER>

/** Writes a header over the one that is there. */
export function writeHeader(storage: Storage, header: Header): void {
  const bytes = new Uint8Array(HEADER_SIZE)
  storage.read(bytes, 0, HEADER_SIZE, 0)
  HEADER.write(header, bytes)
  storage.write(bytes, 0, HEADER_SIZE, 0)
  storage.sync()
}

/** What follows from a header: where things are, in bytes. */
export interface Geometry {
  /** Size of the disk. */
  readonly size: number
  readonly clusterSize: number
  /** BAT entries, and what one counts in. */
  readonly entries: number
  readonly unit: number
  readonly batEnd: number
  /** Clusters lie at whole multiples of the cluster size from here on. */
  readonly dataStart: number
}

export function isParallels(head: Uint8Array): boolean {
  if (head.length < HEADER_SIZE) return false
  const { magic } = HEADER.read(head)
  return magic === MAGIC_SECTORS || magic === MAGIC_CLUSTERS
}

/**
 * Reads the header and refuses what nothing can be read with.
 * @throws FORMAT, UNSUPPORTED, CORRUPT, IO
 */
export function readHeader(storage: Storage): Header {
  const { path } = storage
  const bytes = new Uint8Array(HEADER_SIZE)
  const got = storage.read(bytes, 0, HEADER_SIZE, 0)
  if (!isParallels(bytes.subarray(0, got)))
    throw new VdiskError('FORMAT', 'it is no Parallels image: it does not begin with one of its two magics', { path })
  const header = HEADER.read(bytes)
  const { version, tracks, nbBatEntries, nbSectors } = header
  if (version !== VERSION)
    throw new VdiskError('UNSUPPORTED', `Parallels image of version ${version}, expected ${VERSION}`, { path })
  if (tracks === 0)
    throw new VdiskError('CORRUPT', 'the cluster size (tracks) is 0 sectors, expected at least 1', {
      path,
      offset: HEADER.offsetOf('tracks'),
    })
  const batEnd = HEADER_SIZE + nbBatEntries * BAT_ENTRY_SIZE
  if (batEnd > storage.size())
    throw new VdiskError(
      'CORRUPT',
      `the BAT of ${nbBatEntries} entries ends at byte ${batEnd}, behind the file's end at ${storage.size()}`,
      { path, offset: HEADER.offsetOf('nbBatEntries') },
    )
  if (nbSectors * SECTOR > Number.MAX_SAFE_INTEGER)
    throw new VdiskError('CORRUPT', `the disk size of ${nbSectors} sectors is out of range`, {
      path,
      offset: HEADER.offsetOf('nbSectors'),
    })
  return header
}

/** The low 32 bits alone count in the older kind. */
function sectorsOf({ magic, nbSectors }: Header): number {
  if (magic === MAGIC_CLUSTERS) return nbSectors
  return nbSectors % 2 ** 32
}

const roundUp = (value: number, unit: number) => Math.ceil(value / unit) * unit

export function geometryOf(header: Header): Geometry {
  const { magic, tracks, nbBatEntries, dataOff } = header
  const clusterSize = tracks * SECTOR
  const batEnd = HEADER_SIZE + nbBatEntries * BAT_ENTRY_SIZE
  const unit = magic === MAGIC_CLUSTERS ? clusterSize : SECTOR
  const size = sectorsOf(header) * SECTOR
  return { size, clusterSize, entries: nbBatEntries, unit, batEnd, dataStart: dataStartOf(dataOff, batEnd, header) }
}

/** A data area can be missing, misaligned or inside the BAT; this is where it is then taken to begin. */
function dataStartOf(dataOff: number, batEnd: number, { magic, tracks }: Header): number {
  const clusterSize = tracks * SECTOR
  if (magic === MAGIC_CLUSTERS) return Math.max(roundUp(dataOff * SECTOR, clusterSize), roundUp(batEnd, clusterSize))
  if (dataOff === 0) return roundUp(batEnd, SECTOR)
  const start = dataOff * SECTOR
  return start >= batEnd ? start : start + roundUp(batEnd - start, clusterSize)
}

/** A header field that breaks a rule. With none of them the image may be written. */
export interface HeaderProblem {
  readonly what: string
  readonly message: string
  /** Byte offset in the file. */
  readonly offset: number
  readonly found: number
  readonly expected: number | string
  /** What a repair makes of the header; undefined: nothing can. */
  readonly repair: ((header: Header) => void) | undefined
}

/** Rules of the header that reading can do without. */
export function headerProblems(header: Header): HeaderProblem[] {
  const { clusterSize, entries, size, dataStart } = geometryOf(header)
  const problems: HeaderProblem[] = []
  const expected = dataStart / SECTOR
  const mayBeZero = header.magic === MAGIC_SECTORS && header.dataOff === 0
  if (!mayBeZero && header.dataOff !== expected)
    problems.push({
      what: 'data-offset',
      message: `the data area begins at sector ${header.dataOff}, expected ${expected}`,
      offset: HEADER.offsetOf('dataOff'),
      found: header.dataOff,
      expected,
      // Rounded up, it may no longer fit.
      repair:
        expected > MAX_ENTRY
          ? undefined
          : (fixed) => {
              fixed.dataOff = expected
            },
    })
  if (header.magic === MAGIC_SECTORS && header.nbSectors > MAX_ENTRY)
    problems.push({
      what: 'disk-size',
      message: `the disk size has bits above its 32: ${header.nbSectors}, expected ${size / SECTOR}`,
      offset: HEADER.offsetOf('nbSectors'),
      found: header.nbSectors,
      expected: size / SECTOR,
      repair: (fixed) => {
        fixed.nbSectors = size / SECTOR
      },
    })
  if (entries * clusterSize < size)
    problems.push({
      what: 'bat-size',
      message: `the BAT has ${entries} entries, expected ${Math.ceil(size / clusterSize)} for the disk's size`,
      offset: HEADER.offsetOf('nbBatEntries'),
      found: entries,
      expected: Math.ceil(size / clusterSize),
      repair: undefined,
    })
  return problems
}

/** What `info` calls the state that a header tells of. */
export function stateText({ inUse }: Header): string {
  if (inUse === InUse.OPEN) return 'in use, or left in use'
  if (inUse === InUse.CLOSED) return 'closed'
  if (inUse === InUse.OLD) return 'closed by software without format extensions'
  return `closed (0x${inUse.toString(16)})`
}

/** True where bitmaps can be believed: whoever wrote last kept them and came to an end. */
export function bitmapsTrusted({ inUse }: Header): boolean {
  return inUse !== InUse.OPEN && inUse !== InUse.OLD
}
