/** `vdiskfs list`. */

import { resolveMountpoint } from '../../mount/mounts.js'
import { entries, type MountState, type RegistryEntry } from '../../mount/registry.js'
import { askStatistics, describeStatistics, type MountStatistics } from '../../mount/statistics.js'
import { quantile } from '../../transports/statistics.js'
import { escaped, VdiskError } from '../../util/errors.js'
import { formatSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { columns, json } from '../output.js'

export async function run(args: Arguments, io: Io): Promise<number> {
  const mountpoint = args.positionals[0] === undefined ? undefined : resolveMountpoint(args.positionals[0])
  const found = entries().filter(({ entry }) => mountpoint === undefined || entry.mountpoint === mountpoint)
  if (mountpoint !== undefined && found.length === 0)
    throw new VdiskError('NOT_FOUND', `${args.positionals[0]} is not mounted`)
  const ask = ({ entry, state }: Found) => (state === 'mounted' ? askStatistics(entry) : undefined)
  const statistics = args.has('stats') ? await Promise.all(found.map(ask)) : []
  if (args.has('json'))
    io.out(json(found.map(({ entry, state }, i) => ({ ...facts(entry, state), ...statisticsFacts(statistics[i]) }))))
  else if (found.length > 0) io.out(columns([HEADER, ...found.map(({ entry, state }) => row(entry, state))]))
  if (args.has('stats') && !args.has('json'))
    found.forEach(({ entry, state }, i) => {
      const silent = state === 'mounted' ? ['its server does not answer'] : [`it is ${state}`]
      const lines = statistics[i] ? describeStatistics(statistics[i]) : silent
      io.out(`\n${escaped(entry.mountpoint)}\n${lines.map((line) => `  ${line}\n`).join('')}`)
    })
  return 0
}

interface Found {
  readonly entry: RegistryEntry
  readonly state: MountState
}

/** Times in microseconds. */
function statisticsFacts(statistics: MountStatistics | undefined) {
  if (!statistics) return {}
  const { seconds, workers, requests, metadata } = statistics
  const described = requests.map((summary) => {
    const { kind, count, failed, bytes, totalMs, maxMs, histogram } = summary
    const below = histogram.flatMap((n, i) => (n === 0 ? [] : [{ below: 2 ** i, count: n }]))
    const mean = (totalMs * 1000) / count
    const times = { mean, p50: quantile(summary, 0.5), p99: quantile(summary, 0.99), max: maxMs * 1000 }
    return { kind, count, failed, bytes, microseconds: { ...times, histogram: below } }
  })
  return { statistics: { seconds, workers, requests: described, 'metadata-cache': metadata } }
}

const HEADER = ['MOUNTPOINT', 'IMAGE', 'FORMAT', 'SIZE', 'MODE', 'PID', 'LOOP', 'STATE']

function row(entry: RegistryEntry, state: MountState): string[] {
  const { mountpoint, image, format, size, options, pid, loop, error, writeError } = entry
  const why = state === 'failed' ? error : state === 'mounted' ? writeError : undefined
  const shown = why === undefined ? state : `${state}: ${why}`
  const mode = options.readOnly || writeError !== undefined ? 'ro' : 'rw'
  return [mountpoint, image, format, formatSize(size), mode, String(pid), loop ?? '-', shown].map(escaped)
}

function facts(entry: RegistryEntry, state: MountState) {
  const { mountpoint, image, format, size, pid, loop, partitions, log, error, writeError, options } = entry
  return {
    mountpoint,
    image,
    format,
    'virtual-size': size,
    pid,
    state,
    ...(loop === undefined ? {} : { loop }),
    ...(partitions === undefined ? {} : { partitions }),
    ...(error === undefined ? {} : { error }),
    ...(writeError === undefined ? {} : { 'write-error': writeError }),
    ...(log === undefined ? {} : { log }),
    options: {
      'read-only': options.readOnly,
      transport: options.transport,
      ...(options.format === undefined ? {} : { format: options.format }),
      ...(options.snapshot === undefined ? {} : { snapshot: options.snapshot }),
      ...(options.overlay === undefined ? {} : { overlay: options.overlay }),
      ...(options.temporary ? { temporary: true } : {}),
      'backing-dirs': options.backingDirs,
      ...(options.workers === undefined ? {} : { workers: options.workers }),
      ...(options.cacheSize === undefined ? {} : { 'cache-size': options.cacheSize }),
      'allow-other': options.allowOther,
      ...(options.systemOptions?.length ? { 'system-options': options.systemOptions } : {}),
      uid: options.uid,
      gid: options.gid,
      umask: options.umask.toString(8).padStart(3, '0'),
      partitions: options.partitions,
    },
  }
}
