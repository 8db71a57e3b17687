/**
 * `-o` of `mount`: the words of fstab(5). Those that mean the same as an option of the command line are taken for it;
 * an option that is given both ways counts as given by its own name.
 */

import { VdiskError } from '../util/errors.js'
import type { Arguments } from './arguments.js'

/**
 * Words that other programs look for in fstab, and those that say what is so anyway: there are no devices and no programs
 * in a mount, and reading changes no times.
 */
export const IGNORED_OPTIONS: readonly string[] = [
  'defaults',
  'auto',
  'noauto',
  'user',
  'nouser',
  'users',
  'nofail',
  '_netdev',
  'nosuid',
  'nodev',
  'noexec',
  'noatime',
  'nodiratime',
  'relatime',
  'async',
]

/** `-o` names with a value → options of the command line. */
const VALUES: Readonly<Record<string, string>> = {
  uid: 'uid',
  gid: 'gid',
  umask: 'umask',
  format: 'format',
  snapshot: 'snapshot',
  transport: 'transport',
  workers: 'workers',
  cache_size: 'cache-size',
  backing_dir: 'backing-dir',
}

export const VALUE_OPTIONS: readonly string[] = Object.keys(VALUES)

export interface MountSettings {
  readonly readOnly: boolean
  readonly allowOther: boolean
  readonly partitions: boolean
  value(option: string): string | undefined
  values(option: string): readonly string[]
}

/** Joins the options of `mount` with what its `-o` say. @throws USAGE for a word that means nothing. */
export function mountSettings(args: Arguments): MountSettings {
  let readOnly = false
  let allowOther = args.has('allow-other')
  let partitions = args.has('partitions')
  const values = new Map<string, string[]>()
  for (const word of args.list('options')) {
    const equals = word.indexOf('=')
    const name = equals < 0 ? word : word.slice(0, equals)
    const option = Object.hasOwn(VALUES, name) ? VALUES[name]! : undefined
    if (option !== undefined && equals >= 0) values.set(option, [...(values.get(option) ?? []), word.slice(equals + 1)])
    else if (option !== undefined) throw new VdiskError('USAGE', `mount option ${name} needs a value: ${name}=…`)
    else if (word === 'ro' || word === 'rw') readOnly = word === 'ro'
    else if (word === 'allow_other') allowOther = true
    else if (word === 'partitions') partitions = true
    else if (!IGNORED_OPTIONS.includes(word) && !word.startsWith('x-'))
      throw new VdiskError('USAGE', `no mount option ${name} (vdiskfs mount --help lists them)`)
  }
  return {
    readOnly: readOnly || args.has('read-only'),
    allowOther,
    partitions,
    value: (option) => args.value(option) ?? values.get(option)?.at(-1),
    values: (option) => [...args.values(option), ...(values.get(option) ?? [])],
  }
}
