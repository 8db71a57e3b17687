/** `vdiskfs info IMAGE`. */

import type { Facts, LogListing, LogListingEntry } from '../../formats/driver.js'
import { chainInfo, type ImageInfo, imageInfo, imageLog } from '../../image/info.js'
import { VdiskError } from '../../util/errors.js'
import { formatSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { json, wantsJson } from '../output.js'
import { snapshotTable } from './snapshot.js'

export function run(args: Arguments, io: Io): number {
  const path = args.positionals[0]!
  const asJson = wantsJson(args)
  const options = { format: args.value('format'), backingDirs: args.values('backing-dir'), readOnly: true }
  const warn = (text: string) => io.err(`vdiskfs: ${text}\n`)
  if (args.has('log') && args.has('chain')) throw new VdiskError('USAGE', 'info: --log or --chain, not both')
  if (args.has('log')) {
    const log = imageLog(path, options)
    io.out(asJson ? json(log) : describeLog(log))
  } else if (args.has('chain')) {
    const chain = chainInfo(path, { ...options, warn })
    io.out(asJson ? json(chain) : chain.map(describe).join('\n'))
  } else {
    const info = imageInfo(path, { ...options, warn })
    io.out(asJson ? json(info) : describe(info))
  }
  return 0
}

/** The lines of `qemu-img info`. */
export function describe(info: ImageInfo): string {
  const { 'backing-filename': backing, 'full-backing-filename': full, 'backing-filename-format': format } = info
  const size = info['virtual-size']
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${formatSize(size)} (${size} bytes)`,
    `disk size: ${formatSize(info['actual-size'])}`,
  ]
  if (backing !== undefined)
    lines.push(`backing file: ${backing}${full && full !== backing ? ` (actual path: ${full})` : ''}`)
  if (format !== undefined) lines.push(`backing file format: ${format}`)
  for (const [name, value] of Object.entries(info))
    if (!SHOWN.has(name)) lines.push(...factLines({ [name]: value } as Facts, ''))
  if (info.snapshots) lines.push('Snapshot list:', snapshotTable(info.snapshots).trimEnd())
  const specific = info['format-specific']
  if (specific) lines.push('format specific information:', ...factLines(specific.data, '    '))
  return `${lines.join('\n')}\n`
}

/** What `describe` has lines of its own for. */
const SHOWN: ReadonlySet<string> = new Set([
  'virtual-size',
  'filename',
  'format',
  'actual-size',
  // Among those of the format.
  'cluster-size',
  'dirty-flag',
  'backing-filename',
  'full-backing-filename',
  'backing-filename-format',
  'snapshots',
  'format-specific',
])

function factLines(facts: Facts, indent: string): string[] {
  return Object.entries(facts).flatMap(([name, value]) => {
    const label = `${indent}${name.replaceAll('-', ' ')}:`
    if (Array.isArray(value) && typeof value[0] === 'object')
      return [label, ...value.flatMap((item: Facts, i) => factLines({ [`[${i}]`]: item }, `${indent}    `))]
    if (Array.isArray(value)) return [`${label} ${value.join(', ') || 'none'}`]
    if (value !== null && typeof value === 'object') return [label, ...factLines(value as Facts, `${indent}    `)]
    return [`${label} ${value ?? 'none'}`]
  })
}

/** An entry a line, under it what it changes. */
function describeLog({ offset, length, logGuid, entries }: LogListing): string {
  const active = entries.filter((entry) => entry.active).length
  const lines = [
    `log: ${formatSize(length)} at ${offset} of the file`,
    `log guid: ${logGuid}`,
    `entries: ${entries.length}, of which a replay applies ${active}`,
    ...entries.flatMap(describeEntry),
  ]
  return `${lines.join('\n')}\n`
}

function describeEntry(entry: LogListingEntry): string[] {
  const { at, length, sequenceNumber, active, changes } = entry
  return [
    `[${at}] ${active ? 'to replay' : 'old'}: sequence number ${sequenceNumber}, ${length} bytes, log ${entry.logGuid}`,
    ...changes.map(
      ({ offset, length, zeros, where }) => `    ${length} ${zeros ? 'zeros' : 'bytes'} at ${offset}: ${where}`,
    ),
  ]
}
