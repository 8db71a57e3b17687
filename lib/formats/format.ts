/** A format: everything that can be done with its images, and what the engine gives it for that. */

import type { Storage } from '../storage/storage.js'
import type { Driver, LayerContext } from './driver.js'
import type { OpenContext, Opened, ParentRecord, Probe } from './opening.js'
import type { OptionSpec, OptionValues } from './options.js'
import type { BitmapTools, ByteRange, CheckContext, CheckTotals, LogListing, SnapshotTools } from './tools.js'

/** A parent for a new image. */
export interface Backing {
  /** Absolute path. */
  readonly path: string
  readonly format: string
  /** Undefined, and no size is known, where it was not opened. */
  readonly layout: unknown
  readonly size: number
  readonly mtimeMs: number
  /** What images that keep such a record are to say of it from now on; undefined where it was not opened. */
  readonly record?: ParentRecord | undefined
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
  /** Only whether it can have that parent is looked at, and nothing is written. */
  readonly look?: boolean
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
  /** The image is to keep `Backing.record`, where its format can do that. */
  readonly recordBacking?: boolean
  /** Is told of every further file, when it was made: it is removed where the image is not completed. */
  madeFile?(path: string): void
  /** What `Format.prepare` gave, where it was called. */
  readonly prepared?: unknown
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
  /** True where an image has more of its parent than the name, so that it cannot be made without the parent. */
  readonly identifiesParents?: boolean
  /** The file in a folder that makes the folder an image of this format: `DiskDescriptor.xml`. */
  readonly folder?: string
  /** True where `OpenContext.snapshot` can be asked for. */
  readonly snapshots?: boolean
  readonly createOptions: readonly OptionSpec[]
  /** True where the content is of this format, whether or not it is sound. */
  probe(probe: Probe): boolean
  /**
   * True where the end of the file makes it a sound image whose first bytes are the guest's, so that they may look like
   * another format. Undefined: an image of this format has its own structures there.
   */
  guestBegins?(probe: Probe): boolean
  /**
   * Reads and checks the headers. Reads only what it needs: nothing that grows with the disk's size.
   * @throws FORMAT, CORRUPT, UNSUPPORTED, IO
   */
  open(context: OpenContext): Opened<Layout>
  /** A driver for the calling thread. Threads that do nothing but read and write have it from `drivers.ts`. */
  attach(layout: Layout, context: LayerContext): Driver
  /**
   * Does what takes long, such as making keys, before there is a file that would have to be removed where somebody ends
   * the program meanwhile. @throws as `create`
   */
  prepare?(context: Omit<CreateContext, 'storage'>): unknown
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
   * @throws CORRUPT where it cannot be found, UNSUPPORTED, IO
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
   * @throws USAGE for a parent that it cannot have: before anything is written
   */
  rebase?(layout: Layout, files: readonly Storage[], context: RebaseContext): void
  /**
   * Takes all of an image's own data away, so that it shows its parent, and makes that durable. The parent holds the
   * same already, so it may stop anywhere in between.
   */
  empty?(layout: Layout, files: readonly Storage[]): void
}
