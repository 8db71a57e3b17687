/** Descriptors: a second one of a file, one from another process, and waiting for the end of what is behind one. */

import { uninterrupted } from './files.js'
import { addressOf, declareLibc, declareLibcAsync, type SystemCallError } from './libc.js'

const O_CLOEXEC = 0o2000000
const F_DUPFD_CLOEXEC = 1030

const fcntlNumber = declareLibc<[fd: number, command: number, argument: number]>(
  'int fcntl(int fd, int command, int64_t argument)',
)

/** Another descriptor of the same open file, to be closed by the caller; programs that are started do not get it. */
export function duplicate(fd: number): number {
  return fcntlNumber(fd, F_DUPFD_CLOEXEC, 0)
}

const dup3 = declareLibc<[from: number, to: number, flags: number]>('int dup3(int from, int to, int flags)')

/** Makes `to` another descriptor of what `from` is; what it was before is closed. Programs that are started get it. */
export function redirect(to: number, from: number): void {
  dup3(from, to, 0)
}

// struct pollfd
const POLLFD_BYTES = 8
const POLLFD_REVENTS = 6
const POLLERR = 8
const POLLHUP = 16
const FOR_EVER = -1

const poll = declareLibcAsync<[fds: Buffer, count: number, milliseconds: number]>(
  'int poll(void *fds, unsigned long count, int milliseconds)',
)

/**
 * Waits, in one of libuv's threads, until what is behind a descriptor has ended: a FUSE connection, the other side of
 * a pipe. The process cannot exit normally before that.
 */
export async function awaitEnd(fd: number): Promise<void> {
  const pollfd = Buffer.alloc(POLLFD_BYTES)
  pollfd.writeInt32LE(fd)
  do await poll(pollfd, 1, FOR_EVER)
  while ((pollfd.readInt16LE(POLLFD_REVENTS) & (POLLERR | POLLHUP)) === 0)
}

const POLLIN = 1
const POLLFD_EVENTS = 4

const pollNow = declareLibc<[fds: Buffer, count: number, milliseconds: 0]>(
  'int poll(void *fds, unsigned long count, int milliseconds)',
)

/** A function that is true where read(2) of a descriptor would not wait: there is something, or never will be. */
export function makeReadyProbe(fd: number): () => boolean {
  const pollfd = Buffer.alloc(POLLFD_BYTES)
  pollfd.writeInt32LE(fd)
  pollfd.writeInt16LE(POLLIN, POLLFD_EVENTS)
  return () => {
    try {
      return pollNow(pollfd, 1, 0) > 0
    } catch (error) {
      // A signal: nothing was there, and one may look again. read(2) says what else it is.
      return (error as SystemCallError).code !== 'EINTR'
    }
  }
}

/** As `makeReadyProbe`, for who asks once. */
export const isReady = (fd: number): boolean => makeReadyProbe(fd)()

const AF_UNIX = 1
const SOCK_STREAM = 1
const SOCK_CLOEXEC = O_CLOEXEC

const socketpair = declareLibc<[domain: number, type: number, protocol: number, ends: Int32Array]>(
  'int socketpair(int domain, int type, int protocol, void *ends)',
)

/** Two sockets that are connected to each other, to be closed by the caller. */
export function makeSocketPair(): readonly [number, number] {
  const ends = new Int32Array(2)
  socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)
  return [ends[0]!, ends[1]!]
}

const recvmsg = declareLibc<[fd: number, message: Buffer, flags: number]>(
  'int64_t recvmsg(int fd, void *message, int flags)',
)

const MSG_CMSG_CLOEXEC = 0x40000000

/** struct msghdr of 64-bit Linux, what is used of it. */
const Msghdr = { iov: 16, iovCount: 24, control: 32, controlLength: 40, SIZE: 56 } as const
/** struct iovec. */
const Iovec = { base: 0, length: 8, SIZE: 16 } as const
/** struct cmsghdr with one descriptor behind it. */
const Cmsg = { level: 8, type: 12, fd: 16, SIZE: 24 } as const
const SOL_SOCKET = 1
const SCM_RIGHTS = 1

/**
 * Receives a descriptor that was sent over a socket (SCM_RIGHTS), to be closed by the caller. Waits until something
 * comes. @returns undefined where the other side closed the socket, or sent something else
 */
export function receiveDescriptor(socket: number): number | undefined {
  const data = Buffer.alloc(16)
  const iovec = Buffer.alloc(Iovec.SIZE)
  const control = Buffer.alloc(Cmsg.SIZE)
  const message = Buffer.alloc(Msghdr.SIZE)
  iovec.writeBigUInt64LE(addressOf(data), Iovec.base)
  iovec.writeBigUInt64LE(BigInt(data.length), Iovec.length)
  message.writeBigUInt64LE(addressOf(iovec), Msghdr.iov)
  message.writeBigUInt64LE(1n, Msghdr.iovCount)
  message.writeBigUInt64LE(addressOf(control), Msghdr.control)
  message.writeBigUInt64LE(BigInt(control.length), Msghdr.controlLength)
  if (uninterrupted(() => recvmsg(socket, message, MSG_CMSG_CLOEXEC)) === 0) return undefined
  const received =
    message.readBigUInt64LE(Msghdr.controlLength) > 0n &&
    control.readInt32LE(Cmsg.level) === SOL_SOCKET &&
    control.readInt32LE(Cmsg.type) === SCM_RIGHTS
  return received ? control.readInt32LE(Cmsg.fd) : undefined
}
