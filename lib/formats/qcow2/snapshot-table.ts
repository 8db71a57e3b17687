/** The table of internal snapshots: entries of variable length, one behind the other. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import { MiB } from '../../util/sizes.js'
import { Struct, u16, u32, u64 } from '../../util/struct.js'
import { type Header, MAX_SNAPSHOTS } from './header.js'

const ENTRY = new Struct('QCOW2 snapshot table entry', 40, 'big', {
  l1TableOffset: u64,
  l1Size: u32,
  idSize: u16,
  nameSize: u16,
  dateSeconds: u32,
  dateNanoseconds: u32,
  clockHigh: u32,
  clockLow: u32,
  vmStateSize: u32,
  extraSize: u32,
})
const ENTRY_SIZE = ENTRY.size
/** What is defined of the extra data: size of the VM state, size of the disk, icount. */
const EXTRA_SIZE = 24
/** The part of it that version 3 demands. */
const EXTRA_LEAST = 16
const ICOUNT_AT = 16
const NONE = 2 ** 64
const TWO_32 = 2 ** 32
const NANO = 10n ** 9n
/** As QEMU limits them. */
const MAX_EXTRA = 1024
const MAX_TABLE = 64 * MiB

export interface Snapshot {
  readonly id: string
  readonly name: string
  readonly l1TableOffset: number
  /** Entries. */
  readonly l1Size: number
  /** When it was made: seconds since 1970, and nanoseconds of them. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  /** How long the guest had been running: whole seconds, and nanoseconds. */
  readonly clockSeconds: number
  readonly clockNanoseconds: number
  /** Bytes; it lies behind the end of the disk. */
  readonly vmStateSize: number
  /** Bytes of the disk; undefined where the entry does not say. */
  readonly diskSize: number | undefined
  readonly icount: number | undefined
  /** The entry as it is in the file. */
  readonly raw: Uint8Array
}

export interface SnapshotTable {
  readonly snapshots: readonly Snapshot[]
  /** Bytes. */
  readonly length: number
}

const padded = (length: number) => Math.ceil(length / 8) * 8

/** @throws CORRUPT where it is not in the file, or goes on for too long */
export function readSnapshots(storage: Storage, header: Header): SnapshotTable {
  const { table, error } = readWhatIsThere(storage, header)
  if (error) throw error
  return table
}

/** The entries up to the first that cannot be, and what is wrong with that. */
export function readWhatIsThere(storage: Storage, header: Header): { table: SnapshotTable; error?: VdiskError } {
  const { nbSnapshots, snapshotsOffset, clusterBits } = header
  const { path } = storage
  const fail = (text: string) => new VdiskError('CORRUPT', text, { path, offset: snapshotsOffset })
  const snapshots: Snapshot[] = []
  let at = snapshotsOffset
  const upTo = (error: VdiskError) => ({ table: { snapshots, length: at - snapshotsOffset }, error })
  const wrong = snapshotsOffset === 0 || snapshotsOffset % 2 ** clusterBits !== 0
  if (nbSnapshots > 0 && wrong)
    return upTo(fail(`the snapshot table is said to be at byte ${snapshotsOffset}: expected a cluster`))
  const end = Math.min(storage.size(), snapshotsOffset + MAX_TABLE)
  for (let i = 0; i < nbSnapshots; i++) {
    if (i === MAX_SNAPSHOTS) return upTo(fail(`it is said to have ${nbSnapshots} snapshots: expected ${i} at most`))
    const entry = readEntry(storage, at, end)
    if ('error' in entry) return upTo(fail(`entry ${i} of the snapshot table ${entry.error}`))
    snapshots.push(entry.snapshot)
    at += entry.snapshot.raw.length
  }
  return { table: { snapshots, length: at - snapshotsOffset } }
}

function readEntry(storage: Storage, at: number, end: number): { snapshot: Snapshot } | { error: string } {
  const fixed = new Uint8Array(ENTRY_SIZE)
  if (at + ENTRY_SIZE > end) return { error: 'is not in the file' }
  storage.read(fixed, 0, ENTRY_SIZE, at)
  if (wordAt(fixed, 0) > Number.MAX_SAFE_INTEGER) return { error: 'says that its L1 table is beyond 2^53' }
  const { extraSize, idSize, nameSize } = ENTRY.read(fixed)
  const length = ENTRY_SIZE + extraSize + idSize + nameSize
  // Else zeros would be snapshots.
  if (idSize === 0) return { error: 'has no id' }
  if (extraSize > MAX_EXTRA || at + length > end)
    return { error: `has ${length} bytes, ${extraSize} of them extra: expected ${MAX_EXTRA} at most` }
  const raw = new Uint8Array(padded(length))
  storage.read(raw, 0, length, at)
  return { snapshot: decode(raw, storage.path, at) }
}

function decode(raw: Uint8Array, path: string, offset: number): Snapshot {
  const fixed = ENTRY.read(raw, 0, { path, offset })
  const { idSize, nameSize, extraSize, clockHigh, clockLow } = fixed
  const clock = (BigInt(clockHigh) << 32n) | BigInt(clockLow)
  const text = (at: number, length: number) => Buffer.from(raw.subarray(at, at + length)).toString('utf8')
  const word = (at: number) => wordAt(raw, ENTRY_SIZE + at)
  const has = (bytes: number) => extraSize >= bytes
  const icount = has(EXTRA_SIZE) ? word(ICOUNT_AT) : NONE
  return {
    id: text(ENTRY_SIZE + extraSize, idSize),
    name: text(ENTRY_SIZE + extraSize + idSize, nameSize),
    l1TableOffset: fixed.l1TableOffset,
    l1Size: fixed.l1Size,
    dateSeconds: fixed.dateSeconds,
    dateNanoseconds: fixed.dateNanoseconds,
    clockSeconds: Number(clock / NANO),
    clockNanoseconds: Number(clock % NANO),
    vmStateSize: has(8) ? word(0) : fixed.vmStateSize,
    diskSize: has(EXTRA_LEAST) ? word(8) : undefined,
    icount: icount === NONE ? undefined : icount,
    raw,
  }
}

function wordAt(bytes: Uint8Array, at: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  return view.getUint32(at) * TWO_32 + view.getUint32(at + 4)
}

/** True where version 3 demands more extra data than the entry has. */
export function lacksExtra(snapshot: Snapshot): boolean {
  return snapshot.diskSize === undefined
}

export type NewSnapshot = Omit<Snapshot, 'raw' | 'clockSeconds' | 'clockNanoseconds'> & { readonly diskSize: number }

/** The entry of a new snapshot, whose guest was not running. */
export function makeSnapshot(values: NewSnapshot): Snapshot {
  const id = Buffer.from(values.id)
  const name = Buffer.from(values.name)
  const raw = new Uint8Array(padded(ENTRY_SIZE + EXTRA_SIZE + id.length + name.length))
  ENTRY.write(
    {
      l1TableOffset: values.l1TableOffset,
      l1Size: values.l1Size,
      idSize: id.length,
      nameSize: name.length,
      dateSeconds: values.dateSeconds,
      dateNanoseconds: values.dateNanoseconds,
      clockHigh: 0,
      clockLow: 0,
      vmStateSize: Math.min(TWO_32 - 1, values.vmStateSize),
      extraSize: EXTRA_SIZE,
    },
    raw,
  )
  const view = new DataView(raw.buffer)
  view.setBigUint64(ENTRY_SIZE, BigInt(values.vmStateSize))
  view.setBigUint64(ENTRY_SIZE + 8, BigInt(values.diskSize))
  view.setBigInt64(ENTRY_SIZE + ICOUNT_AT, BigInt(values.icount ?? -1))
  raw.set(id, ENTRY_SIZE + EXTRA_SIZE)
  raw.set(name, ENTRY_SIZE + EXTRA_SIZE + id.length)
  return { ...values, clockSeconds: 0, clockNanoseconds: 0, raw }
}

/** The entry with all extra data that is defined; the disk had this size. */
export function withExtra(snapshot: Snapshot, diskSize: number): Snapshot {
  const { raw } = snapshot
  const fixed = ENTRY.read(raw)
  const { idSize, nameSize, extraSize } = fixed
  const rest = raw.subarray(ENTRY_SIZE + extraSize, ENTRY_SIZE + extraSize + idSize + nameSize)
  const bytes = new Uint8Array(padded(ENTRY_SIZE + EXTRA_SIZE + rest.length))
  bytes.set(raw.subarray(0, ENTRY_SIZE))
  ENTRY.write({ ...fixed, extraSize: EXTRA_SIZE }, bytes)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(ENTRY_SIZE, BigInt(snapshot.vmStateSize))
  view.setBigUint64(ENTRY_SIZE + 8, BigInt(snapshot.diskSize ?? diskSize))
  view.setBigInt64(ENTRY_SIZE + ICOUNT_AT, BigInt(snapshot.icount ?? -1))
  bytes.set(rest, ENTRY_SIZE + EXTRA_SIZE)
  return { ...snapshot, diskSize: snapshot.diskSize ?? diskSize, raw: bytes }
}

export function encodeSnapshots(snapshots: readonly Snapshot[]): Uint8Array {
  return new Uint8Array(Buffer.concat(snapshots.map(({ raw }) => raw)))
}

/**
 * Whether a snapshot is the one that is meant: by its id or its name; or, as qemu-img has it, by `snapshot.id=ID`,
 * `snapshot.name=NAME` or both, where two commas stand for one. So one whose name is another's id can be said.
 */
function isMeant({ id, name }: Snapshot, wanted: string): boolean {
  if (id === wanted || name === wanted) return true
  const said = [...wanted.matchAll(/(?:^|,)snapshot\.(id|name)=((?:[^,]|,,)*)(?=$|,)/g)]
  if (said.length === 0 || said.reduce((length, [text]) => length + text.length, 0) !== wanted.length) return false
  return said.every(([, key, value]) => (key === 'id' ? id : name) === value!.replaceAll(',,', ','))
}

/** By its id or its name, see `isMeant`. @throws NOT_FOUND; USAGE where several could be meant */
export function findSnapshot(snapshots: readonly Snapshot[], wanted: string, path: string): Snapshot {
  const found = snapshots.filter((snapshot) => isMeant(snapshot, wanted))
  if (found.length === 1) return found[0]!
  if (found.length > 1) {
    const list = found.slice(0, SHOWN).map(({ id, name }) => `ID ${id} '${name}'`)
    throw new VdiskError('USAGE', `'${wanted}' could be any of its snapshots ${list.join(', ')}: say snapshot.id=ID`, {
      path,
    })
  }
  const names = snapshots.slice(0, SHOWN).map(({ name }) => name)
  if (snapshots.length > SHOWN) names.push('…')
  throw new VdiskError('NOT_FOUND', `no snapshot '${wanted}'; it has: ${names.join(', ') || 'none'}`, { path })
}

const SHOWN = 20
