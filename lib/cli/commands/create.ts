/** `vdiskfs create -f FMT IMAGE [SIZE]`. */

import { findFormat, formats } from '../../formats/registry.js'
import { createImage } from '../../image/create.js'
import { VdiskError } from '../../util/errors.js'
import { formatSize, parseSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import { describeFormats, formatOptions, optionsHelp } from '../format-options.js'
import type { Io } from '../io.js'
import { secretOf } from '../secret.js'

export function run(args: Arguments, io: Io): number {
  const [path, sizeText] = args.positionals as [string, string | undefined]
  const name = args.value('format')
  if (name === undefined) throw new VdiskError('USAGE', `create needs -f FMT: ${formatNames()}`)
  const format = findFormat(name)
  const { options, backing, backingFormat } = formatOptions(args)
  const { size } = createImage(path, {
    secret: secretOf({ file: args.value('secret'), image: path, chosen: true }, io),
    format: format.name,
    size: sizeText === undefined ? undefined : parseSize(sizeText),
    options,
    backing,
    backingFormat,
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

export function answer(args: Arguments): string | undefined {
  return optionsHelp(args, args.value('format'))
}

export function details(): string {
  return describeFormats()
}
