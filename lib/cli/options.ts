/**
 * Every option of every command, in one table: the parser and the help are made from it, so that they cannot differ.
 * What an option means is the command's business; its name, its value and its one line of help are here.
 */

export interface OptionSpec {
  /** The long name, without dashes; the name under which a command asks for it. */
  readonly name: string
  readonly short?: string
  /** What the help calls the value; none: the option is a flag. */
  readonly value?: string
  /** The words that the value can be, where these are few. */
  readonly choices?: readonly string[]
  /** What an empty value means, where it may be empty. */
  readonly emptyMeans?: string
  /** True where it may be given several times. */
  readonly repeats?: boolean
  readonly help: string
  /** The commands that have it. */
  readonly on: readonly CommandName[]
}

export type CommandName =
  | 'mount'
  | 'umount'
  | 'attach'
  | 'detach'
  | 'list'
  | 'info'
  | 'map'
  | 'create'
  | 'convert'
  | 'compare'
  | 'commit'
  | 'rebase'
  | 'check'
  | 'bitmap'
  | 'snapshot'
  | 'resize'
  | 'completion'

/** qemu-img's cache modes. */
const CACHES = ['none', 'writeback', 'writethrough', 'directsync', 'unsafe', 'off'] as const

const MOUNTING: readonly CommandName[] = ['mount', 'attach']

export const OPTIONS: readonly OptionSpec[] = [
  { name: 'read-only', short: 'r', help: 'show the image read-only; it is opened read-only too', on: MOUNTING },
  { name: 'foreground', short: 'f', help: 'stay in front, log to standard error, end on Ctrl-C', on: MOUNTING },
  { name: 'format', value: 'FMT', help: 'the format of the image, instead of detecting it', on: MOUNTING },
  { name: 'format', short: 'f', value: 'FMT', help: 'the format of the new image', on: ['create'] },
  {
    name: 'format',
    short: 'f',
    value: 'FMT',
    help: 'the format of the image, not detected',
    on: ['info', 'map', 'commit', 'rebase', 'check', 'bitmap', 'snapshot', 'resize'],
  },
  { name: 'format', short: 'f', value: 'FMT', help: 'the format of SOURCE, not detected', on: ['convert'] },
  { name: 'format', short: 'f', value: 'FMT', help: 'the format of FIRST, not detected', on: ['compare'] },
  { name: 'second-format', short: 'F', value: 'FMT', help: 'the format of SECOND, not detected', on: ['compare'] },
  { name: 'strict', short: 's', help: 'sizes, and what is allocated, must be the same too', on: ['compare'] },
  { name: 'output-format', short: 'O', value: 'FMT', help: 'the format of TARGET (raw)', on: ['convert'] },
  {
    name: 'transport',
    value: 'kernel|fuse-native|auto',
    help: 'how the files are shown (auto: by the first that works)',
    on: MOUNTING,
  },
  {
    name: 'options',
    short: 'o',
    value: 'OPT,…',
    repeats: true,
    help: 'mount options as in fstab: ro, rw, allow_other, uid=N, gid=N, umask=OCT, …',
    on: MOUNTING,
  },
  {
    name: 'options',
    short: 'o',
    value: 'K=V,…',
    repeats: true,
    help: 'options of the format, listed below',
    on: ['create', 'convert'],
  },
  {
    name: 'backing-dir',
    value: 'DIR',
    repeats: true,
    help: "let the image's parents lie in this folder too, not only in the image's own",
    on: [...MOUNTING, 'info', 'map', 'convert', 'compare', 'commit', 'rebase', 'check', 'bitmap', 'snapshot', 'resize'],
  },
  { name: 'backing', short: 'b', value: 'FILE', help: 'make the image over this parent', on: ['create'] },
  {
    name: 'backing',
    short: 'b',
    value: 'FILE',
    emptyMeans: 'none',
    help: "the new parent; '' for none",
    on: ['rebase'],
  },
  {
    name: 'unsafe',
    short: 'u',
    help: 'change the name of the parent and nothing else: it was moved, or holds the same',
    on: ['rebase'],
  },
  { name: 'unsafe', short: 'u', help: 'name the parent without opening it (with -F, and SIZE)', on: ['create'] },
  { name: 'keep', short: 'd', help: 'keep what the image has; its parent has it too then', on: ['commit'] },
  {
    name: 'backing',
    short: 'B',
    value: 'FILE',
    help: "make TARGET over this parent, which holds what SOURCE's parents hold; copy the rest",
    on: ['convert'],
  },
  {
    name: 'backing-format',
    short: 'F',
    value: 'FMT',
    help: 'the format of the parent',
    on: ['create', 'convert', 'rebase'],
  },
  {
    name: 'sparse-size',
    short: 'S',
    value: 'SIZE',
    help: 'leave zeros out where at least so many are together; 0: none (4K)',
    on: ['convert'],
  },
  { name: 'compress', short: 'c', help: 'compress the data (qcow2, with -o compression_type)', on: ['convert'] },
  { name: 'no-create', short: 'n', help: 'write into TARGET, which exists', on: ['convert'] },
  {
    name: 'progress',
    short: 'p',
    help: 'show how far it is where that is no terminal, too',
    on: ['convert', 'compare', 'commit', 'rebase'],
  },
  {
    name: 'force-share',
    short: 'U',
    help: 'although somebody may be writing it: take no lock (info and map never do)',
    on: ['info', 'map', 'compare', 'check'],
  },
  {
    name: 'force-share',
    short: 'U',
    help: 'although somebody may be writing SOURCE: take no lock on it',
    on: ['convert'],
  },
  {
    name: 'cache',
    short: 't',
    value: 'CACHE',
    choices: CACHES,
    help: "qemu-img's cache mode; no effect: what is written is durable at the end",
    on: ['convert', 'commit', 'rebase'],
  },
  {
    name: 'source-cache',
    short: 'T',
    value: 'CACHE',
    choices: CACHES,
    help: "qemu-img's cache mode for reading; no effect",
    on: ['convert', 'compare', 'rebase', 'check'],
  },
  { name: 'threads', short: 'm', value: 'N', help: 'the threads that copy (a processor each)', on: ['convert'] },
  { name: 'unordered', short: 'W', help: 'write in any order; it is nearly the order of the disk', on: ['convert'] },
  {
    name: 'secret',
    value: 'FILE',
    help: 'the passphrase of an encrypted image is in FILE, but for a newline at its end',
    on: [...MOUNTING, 'map', 'create', 'convert', 'compare', 'commit', 'rebase', 'resize'],
  },
  { name: 'second-secret', value: 'FILE', help: "SECOND's passphrase, if not the same", on: ['compare'] },
  { name: 'target-secret', value: 'FILE', help: "TARGET's passphrase, if not the same", on: ['convert'] },
  { name: 'workers', value: 'N', help: 'the most threads that serve requests', on: MOUNTING },
  { name: 'cache-size', value: 'SIZE', help: 'memory for metadata, at most 2G (32M)', on: MOUNTING },
  { name: 'allow-other', help: 'let other users in, as far as --umask does', on: MOUNTING },
  { name: 'uid', value: 'N', help: 'the owner of the files (you)', on: MOUNTING },
  { name: 'gid', value: 'N', help: 'the group of the files (yours)', on: MOUNTING },
  { name: 'umask', value: 'OCT', help: 'permission bits that the files do not have (077)', on: MOUNTING },
  { name: 'snapshot', value: 'NAME|ID', help: 'show a snapshot inside the image, read-only', on: MOUNTING },
  {
    name: 'overlay',
    value: 'FILE',
    help: 'write to this QCOW2 overlay, made where it is missing, and leave the image alone',
    on: MOUNTING,
  },
  { name: 'temporary', help: 'write to a file that is gone at the end, and leave the image alone', on: MOUNTING },
  {
    name: 'snapshot',
    short: 'l',
    value: 'NAME|ID',
    help: 'read a snapshot inside SOURCE; or snapshot.name=NAME, snapshot.id=ID',
    on: ['convert'],
  },
  { name: 'partitions', help: 'show each partition as a file, MOUNTPOINT/partitions/N.raw', on: ['mount'] },
  {
    name: 'repair',
    short: 'r',
    value: 'leaks|all',
    help: 'mend leaked space, or all that can be mended',
    on: ['check'],
  },
  { name: 'shrink', help: 'a smaller size is meant, although data is cut off', on: ['resize'] },
  { name: 'force', help: 'resize it although images in its folder are made over it', on: ['resize'] },
  { name: 'force', help: 'although its snapshots, or others over its parent, will change', on: ['commit'] },
  { name: 'force', help: 'although snapshots inside the image will change', on: ['rebase'] },
  { name: 'granularity', short: 'g', value: 'SIZE', help: 'how much one bit stands for (add)', on: ['bitmap'] },
  { name: 'stats', help: 'what was asked of each mount, how long it took, and the cache hits', on: ['list'] },
  { name: 'chain', help: 'the parents too, the image first', on: ['info'] },
  { name: 'log', help: "the entries of a VHDX's log, and what a replay would change", on: ['info'] },
  { name: 'start-offset', short: 's', value: 'SIZE', help: 'begin at this byte of the disk', on: ['map'] },
  { name: 'max-length', short: 'l', value: 'SIZE', help: 'look at this many bytes at most', on: ['map'] },
  {
    name: 'quiet',
    short: 'q',
    help: 'print nothing',
    on: ['create', 'convert', 'compare', 'commit', 'rebase', 'check', 'resize'],
  },
  { name: 'json', help: 'JSON instead of text', on: ['attach', 'list', 'info', 'map', 'check', 'bitmap', 'snapshot'] },
  {
    name: 'output',
    value: 'human|json',
    help: "the same, in qemu-img's words",
    on: ['info', 'map', 'check', 'bitmap', 'snapshot'],
  },
  {
    name: 'help',
    short: 'h',
    help: 'this text',
    on: [
      'mount',
      'umount',
      'attach',
      'detach',
      'list',
      'info',
      'map',
      'create',
      'convert',
      'compare',
      'commit',
      'rebase',
      'check',
      'bitmap',
      'snapshot',
      'resize',
      'completion',
    ],
  },
]

/** The options of one command, in the order of the table. */
export function optionsOf(command: CommandName): OptionSpec[] {
  return OPTIONS.filter((option) => option.on.includes(command))
}
