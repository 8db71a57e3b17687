/** Fuzzes a format in a process of its own, so that neither a hang nor a crash of it ends the one who asks. */

import { fork } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CHECKS } from './campaign.js'
import type { Counts } from './exercise.js'

const WORKER = fileURLToPath(new URL('./worker.js', import.meta.url))
/** Seconds of processor time that one input may take. */
export const MOST_SECONDS = 2
/** Seconds that it may take if it only waits. */
const MOST_WAITING = 60
const TICKS_PER_SECOND = 100
const LOOK_MS = 250
/** MiB of heap. */
const HEAP = 512
/** Files in memory, where there are such: only what is done with them matters. */
const FAST = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()

export interface Outcome {
  readonly inputs: number
  readonly finds: readonly string[]
  readonly counts: Counts
}

interface Message {
  readonly begun?: number
  readonly wrong?: string
  readonly counts?: Counts
}

/** @param found is told of each find as it is made */
export async function fuzz(
  format: string,
  options: { inputs: number; seed: number; first?: number; repairs?: boolean; found?: (what: string) => void },
): Promise<Outcome> {
  const { inputs, seed, first = 0, repairs = false, found } = options
  const finds: string[] = []
  const counts: Counts = {}
  const folder = mkdtempSync(join(FAST, 'vdiskfs-test-'))
  const tell = (what: string) => {
    finds.push(what)
    found?.(what)
  }
  try {
    for (let next = first; next < first + inputs; ) next = await part(next)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
  return { inputs, finds, counts }

  /** One process. @returns the first input that it did not get to */
  function part(from: number): Promise<number> {
    const to = first + inputs
    const child = fork(WORKER, [format, seed, from, to, repairs ? 'repairs' : ''].map(String), {
      execArgv: [`--max-old-space-size=${HEAP}`],
      env: { ...process.env, TMPDIR: folder },
      stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
    })
    let err = ''
    child.stderr!.on('data', (text) => {
      err += text
    })
    let current = -1
    let since = { used: 0, at: 0 }
    let ended = false
    let suspected = -1
    let killed = ''
    const watch = setInterval(() => {
      if (current < 0) return
      const used = (secondsOf(child.pid!) - since.used) / (repairs ? CHECKS : 1)
      // Looked at twice: on a busy machine what it says may wait to be read.
      const suspect = used > MOST_SECONDS && suspected === current
      suspected = used > MOST_SECONDS ? current : -1
      if (suspect) killed = `it took more than ${MOST_SECONDS} s`
      else if (Date.now() - since.at > MOST_WAITING * 1000) killed = 'it hangs'
      if (killed) child.kill('SIGKILL')
    }, LOOK_MS)
    child.on('message', (message: Message) => {
      if (message.begun !== undefined) {
        current = message.begun
        since = { used: secondsOf(child.pid!), at: Date.now() }
      }
      if (message.wrong !== undefined) tell(message.wrong)
      if (message.counts) {
        ended = true
        for (const [name, count] of Object.entries(message.counts)) counts[name] = (counts[name] ?? 0) + count
      }
    })
    return new Promise((resolve, reject) => {
      child.on('error', reject)
      child.on('close', (code, signal) => {
        clearInterval(watch)
        if (ended) return resolve(to)
        if (current < 0) return reject(new Error(`the fuzzing process ended with ${code ?? signal}: ${err}`))
        tell(
          `${format}, seed ${seed}, input ${current}\n${killed || `the process ended with ${code ?? signal}: ${err}`}`,
        )
        resolve(current + 1)
      })
    })
  }
}

/** Processor time that a process has used, in seconds. */
function secondsOf(pid: number): number {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1]!.split(' ')
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND
  } catch {
    return 0
  }
}
