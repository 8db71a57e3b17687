/**
 * Locks that keep two programs from writing one image, as QEMU takes them: every program tells by shared byte-range locks
 * what it does with a file and what it cannot bear others doing, then looks whether anybody's words clash with its own.
 *
 * A holder locks byte 100 + p for every permission p that it uses, and 200 + p for every one that it does not share.
 * Writers exclude writers and readers; readers share. Open file description (OFD) locks: they belong to the descriptor,
 * so two images of one process exclude each other too, and all threads that use one descriptor hold the lock together.
 *
 * What the lock does not promise:
 * - It is advisory. Programs that do not ask (cp, dd, losetup, mount, and other emulators, most of which lock in their
 *   own ways) neither see it nor are seen.
 * - `qemu-nbd -r` and `qemu-io -r` on a raw image share everything: they coexist with a writer, and see what it does.
 *   So does whatever QEMU runs with `--force-share` or `locking=off`.
 * - It is on the file, not on its name: renaming an image keeps it, replacing it by a new file does not, and two
 *   different descriptions of the same bytes (a loop device and its file, a partition and its disk) are two files.
 * - It ends when the last duplicate of the descriptor is closed, however that happens: a process that inherited one
 *   keeps the lock, and a crash releases it at once.
 * - Locks are taken first and looked at after. Two programs that start in the same moment may both be refused.
 * - On network file systems it reaches other hosts only as far as the protocol, the server and the mount options carry
 *   locks (NFS `nolock` and most SMB mounts do not); FUSE file systems without locking keep it on this machine.
 * - A file system or kernel without such locks has none: `lockImage` then returns false and the image is unprotected.
 */

import { isByteLocked, lockByteShared, unlockByte } from '../native/files.js'
import { fromSystem, VdiskError } from '../util/errors.js'
import { lockHolder } from './lock-holder.js'
import type { Storage, StorageHandle } from './storage.js'

/** QEMU's permissions, by the numbers that it puts into bytes. */
const CONSISTENT_READ = 0
const WRITE = 1
const RESIZE = 3
const USED_BASE = 100
const UNSHARED_BASE = 200

interface Claim {
  readonly uses: readonly number[]
  readonly unshares: readonly number[]
}

const WRITER: Claim = { uses: [CONSISTENT_READ, WRITE, RESIZE], unshares: [WRITE, RESIZE] }
const READER: Claim = { uses: [CONSISTENT_READ], unshares: [WRITE, RESIZE] }

/** No OFD locks here: kernel before 3.15, file system without locks, or a lock server that does not answer. */
const CANNOT = new Set(['EINVAL', 'ENOLCK', 'ENOSYS', 'EOPNOTSUPP', 'ENOTSUP'])
/** Somebody holds an exclusive lock on a byte, which QEMU never does. */
const HELD = new Set(['EAGAIN', 'EACCES'])

/**
 * Locks an image for writing, or for reading while nobody writes it. The lock lasts until the storage is closed. A
 * storage that is not a file (memory) needs none.
 * @returns false where the host cannot lock the file: it is then unprotected, and the user should be told.
 * @throws IN_USE, saying what holds the file, where that can be found; nothing is locked then.
 */
export function lockImage(storage: Storage, options: { readonly write: boolean }): boolean {
  const fd = descriptorOf(storage.handle())
  return fd === undefined || lockDescriptor(fd, storage.path, options.write ? WRITER : READER)
}

function descriptorOf(handle: StorageHandle): number | undefined {
  if (handle.kind === 'fault') return descriptorOf(handle.inner)
  return handle.kind === 'file' ? handle.fd : undefined
}

function lockDescriptor(fd: number, path: string, claim: Claim): boolean {
  const own = [...claim.uses.map((p) => USED_BASE + p), ...claim.unshares.map((p) => UNSHARED_BASE + p)]
  // Writers first, for the message: they also lock the bytes that readers do.
  const clashing = [...claim.unshares.map((p) => USED_BASE + p), ...claim.uses.map((p) => UNSHARED_BASE + p)]
  const taken: number[] = []
  try {
    for (const byte of own) {
      if (!takeByte(fd, byte)) throw inUse(fd, path, byte)
      taken.push(byte)
    }
    const byte = clashing.find((candidate) => isByteLocked(fd, candidate))
    if (byte !== undefined) throw inUse(fd, path, byte)
    return true
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).code ?? ''
    if (CANNOT.has(errno)) return false
    for (const byte of taken) unlockByte(fd, byte)
    throw fromSystem(error, path, 'lock')
  }
}

/** @returns false where somebody holds the byte exclusively. */
function takeByte(fd: number, byte: number): boolean {
  try {
    lockByteShared(fd, byte)
    return true
  } catch (error) {
    if (HELD.has((error as NodeJS.ErrnoException).code ?? '')) return false
    throw error
  }
}

function inUse(fd: number, path: string, byte: number): VdiskError {
  const how = byte === USED_BASE + WRITE || byte === USED_BASE + RESIZE ? 'in use: it is being written' : 'in use'
  const holder = lockHolder(fd, path, byte)
  const who = holder === undefined ? 'by another program' : `by ${holder}`
  return new VdiskError('IN_USE', `${path} is ${how} ${who}`, { path })
}
