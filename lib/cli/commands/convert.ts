/** `vdiskfs convert SOURCE TARGET`: the options of `qemu-img convert`. */

import { findFormat } from '../../formats/registry.js'
import { convert, MAX_THREADS } from '../../image/convert/convert.js'
import { parseSize } from '../../util/sizes.js'
import type { Arguments } from '../arguments.js'
import { describeFormats, formatOptions, optionsHelp } from '../format-options.js'
import type { Io } from '../io.js'
import { progressBar } from '../progress.js'
import { readSecret, secretOf } from '../secret.js'
import { interruptible } from '../signals.js'
import { parseCount } from '../values.js'

export function run(args: Arguments, io: Io): Promise<number> {
  const [source, target] = args.positionals as [string, string]
  const sparse = args.value('sparse-size')
  const threads = args.value('threads')
  const targetSecret = args.value('target-secret')
  const bar = progressBar(args, io)
  return interruptible(async ({ signal, arm }) => {
    try {
      await convert(source, target, {
        sourceFormat: args.value('format'),
        format: findFormat(args.value('output-format') ?? 'raw').name,
        ...formatOptions(args),
        snapshot: args.value('snapshot'),
        secret: secretOf({ file: args.value('secret'), image: source }, io),
        targetSecret: targetSecret === undefined ? undefined : readSecret(targetSecret),
        backingDirs: args.values('backing-dir'),
        ...(args.has('force-share') && { lock: false }),
        existing: args.has('no-create'),
        compress: args.has('compress'),
        ...(sparse === undefined ? {} : { sparse: parseSize(sparse) }),
        ...(threads === undefined ? {} : { threads: parseCount('threads', threads, 1, MAX_THREADS) }),
        signal,
        onTarget: arm,
        onProgress: bar && ((progress) => bar.show(progress)),
        warn: (text) => io.err(`vdiskfs: ${text}\n`),
      })
      return 0
    } finally {
      bar?.end()
    }
  })
}

export function answer(args: Arguments): string | undefined {
  return optionsHelp(args, args.value('output-format') ?? 'raw')
}

export function details(): string {
  return describeFormats()
}
