/** A line on the terminal that says how far something is, how fast it goes, and how long it will take. */

import type { CopyProgress } from '../image/convert/run.js'
import { formatSize } from '../util/sizes.js'
import type { Arguments } from './arguments.js'
import type { Io } from './io.js'

/** No bar for what is done in so short a time. */
const QUIET_MS = 300
const INTERVAL_MS = 200
const DEFAULT_COLUMNS = 80
const BAR = 20
/** The rate is that of about the last so many ms. */
const RATE_MS = 4000

/** `1:02:03` or `4:05`. */
export function formatTime(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds))
  const two = (value: number) => String(value).padStart(2, '0')
  const minutes = Math.floor(whole / 60) % 60
  const hours = Math.floor(whole / 3600)
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`
}

/** @param rate bytes a second */
export function progressLine({ copied, total, position, size }: CopyProgress, rate: number): string {
  const part = total === undefined ? position / Math.max(1, size) : total === 0 ? 1 : Math.min(1, copied / total)
  const filled = Math.floor(part * BAR)
  const facts = [
    `${(100 * part).toFixed(0).padStart(3)}% [${'#'.repeat(filled).padEnd(BAR, '.')}]`,
    total === undefined ? formatSize(copied) : `${formatSize(copied)} of ${formatSize(total)}`,
  ]
  if (rate > 0) facts.push(`${formatSize(Math.round(rate))}/s`)
  if (rate > 0 && total !== undefined) facts.push(`${formatTime((total - copied) / rate)} left`)
  return facts.join('  ')
}

/** A bar where there is a terminal to show it on, or where it is asked for. */
export function progressBar(args: Arguments, io: Io): ProgressBar | undefined {
  const shown = !args.has('quiet') && (args.has('progress') || io.errColumns !== undefined)
  return shown ? new ProgressBar(io) : undefined
}

export class ProgressBar {
  readonly #io: Io
  readonly #began = Date.now()
  #shown = 0
  #samples: { readonly time: number; readonly copied: number }[] = []
  #drawn = false

  constructor(io: Io) {
    this.#io = io
  }

  show(progress: CopyProgress): void {
    const now = Date.now()
    if (now - this.#began < QUIET_MS || now - this.#shown < INTERVAL_MS) return
    this.#shown = now
    this.#draw(progressLine(progress, this.#rate(now, progress.copied)))
  }

  /** For work of which only the place on the disk is known. */
  showPosition(position: number, size: number): void {
    this.show({ copied: position, total: size, position, size })
  }

  #rate(time: number, copied: number): number {
    this.#samples.push({ time, copied })
    while (this.#samples.length > 2 && time - this.#samples[0]!.time > RATE_MS) this.#samples.shift()
    const first = this.#samples.length > 1 ? this.#samples[0]! : { time: this.#began, copied: 0 }
    return (1000 * (copied - first.copied)) / Math.max(1, time - first.time)
  }

  #draw(line: string): void {
    const columns = (this.#io.errColumns ?? DEFAULT_COLUMNS) - 1
    this.#io.err(`\r${line.slice(0, columns).padEnd(columns)}`)
    this.#drawn = true
  }

  /** Takes the line away. */
  end(): void {
    if (this.#drawn) this.#draw('')
    if (this.#drawn) this.#io.err('\r')
    this.#drawn = false
  }
}
