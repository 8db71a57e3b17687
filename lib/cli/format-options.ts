/** `-o` of create and convert: options of the format, and what qemu-img also takes there. */

import type { OptionSpec } from '../formats/options.js'
import { findFormat, formats } from '../formats/registry.js'
import { VdiskError } from '../util/errors.js'
import { formatSize } from '../util/sizes.js'
import type { Arguments } from './arguments.js'
import { table } from './help.js'

/** What `-o` can say of the parent: other words for -b (convert: -B) and -F. */
const BACKING = { backing_file: 'backing', backing_fmt: 'backing-format' } as const
const HELP = ['help', '?']

export interface FormatOptions {
  /** Those of the format. */
  readonly options: readonly string[]
  readonly backing: string | undefined
  readonly backingFormat: string | undefined
}

/** @throws USAGE where a parent is named twice, and not the same */
export function formatOptions(args: Arguments): FormatOptions {
  const all = args.list('options')
  const backing = parentOption(args, all, 'backing_file')
  const backingFormat = parentOption(args, all, 'backing_fmt')
  const options = all.filter((text) => !(text.replace(/=.*/s, '') in BACKING))
  return { options, backing, backingFormat }
}

function parentOption(args: Arguments, all: readonly string[], name: keyof typeof BACKING): string | undefined {
  const option = BACKING[name]
  const given = args.value(option)
  const said = all.findLast((text) => text.replace(/=.*/s, '') === name)?.slice(name.length + 1)
  if (said === '') throw new VdiskError('USAGE', `option ${name} needs a value: ${name}=…`)
  if (given !== undefined && said !== undefined && given !== said)
    throw new VdiskError('USAGE', `--${option} ${given} and -o ${name}=${said}: expected one of them`)
  return given ?? said
}

/** The options of a format, where `-o help` asks for them. @param format its name; undefined: all. @throws USAGE */
export function optionsHelp(args: Arguments, format: string | undefined): string | undefined {
  if (!args.list('options').some((text) => HELP.includes(text))) return undefined
  return describeFormats(format === undefined ? undefined : findFormat(format).name)
}

/** The options of every format, or of one, for the help. */
export function describeFormats(only?: string): string {
  return formats
    .filter(({ name }) => only === undefined || name === only)
    .map(({ name, aliases, title, backing, createOptions }) => {
      const names = [name, ...aliases].join(', ')
      const rows = createOptions.map((spec): [string, string] => [`${spec.name}=${valueText(spec)}`, helpOf(spec)])
      if (backing) rows.push(['backing_file=FILE', 'as --backing'], ['backing_fmt=FMT', 'as --backing-format'])
      return `Format ${names}: ${title}\n${rows.length > 0 ? table(rows) : ''}`
    })
    .join('\n')
}

function valueText(spec: OptionSpec): string {
  if (spec.type === 'enum') return spec.values.join('|')
  return { size: 'SIZE', number: 'N', boolean: 'on|off', string: 'TEXT' }[spec.type]
}

function helpOf(spec: OptionSpec): string {
  const { help, default: value } = spec
  if (value === undefined) return help
  const shown =
    spec.type === 'size' ? formatSize(value as number) : spec.type === 'boolean' ? (value ? 'on' : 'off') : value
  return `${help} (${shown})`
}
