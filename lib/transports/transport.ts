/**
 * What a transport serves: a small tree of files over one image. The tree is made in `mount/`; the kernel and the
 * fuse-native transports speak their protocols and call this, so that both show exactly the same.
 */

import type { Pieces } from '../util/pieces.js'

/** The root's inode number, fixed by the FUSE protocol. */
export const ROOT_INODE = 1

export interface Attributes {
  readonly inode: number
  readonly directory: boolean
  /** Bytes. */
  readonly size: number
  /** 512-byte units that the image takes on the host; fewer than the size makes copying programs look for holes. */
  readonly blocks: number
  /** Permission bits, without the file type. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly links: number
  /** Milliseconds since 1970. */
  readonly atimeMs: number
  readonly mtimeMs: number
  readonly ctimeMs: number
}

export interface DirectoryEntry {
  readonly name: string
  readonly inode: number
  readonly directory: boolean
}

export interface Statistics {
  readonly blockSize: number
  readonly blocks: number
  readonly freeBlocks: number
  readonly availableBlocks: number
  readonly files: number
  readonly nameLength: number
}

/**
 * Synchronous, one object a thread. Every method throws a VdiskError where it cannot do what it is asked;
 * `errno.ts` says what that becomes. Offsets and lengths are bytes.
 */
export interface FileTree {
  /** True where nothing may be changed: opening for writing then fails with EROFS. */
  readonly readOnly: boolean
  /** The inode of a name in a directory, or undefined. */
  lookup(parent: number, name: string): number | undefined
  /** The attributes of an inode, or undefined where there is none. */
  attributes(inode: number): Attributes | undefined
  /** The entries of a directory, without `.` and `..`. */
  list(inode: number): readonly DirectoryEntry[]
  statistics(): Statistics
  /** Reads into `buffer` from index `at` on; returns the bytes read, fewer than `length` only at the file's end. */
  read(inode: number, buffer: Uint8Array, at: number, length: number, offset: number): number
  /**
   * Says where in host files the bytes of a range are, which lies in the file, and calls `use` while they stay there.
   * @returns false where they are not simply in files (or not any more when `use` looked, and it returned false):
   * nothing was done then, and `read` must be called.
   */
  lend?(inode: number, length: number, offset: number, pieces: Pieces, use: () => boolean): boolean
  /**
   * Writes; returns the bytes taken: fewer than `length` only at the file's end. Throws RANGE where `offset` is there.
   * `past`: who writes wants no cache to keep it.
   */
  write(inode: number, buffer: Uint8Array, at: number, length: number, offset: number, past?: boolean): number
  /** Makes a range read as zeros; with `unmap` its space is given back where that is possible. Clipped to the file. */
  zero(inode: number, offset: number, length: number, unmap: boolean): void
  /** SEEK_DATA (`data`) or SEEK_HOLE from `offset`; -1 where there is none (ENXIO). The end counts as a hole. */
  seek(inode: number, offset: number, data: boolean): number
  /** Makes everything that was written durable, metadata included. Returns when it is. */
  flush(): void
  /** True where `flush` would have something to do. */
  readonly unflushed: boolean
}
