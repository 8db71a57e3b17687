/** A row of inputs, each made by its number and the seed alone, one after the other in the calling thread. */

import { readFileSync, writeFileSync } from 'node:fs'
import { findFormat } from '../../lib/formats/registry.js'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import { Folder } from './disk.js'
import { type Counts, exercise, Find } from './exercise.js'
import { mutate, pick, type Random } from './mutate.js'
import type { Pages } from './pages.js'
import { Qemu, repairAll } from './repairs.js'
import { type Seed, seedsOf } from './seeds.js'

/** One in so many inputs is tried as files too. */
const AS_FILES = 16
const TOP_CHANGED = 0.8
const MOST_SECONDS = 2
/** How often an image is checked where it is repaired. */
export const CHECKS = 8
/** Chance of one more mutation where an image is to have many faults. */
const MANY = 0.8
const MOST_MEMORY_KIB = 256 * 1024

export interface Input {
  readonly seed: Seed
  readonly files: readonly Pages[]
  /** What was done to them. */
  readonly story: string
  readonly random: Random
}

export class Campaign {
  readonly counts: Counts = {}
  readonly #seeds: readonly Seed[]
  readonly #format: string
  readonly #seed: number
  readonly #repairs: boolean
  readonly #folder = new Folder()

  /** @param repairs only repairs are tried, of images with many faults */
  constructor(format: string, seed: number, repairs = false) {
    this.#format = format
    this.#seed = seed
    this.#repairs = repairs
    this.#seeds = seedsOf(format).filter(({ bundle }) => !repairs || !bundle)
  }

  end(): void {
    this.#folder.remove()
  }

  /** Makes the input of a number. */
  input(number: number): Input {
    const random = randomFrom(this.#seed * 1_000_003 + number)
    for (let i = 0; i < 3; i++) random()
    const seed = pick(this.#seeds, random)
    const files = seed.files.map(({ pages }) => pages.copy())
    const changed = random() < TOP_CHANGED ? 0 : Math.floor(random() * files.length)
    const more = this.#repairs ? MANY : undefined
    const done = mutate(files[changed]!, seed.files[changed]!.anatomy, random, more)
    const story = `${this.#format}, seed ${this.#seed}, input ${number}: ${seed.name}; file ${changed}: ${done.join('; ')}`
    return { seed, files, story, random }
  }

  /** Tries one input. @returns what is wrong, or undefined */
  run(number: number): string | undefined {
    const { seed, files, story, random } = this.input(number)
    // Forgets how much memory this process once had.
    writeFileSync('/proc/self/clear_refs', '5')
    const before = peak()
    const started = process.cpuUsage()
    try {
      if (this.#repairs) this.#repair(seed, files, number)
      else if (!seed.bundle) exercise(seed, files, random, this.counts)
      if (!this.#repairs && (seed.bundle || number % AS_FILES === 0))
        this.#folder.exercise(seed, files, random, this.counts)
    } catch (error) {
      if (error instanceof Find) return `${story}\n${error.message}`
      return `${story}\nthe test itself failed: ${(error as Error).stack}`
    }
    const { user, system } = process.cpuUsage(started)
    const most = this.#repairs ? MOST_SECONDS * CHECKS : MOST_SECONDS
    if (user + system > most * 1e6) return `${story}\nit took ${(user + system) / 1e6} s`
    const grown = peak() - before
    if (grown > MOST_MEMORY_KIB) return `${story}\nit took ${Math.round(grown / 1024)} MiB`
    return undefined
  }

  #repair(seed: Seed, files: readonly Pages[], number: number): void {
    const qemu = number % AS_FILES === 0 && this.#format === 'qcow2' ? new Qemu(this.#folder.path, 'qcow2') : undefined
    repairAll(seed, findFormat(this.#format), files, this.counts, qemu)
  }
}

/** KiB: the most that this process had in memory since it was forgotten. */
function peak(): number {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'latin1'))![1])
}
