/** Which process is which: a pid alone is reused, a pid with the moment at which it started is not. */

import { readFileSync } from 'node:fs'

/** Fields of /proc/PID/stat are counted from 1; those behind the command's name begin with number 3. */
const STATE_FIELD = 3
const START_TIME_FIELD = 22

/**
 * When a process started, in clock ticks since the machine did (`starttime` of proc(5)).
 * @returns undefined where there is no such process, or only its zombie.
 */
export function startTime(pid: number): number | undefined {
  let stat: string
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  // The name is in parentheses and may hold anything, blanks and parentheses too.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined
  return Number(fields[START_TIME_FIELD - STATE_FIELD])
}

/** A process that can be told from a later one with the same pid. */
export interface ProcessIdentity {
  readonly pid: number
  readonly startTime: number
}

export function thisProcess(): ProcessIdentity {
  return { pid: process.pid, startTime: startTime(process.pid) ?? 0 }
}

export function isAlive({ pid, startTime: started }: ProcessIdentity): boolean {
  return startTime(pid) === started
}

/** The command's name and pid, for messages: `bash (pid 17)`. */
export function describeProcess(pid: number): string {
  try {
    return `${readFileSync(`/proc/${pid}/comm`, 'utf8').trim()} (pid ${pid})`
  } catch {
    return `pid ${pid}`
  }
}
