/** What passes between a format and the engine when an image is looked at and opened, its parents too. */

import type { Storage } from '../storage/storage.js'

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
  /** What is going to be written leaves every byte of the disk as it reads: its children need not hear of it. */
  readonly sameContent?: boolean | undefined
  /**
   * Opens one more file of this layer, through the gate: the first of these absolute paths where there is one. It is
   * writable and locked as the image itself, is closed with it, and becomes the next of `LayerContext.files`.
   * @param guesses further places, as those of `ParentRequest`: for reading only
   * @throws NOT_FOUND naming every place; GATE, IN_USE, and what opening throws
   */
  openFile?(name: string, candidates: readonly string[], guesses?: readonly string[]): OpenedFile
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

/** What a parent was when an image was made over it, or was last told of it, so that a change by others is noticed. */
export interface ParentRecord {
  /** Bytes of its disk. */
  readonly size: number
  /** When its file was written last: whole milliseconds since 1970; 0 for a device, which has no such time. */
  readonly mtimeMs: number
}

/** The file under this one, as the image names it. */
export interface ParentRequest {
  /** As the image gives it, for messages. */
  readonly name: string
  /** The path of it that the image has, relative to the image's folder, where it has one and nothing else. */
  readonly path?: string
  /** Absolute paths to try, best first. Each is opened through the gate only. */
  readonly candidates: readonly string[]
  /**
   * Where it may have been moved to. A file there may be another one, and nothing in it would tell: so it is taken only
   * where there is none at the candidates, the user is told, and nothing is written on the strength of it.
   */
  readonly guesses?: readonly string[] | undefined
  /** The format that the image says it has; undefined: probe. */
  readonly format?: string | undefined
  /** What it was, where the image says that. Opening looks at `verify` only; this is for who wants to know. */
  readonly recorded?: ParentRecord | undefined
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
