/** The requests about what is in a file. READ and WRITE are the hot path: they allocate nothing. */

import { constants } from 'node:os'
import { RequestKind } from '../statistics.js'
import type { FileTree } from '../transport.js'
import { isDirect, isSynchronous, openFlags, opensForWriting } from './opens.js'
import { DONE, NO_REPLY, type OperationTable } from './operation.js'
import {
  FallocateIn,
  FallocateMode,
  FlushIn,
  FsyncIn,
  IN_HEADER_SIZE,
  InHeader,
  InterruptIn,
  LseekIn,
  LseekOut,
  Opcode,
  OpenIn,
  OpenOut,
  OUT_HEADER_SIZE,
  ReadIn,
  ReleaseIn,
  Whence,
  WriteIn,
  WriteOut,
} from './protocol.js'
import type { Session } from './session.js'
import { NOT_PARKED, SYNC_ANSWERED } from './syncs.js'

const { EINTR, EINVAL, EISDIR, ENOENT, ENOSPC, ENXIO, EOPNOTSUPP, EROFS } = constants.errno

function open(session: Session): number {
  const { tree, request, reply, node, opens, negotiated, cachePolicy } = session
  const attributes = tree.attributes(node)
  if (!attributes) return -ENOENT
  if (attributes.directory) return -EISDIR
  const flags = request.u32(OpenIn.flags)
  const writing = opensForWriting(flags)
  if (writing && tree.readOnly) return -EROFS
  opens.opened(request.u32(InHeader.pid), writing)
  reply.putU64(OpenOut.fh, node)
  reply.putU64(OpenOut.openFlags, openFlags(cachePolicy, negotiated, flags))
  return OpenOut.SIZE
}

function read(session: Session): number {
  const { request } = session
  const offset = request.u64(ReadIn.offset)
  const size = request.u32(ReadIn.size)
  if (size > session.negotiated.maxTransfer || !isRange(offset, size)) return -EINVAL
  if (session.splice(session.node, size, offset)) {
    session.moved = size
    return NO_REPLY
  }
  session.moved = session.tree.read(session.node, session.reply.bytes, OUT_HEADER_SIZE, size, offset)
  return session.moved
}

function write(session: Session, length: number): number {
  const { request } = session
  const offset = request.u64(WriteIn.offset)
  const size = request.u32(WriteIn.size)
  if (size !== length - WriteIn.SIZE || !isRange(offset, size)) return -EINVAL
  if (session.tree.readOnly) return -EROFS
  const flags = request.u32(WriteIn.flags)
  const written = session.tree.write(session.node, request.bytes, WriteIn.SIZE, size, offset, isDirect(flags))
  session.moved = written
  // Of cached files only, the kernel asks for an FSYNC behind a write with O_SYNC, O_DSYNC or RWF_DSYNC.
  if (session.cachePolicy === 'direct' && isSynchronous(flags)) {
    const errno = session.flush()
    if (errno !== 0) return -errno
  }
  session.reply.putU64(WriteOut.size, 0)
  session.reply.putU32(WriteOut.size, written)
  return WriteOut.SIZE
}

/**
 * FSYNC, FLUSH, SYNCFS: everything that was written is durable when this is answered, unless a signal interrupts its
 * caller, a deadly one or another. fsync(2) says so then; close(2) promises nothing, and programs do not expect it to
 * fail, so it succeeds, and the commit comes with the next one.
 */
function sync(session: Session, interrupted: number): number {
  const { tree, request, syncs, flush, answer } = session
  if (!tree.unflushed && !syncs.committing) return DONE
  const errno = syncs.sync(request.uniqueFirst, request.uniqueSecond, interrupted, flush, answer)
  if (errno !== SYNC_ANSWERED) return -errno
  session.answeredElsewhere = true
  return NO_REPLY
}

/** What an fallocate(2) mode does; modes that are not here are refused. */
interface Allocation {
  readonly zero?: (tree: FileTree, inode: number, offset: number, length: number) => void
  /** The range is to be part of the file afterwards, so it must lie in it: the size cannot change. */
  readonly within: boolean
}
const zeroRange: Allocation['zero'] = (tree, inode, offset, length) => tree.zero(inode, offset, length, false)
const punchHole: Allocation['zero'] = (tree, inode, offset, length) => tree.zero(inode, offset, length, true)
const { KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE } = FallocateMode
const ALLOCATIONS = new Map<number, Allocation>([
  [0, { within: true }],
  [KEEP_SIZE, { within: true }],
  [PUNCH_HOLE | KEEP_SIZE, { within: false, zero: punchHole }],
  [ZERO_RANGE, { within: true, zero: zeroRange }],
  [ZERO_RANGE | KEEP_SIZE, { within: false, zero: zeroRange }],
])

function fallocate(session: Session): number {
  const { tree, request, node } = session
  const offset = request.u64(FallocateIn.offset)
  const length = request.u64(FallocateIn.length)
  const allocation = ALLOCATIONS.get(request.u32(FallocateIn.mode))
  if (!allocation) return -EOPNOTSUPP
  if (length === 0 || !isRange(offset, length)) return -EINVAL
  const attributes = tree.attributes(node)
  if (!attributes) return -ENOENT
  if (attributes.directory) return -EISDIR
  if (tree.readOnly) return -EROFS
  if (allocation.within && offset + length > attributes.size) return -ENOSPC
  const end = Math.min(offset + length, attributes.size)
  if (offset < end && allocation.zero) {
    allocation.zero(tree, node, offset, end - offset)
    session.moved = end - offset
  }
  return DONE
}

function lseek(session: Session): number {
  const { tree, request, reply, node } = session
  const offset = request.u64(LseekIn.offset)
  const whence = request.u32(LseekIn.whence)
  if (whence !== Whence.DATA && whence !== Whence.HOLE) return -EINVAL
  const attributes = tree.attributes(node)
  if (!attributes) return -ENOENT
  if (offset >= attributes.size) return -ENXIO
  const found = tree.seek(node, offset, whence === Whence.DATA)
  if (found < 0) return -ENXIO
  reply.putU64(LseekOut.offset, found)
  return LseekOut.SIZE
}

/**
 * The kernel waits for the interrupted request, not for this one, which is never answered. Only a parked fsync can be
 * interrupted; what a worker has in hand takes no longer than the disk does.
 */
function interrupt(session: Session): number {
  const { request, syncs, answer } = session
  const first = request.u32(InterruptIn.unique)
  const second = request.u32(InterruptIn.unique + 4)
  const errno = syncs.cancel(first, second)
  if (errno !== NOT_PARKED) answer(first, second, errno)
  return NO_REPLY
}

/** False for what no file can have: offsets that are not exact as numbers. */
const isRange = (offset: number, length: number): boolean => offset + length <= Number.MAX_SAFE_INTEGER

export const CONTENT_OPERATIONS: OperationTable = [
  [Opcode.OPEN, { name: 'OPEN', size: OpenIn.SIZE, run: open }],
  [Opcode.READ, { name: 'READ', kind: RequestKind.READ, ranged: true, size: ReadIn.SIZE, run: read }],
  [
    Opcode.WRITE,
    { name: 'WRITE', kind: RequestKind.WRITE, ranged: true, endsOpening: true, size: WriteIn.SIZE, run: write },
  ],
  [Opcode.RELEASE, { name: 'RELEASE', size: ReleaseIn.SIZE, run: () => DONE }],
  [
    Opcode.FLUSH,
    {
      name: 'FLUSH',
      kind: RequestKind.SYNC,
      endsOpening: true,
      size: FlushIn.SIZE,
      run: (session) => sync(session, 0),
    },
  ],
  [
    Opcode.FSYNC,
    {
      name: 'FSYNC',
      kind: RequestKind.SYNC,
      endsOpening: true,
      size: FsyncIn.SIZE,
      run: (session) => sync(session, EINTR),
    },
  ],
  [
    Opcode.FSYNCDIR,
    { name: 'FSYNCDIR', kind: RequestKind.SYNC, size: FsyncIn.SIZE, run: (session) => sync(session, EINTR) },
  ],
  [
    Opcode.SYNCFS,
    { name: 'SYNCFS', kind: RequestKind.SYNC, size: IN_HEADER_SIZE, run: (session) => sync(session, EINTR) },
  ],
  [
    Opcode.FALLOCATE,
    { name: 'FALLOCATE', kind: RequestKind.ZERO, endsOpening: true, size: FallocateIn.SIZE, run: fallocate },
  ],
  [Opcode.LSEEK, { name: 'LSEEK', kind: RequestKind.SEEK, endsOpening: true, size: LseekIn.SIZE, run: lseek }],
  [Opcode.INTERRUPT, { name: 'INTERRUPT', size: InterruptIn.SIZE, silent: true, run: interrupt }],
]
