/** `vdiskfs check IMAGE`: exit codes, JSON and words of `qemu-img check`. */

import type { Finding, Repair } from '../../formats/driver.js'
import { type CheckReport, checkImage } from '../../image/check.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { errorLine } from '../main.js'
import { json, wantsJson } from '../output.js'
import { choice } from '../values.js'

/** What is left after a repair decides. */
const Code = { CLEAN: 0, FAILED: 1, CORRUPT: 2, LEAKS: 3, NOTHING_TO_CHECK: 63 } as const

export function run(args: Arguments, io: Io): number {
  const path = args.positionals[0]!
  const repair = choice('repair', args.value('repair') ?? 'none', ['none', 'leaks', 'all']) as Repair
  const asJson = wantsJson(args)
  const report = tryToCheck(path, repair, args, io)
  if (!report) return Code.FAILED
  if (!report.totals) {
    io.err(`vdiskfs: ${path}: images of format ${report.format} have nothing to check\n`)
    return Code.NOTHING_TO_CHECK
  }
  if (!args.has('quiet')) io.out(asJson ? json(facts(path, report)) : text(report))
  return codeOf(report)
}

/** Whatever keeps it from looking is 1: 2, as for wrong usage elsewhere, would say that errors were found. */
function tryToCheck(path: string, repair: Repair, args: Arguments, io: Io): CheckReport | undefined {
  try {
    return checkImage(path, {
      format: args.value('format'),
      ...(args.has('force-share') && { lock: false }),
      repair,
      backingDirs: args.values('backing-dir'),
      warn: (text) => io.err(`vdiskfs: ${text}\n`),
    })
  } catch (error) {
    io.err(`vdiskfs: ${errorLine(error)}\n`)
    return undefined
  }
}

function codeOf({ leaks, corruptions, leaksFixed, corruptionsFixed }: CheckReport): number {
  if (corruptions > corruptionsFixed) return Code.CORRUPT
  return leaks > leaksFixed ? Code.LEAKS : Code.CLEAN
}

/** The keys of `qemu-img check --output=json`, which leaves out what is 0, and what was found. */
function facts(path: string, report: CheckReport): Record<string, unknown> {
  const { totals, format, findings } = report
  const counts = {
    corruptions: report.corruptions - report.corruptionsFixed,
    leaks: report.leaks - report.leaksFixed,
    'corruptions-fixed': report.corruptionsFixed,
    'leaks-fixed': report.leaksFixed,
    warnings: report.warnings,
    'allocated-clusters': totals!.allocated,
    'fragmented-clusters': totals!.fragmented,
    'compressed-clusters': totals!.compressed,
  }
  return {
    filename: path,
    format,
    'check-errors': 0,
    'image-end-offset': totals!.imageEnd,
    'total-clusters': totals!.clusters,
    ...Object.fromEntries(Object.entries(counts).filter(([, count]) => count !== 0)),
    ...(findings.length > 0 && { findings }),
  }
}

const WORDS: Readonly<Record<Finding['severity'], string>> = { leak: 'Leaked', corruption: 'ERROR', warning: 'Warning' }

function text(report: CheckReport): string {
  const { totals, findings } = report
  const lines = findings.map(
    ({ severity, message, repaired }) => `${WORDS[severity]}: ${message}${repaired ? ' (repaired)' : ''}`,
  )
  const more = report.leaks + report.corruptions + report.warnings - findings.length
  if (more > 0 && findings.some(({ count }) => count === undefined)) lines.push(`… ${more} more`)
  if (report.corruptionsFixed + report.leaksFixed > 0)
    lines.push(`${report.leaksFixed} leaked clusters and ${report.corruptionsFixed} corruptions were repaired.`)
  const corruptions = report.corruptions - report.corruptionsFixed
  const leaks = report.leaks - report.leaksFixed
  if (corruptions > 0) lines.push(`${corruptions} errors are left: data may be wrong (--repair all).`)
  if (leaks > 0) lines.push(`${leaks} leaked clusters are left: space is wasted, no data is harmed (--repair leaks).`)
  if (corruptions + leaks === 0) lines.push('No errors were found on the image.')
  const { allocated, clusters, fragmented, imageEnd } = totals!
  if (clusters > 0) {
    const percent = (part: number, of: number) => `${((100 * part) / Math.max(1, of)).toFixed(2)}%`
    const share = `${percent(allocated, clusters)} allocated, ${percent(fragmented, allocated)} fragmented`
    lines.push(`${allocated}/${clusters} = ${share}`, `Image end offset: ${imageEnd}`)
  }
  return `${lines.join('\n')}\n`
}

export function details(): string {
  return `Exit codes: 0 clean, or all was repaired; 1 could not check, or wrong usage;
2 errors are left; 3 only leaks are left; 63 the format has nothing to check.
`
}
