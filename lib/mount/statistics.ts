/**
 * The statistics of a mount. The server has them in memory; SIGUSR1 makes it write them into its log, or, where
 * `vdiskfs list --stats` asked for them, into a file beside its entry in the registry.
 */

import { readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Image } from '../image/image.js'
import { quantile, type RequestSummary } from '../transports/statistics.js'
import { formatSize } from '../util/sizes.js'
import { isAlive } from './processes.js'
import { type RegistryEntry, statisticsPath } from './registry.js'

export interface MountStatistics {
  /** Since the mount can be used. */
  readonly seconds: number
  /** Threads that serve at the moment. */
  readonly workers: number
  readonly requests: readonly RequestSummary[]
  readonly metadata: ReturnType<Image['statistics']>
}

export const STATISTICS_SIGNAL = 'SIGUSR1'

/** Hands statistics to a command that asked for them, by an empty file. @returns false where there is none */
export function answerStatistics(entry: RegistryEntry, statistics: MountStatistics): boolean {
  const path = statisticsPath(entry.mountpoint)
  if (statSync(path, { throwIfNoEntry: false })?.size !== 0) return false
  const made = `${path}.new`
  writeFileSync(made, JSON.stringify(statistics), { mode: 0o600 })
  renameSync(made, path)
  return true
}

const PATIENCE_MS = 2000
const INTERVAL_MS = 5

/**
 * Asks the server of a mount, which has to be mounted.
 * @returns undefined where it does not answer: it hangs, or has just ended
 */
export async function askStatistics(entry: RegistryEntry): Promise<MountStatistics | undefined> {
  // Of a server that does not know the signal, Node would make one that can be debugged.
  if (!entry.statistics || !isAlive(entry)) return undefined
  const path = statisticsPath(entry.mountpoint)
  writeFileSync(path, '', { mode: 0o600 })
  process.kill(entry.pid, STATISTICS_SIGNAL)
  for (const until = Date.now() + PATIENCE_MS; Date.now() < until; await sleep(INTERVAL_MS)) {
    try {
      return JSON.parse(readFileSync(path, 'utf8')) as MountStatistics
    } catch {
      // Empty still. Where two ask at once, one answer is for both.
    }
  }
  return undefined
}

/** For people, some lines. */
export function describeStatistics({ seconds, workers, requests, metadata }: MountStatistics): string[] {
  const { hits, misses, cached, pages, dirty, evictions, commits } = metadata
  const found = hits + misses === 0 ? 'nothing looked up' : `${((100 * hits) / (hits + misses)).toFixed(2)} % hits`
  return [
    `up ${formatDuration(seconds)}, ${workers} workers, ${commits} commits`,
    `metadata cache: ${found}, ${misses} pages read, ${evictions} evicted, ${cached} of ${pages} in use, ${dirty} sectors dirty`,
    ...requestTable(requests),
  ]
}

const HEADER = ['request', 'count', 'failed', 'bytes', 'average', '50 %', '99 %', 'longest']

function requestTable(requests: readonly RequestSummary[]): string[] {
  if (requests.length === 0) return ['no requests yet']
  const rows = requests.map((summary) => {
    const { kind, count, failed, bytes, totalMs, maxMs } = summary
    const times = [(1000 * totalMs) / count, quantile(summary, 0.5), quantile(summary, 0.99), 1000 * maxMs]
    return [kind, String(count), String(failed), bytes === 0 ? '-' : formatSize(bytes), ...times.map(formatTime)]
  })
  const widths = HEADER.map((_, i) => Math.max(...[HEADER, ...rows].map((row) => row[i]!.length)))
  const line = (row: readonly string[]) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ')
  return [HEADER, ...rows].map(line)
}

/** `85 µs`, `1.2 ms`, `3.4 s`. */
function formatTime(microseconds: number): string {
  if (microseconds < 1000) return `${Math.round(microseconds)} µs`
  const ms = microseconds / 1000
  return ms < 1000 ? `${Number(ms.toPrecision(2))} ms` : `${Number((ms / 1000).toPrecision(2))} s`
}

function formatDuration(seconds: number): string {
  const whole = Math.floor(seconds)
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60]
  return hours > 0 ? `${hours} h ${minutes} min` : minutes > 0 ? `${minutes} min ${whole % 60} s` : `${whole} s`
}
