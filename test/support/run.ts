/** Running programs: other people's, as judges, and the command line under test: bin/ and dist/, as they are shipped. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { atEnd, type TestCase } from './temp.js'
import { withTransport } from './transports.js'

export interface Result {
  /** The exit code; 128 where a signal ended it, 127 where it could not be started. */
  readonly code: number
  readonly out: string
  readonly err: string
}

export interface RunOptions {
  readonly input?: string
  /** Added to this process's. */
  readonly env?: Readonly<Record<string, string | undefined>>
  readonly cwd?: string
  /** An ordinary user to run it as. */
  readonly uid?: number
  /** Milliseconds after which it is killed, where the usual minute is not enough. */
  readonly limit?: number
}

/** No single program of a test takes so long; a hanging one fails its test. */
const LIMIT = 60_000
const BUFFER = 256 * 1024 * 1024

/** Runs a program to its end. Never throws. */
export function run(program: string, args: readonly string[] = [], options: RunOptions = {}): Result {
  const { input, env, cwd, uid, limit = LIMIT } = options
  const result = spawnSync(program, args, {
    encoding: 'utf8',
    env: { ...process.env, ...env },
    killSignal: 'SIGKILL',
    maxBuffer: BUFFER,
    timeout: limit,
    ...(input === undefined ? {} : { input }),
    ...(cwd === undefined ? {} : { cwd }),
    ...(uid === undefined ? {} : { uid, gid: uid }),
  })
  const failed = result.error ? String(result.error) : ''
  return {
    code: result.status ?? (failed && !result.signal ? 127 : 128),
    out: result.stdout ?? '',
    err: (result.stderr ?? '') + failed,
  }
}

/** Runs a program that has to succeed. @returns what it printed */
export function must(program: string, args: readonly string[] = [], options: RunOptions = {}): string {
  const { code, out, err } = run(program, args, options)
  if (code !== 0) throw new Error(`${[program, ...args].join(' ')} ended with ${code}: ${(err || out).trim()}`)
  return out
}

/** The project's folder; tests run from build/test/. */
export const ROOT = fileURLToPath(new URL('../../../', import.meta.url))

/** The script of the command line under test. */
export const CLI = join(ROOT, 'bin', 'vdiskfs.js')

/** The command is built apart from the modules that a test imports: it may not be older than their sources. */
function checkBuild(): void {
  const lib = join(ROOT, 'lib')
  const built = statSync(join(ROOT, 'dist', 'cli', 'main.js'), { throwIfNoEntry: false })?.mtimeMs ?? 0
  const sources = readdirSync(lib, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'))
  const newer = sources.find((name) => statSync(join(lib, name)).mtimeMs > built)
  if (newer !== undefined) throw new Error(`dist/ is older than lib/${newer}: npm run build`)
}
checkBuild()

/** Runs `vdiskfs ARGS`. */
export function vdiskfs(args: readonly string[], options?: RunOptions): Result {
  return run(process.execPath, [CLI, ...withTransport(args)], options)
}

/** Runs `vdiskfs ARGS`, which has to succeed. @returns what it printed */
export function vdiskfsMust(args: readonly string[], options?: RunOptions): string {
  return must(process.execPath, [CLI, ...withTransport(args)], options)
}

/** A program that runs beside the test. */
export interface Running {
  readonly child: ChildProcess
  readonly pid: number
  /** What it has written to standard error by now. */
  err(): string
  /** How it ended. */
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
}

/** Starts a program beside the test; it is killed when the test ends, if it still runs. */
export function start(t: TestCase, program: string, args: readonly string[], options: RunOptions = {}): Running {
  const child = spawn(program, args, {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  })
  let err = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text
  })
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    child.on('error', () => resolve({ code: 127, signal: null }))
    child.on('close', (code, signal) => resolve({ code, signal }))
  })
  atEnd(t, async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    await ended
  })
  return { child, pid: child.pid ?? 0, err: () => err, ended }
}

/** Starts `vdiskfs ARGS` beside the test. */
export function startVdiskfs(t: TestCase, args: readonly string[], options?: RunOptions): Running {
  return start(t, process.execPath, [CLI, ...withTransport(args)], options)
}

/** Waits until something is so. @throws when it is not within ten seconds. */
export async function until(what: string, isSo: () => boolean): Promise<void> {
  for (let tries = 0; tries < 500; tries++) {
    if (isSo()) return
    await sleep(20)
  }
  throw new Error(`waited in vain: ${what}`)
}
