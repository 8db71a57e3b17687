/** `vdiskfs rebase -b FILE IMAGE`. */

import { rebaseImage } from '../../image/rebase.js'
import { VdiskError } from '../../util/errors.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { progressBar } from '../progress.js'
import { secretOf } from '../secret.js'

export function run(args: Arguments, io: Io): number {
  const path = args.positionals[0]!
  const backing = args.value('backing')
  if (backing === undefined) throw new VdiskError('USAGE', "rebase needs -b FILE: the new parent, or '' for none")
  const bar = progressBar(args, io)
  try {
    rebaseImage(path, {
      backing: backing === '' ? undefined : backing,
      backingFormat: args.value('backing-format'),
      unsafe: args.has('unsafe'),
      force: args.has('force'),
      format: args.value('format'),
      backingDirs: args.values('backing-dir'),
      secret: secretOf({ file: args.value('secret'), image: path }, io),
      onProgress: bar && ((position, size) => bar.showPosition(position, size)),
      warn: (text) => io.err(`vdiskfs: ${text}\n`),
    })
    bar?.end()
    if (!args.has('quiet')) io.out(`${path}: ${backing === '' ? 'it has no parent now' : `over ${backing} now`}\n`)
    return 0
  } finally {
    bar?.end()
  }
}
