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
  | 'check'
  | 'bitmap'
  | 'snapshot'
  | 'resize'
  | 'completion'

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
    on: ['info', 'map', 'check', 'bitmap', 'snapshot', 'resize'],
  },
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
    on: ['create'],
  },
  {
    name: 'backing-dir',
    value: 'DIR',
    repeats: true,
    help: "let the image's parents lie in this folder too, not only in the image's own",
    on: [...MOUNTING, 'info', 'map', 'check', 'bitmap', 'snapshot', 'resize'],
  },
  { name: 'backing', short: 'b', value: 'FILE', help: 'make the image over this parent', on: ['create'] },
  { name: 'backing-format', short: 'F', value: 'FMT', help: 'the format of the parent', on: ['create'] },
  { name: 'workers', value: 'N', help: 'the most threads that serve requests', on: MOUNTING },
  { name: 'cache-size', value: 'SIZE', help: 'memory for metadata (32M)', on: MOUNTING },
  { name: 'allow-other', help: 'let other users in, as far as --umask does', on: MOUNTING },
  { name: 'uid', value: 'N', help: 'the owner of the files (you)', on: MOUNTING },
  { name: 'gid', value: 'N', help: 'the group of the files (yours)', on: MOUNTING },
  { name: 'umask', value: 'OCT', help: 'permission bits that the files do not have (077)', on: MOUNTING },
  { name: 'snapshot', value: 'NAME|ID', help: 'show a snapshot inside the image, read-only', on: MOUNTING },
  { name: 'partitions', help: 'show each partition as a file, MOUNTPOINT/partitions/N.raw', on: ['mount'] },
  { name: 'repair', value: 'leaks|all', help: 'mend leaked space, or all that can be mended', on: ['check'] },
  { name: 'shrink', help: 'a smaller size is meant, although data is cut off', on: ['resize'] },
  { name: 'granularity', short: 'g', value: 'SIZE', help: 'how much one bit stands for (add)', on: ['bitmap'] },
  { name: 'stats', help: 'what was asked of each mount, how long it took, and the cache hits', on: ['list'] },
  { name: 'chain', help: 'the parents too, the image first', on: ['info'] },
  { name: 'start-offset', short: 's', value: 'SIZE', help: 'begin at this byte of the disk', on: ['map'] },
  { name: 'max-length', short: 'l', value: 'SIZE', help: 'look at this many bytes at most', on: ['map'] },
  { name: 'quiet', short: 'q', help: 'print nothing', on: ['create', 'check', 'resize'] },
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
