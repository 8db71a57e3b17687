/**
 * The FUSE protocol as the kernel speaks it: numbers and struct layouts, declared once, with the names of
 * include/uapi/linux/fuse.h (7.45). Everything is in the byte order of the machine, every field aligned to its size.
 *
 * Offsets of a request's fields count from the beginning of the request, those of a reply's from the beginning of the
 * reply: the headers are included.
 */

export const FUSE_KERNEL_VERSION = 7
/** The newest minor version whose layouts are known here. */
export const FUSE_KERNEL_MINOR_VERSION = 45
/** The oldest that is served (Linux 5.4): the layouts below and FUSE_MAX_PAGES are its. */
export const FUSE_OLDEST_MINOR_VERSION = 31

/** enum fuse_opcode. */
export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  SYNCFS: 50,
  STATX: 52,
} as const

/** struct fuse_in_header: in front of every request. */
export const InHeader = { len: 0, opcode: 4, unique: 8, nodeid: 16, uid: 24, gid: 28, pid: 32 } as const
export const IN_HEADER_SIZE = 40

/** struct fuse_out_header: in front of every reply; `error` is 0 or a negative errno. */
export const OutHeader = { len: 0, error: 4, unique: 8 } as const
export const OUT_HEADER_SIZE = 16

// Requests. SIZE is the least length of the whole request.

export const InitIn = {
  major: 40,
  minor: 44,
  maxReadahead: 48,
  flags: 52,
  flags2: 56,
  SIZE: 56,
  EXTENDED_SIZE: 60,
} as const
/** Of LOOKUP: a name and a NUL. */
export const NameIn = { name: 40, SIZE: 42 } as const
export const GetattrIn = { flags: 40, fh: 48, SIZE: 56 } as const
export const StatxIn = { flags: 40, fh: 48, sxFlags: 56, sxMask: 60, SIZE: 64 } as const
export const SetattrIn = { valid: 40, fh: 48, size: 56, mode: 108, uid: 116, gid: 120, SIZE: 128 } as const
export const OpenIn = { flags: 40, openFlags: 44, SIZE: 48 } as const
/** READ, READDIR and READDIRPLUS alike. */
export const ReadIn = { fh: 40, offset: 48, size: 56, readFlags: 60, SIZE: 80 } as const
/** The data follows. */
export const WriteIn = { fh: 40, offset: 48, size: 56, writeFlags: 60, flags: 72, SIZE: 80 } as const
export const ReleaseIn = { fh: 40, flags: 48, SIZE: 64 } as const
export const FlushIn = { fh: 40, SIZE: 64 } as const
export const FsyncIn = { fh: 40, fsyncFlags: 48, SIZE: 56 } as const
export const FallocateIn = { fh: 40, offset: 48, length: 56, mode: 64, SIZE: 72 } as const
export const LseekIn = { fh: 40, offset: 48, whence: 56, SIZE: 64 } as const
export const InterruptIn = { unique: 40, SIZE: 48 } as const

// Replies. SIZE is the length of what follows the header.

export const InitOut = {
  major: 16,
  minor: 20,
  maxReadahead: 24,
  flags: 28,
  maxBackground: 32, // u16
  congestionThreshold: 34, // u16
  maxWrite: 36,
  timeGran: 40,
  maxPages: 44, // u16
  flags2: 48,
  SIZE: 64,
} as const

/** struct fuse_entry_out; `attr` is a struct fuse_attr. Offsets from its beginning: READDIRPLUS has many. */
export const EntryOut = {
  nodeid: 0,
  generation: 8,
  entryValid: 16,
  attrValid: 24,
  entryValidNsec: 32,
  attrValidNsec: 36,
  attr: 40,
  SIZE: 128,
} as const

export const AttrOut = { attrValid: 16, attrValidNsec: 24, attr: 32, SIZE: 104 } as const

/** struct fuse_attr, from its beginning. */
export const Attr = {
  ino: 0,
  size: 8,
  blocks: 16,
  atime: 24,
  mtime: 32,
  ctime: 40,
  atimensec: 48,
  mtimensec: 52,
  ctimensec: 56,
  mode: 60,
  nlink: 64,
  uid: 68,
  gid: 72,
  rdev: 76,
  blksize: 80,
  flags: 84,
  SIZE: 88,
} as const

/** struct fuse_statx_out with its struct fuse_statx; a time is s64 seconds, u32 nanoseconds, padding. */
export const StatxOut = {
  attrValid: 16,
  attrValidNsec: 24,
  mask: 48,
  blksize: 52,
  nlink: 64,
  uid: 68,
  gid: 72,
  mode: 76, // u16
  ino: 80,
  size: 88,
  blocks: 96,
  atime: 112,
  ctime: 144,
  mtime: 160,
  SIZE: 288,
} as const

export const OpenOut = { fh: 16, openFlags: 24, SIZE: 16 } as const
export const WriteOut = { size: 16, SIZE: 8 } as const
export const StatfsOut = {
  blocks: 16,
  bfree: 24,
  bavail: 32,
  files: 40,
  ffree: 48,
  bsize: 56,
  namelen: 60,
  frsize: 64,
  SIZE: 80,
} as const
export const LseekOut = { offset: 16, SIZE: 8 } as const
/** struct fuse_dirent, from its beginning; the name follows, padded with zeros to a multiple of 8. */
export const Dirent = { ino: 0, off: 8, namelen: 16, type: 20, name: 24 } as const

/** Bits of INIT's `flags`. */
export const InitFlag = {
  ASYNC_READ: 2 ** 0,
  ATOMIC_O_TRUNC: 2 ** 3,
  BIG_WRITES: 2 ** 5,
  ASYNC_DIO: 2 ** 15,
  WRITEBACK_CACHE: 2 ** 16,
  PARALLEL_DIROPS: 2 ** 18,
  ABORT_ERROR: 2 ** 21,
  MAX_PAGES: 2 ** 22,
  INIT_EXT: 2 ** 30,
} as const

/** Bits of INIT's `flags2`: those that the header numbers from 32 on. */
export const InitFlag2 = { DIRECT_IO_ALLOW_MMAP: 2 ** (36 - 32) } as const

/** FOPEN_: what OPEN answers. */
export const OpenFlag = { DIRECT_IO: 1, KEEP_CACHE: 2, NOFLUSH: 32, PARALLEL_DIRECT_WRITES: 64 } as const

/** FATTR_: which fields of SETATTR count. */
export const SetattrValid = { MODE: 1, UID: 2, GID: 4, SIZE: 8, FH: 64 } as const

/** STATX_TYPE … STATX_BLOCKS: all that `stat` has. */
export const STATX_BASIC_STATS = 0x7ff

/** FALLOC_FL_. */
export const FallocateMode = { KEEP_SIZE: 1, PUNCH_HOLE: 2, ZERO_RANGE: 0x10 } as const

/** `whence` of LSEEK; the kernel answers the others itself. */
export const Whence = { DATA: 3, HOLE: 4 } as const

/** File types, as in a mode (S_IF…) and in a directory entry (DT_…: the same, shifted). */
export const S_IFDIR = 0o040000
export const S_IFREG = 0o100000
export const modeToDirentType = (mode: number): number => mode >> 12

/**
 * The most that one READ or WRITE carries, in pages of 4 KiB. The kernel allows twice as much. With half of it, a program
 * that reads or writes 1 MiB at a time keeps two workers busy at once, and a reply fits into the largest pipe that a
 * user may have.
 */
export const MAX_PAGES = 128
export const MAX_TRANSFER = MAX_PAGES * 4096
/** What the kernel wants to have room for beside the data of a WRITE; a buffer without it gets EINVAL. */
export const REQUEST_HEADROOM = 8192
