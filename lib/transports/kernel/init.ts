/** INIT: what the kernel and we agree on, once, before anything else. */

import { VdiskError } from '../../util/errors.js'
import type { Reply, Request } from './messages.js'
import {
  FUSE_KERNEL_MINOR_VERSION,
  FUSE_KERNEL_VERSION,
  FUSE_OLDEST_MINOR_VERSION,
  InHeader,
  InitFlag,
  InitFlag2,
  InitIn,
  InitOut,
  MAX_PAGES,
  MAX_TRANSFER,
  Opcode,
  OUT_HEADER_SIZE,
} from './protocol.js'

/** What was agreed on; structured-cloneable, so that every worker gets it. */
export interface Negotiated {
  readonly minor: number
  readonly flags: number
  readonly flags2: number
  /** The most bytes that a READ or WRITE carries. */
  readonly maxTransfer: number
  /** The kernel keeps written pages back and writes them when it likes. */
  readonly writeback: boolean
}

export interface InitWishes {
  /**
   * Let the kernel collect writes in its page cache: small buffered writes get several times faster, and reach the
   * image later, at the latest with the next fsync.
   */
  readonly writeback?: boolean | undefined
}

/** How many requests that nobody waits for (read-ahead, asynchronous direct I/O) the kernel has under way at once. */
const MAX_BACKGROUND = 64
/** From how many on the device counts as congested. */
const CONGESTION_THRESHOLD = 48
/** Times are told in milliseconds, so that is how finely the kernel shall keep them. */
const TIME_GRANULARITY_NS = 1_000_000

/*
 * ATOMIC_O_TRUNC is not asked for: with it the kernel takes a file that was opened with O_TRUNC for empty until somebody
 * asks for its attributes, and asynchronous direct reads of others, such as a loop device's, hit its end meanwhile.
 */
const FLAGS =
  InitFlag.ASYNC_READ |
  InitFlag.BIG_WRITES |
  InitFlag.ASYNC_DIO |
  InitFlag.PARALLEL_DIROPS |
  InitFlag.MAX_PAGES |
  InitFlag.INIT_EXT
const FLAGS2 = InitFlag2.DIRECT_IO_ALLOW_MMAP

/**
 * Answers an INIT of `length` bytes: fills the reply.
 * @returns what was agreed on and the reply's length.
 * @throws UNSUPPORTED where the kernel speaks another protocol, IO where the request is no INIT.
 */
export function negotiate(request: Request, length: number, reply: Reply, wishes: InitWishes = {}) {
  if (length < InitIn.SIZE || request.u32(InHeader.opcode) !== Opcode.INIT)
    throw new VdiskError(
      'IO',
      `the kernel's first request is opcode ${request.u32(InHeader.opcode)}, expected INIT (26)`,
    )
  const major = request.u32(InitIn.major)
  const minor = request.u32(InitIn.minor)
  if (major !== FUSE_KERNEL_VERSION || minor < FUSE_OLDEST_MINOR_VERSION)
    throw new VdiskError(
      'UNSUPPORTED',
      `the kernel speaks FUSE ${major}.${minor}, expected 7.${FUSE_OLDEST_MINOR_VERSION} or newer`,
    )

  const offered = request.u32(InitIn.flags)
  const extended = length >= InitIn.EXTENDED_SIZE && (offered & InitFlag.INIT_EXT) !== 0
  const flags = offered & (wishes.writeback ? FLAGS | InitFlag.WRITEBACK_CACHE : FLAGS)
  const negotiated: Negotiated = {
    minor: Math.min(minor, FUSE_KERNEL_MINOR_VERSION),
    flags,
    flags2: extended ? request.u32(InitIn.flags2) & FLAGS2 : 0,
    maxTransfer: MAX_TRANSFER,
    writeback: (flags & InitFlag.WRITEBACK_CACHE) !== 0,
  }

  reply.clear(OUT_HEADER_SIZE, InitOut.SIZE)
  reply.putU32(InitOut.major, FUSE_KERNEL_VERSION)
  reply.putU32(InitOut.minor, negotiated.minor)
  reply.putU32(InitOut.maxReadahead, request.u32(InitIn.maxReadahead))
  reply.putU32(InitOut.flags, negotiated.flags)
  reply.putU16(InitOut.maxBackground, MAX_BACKGROUND)
  reply.putU16(InitOut.congestionThreshold, CONGESTION_THRESHOLD)
  reply.putU32(InitOut.maxWrite, MAX_TRANSFER)
  reply.putU32(InitOut.timeGran, TIME_GRANULARITY_NS)
  reply.putU16(InitOut.maxPages, MAX_PAGES)
  reply.putU32(InitOut.flags2, negotiated.flags2)
  return {
    negotiated,
    length: reply.header(OUT_HEADER_SIZE + InitOut.SIZE, 0, request.uniqueFirst, request.uniqueSecond),
  }
}
