/** Starting a mount: the server in a process of its own, in the background, or in this one. */

import { spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { entryPoint } from '../util/entry.js'
import { VdiskError } from '../util/errors.js'
import { ENDING_SIGNALS } from '../util/signals.js'
import { makeTrace } from '../util/trace.js'
import { newLogPath, type RegistryEntry } from './registry.js'
import { decodeMessages, type Message } from './report.js'
import type { ServerConfig } from './server.js'

const trace = makeTrace('mount')

const SERVER = fileURLToPath(entryPoint('mount/server-main.js'))

export type MountRequest = Omit<ServerConfig, 'log'>

/**
 * Mounts an image and leaves a server process behind that serves it.
 * @param warn is told, in one line each, what the user should know
 * @returns when the files can be used: what the registry has of the mount
 * @throws VdiskError; then nothing is mounted, locked or left behind.
 */
export async function startMount(request: MountRequest, warn: (message: string) => void): Promise<RegistryEntry> {
  const log = newLogPath()
  const fd = openSync(log, 'ax', 0o600)
  let mounted = false
  let stopped: NodeJS.Signals | undefined
  try {
    const config: ServerConfig = { ...request, log }
    const child = await runChild(config, fd, warn)
    stopped = child.stopped
    for (const message of child.messages) {
      if (message.type === 'error') throw new VdiskError(message.code, message.text)
      else if (message.type === 'ready') {
        mounted = true
        return message.entry
      }
    }
    const words = readFileSync(log, 'utf8').trim().split('\n').at(-1)
    throw new VdiskError(
      'INTERNAL',
      `the server ended before it was ready (${child.ending})${words ? `: ${words}` : ''}`,
    )
  } finally {
    closeSync(fd)
    if (!mounted) rmSync(log, { force: true })
    // Where nobody else has something to do for it, it ends this process as it would have.
    if (stopped && !mounted && process.listenerCount(stopped) === 0) process.kill(process.pid, stopped)
  }
}

/**
 * Threads in which V8 compiles and collects. Of its four, those that have no core of their own take time from the workers
 * just when much of their code is new: the first second of a mount is a tenth slower.
 */
const COMPILERS = Math.max(1, Math.min(4, availableParallelism() - 1))

/**
 * Starts the server and waits until it is ready, which it says by closing its end of the pipe, or has ended. Its warnings
 * are handed on as they come: an image may take its time. It has a session of its own, so that Ctrl-C has to be handed on.
 */
async function runChild(config: ServerConfig, log: number, warn: (message: string) => void) {
  // The arguments are for those who look at the list of processes.
  const child = spawn(process.execPath, [SERVER, config.image, config.mountpoint ?? 'attached'], {
    argv0: 'vdiskfs',
    cwd: '/',
    // Not in the arguments, where people look for the image. What the user says comes behind, and wins.
    env: { ...process.env, NODE_OPTIONS: `--v8-pool-size=${COMPILERS} ${process.env.NODE_OPTIONS ?? ''}` },
    detached: true,
    stdio: ['pipe', log, log, 'pipe'],
  })
  const exited = new Promise<string>((resolve, reject) => {
    child.on('error', reject)
    child.on('exit', (code, signal) => resolve(signal ?? `exit code ${code}`))
  })
  let stopped: NodeJS.Signals | undefined
  const stop = (signal: NodeJS.Signals) => {
    stopped ??= signal
    child.kill(signal)
  }
  for (const signal of ENDING_SIGNALS) process.on(signal, stop)
  try {
    child.stdin!.on('error', (error) => trace('the server did not read its configuration: %O', error))
    child.stdin!.end(JSON.stringify(config))
    const messages: Message[] = []
    const heard = (async () => {
      for await (const line of createInterface({ input: child.stdio[3] as Readable }))
        for (const message of decodeMessages(line))
          if (message.type === 'warning') warn(message.text)
          else messages.push(message)
    })()
    await Promise.race([heard, exited.then(() => heard)])
    trace('server %d says %o', child.pid, messages)
    const ready = messages.at(-1)?.type === 'ready'
    const ending = ready ? '' : await exited
    child.unref()
    return { messages, ending, stopped }
  } finally {
    for (const signal of ENDING_SIGNALS) process.off(signal, stop)
  }
}
