/**
 * The helper that mount(8) runs for `-t fuse.vdiskfs`, and for such lines of /etc/fstab. It turns what helpers are
 * given into the words of `vdiskfs mount`.
 */

import { VdiskError } from '../util/errors.js'
import { type Io, main, processIo } from './main.js'

/** What mount(8) says of exit codes: wrong usage, and a mount that failed. */
const EXIT = { DONE: 0, USAGE: 1, FAILED: 32 } as const

/** Options of a helper that take a value, and those that do not (mount(8), "External helpers"). */
const VALUED = 'oNt'
const FLAGS = 'sfnvrw'

interface HelperCall {
  readonly paths: readonly string[]
  readonly options: readonly string[]
  /** `-f`: do everything but mount. */
  readonly fake: boolean
}

/** Runs the helper. @returns the exit code that mount(8) passes on */
export async function mountHelper(argv: readonly string[], io: Io = processIo()): Promise<number> {
  let call: HelperCall
  try {
    call = parse(argv)
  } catch (error) {
    io.err(`mount.fuse.vdiskfs: ${(error as Error).message}\n`)
    return EXIT.USAGE
  }
  if (call.fake) return EXIT.DONE
  const options = call.options.length > 0 ? ['-o', call.options.join(',')] : []
  const code = await main(['mount', ...options, '--', ...call.paths], io)
  return code === 0 ? EXIT.DONE : EXIT.FAILED
}

function parse(argv: readonly string[]): HelperCall {
  const paths: string[] = []
  const options: string[] = []
  let fake = false
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i]!
    if (!/^-./.test(word)) {
      paths.push(word)
      continue
    }
    for (let at = 1; at < word.length; at++) {
      const letter = word[at]!
      if (VALUED.includes(letter)) {
        const value = word.slice(at + 1) || argv[++i]
        if (value === undefined) throw new VdiskError('USAGE', `-${letter} needs a value`)
        if (letter === 'o') options.push(value)
        break
      }
      if (!FLAGS.includes(letter)) throw new VdiskError('USAGE', `no option -${letter}`)
      if (letter === 'f') fake = true
      if (letter === 'r') options.push('ro')
    }
  }
  if (paths.length !== 2) throw new VdiskError('USAGE', 'usage: mount.fuse.vdiskfs IMAGE MOUNTPOINT [-o OPTIONS]')
  return { paths, options, fake }
}
