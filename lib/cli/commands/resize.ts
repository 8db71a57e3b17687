/** `vdiskfs resize IMAGE [+|-]SIZE`. */

import { resizeImage } from '../../image/resize.js'
import { formatSize, parseSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { secretOf } from '../secret.js'

export function run(args: Arguments, io: Io): number {
  const [path, text] = args.positionals as [string, string]
  const sign = /^[+-]/.exec(text)?.[0]
  const size = parseSize(sign ? text.slice(1) : text)
  const { before, after } = resizeImage(path, {
    size: sign === '-' ? -size : size,
    relative: sign !== undefined,
    shrink: args.has('shrink'),
    force: args.has('force'),
    format: args.value('format'),
    backingDirs: args.values('backing-dir'),
    secret: secretOf({ file: args.value('secret'), image: path }, io),
    warn: (line) => io.err(`vdiskfs: ${line}\n`),
  })
  if (!args.has('quiet'))
    io.out(`${path}: ${formatSize(before)} (${before} bytes) before, ${formatSize(after)} (${after} bytes) now\n`)
  return 0
}
