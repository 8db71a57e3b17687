/** The help, rendered from the tables of commands and options. */

import { COMMANDS, type Command } from './commands.js'
import { type OptionSpec, optionsOf } from './options.js'

const INDENT = '  '
const DEFAULT_COLUMNS = 80
const MAX_COLUMNS = 110

/** What is longer has lines of its own. */
const MAX_LEFT = 40

/** Two columns; the right one wraps under itself. */
export function table(rows: readonly (readonly [string, string])[], columns = DEFAULT_COLUMNS): string {
  const total = Math.min(columns, MAX_COLUMNS) - INDENT.length
  const left = Math.max(0, ...rows.map(([name]) => name.length).filter((length) => length <= MAX_LEFT)) + 2
  const width = Math.max(24, total - left)
  const lines = rows.flatMap(([name, text]) => {
    const own = name.length > MAX_LEFT ? wrapChoices(name, total) : []
    const first = own.length > 0 ? '' : name
    const beside = wrap(text, width).map((line, i) => (i === 0 ? first : '').padEnd(left) + line)
    return [...own, ...beside].map((line) => `${INDENT}${line}`.trimEnd())
  })
  return `${lines.join('\n')}\n`
}

/** Breaks `name=a|b|c` behind a bar. */
function wrapChoices(name: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of name.split(/(?<=\|)/)) {
    if (line.length + word.length > width) {
      lines.push(line)
      line = INDENT
    }
    line += word
  }
  return [...lines, line]
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line)
      line = word
    } else line = line === '' ? word : `${line} ${word}`
  }
  return [...lines, line]
}

/** `mount [OPTIONS] IMAGE MOUNTPOINT`. */
export function synopsis(command: Command): string {
  const words = command.positionals.map(({ name, optional }) => (optional ? `[${name}]` : name))
  return [command.name, '[OPTIONS]', ...words].join(' ')
}

function optionRow({ name, short, value, repeats, help }: OptionSpec): [string, string] {
  const names = `${short ? `-${short}, ` : '    '}--${name}`
  return [value ? `${names} ${value}` : names, repeats ? `${help} (may be repeated)` : help]
}

/** The help of the program. */
export function programHelp(columns?: number): string {
  const rows = COMMANDS.map((command): [string, string] => [command.name, command.summary])
  return `Usage: vdiskfs COMMAND [OPTIONS] …

Shows a virtual disk image as one flat file that any program reads and writes.

Commands:
${table(rows, columns)}
Options:
${table(
  [
    ['-h, --help', 'this text; vdiskfs COMMAND --help for one command'],
    ['-V, --version', 'the version'],
  ],
  columns,
)}
Exit codes: 0 done, 1 failed, 2 wrong usage.
DEBUG=vdiskfs:* in the environment shows what happens inside.
`
}

/** The help of one command; `details` is what its code adds. */
export function commandHelp(command: Command, details = '', columns?: number): string {
  const summary = command.summary[0]!.toUpperCase() + command.summary.slice(1)
  const positionals = command.positionals.map(({ name, help }): [string, string] => [name, help])
  const examples = command.examples.map((line) => `${INDENT}vdiskfs ${line}\n`).join('')
  return [
    `Usage: vdiskfs ${synopsis(command)}\n\n${summary}.\n`,
    positionals.length > 0 ? `\nArguments:\n${table(positionals, columns)}` : '',
    `\nOptions:\n${table(optionsOf(command.name).map(optionRow), columns)}`,
    details === '' ? '' : `\n${details}`,
    `\nExamples:\n${examples}`,
  ].join('')
}
