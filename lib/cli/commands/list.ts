/** `vdiskfs list`. */

import { entries, type MountState, type RegistryEntry } from '../../mount/registry.js'
import { formatSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { columns, json } from '../output.js'

export function run(args: Arguments, io: Io): number {
  const found = entries()
  if (args.has('json')) io.out(json(found.map(({ entry, state }) => facts(entry, state))))
  else if (found.length > 0) io.out(columns([HEADER, ...found.map(({ entry, state }) => row(entry, state))]))
  return 0
}

const HEADER = ['MOUNTPOINT', 'IMAGE', 'FORMAT', 'SIZE', 'MODE', 'PID', 'STATE']

function row(entry: RegistryEntry, state: MountState): string[] {
  const { mountpoint, image, format, size, options, pid, error } = entry
  const shown = state === 'failed' ? `failed: ${error}` : state
  return [mountpoint, image, format, formatSize(size), options.readOnly ? 'ro' : 'rw', String(pid), shown]
}

function facts({ mountpoint, image, format, size, pid, log, error, options }: RegistryEntry, state: MountState) {
  return {
    mountpoint,
    image,
    format,
    'virtual-size': size,
    pid,
    state,
    ...(error === undefined ? {} : { error }),
    ...(log === undefined ? {} : { log }),
    options: {
      'read-only': options.readOnly,
      transport: options.transport,
      ...(options.format === undefined ? {} : { format: options.format }),
      ...(options.snapshot === undefined ? {} : { snapshot: options.snapshot }),
      'backing-dirs': options.backingDirs,
      ...(options.workers === undefined ? {} : { workers: options.workers }),
      ...(options.cacheSize === undefined ? {} : { 'cache-size': options.cacheSize }),
      'allow-other': options.allowOther,
      ...(options.systemOptions?.length ? { 'system-options': options.systemOptions } : {}),
      uid: options.uid,
      gid: options.gid,
      umask: options.umask.toString(8).padStart(3, '0'),
    },
  }
}
