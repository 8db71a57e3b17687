/** How facts are printed. */

import type { Arguments } from './arguments.js'
import { choice } from './values.js'

/** Indented as qemu-img does it. */
export function json(value: unknown): string {
  return `${JSON.stringify(value, undefined, 4)}\n`
}

/** `--json`, or `--output=json`. @throws USAGE for another output. */
export function wantsJson(args: Arguments): boolean {
  return choice('output', args.value('output') ?? 'human', ['human', 'json']) === 'json' || args.has('json')
}

/** Rows in columns as wide as their widest cell. */
export function columns(rows: readonly (readonly string[])[]): string {
  const count = Math.max(0, ...rows.map((row) => row.length))
  const widths = Array.from({ length: count }, (_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)))
  const lines = rows.map((row) => row.map((cell, i) => cell.padEnd(widths[i]!)).join('  '))
  return `${lines.map((line) => line.trimEnd()).join('\n')}\n`
}
