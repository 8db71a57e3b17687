/**
 * `-o` of `mount`: the words of fstab(5). Those that mean the same as an option of the command line are taken for it;
 * an option that is given both ways counts as given by its own name.
 */

import { SYSTEM_OPTIONS } from '../transports/options.js'
import { VdiskError } from '../util/errors.js'
import type { Arguments } from './arguments.js'

/**
 * Words that other programs look for in fstab, and those that say what is so anyway: there are no devices and no
 * programs in a mount, reading changes no times, and the kernel checks the permissions.
 */
export const IGNORED_OPTIONS: readonly string[] = [
  'defaults',
  'auto',
  'noauto',
  'user',
  'nouser',
  'users',
  'owner',
  'group',
  'nofail',
  '_netdev',
  'nosuid',
  'nodev',
  // mount.fuse3 adds these two wherever their opposites are not asked for; they have no effect here.
  'suid',
  'dev',
  'noatime',
  'nodiratime',
  'relatime',
  'norelatime',
  'strictatime',
  'nostrictatime',
  'lazytime',
  'nolazytime',
  'silent',
  'loud',
  'default_permissions',
  'nonempty',
  'big_writes',
  'async_read',
  'kernel_cache',
]

/** Words that take back one of the system's. */
const OPPOSITES: Readonly<Record<string, readonly string[]>> = {
  exec: ['noexec'],
  async: ['sync', 'dirsync'],
}

/** Words that mean something to mount(8) or libfuse that cannot be had here → why not. */
const REFUSED: Readonly<Record<string, string>> = {
  remount: 'it cannot be changed while mounted: umount it first',
  bind: 'it is no option of a file system',
  allow_root: 'allow_other lets root in too',
  auto_unmount: 'the server unmounts when it ends',
}

/** `-o` names with a value → options of the command line. */
const VALUES: Readonly<Record<string, string>> = {
  uid: 'uid',
  gid: 'gid',
  umask: 'umask',
  format: 'format',
  snapshot: 'snapshot',
  overlay: 'overlay',
  transport: 'transport',
  workers: 'workers',
  cache_size: 'cache-size',
  backing_dir: 'backing-dir',
  secret: 'secret',
}

export const VALUE_OPTIONS: readonly string[] = Object.keys(VALUES)

export interface MountSettings {
  readonly readOnly: boolean
  readonly allowOther: boolean
  readonly partitions: boolean
  readonly temporary: boolean
  /** Words for the kernel, in the order of the table. */
  readonly systemOptions: readonly string[]
  value(option: string): string | undefined
  values(option: string): readonly string[]
}

/** Joins the options of `mount` with what its `-o` say. @throws USAGE for a word that means nothing. */
export function mountSettings(args: Arguments): MountSettings {
  const flags = new Set<string>(args.has('allow-other') ? ['allow_other'] : [])
  for (const flag of ['partitions', 'temporary']) if (args.has(flag)) flags.add(flag)
  const values = new Map<string, string[]>()
  for (const word of args.list('options')) {
    const equals = word.indexOf('=')
    const name = equals < 0 ? word : word.slice(0, equals)
    const option = Object.hasOwn(VALUES, name) ? VALUES[name]! : undefined
    if (option === undefined) setFlag(flags, word, name)
    else if (equals < 0) throw new VdiskError('USAGE', `mount option ${name} needs a value: ${name}=…`)
    else values.set(option, [...(values.get(option) ?? []), word.slice(equals + 1)])
  }
  return {
    readOnly: flags.has('ro') || args.has('read-only'),
    allowOther: flags.has('allow_other'),
    partitions: flags.has('partitions'),
    temporary: flags.has('temporary'),
    systemOptions: Object.keys(SYSTEM_OPTIONS).filter((word) => flags.has(word)),
    value: (option) => args.value(option) ?? values.get(option)?.at(-1),
    values: (option) => [...args.values(option), ...(values.get(option) ?? [])],
  }
}

const OWN_FLAGS: readonly string[] = ['ro', 'allow_other', 'partitions', 'temporary']

/** Takes one word without a value of its own. @throws USAGE */
function setFlag(flags: Set<string>, word: string, name: string): void {
  if (word === 'rw') flags.delete('ro')
  else if (OWN_FLAGS.includes(word) || Object.hasOwn(SYSTEM_OPTIONS, word)) flags.add(word)
  else if (Object.hasOwn(OPPOSITES, word)) for (const other of OPPOSITES[word]!) flags.delete(other)
  else if (Object.hasOwn(REFUSED, word)) throw new VdiskError('USAGE', `mount option ${word}: ${REFUSED[word]}`)
  else if (!IGNORED_OPTIONS.includes(word) && !/^(x-|comment=|subtype=vdiskfs$)/.test(word))
    throw new VdiskError('USAGE', `no mount option ${name} (vdiskfs mount --help lists them)`)
}
