/** `vdiskfs compare FIRST SECOND`: the options, words and exit codes of `qemu-img compare`. */

import { compareImages } from '../../image/compare.js'
import type { Arguments } from '../arguments.js'
import type { Io } from '../io.js'
import { progressBar } from '../progress.js'
import { readSecret, secretOf } from '../secret.js'

/** What fails is 2: see the table of commands. */
const Code = { SAME: 0, DIFFERENT: 1 } as const

export function run(args: Arguments, io: Io): number {
  const [first, second] = args.positionals as [string, string]
  const quiet = args.has('quiet')
  const say = (line: string) => {
    if (!quiet) io.out(`${line}\n`)
  }
  const bar = progressBar(args, io)
  const secondSecret = args.value('second-secret')
  try {
    const { sizes, difference } = compareImages(first, second, {
      formats: [args.value('format'), args.value('second-format')],
      ...(args.has('force-share') && { lock: false }),
      strict: args.has('strict'),
      secret: secretOf({ file: args.value('secret'), image: first }, io),
      secondSecret: secondSecret === undefined ? undefined : readSecret(secondSecret),
      backingDirs: args.values('backing-dir'),
      warn: (text) => io.err(`vdiskfs: ${text}\n`),
      onProgress: bar && ((position, size) => bar.showPosition(position, size)),
    })
    bar?.end()
    if (sizes[0] !== sizes[1] && difference?.what !== 'size')
      say(`Warning: Image size mismatch! ${sizes[0]} and ${sizes[1]} bytes`)
    say(difference ? WORDS[difference.what]('offset' in difference ? difference.offset : 0) : 'Images are identical.')
    return difference ? Code.DIFFERENT : Code.SAME
  } finally {
    bar?.end()
  }
}

const WORDS = {
  content: (offset: number) => `Content mismatch at offset ${offset}!`,
  allocation: (offset: number) => `Strict mode: Offset ${offset} block status mismatch!`,
  size: () => 'Strict mode: Image size mismatch!',
} as const

export function details(): string {
  return 'Exit codes: 0 the same, 1 not the same, 2 could not compare.\n'
}
