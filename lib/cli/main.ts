/** The entrance of the command line: finds the command, runs it, turns what it throws into one line and an exit code. */

import { createRequire } from 'node:module'
import createDebug from 'debug'
import { VdiskError } from '../util/errors.js'
import { parseArguments } from './arguments.js'
import { COMMANDS, type Command } from './commands.js'
import { commandHelp, programHelp, synopsis } from './help.js'
import type { Io } from './io.js'
import { nearest } from './suggest.js'

export { type Io, processIo } from './io.js'

const debug = createDebug('vdiskfs:cli')

/** Exit codes (qemu-img's, where it has them). */
export const Exit = { DONE: 0, FAILED: 1, USAGE: 2 } as const

/**
 * Runs one command line.
 * @param argv the words behind the program's name.
 * @returns the exit code. Never throws.
 */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  try {
    debug('%o', argv)
    const code = await dispatch(argv, io)
    await io.end?.()
    return code
  } catch (error) {
    debug('%O', error)
    io.err(`vdiskfs: ${errorLine(error)}\n`)
    const { failed, misused }: Partial<Command> = COMMANDS.find(({ name }) => name === argv[0]) ?? {}
    if (error instanceof VdiskError && error.code === 'USAGE') return misused ?? Exit.USAGE
    return failed ?? Exit.FAILED
  }
}

/** One line for the user, whatever was thrown. */
export function errorLine(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  const line = text.replace(/\s*[\r\n]+\s*/g, ' ').trim()
  return error instanceof VdiskError ? line : `internal error: ${line} (DEBUG=vdiskfs:* shows more)`
}

/** The version in package.json. */
export function version(): string {
  return (createRequire(import.meta.url)('vdiskfs/package.json') as { version: string }).version
}

async function dispatch(argv: readonly string[], io: Io): Promise<number> {
  const [name, ...words] = argv
  if (name === '--version' || name === '-V') {
    io.out(`vdiskfs ${version()}\n`)
    return Exit.DONE
  }
  if (name === '--help' || name === '-h' || (name === 'help' && words.length === 0)) {
    io.out(programHelp(io.columns))
    return Exit.DONE
  }
  // mount.fuse3(8) runs a file system's program so: IMAGE MOUNTPOINT -o OPTIONS.
  if (name?.startsWith('/')) return dispatch(['mount', ...argv], io)
  const command = findCommand(name === 'help' ? words[0] : name)
  const module = await command.load()
  const args = name === 'help' ? undefined : parseArguments(command, words)
  if (!args || args.has('help')) {
    io.out(commandHelp(command, module.details?.(), io.columns))
    return Exit.DONE
  }
  const answer = module.answer?.(args)
  if (answer !== undefined) {
    io.out(answer)
    return Exit.DONE
  }
  checkPositionals(command, args.positionals)
  return module.run(args, io)
}

function findCommand(name: string | undefined): Command {
  if (name === undefined) throw new VdiskError('USAGE', 'which command? (vdiskfs --help)')
  const command = COMMANDS.find((c) => c.name === name)
  if (command) return command
  if (name.startsWith('-')) throw new VdiskError('USAGE', `${name} before the command (vdiskfs --help)`)
  const near = nearest(
    name,
    COMMANDS.map((c) => c.name),
  )
  throw new VdiskError('USAGE', `no command ${name}${near ? `; did you mean ${near}?` : ''} (vdiskfs --help)`)
}

function checkPositionals(command: Command, given: readonly string[]): void {
  const missing = command.positionals[given.length]
  if (missing && !missing.optional)
    throw new VdiskError('USAGE', `${command.name}: ${missing.name} is missing: vdiskfs ${synopsis(command)}`)
  const extra = given[command.positionals.length]
  if (extra !== undefined)
    throw new VdiskError('USAGE', `${command.name}: '${extra}' is one too many: vdiskfs ${synopsis(command)}`)
  if (given.includes('')) throw new VdiskError('USAGE', `${command.name}: an argument is empty`)
}
