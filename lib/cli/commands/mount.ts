/** `vdiskfs mount IMAGE MOUNTPOINT`. */

import { resolve } from 'node:path'
import { needsSecret } from '../../image/open.js'
import type { MountOptions, RegistryEntry } from '../../mount/registry.js'
import { type MountRequest, startMount } from '../../mount/start.js'
import { DEFAULT_TRANSPORT, TRANSPORT_NAMES } from '../../mount/transports.js'
import { DISK_NAME } from '../../mount/tree.js'
import { VdiskError } from '../../util/errors.js'
import { formatSize, parseSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import { table } from '../help.js'
import type { Io } from '../io.js'
import { IGNORED_OPTIONS, mountSettings, VALUE_OPTIONS } from '../mount-options.js'
import { secretOf } from '../secret.js'
import { choice, parseCount, wrongValue } from '../values.js'

/** More threads than this cost more memory than they bring. */
const MOST_WORKERS = 256
const LEAST_CACHE = '1M'
/** What the shared memory has room for: `MAX_CACHE_SIZE`. */
const MOST_CACHE = '2G'

export async function run(args: Arguments, io: Io): Promise<number> {
  const [image, mountpoint] = args.positionals as [string, string]
  const request = mountRequest(args, image, resolve(mountpoint), io)
  const warn = (text: string) => io.err(`vdiskfs: ${text}\n`)
  if (args.has('foreground')) await stay(request, warn, (entry) => warn(`${describe(entry)}; Ctrl-C ends it`))
  else await startMount(request, warn)
  return 0
}

/** Serves a mount in this process until it ends. */
export async function stay(
  request: MountRequest,
  warn: (text: string) => void,
  ready: (entry: RegistryEntry) => void,
): Promise<void> {
  const { runServer } = await import('../../mount/server.js')
  await runServer({ ...request, log: undefined }, { warning: warn, problem: warn, report: warn, ready })
}

/** What to mount. An encrypted image's passphrase is asked for here: the server in the background has no terminal. */
export function mountRequest(args: Arguments, image: string, mountpoint: string | undefined, io: Io): MountRequest {
  const path = resolve(image)
  const options = mountOptions(args)
  const { format, snapshot, backingDirs } = options
  const secret = secretOf({ file: mountSettings(args).value('secret'), image }, io)
  const asked = typeof secret === 'function' && needsSecret(path, { format, snapshot, backingDirs }) ? secret() : secret
  const known = typeof asked === 'function' ? undefined : asked
  return { image: path, mountpoint, options, secret: known && Buffer.from(known).toString('base64') }
}

/** What the options that `mount` and `attach` have in common say. @throws USAGE */
export function mountOptions(args: Arguments): MountOptions {
  const given = mountSettings(args)
  const cacheSize = given.value('cache-size')
  const workers = given.value('workers')
  const overlay = given.value('overlay')
  if (overlay !== undefined && given.temporary)
    throw new VdiskError('USAGE', '--overlay and --temporary: what is written goes to one place')
  return {
    // A snapshot is what it is.
    readOnly: given.readOnly || given.value('snapshot') !== undefined,
    snapshot: given.value('snapshot'),
    overlay: overlay === undefined ? undefined : resolve(overlay),
    temporary: given.temporary,
    format: given.value('format'),
    transport: choice('transport', given.value('transport') ?? DEFAULT_TRANSPORT, [
      ...TRANSPORT_NAMES,
      DEFAULT_TRANSPORT,
    ]),
    backingDirs: given.values('backing-dir').map((dir) => resolve(dir)),
    workers: workers === undefined ? undefined : parseCount('workers', workers, 1, MOST_WORKERS),
    cacheSize: cacheSize === undefined ? undefined : within('cache-size', cacheSize, LEAST_CACHE, MOST_CACHE),
    allowOther: given.allowOther,
    systemOptions: given.systemOptions,
    uid: parseCount('uid', given.value('uid') ?? String(process.getuid!()), 0),
    gid: parseCount('gid', given.value('gid') ?? String(process.getgid!()), 0),
    umask: parseUmask(given.value('umask') ?? '077'),
    partitions: given.partitions,
  }
}

function describe({ image, format, size, mountpoint }: RegistryEntry): string {
  return `${image} (${format}, ${formatSize(size)}) is ${mountpoint}/${DISK_NAME}`
}

function within(name: string, text: string, least: string, most: string): number {
  const bytes = parseSize(text)
  if (bytes < parseSize(least) || bytes > parseSize(most)) throw wrongValue(name, text, `${least} to ${most}`)
  return bytes
}

function parseUmask(text: string): number {
  if (!/^0?[0-7]{1,3}$/.test(text)) throw wrongValue('umask', text, 'an octal number such as 022')
  return Number.parseInt(text, 8)
}

export function details(): string {
  return `Mount options (-o), as in fstab:\n${table([
    ['ro, rw', 'read-only or not'],
    ['allow_other', 'as --allow-other'],
    ['partitions, temporary', 'as --partitions, --temporary'],
    ['NAME=VALUE', `as the options of these names: ${VALUE_OPTIONS.join(', ')}`],
    ['noexec, sync, dirsync', 'as mount(8) has them; exec and async take them back'],
    ['others', `${IGNORED_OPTIONS.join(', ')} and x-… have no effect`],
  ])}`
}
