/**
 * The contract between a format and the engine.
 *
 * A format says what guest bytes *are* and where new ones may go; `Image` moves the bytes. A format is a `Format`
 * object (what can be done with a path: probe, open, create) and a `Driver` (what can be done with an open layer),
 * of which every thread has its own over the same shared state. What `open` finds out once, and never changes while
 * the image is open, is the layout: plain data that can be cloned to other threads. What does change lives in the
 * metadata cache and in the layer's record of shared numbers (`LayerContext.state`), never in a driver's fields.
 */

import type { DirtyBatch } from '../metadata/commit.js'
import type { Metadata } from '../metadata/metadata.js'
import type { SpaceList } from '../metadata/space.js'
import type { Storage } from '../storage/storage.js'
import type { OptionSpec, OptionValues } from './options.js'

/** What guest bytes are. */
export const Kind = {
  /** They read as zeros. */
  ZERO: 0,
  /** They are in `file` at `offset`, encrypted where the driver has a `cipher`. */
  DATA: 1,
  /** They are what the parent says; zeros without a parent or behind its end. */
  PARENT: 2,
  /** They are encoded (compressed): `Driver.decode` knows how. */
  ENCODED: 3,
} as const

/** The answer of `Driver.map`, filled in by the driver; one object a thread is used again and again. */
export class Extent {
  /** One of `Kind`. */
  kind = 0
  /** Guest bytes from the asked offset on that this holds for, at least 1. */
  length = 0
  /** Number of the file among the image's files (`FileRef.index`); with DATA and ENCODED. */
  file = 0
  /** Byte offset in that file of the first of these bytes. With DATA. */
  offset = 0
  /** With ZERO: something says that they are, rather than that there is nothing. For `map`; may be left out. */
  explicit = false
  /** With DATA: they may be overwritten in place, with no change of metadata. */
  writable = false
  /** For the driver's own use between `map` and `decode`. */
  aux = 0
}

/** A place for new guest data: filled in by `Driver.allocate`, given back to `publish` or `abandon`. */
export class Allocation {
  /** The guest range that publishing maps. It holds the asked range's beginning and is filled whole before that. */
  guest = 0
  length = 0
  /** Where the byte at `guest` goes. */
  file = 0
  offset = 0
  /** The host range reads as zeros, so that zeros need not be written to it. */
  zeroed = false
  /** For the driver's own use between `allocate` and `publish`. */
  block = 0
  space = 0
  spaceLength = 0
  fresh = false
  /** Bytes of encoded data at `offset`; 0: the data is as the guest has it. */
  encoded = 0
}

/** Bytes of the sectors that are encrypted by themselves. */
export const CIPHER_SECTOR = 512

/**
 * How a layer's data is encrypted: whole sectors of 512 bytes, in place, `length` bytes of `buffer` from index `at` on,
 * which are the guest's from `guest` on and lie at `host` in their file. Both offsets are multiples of 512.
 */
export interface SectorCipher {
  encrypt(buffer: Uint8Array, at: number, length: number, guest: number, host: number): void
  decrypt(buffer: Uint8Array, at: number, length: number, guest: number, host: number): void
}

export interface FileRef {
  /** Number among all files of the chain; the key of the metadata cache. */
  readonly index: number
  readonly storage: Storage
}

/** What a thread's driver gets to work with. */
export interface LayerContext {
  /** The layer's files, in the order in which `open` named them; the first is the image itself. */
  readonly files: readonly FileRef[]
  readonly metadata: Metadata
  /** The layer's numbers that change while it is open, shared by all threads; touched under the lock only. */
  readonly state: Float64Array
  /** Host space that was freed and may be used again. Of the top layer, where it is writable. */
  readonly space: SpaceList | undefined
  /** True for the top layer of an image that was opened for writing. */
  readonly writable: boolean
}

/**
 * One layer of an image in one thread. `map` and what is said of it is called under the shared lock, other changes
 * under the exclusive one, as stated. Metadata that is not cached makes a call end with a `PageMiss`, which the caller
 * answers by loading the page and calling again; so a method first looks at all it needs and only then changes
 * anything. Ranges that reach a driver are checked: inside the disk, never empty.
 */
export interface Driver {
  /** Size of the disk in bytes. */
  readonly size: number
  /** Guest bytes that are allocated together; writers of new data in one block wait for each other. */
  readonly blockSize: number
  /**
   * The whole blocks around a guest range, where they do not lie at multiples of `blockSize`: disks of several parts.
   * Pure.
   */
  blocks?(offset: number, length: number): readonly [start: number, end: number]
  /** What `release` can free by itself, in bytes, where that is less than a block. */
  readonly releaseSize?: number | undefined
  /** False where `map` looks at nothing that can change, so that it needs no lock. */
  readonly locked: boolean
  /** The most 512-byte sectors of metadata that one `publish` or `release` makes dirty. */
  readonly changeSectors: number
  /** All DATA of this layer is encrypted so. Extents and allocations then begin and end at sectors in their file. */
  readonly cipher?: SectorCipher | undefined
  /** The most 512-byte sectors of metadata that one `writeOut` can take, where the format has such a limit. */
  readonly dirtyLimit?: number

  /** Says what the guest bytes from `offset` on are, for at most `length` bytes. Shared lock. */
  map(offset: number, length: number, out: Extent): void

  /** Reads `length` guest bytes from `offset` on, which `map` called ENCODED in `extent`. No lock. */
  decode?(extent: Extent, offset: number, buffer: Uint8Array, at: number, length: number): void

  /**
   * Chooses room for new data of the guest bytes from `offset` on, at most `length`, that `map` did not call writable.
   * Exclusive lock. Publishes nothing.
   * @returns false where room must be made by `grow` first.
   * @throws NO_SPACE where the format can hold no more.
   */
  allocate?(offset: number, length: number, out: Allocation): boolean

  /**
   * Encodes a whole block (compresses it), for `allocateEncoded`. Pure; no lock.
   * @returns undefined where that does not make it smaller
   */
  encode?(block: Uint8Array): Uint8Array | undefined

  /**
   * Chooses room for so many bytes of encoded data, which become those of the block at `offset`, of which `map` said that
   * this layer has nothing there. As `allocate`; `publish` and `abandon` go by `Allocation.encoded`, which is 0 where it
   * cannot be.
   */
  allocateEncoded?(offset: number, length: number, out: Allocation): boolean

  /** Makes room for at least one more block. No lock, but only one thread at a time; may do I/O with barriers. */
  grow?(): void

  /**
   * Writes what belongs to the new space besides data (a block's bitmap), straight to the file, and so secures host room
   * for it. No lock; nothing refers to the space yet. Data follows it.
   */
  prepare?(allocation: Allocation): void

  /** Makes the data of an allocation, by now written, the guest's. Exclusive lock. Changes cached metadata only. */
  publish?(allocation: Allocation): void

  /** Takes back an allocation whose data could not be written. Exclusive lock. */
  abandon?(allocation: Allocation): void

  /**
   * Makes guest bytes from `offset` on read as zeros by changing metadata alone, and frees their host space.
   * Exclusive lock. `belowZero` says that the layers below read as zeros for all of the range.
   * @returns how many bytes were so changed (or were zeros already); 0 where the driver cannot do the first of them
   * this way, for instance because the range does not cover a whole block: the engine then zeroes the data in place.
   * A negative number where room must be made by `grow` first.
   */
  release?(offset: number, length: number, belowZero: boolean): number

  /**
   * How many guest bytes from `offset` on, at most `length`, are recorded as changed already. Shared lock. With
   * `record`, for formats that keep dirty bitmaps.
   */
  recorded?(offset: number, length: number): number

  /**
   * Records that guest bytes from `offset` on are about to change, before they do. Exclusive lock; makes at most
   * `changeSectors` sectors dirty.
   * @returns for how many bytes that was done; 0 where room must be made by `grow` first.
   */
  record?(offset: number, length: number): number

  /** Called once before the first change of any kind (in-use marks, write GUIDs). No lock, one thread. */
  beginWriting?(): void

  /**
   * Writes a batch of dirty sectors out so that a crash at any moment leaves a valid image, and makes it and all data
   * written before durable. Without it the engine writes class after class in order, with a barrier before each and at
   * the end. No lock, one thread at a time.
   */
  writeOut?(batch: DirtyBatch): void

  /** Ends writing cleanly (trims the file, clears marks). After the last commit; no other thread is left. */
  finish?(): void
}

/** What a format's `probe` may look at. */
export interface Probe {
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** The file's first bytes: 64 KiB, fewer where it is shorter. */
  readonly head: Uint8Array
  /** The file's last 1024 bytes; fewer where it is shorter. */
  readonly tail: Uint8Array
}

/** A further file of a layer, as `OpenContext.openFile` gives it. */
export interface OpenedFile {
  /** Its place in `LayerContext.files`. */
  readonly index: number
  readonly storage: Storage
}

export interface OpenContext {
  readonly storage: Storage
  readonly path: string
  readonly readOnly: boolean
  /** The snapshot that is wanted, by its name or id; undefined: the newest state. Only for `Format.snapshots`. */
  readonly snapshot?: string | undefined
  /**
   * Opens one more file of this layer, through the gate: the first of these absolute paths where there is one. It is
   * writable and locked as the image itself, is closed with it, and becomes the next of `LayerContext.files`.
   * @throws NOT_FOUND naming every place; GATE, IN_USE, and what opening throws
   */
  openFile?(name: string, candidates: readonly string[]): OpenedFile
  /**
   * The passphrase of this image, where it is encrypted; asks for it where need be. Undefined: it is looked at only, or
   * nobody has one; the image can be opened without, and `attach` says that there is none.
   */
  secret?(): Uint8Array | undefined
  /** Opening goes on, and the user is told one line. */
  warn(message: string): void
}

/** A parent as it was opened, for `ParentRequest.verify`. */
export interface ParentFacts {
  readonly path: string
  readonly format: string
  readonly layout: unknown
  /** Milliseconds since 1970. */
  readonly mtimeMs: number
}

/** The file under this one, as the image names it. */
export interface ParentRequest {
  /** As the image gives it, for messages. */
  readonly name: string
  /** Absolute paths to try, best first. Each is opened through the gate only. */
  readonly candidates: readonly string[]
  /** The format that the image says it has; undefined: probe. */
  readonly format?: string | undefined
  /** The snapshot of that file which is the parent; so a file can hold its own parents. */
  readonly snapshot?: string | undefined
  /**
   * Throws a VdiskError where this file is not the parent that the image was made over (the next candidate is tried);
   * calls `warn` where it is but may have been changed.
   */
  verify(parent: ParentFacts, warn: (message: string) => void): void
}

export interface Opened<Layout> {
  /** What never changes while the image is open: plain data, structured-cloneable. */
  readonly layout: Layout
  /** Size of the disk in bytes. */
  readonly size: number
  /** Bytes of the disk's logical sectors, in which its partition table counts; 512 where nothing is said. */
  readonly sectorSize?: number | undefined
  readonly parent?: ParentRequest | undefined
  /** First values of `LayerContext.state`. */
  readonly state: readonly number[]
  /** What the layer is read through instead of `OpenContext.storage`, around which it is made: closing it closes both. */
  readonly storage?: Storage | undefined
}

/** A parent for a new image. */
export interface Backing {
  /** Absolute path. */
  readonly path: string
  readonly format: string
  readonly layout: unknown
  readonly size: number
  readonly mtimeMs: number
}

/** What `Format.rebase` is to write into an image. */
export interface RebaseContext {
  /** Absolute path of the image. */
  readonly path: string
  /** The parent from now on; undefined: none. Its layout is undefined where nothing is known of it but its name. */
  readonly backing: Backing | undefined
  /**
   * It is the parent that it was, and its content is about to change (`before`: the image must be known as its child in
   * both states) or was changed (`after`). Undefined: it is another one.
   */
  readonly change?: 'before' | 'after' | undefined
}

export interface CreateContext {
  /** Empty, opened for reading and writing. */
  readonly storage: Storage
  /** Absolute path of the new image. */
  readonly path: string
  /** Size of the disk in bytes. */
  readonly size: number
  readonly options: OptionValues
  /** The passphrase of the new image, where it is to be encrypted; undefined: there is none. */
  secret?(): Uint8Array | undefined
  readonly backing: Backing | undefined
}

/** How bad a finding of `check` is: space that nobody uses; data that is wrong or in danger; worth knowing. */
export type Severity = 'leak' | 'corruption' | 'warning'

/** One thing that `check` found. */
export interface Finding {
  readonly severity: Severity
  /** What kind of fault, for programs: `bat-range`, `shared-cluster`, `leak`, … */
  readonly what: string
  /** One line for people: where, what was found, what was expected. Without the file's name. */
  readonly message: string
  /** The file that it is in, where that is not the image itself. */
  readonly path?: string
  /** Byte offset in the file. */
  readonly offset?: number
  /** Byte offset on the disk. */
  readonly guest?: number
  readonly found?: string | number
  readonly expected?: string | number
  /** For how many clusters (blocks, sectors) it stands; 1 where it is not given. */
  readonly count?: number
  /** A repair can mend it. */
  readonly repairable: boolean
  /** It was mended now. */
  readonly repaired: boolean
}

/** `leaks` gives leaked space back and changes nothing else; `all` mends what can be mended. */
export type Repair = 'none' | 'leaks' | 'all'

export interface CheckContext extends OpenContext {
  readonly repair: Repair
  /** Is told everything that is found, in no order that matters. */
  found(finding: Finding): void
  /**
   * Looks for a parent as opening the image would, read-only and without a lock, and closes it again.
   * @throws what opening would: NOT_FOUND, GATE, and what `verify` throws
   */
  lookForParent?(request: ParentRequest): void
}

/** What a check counted, with qemu-img's meaning. */
export interface CheckTotals {
  /** Where the last used byte of the file is, plus 1. */
  readonly imageEnd: number
  readonly clusters: number
  readonly allocated: number
  readonly fragmented: number
  readonly compressed: number
}

/** A dirty bitmap in an image. */
export interface BitmapFacts {
  readonly name: string
  /** Bytes that one bit stands for. */
  readonly granularity: number
  /** `in-use`: it was not kept up to date, so that all of the disk counts as changed. `auto`: it records writes. */
  readonly flags: readonly string[]
}

/** A range of the disk in bytes. */
export interface ByteRange {
  readonly start: number
  readonly length: number
}

/** What can be done with the dirty bitmaps of an image that nobody else has open. `files` as in `LayerContext`. */
export interface BitmapTools<Layout> {
  list(layout: Layout, files: readonly Storage[]): BitmapFacts[]
  /** What it calls changed: merged, in order. @throws NOT_FOUND */
  extents(layout: Layout, files: readonly Storage[], name: string): Iterable<ByteRange>
  /**
   * Makes a new one with nothing changed.
   * @param name undefined: the format chooses
   * @param granularity in bytes; undefined: the format's usual one
   * @returns its name
   * @throws EXISTS, USAGE, NO_SPACE
   */
  add(layout: Layout, files: readonly Storage[], name: string | undefined, granularity: number | undefined): string
  /** Says that nothing is changed. @throws NOT_FOUND */
  clear(layout: Layout, files: readonly Storage[], name: string): void
  /** @throws NOT_FOUND */
  remove(layout: Layout, files: readonly Storage[], name: string): void
}

/** One change of the file that an entry of its log makes. */
export interface LogChange {
  /** File offset and bytes. */
  readonly offset: number
  readonly length: number
  readonly zeros: boolean
  /** What lies there: `block allocation table`, `metadata region`, … */
  readonly where: string
}

export interface LogListingEntry {
  /** Offset in the log, and bytes. */
  readonly at: number
  readonly length: number
  /** Offset in the log of the oldest entry that a replay of this one begins with. */
  readonly tail: number
  /** In decimal: it may be too large for a number. */
  readonly sequenceNumber: string
  readonly logGuid: string
  readonly flushedFileOffset: number
  readonly lastFileOffset: number
  /** A replay applies it. */
  readonly active: boolean
  readonly changes: readonly LogChange[]
}

/** The log of metadata changes of an image. */
export interface LogListing {
  /** File offset and bytes of the log. */
  readonly offset: number
  readonly length: number
  /** The header's: a nil GUID means that the log is empty, whatever entries are in it. */
  readonly logGuid: string
  /** In the order of their place. */
  readonly entries: readonly LogListingEntry[]
}

/** A snapshot in an image. */
export interface SnapshotFacts {
  readonly id: string
  readonly name: string
  /** Bytes of the state of a running machine that are kept with it. */
  readonly vmStateSize: number
  /** When it was made: seconds since 1970, and nanoseconds. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  /** How long the machine had been running. */
  readonly clockSeconds: number
  readonly clockNanoseconds: number
  /** Bytes of the disk then; undefined: unknown. */
  readonly diskSize: number | undefined
  /** Instructions that a recorded machine had executed. */
  readonly icount: number | undefined
}

/** What can be done with the snapshots of an image that nobody else has open. `files` as in `LayerContext`. */
export interface SnapshotTools<Layout> {
  list(layout: Layout, files: readonly Storage[]): SnapshotFacts[]
  /** Keeps the disk as it is now. @returns the new snapshot's id. @throws EXISTS, USAGE, NO_SPACE, UNSUPPORTED */
  create(layout: Layout, files: readonly Storage[], name: string): string
  /** Makes the disk what it was then, in size too. @param wanted an id or a name. @throws NOT_FOUND */
  apply(layout: Layout, files: readonly Storage[], wanted: string): void
  /** @param wanted an id or a name. @throws NOT_FOUND */
  delete(layout: Layout, files: readonly Storage[], wanted: string): void
}

/** Facts of one image for `info`: the names are qemu-img's where it has them. */
export type Facts = {
  readonly [name: string]: string | number | boolean | null | readonly string[] | readonly Facts[] | Facts
}

/** What the engine does for `Format.resize`. */
export interface ResizeHelp {
  /** Bytes of the parent's disk; 0: there is no parent. @throws what opening it throws */
  below(): number
  /**
   * Writes zeros to a range as guest data and makes that durable, where the format cannot do it by itself. Called before
   * anything else is changed: the disk still ends in front of the range, and a crash leaves it so.
   * @param layout as `open` gave it, but with a size that has the range in it
   * @throws what writing to the disk throws
   */
  zeroBehind(layout: unknown, range: ByteRange): void
}

/** A format, as the registry knows it. `Layout` is its own. */
export interface Format<Layout = unknown> {
  /** The name on the command line: `vhd`. */
  readonly name: string
  /** Other names that are accepted: `vpc`. */
  readonly aliases: readonly string[]
  /** For help: `Virtual Hard Disk (Virtual PC, Hyper-V generation 1, Azure)`. */
  readonly title: string
  /** File name endings, with the dot. Never used to detect. */
  readonly extensions: readonly string[]
  /** True where a new image can have a parent. */
  readonly backing: boolean
  /** The file in a folder that makes the folder an image of this format: `DiskDescriptor.xml`. */
  readonly folder?: string
  /** True where `OpenContext.snapshot` can be asked for. */
  readonly snapshots?: boolean
  readonly createOptions: readonly OptionSpec[]
  /** True where the content is of this format, whether or not it is sound. */
  probe(probe: Probe): boolean
  /**
   * Reads and checks the headers. Reads only what it needs: nothing that grows with the disk's size.
   * @throws FORMAT, CORRUPT, UNSUPPORTED, IO
   */
  open(context: OpenContext): Opened<Layout>
  /** A driver for the calling thread. */
  attach(layout: Layout, context: LayerContext): Driver
  /** Writes an empty image and makes it durable. @throws USAGE for options and sizes that the format cannot have. */
  create(context: CreateContext): void
  /** Format-specific facts for `info`. May read the whole table. `files` as in `LayerContext`, where there are several. */
  facts(layout: Layout, storage: Storage, files?: readonly Storage[]): Facts
  /**
   * Looks for faults, and mends them where it is asked to. Opens images that `open` refuses.
   * @throws where it cannot look
   */
  check?(context: CheckContext): CheckTotals
  readonly bitmaps?: BitmapTools<Layout>
  readonly snapshotTools?: SnapshotTools<Layout>
  /**
   * Lists the log of metadata changes, of images too that `open` refuses. Changes nothing.
   * @throws CORRUPT where it cannot be found, IO
   */
  log?(storage: Storage): LogListing
  /**
   * Gives an image that nobody else has open another size, in bytes, and makes that durable. What is new reads as zeros;
   * what is behind a smaller end is gone. `files` as in `LayerContext`. The format may round the size up.
   * @throws USAGE for a size that the format cannot have
   */
  resize?(layout: Layout, files: readonly Storage[], size: number, help: ResizeHelp): void
  /**
   * Names another parent in an image that nobody else has open, and makes that durable; nothing else changes.
   * @throws USAGE for a parent that it cannot have
   */
  rebase?(layout: Layout, files: readonly Storage[], context: RebaseContext): void
  /**
   * Takes all of an image's own data away, so that it shows its parent, and makes that durable. The parent holds the
   * same already, so it may stop anywhere in between.
   */
  empty?(layout: Layout, files: readonly Storage[]): void
}
