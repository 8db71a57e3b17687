/** `vdiskfs commit IMAGE`. */

import { commitImage } from '../../image/commit.js'
import { formatSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { progressBar } from '../progress.js'
import { secretOf } from '../secret.js'

export function run(args: Arguments, io: Io): number {
  const path = args.positionals[0]!
  const keep = args.has('keep')
  const bar = progressBar(args, io)
  try {
    const { parent, written } = commitImage(path, {
      force: args.has('force'),
      format: args.value('format'),
      backingDirs: args.values('backing-dir'),
      secret: secretOf({ file: args.value('secret'), image: path }, io),
      keep,
      onProgress: bar && ((position, size) => bar.showPosition(position, size)),
      warn: (text) => io.err(`vdiskfs: ${text}\n`),
    })
    bar?.end()
    const left = keep ? 'the image keeps it' : 'the image is empty now'
    if (!args.has('quiet')) io.out(`${path}: ${formatSize(written)} written to ${parent}; ${left}\n`)
    return 0
  } finally {
    bar?.end()
  }
}
