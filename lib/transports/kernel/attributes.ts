/** Attributes as the replies carry them. */

import type { Attributes } from '../transport.js'
import type { Reply } from './messages.js'
import { Attr, AttrOut, EntryOut, S_IFDIR, S_IFREG, STATX_BASIC_STATS, StatxOut } from './protocol.js'

/** Names never change while mounted. */
const ENTRY_VALID_SECONDS = 3600
/** Sizes never change either, but the space that the image takes does. */
const ATTR_VALID_SECONDS = 1
/** What programs are told to transfer at once (`st_blksize`). */
const PREFERRED_IO_SIZE = 4096

export const fileType = (directory: boolean): number => (directory ? S_IFDIR : S_IFREG)

const modeOf = ({ mode, directory }: Attributes): number => fileType(directory) | mode

/** A struct fuse_attr at `at`. */
function putAttr(reply: Reply, at: number, a: Attributes): void {
  reply.clear(at, Attr.SIZE)
  reply.putU64(at + Attr.ino, a.inode)
  reply.putU64(at + Attr.size, a.size)
  reply.putU64(at + Attr.blocks, a.blocks)
  putTime(reply, at + Attr.atime, at + Attr.atimensec, a.atimeMs)
  putTime(reply, at + Attr.mtime, at + Attr.mtimensec, a.mtimeMs)
  putTime(reply, at + Attr.ctime, at + Attr.ctimensec, a.ctimeMs)
  reply.putU32(at + Attr.mode, modeOf(a))
  reply.putU32(at + Attr.nlink, a.links)
  reply.putU32(at + Attr.uid, a.uid)
  reply.putU32(at + Attr.gid, a.gid)
  reply.putU32(at + Attr.blksize, PREFERRED_IO_SIZE)
}

/** Seconds and nanoseconds of a time in milliseconds, before 1970 too. */
function putTime(reply: Reply, secondsAt: number, nanosecondsAt: number, ms: number): void {
  const whole = Math.floor(ms)
  const seconds = Math.floor(whole / 1000)
  reply.putU64(secondsAt, seconds)
  reply.putU32(nanosecondsAt, (whole - seconds * 1000) * 1_000_000)
}

/** A struct fuse_entry_out at `at`. @returns its size */
export function putEntry(reply: Reply, at: number, a: Attributes): number {
  reply.clear(at, EntryOut.SIZE)
  reply.putU64(at + EntryOut.nodeid, a.inode)
  reply.putU64(at + EntryOut.entryValid, ENTRY_VALID_SECONDS)
  reply.putU64(at + EntryOut.attrValid, ATTR_VALID_SECONDS)
  putAttr(reply, at + EntryOut.attr, a)
  return EntryOut.SIZE
}

/** The body of GETATTR's and SETATTR's reply. @returns its size */
export function putAttributes(reply: Reply, a: Attributes): number {
  reply.putU64(AttrOut.attrValid, ATTR_VALID_SECONDS)
  reply.putU64(AttrOut.attrValidNsec, 0)
  putAttr(reply, AttrOut.attr, a)
  return AttrOut.SIZE
}

/** The body of STATX's reply: what stat has; there is no time of birth. @returns its size */
export function putStatx(reply: Reply, a: Attributes): number {
  reply.clear(StatxOut.attrValid, StatxOut.SIZE)
  reply.putU64(StatxOut.attrValid, ATTR_VALID_SECONDS)
  reply.putU32(StatxOut.mask, STATX_BASIC_STATS)
  reply.putU32(StatxOut.blksize, PREFERRED_IO_SIZE)
  reply.putU32(StatxOut.nlink, a.links)
  reply.putU32(StatxOut.uid, a.uid)
  reply.putU32(StatxOut.gid, a.gid)
  reply.putU16(StatxOut.mode, modeOf(a))
  reply.putU64(StatxOut.ino, a.inode)
  reply.putU64(StatxOut.size, a.size)
  reply.putU64(StatxOut.blocks, a.blocks)
  putTime(reply, StatxOut.atime, StatxOut.atime + 8, a.atimeMs)
  putTime(reply, StatxOut.ctime, StatxOut.ctime + 8, a.ctimeMs)
  putTime(reply, StatxOut.mtime, StatxOut.mtime + 8, a.mtimeMs)
  return StatxOut.SIZE
}
