/** The requests about names, attributes and directories. */

import { constants } from 'node:os'
import { type Attributes, type DirectoryEntry, ROOT_INODE } from '../transport.js'
import { fileType, putAttributes, putEntry, putStatx } from './attributes.js'
import type { Reply } from './messages.js'
import { DONE, NO_REPLY, type Operation, type OperationTable } from './operation.js'
import {
  Dirent,
  EntryOut,
  GetattrIn,
  IN_HEADER_SIZE,
  InHeader,
  modeToDirentType,
  NameIn,
  Opcode,
  OpenIn,
  OpenOut,
  OUT_HEADER_SIZE,
  ReadIn,
  ReleaseIn,
  SetattrIn,
  SetattrValid,
  StatfsOut,
  StatxIn,
} from './protocol.js'
import type { Session } from './session.js'

const { EINVAL, EISDIR, ENOENT, ENOTDIR, EPERM, EROFS } = constants.errno

const PERMISSION_BITS = 0o7777

function lookup(session: Session, length: number): number {
  const name = session.request.text(NameIn.name, length)
  if (name === undefined) return -EINVAL
  const inode = session.tree.lookup(session.node, name)
  const attributes = inode === undefined ? undefined : session.tree.attributes(inode)
  return attributes ? putEntry(session.reply, OUT_HEADER_SIZE, attributes) : -ENOENT
}

function getattr(session: Session): number {
  const attributes = session.tree.attributes(session.node)
  return attributes ? putAttributes(session.reply, attributes) : -ENOENT
}

function statx(session: Session): number {
  const attributes = session.tree.attributes(session.node)
  return attributes ? putStatx(session.reply, attributes) : -ENOENT
}

/** Nothing can be changed, as on a block device; what is so already succeeds, and times are left to themselves. */
function setattr(session: Session): number {
  const attributes = session.tree.attributes(session.node)
  if (!attributes) return -ENOENT
  if (session.tree.readOnly) return -EROFS
  if (changesOwnership(session, attributes)) return -EPERM
  const errno = truncation(session, attributes)
  return errno === 0 ? putAttributes(session.reply, attributes) : -errno
}

function changesOwnership({ request }: Session, { mode, uid, gid }: Attributes): boolean {
  const valid = request.u32(SetattrIn.valid)
  return (
    ((valid & SetattrValid.MODE) !== 0 && (request.u32(SetattrIn.mode) & PERMISSION_BITS) !== mode) ||
    ((valid & SetattrValid.UID) !== 0 && request.u32(SetattrIn.uid) !== uid) ||
    ((valid & SetattrValid.GID) !== 0 && request.u32(SetattrIn.gid) !== gid)
  )
}

/** The errno for the size that a SETATTR asks for: 0 for the present one, and for the O_TRUNC of an open. */
function truncation({ request, opens }: Session, { directory, size }: Attributes): number {
  const valid = request.u32(SetattrIn.valid)
  if ((valid & SetattrValid.SIZE) === 0) return 0
  if (directory) return EISDIR
  const wanted = request.u64(SetattrIn.size)
  if (wanted === size) return 0
  const byName = (valid & SetattrValid.FH) === 0
  return wanted === 0 && byName && opens.truncates(request.u32(InHeader.pid)) ? 0 : EINVAL
}

function statfs({ tree, reply }: Session): number {
  const s = tree.statistics()
  reply.clear(OUT_HEADER_SIZE, StatfsOut.SIZE)
  reply.putU64(StatfsOut.blocks, s.blocks)
  reply.putU64(StatfsOut.bfree, s.freeBlocks)
  reply.putU64(StatfsOut.bavail, s.availableBlocks)
  reply.putU64(StatfsOut.files, s.files)
  reply.putU32(StatfsOut.bsize, s.blockSize)
  reply.putU32(StatfsOut.frsize, s.blockSize)
  reply.putU32(StatfsOut.namelen, s.nameLength)
  return StatfsOut.SIZE
}

function opendir(session: Session): number {
  const attributes = session.tree.attributes(session.node)
  if (!attributes) return -ENOENT
  if (!attributes.directory) return -ENOTDIR
  session.reply.putU64(OpenOut.fh, attributes.inode)
  session.reply.putU64(OpenOut.openFlags, 0)
  return OpenOut.SIZE
}

/** READDIR, and READDIRPLUS with `plus`. An entry's `off` is where the next one begins: its number, from 1. */
function readdir(session: Session, plus: boolean): number {
  const { tree, request, reply, node } = session
  const offset = request.u64(ReadIn.offset)
  const size = request.u32(ReadIn.size)
  if (size > session.negotiated.maxTransfer || offset > Number.MAX_SAFE_INTEGER) return -EINVAL
  if (!tree.attributes(node)?.directory) return -ENOTDIR
  const entries: DirectoryEntry[] = [
    { name: '.', inode: node, directory: true },
    { name: '..', inode: ROOT_INODE, directory: true },
    ...tree.list(node),
  ]
  let at = OUT_HEADER_SIZE
  for (let index = offset; index < entries.length; index++) {
    const entry = entries[index]!
    const name = Buffer.from(entry.name)
    const lengthOf = (plus ? EntryOut.SIZE : 0) + ((Dirent.name + name.length + 7) & ~7)
    if (at + lengthOf > OUT_HEADER_SIZE + size) break
    reply.clear(at, lengthOf)
    // An entry without a nodeid counts as not looked up; `.` and `..` must be so.
    const attributes = plus && index >= 2 ? tree.attributes(entry.inode) : undefined
    if (attributes) putEntry(reply, at, attributes)
    putDirent(reply, plus ? at + EntryOut.SIZE : at, entry, name, index + 1)
    at += lengthOf
  }
  return at - OUT_HEADER_SIZE
}

function putDirent(reply: Reply, at: number, entry: DirectoryEntry, name: Buffer, next: number): void {
  reply.putU64(at + Dirent.ino, entry.inode)
  reply.putU64(at + Dirent.off, next)
  reply.putU32(at + Dirent.namelen, name.length)
  reply.putU32(at + Dirent.type, modeToDirentType(fileType(entry.directory)))
  name.copy(reply.bytes, at + Dirent.name)
}

/** Inodes are the tree's own and live as long as it: there is nothing to forget. */
const forget = (): number => NO_REPLY

/** Files can neither come nor go. */
const unchangeable = ({ tree }: Session): number => (tree.readOnly ? -EROFS : -EPERM)

const refuse = (name: string): Operation => ({ name, size: IN_HEADER_SIZE, run: unchangeable })

/** ACCESS is left out: the kernel checks permissions itself (`default_permissions`). */
export const NODE_OPERATIONS: OperationTable = [
  [Opcode.LOOKUP, { name: 'LOOKUP', endsOpening: true, size: NameIn.SIZE, run: lookup }],
  [Opcode.FORGET, { name: 'FORGET', size: IN_HEADER_SIZE, silent: true, run: forget }],
  [Opcode.BATCH_FORGET, { name: 'BATCH_FORGET', size: IN_HEADER_SIZE, silent: true, run: forget }],
  [Opcode.GETATTR, { name: 'GETATTR', endsOpening: true, size: GetattrIn.SIZE, run: getattr }],
  [Opcode.STATX, { name: 'STATX', endsOpening: true, size: StatxIn.SIZE, run: statx }],
  [Opcode.SETATTR, { name: 'SETATTR', size: SetattrIn.SIZE, run: setattr }],
  [Opcode.STATFS, { name: 'STATFS', size: IN_HEADER_SIZE, run: statfs }],
  [Opcode.OPENDIR, { name: 'OPENDIR', size: OpenIn.SIZE, run: opendir }],
  [Opcode.READDIR, { name: 'READDIR', size: ReadIn.SIZE, run: (session) => readdir(session, false) }],
  [Opcode.READDIRPLUS, { name: 'READDIRPLUS', size: ReadIn.SIZE, run: (session) => readdir(session, true) }],
  [Opcode.RELEASEDIR, { name: 'RELEASEDIR', size: ReleaseIn.SIZE, run: () => DONE }],
  [Opcode.DESTROY, { name: 'DESTROY', size: IN_HEADER_SIZE, run: () => DONE }],
  [Opcode.SYMLINK, refuse('SYMLINK')],
  [Opcode.MKNOD, refuse('MKNOD')],
  [Opcode.MKDIR, refuse('MKDIR')],
  [Opcode.UNLINK, refuse('UNLINK')],
  [Opcode.RMDIR, refuse('RMDIR')],
  [Opcode.RENAME, refuse('RENAME')],
  [Opcode.RENAME2, refuse('RENAME2')],
  [Opcode.LINK, refuse('LINK')],
  [Opcode.CREATE, refuse('CREATE')],
]
