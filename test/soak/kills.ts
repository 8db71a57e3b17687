/** The server is killed in the middle of writes, again and again: what was flushed is there, the rest is old or new. */

import { fork } from 'node:child_process'
import { closeSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { checkImage } from '../../lib/image/check.js'
import { listed, mountImage, type TestMount } from '../support/mounts.js'
import { until, vdiskfs, vdiskfsMust } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'
import { BLOCK, wrongWith } from './stamps.js'

const WRITER = fileURLToPath(new URL('./writer.js', import.meta.url))
const BLOCKS = 6000
const SIZE = `${BLOCKS * BLOCK}`
const LONGEST_MS = 900

/** Ends a mount that somebody writes to, or the writer, whose pid it gets. */
export type End = (mount: TestMount, writer: number) => unknown

interface Message {
  readonly begun?: [number, number]
  readonly safe?: [number, number][]
  readonly ended?: string
}

export interface KillResult {
  readonly rounds: number
  /** Writes that were flushed before a kill, in all rounds. */
  readonly flushed: number
}

/**
 * @param options of `vdiskfs create`
 * @throws where something is lost
 */
export async function kills(
  t: TestCase,
  format: string,
  rounds: number,
  options: readonly string[] = [],
): Promise<KillResult> {
  const image = join(temporaryFolder(t), `disk.${format}`)
  vdiskfsMust(['create', '-q', '-f', format, ...options, image, SIZE])
  // Each block: what it holds at least, and at most.
  const safe = new Uint32Array(BLOCKS)
  const begun = new Uint32Array(BLOCKS)
  let flushed = 0
  for (let round = 0; round < rounds; round++) {
    flushed += await oneRound(t, image, format, round, safe, begun)
    verify(t, image, format, safe, begun)
  }
  return { rounds, flushed }
}

/**
 * Ends a server in the middle of verified writes, in another way than by killing it: it has to end well.
 * @param end ends the server or the writer. It must not block: what the writer tells is listened to meanwhile
 * @throws where something is lost, or the image was not closed
 */
export async function endUnderLoad(t: TestCase, format: string, end: End): Promise<number> {
  const image = join(temporaryFolder(t), `disk.${format}`)
  vdiskfsMust(['create', '-q', '-f', format, image, SIZE])
  const safe = new Uint32Array(BLOCKS)
  const begun = new Uint32Array(BLOCKS)
  const flushed = await oneRound(t, image, format, 0, safe, begun, end)
  await until('the server has ended', () => !listed().some((entry) => entry.image === image))
  const { findings } = checkImage(image, { format })
  if (findings.length > 0) throw new Error(`${format}: it was not closed: ${findings[0]!.message}`)
  verify(t, image, format, safe, begun)
  return flushed
}

async function oneRound(
  t: TestCase,
  image: string,
  format: string,
  round: number,
  safe: Uint32Array,
  begun: Uint32Array,
  end: End = ({ pid }) => process.kill(pid, 'SIGKILL'),
): Promise<number> {
  const mount = mountImage(t, image, ['--format', format])
  safe.fill(0)
  begun.fill(0)
  let flushed = 0
  let isFlushed = () => {}
  const first = new Promise<void>((resolve) => {
    isFlushed = resolve
  })
  const child = fork(WRITER, [mount.raw, String(BLOCKS), String(round + 1)], { stdio: 'ignore' })
  child.on('message', (message: Message) => {
    if (message.begun) begun[message.begun[0]] = message.begun[1]
    for (const [block, number] of message.safe ?? []) {
      safe[block] = number
      flushed++
    }
    if (flushed > 0) isFlushed()
  })
  const ended = new Promise((resolve) => child.once('close', resolve))
  // However slow the machine is: not before something is flushed.
  await Promise.race([first, ended])
  await sleep(Math.random() * LONGEST_MS)
  await end(mount, child.pid!)
  await ended
  vdiskfs(['umount', mount.mountpoint])
  return flushed
}

/** The next mount shows it, and a check of the closed image finds nothing worse than leaks. */
function verify(t: TestCase, image: string, format: string, safe: Uint32Array, begun: Uint32Array): void {
  const mount = mountImage(t, image, ['--format', format])
  const fd = openSync(mount.raw, 'r')
  const bytes = Buffer.alloc(BLOCK)
  try {
    for (let block = 0; block < BLOCKS; block++) {
      if (begun[block] === 0) continue
      readSync(fd, bytes, 0, BLOCK, block * BLOCK)
      // Of earlier rounds there may be something where nothing was flushed in this one.
      const wrong = safe[block] === 0 ? undefined : wrongWith(bytes, block, safe[block]!, begun[block]!)
      if (wrong !== undefined) throw new Error(`${format}: ${wrong}`)
    }
  } finally {
    closeSync(fd)
  }
  mount.umount()
  const { corruptions, findings } = checkImage(image, { repair: 'all', format })
  const left = findings.filter(({ severity, repaired }) => severity === 'corruption' && !repaired)
  if (corruptions > 0 && left.length > 0) throw new Error(`${format}: after a kill and a mount: ${left[0]!.message}`)
}
