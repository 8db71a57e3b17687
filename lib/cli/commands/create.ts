/** `vdiskfs create -f FMT IMAGE [SIZE]`. */

import type { OptionSpec } from '../../formats/options.js'
import { findFormat, formats } from '../../formats/registry.js'
import { createImage } from '../../image/create.js'
import { VdiskError } from '../../util/errors.js'
import { formatSize, parseSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import { table } from '../help.js'
import type { Io } from '../io.js'
import { secretOf } from '../secret.js'

export function run(args: Arguments, io: Io): number {
  const [path, sizeText] = args.positionals as [string, string | undefined]
  const name = args.value('format')
  if (name === undefined) throw new VdiskError('USAGE', `create needs -f FMT: ${formatNames()}`)
  const format = findFormat(name)
  const backing = args.value('backing')
  const options = args.list('options')
  const { size } = createImage(path, {
    secret: secretOf({ file: args.value('secret'), image: path, chosen: true }, io),
    format: format.name,
    size: sizeText === undefined ? undefined : parseSize(sizeText),
    options,
    backing,
    backingFormat: args.value('backing-format'),
    unsafe: args.has('unsafe'),
  })
  if (!args.has('quiet')) {
    const facts = [
      `${formatSize(size)} (${size} bytes)`,
      ...options,
      ...(backing === undefined ? [] : [`over ${backing}`]),
    ]
    io.out(`created ${path}: ${format.name}, ${facts.join(', ')}\n`)
  }
  return 0
}

function formatNames(): string {
  return formats.map((format) => format.name).join(', ')
}

/** The options of every format, for the help. */
export function details(): string {
  return formats
    .map(({ name, aliases, title, createOptions }) => {
      const names = [name, ...aliases].join(', ')
      const rows = createOptions.map((spec): [string, string] => [`${spec.name}=${valueText(spec)}`, helpOf(spec)])
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
