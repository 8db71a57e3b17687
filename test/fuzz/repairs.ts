/**
 * Repairs of images with many faults: three of them end in one without faults, in QEMU's eyes too, and what could be read
 * before can be read behind them, as it was.
 */

import { spawnSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Finding, Format } from '../../lib/formats/driver.js'
import { type Counts, check, Find, open } from './exercise.js'
import { PagedStorage, type Pages } from './pages.js'
import type { Seed } from './seeds.js'

const ROUNDS = 3
/** What of a disk is compared, in bytes, and how much of it at once. */
const COMPARED = 2 ** 20
const PIECE = 4096
/** The largest that a seed has. */
const CLUSTER = 65536
/** Bytes in which the disk may change where it reads as the image's own tables, which a repair changes. */
const MOST_METADATA = 64

/** @throws Find */
export function repairAll(seed: Seed, format: Format, files: readonly Pages[], counts: Counts, qemu?: Qemu): void {
  const storages = (readOnly: boolean) =>
    files.map((pages, i) => new PagedStorage(pages, seed.files[i]!.name, readOnly || i > 0))
  const count = (what: string) => {
    counts[what] = (counts[what] ?? 0) + 1
  }
  const before = contentOf(storages(true))
  const rounds: Finding[][] = []
  for (let round = 0; round < ROUNDS; round++) {
    const findings = check(format, storages(false)[0]!, 'all', counts)
    if (!findings) {
      count('repair gives up')
      return
    }
    rounds.push(findings)
    const left = check(format, storages(true)[0]!, 'none', counts)
    if (!left) throw new Find(`it can no longer be checked behind a repair:${story(rounds)}`)
    // Where something cannot be mended, what depends on it is left as well, and told of.
    const told = new Set(findings.filter(({ repaired }) => !repaired).map(({ what, offset }) => `${what} ${offset}`))
    const fresh = left.find(
      ({ severity, repairable, what, offset }) =>
        severity === 'corruption' && repairable && !told.has(`${what} ${offset}`),
    )
    if (!fresh) break
    if (round === ROUNDS - 1) throw new Find(`behind ${ROUNDS} repairs: ${fresh.message}${story(rounds)}`)
  }
  const more = check(format, storages(false)[0]!, 'all', counts)?.find(
    ({ severity, repaired }) => repaired && severity === 'corruption',
  )
  if (more) throw new Find(`one more repair: ${more.message}${story(rounds)}`)
  const after = contentOf(storages(true))
  const lost = before && !after
  if (lost) throw new Find(`it could be opened before its repair, and cannot now:${story(rounds)}`)
  count(before ? 'could be read' : 'could not be opened')
  if (before && after) compare(seed, before, after, rounds)
  const clean = !check(format, storages(true)[0]!, 'none', counts)?.some(({ severity }) => severity !== 'warning')
  count(clean ? 'clean' : 'left with faults')
  if (clean && after && qemu) {
    const wrong = qemu.check(files[0]!)
    count(wrong === undefined ? 'clean for QEMU' : 'QEMU refuses')
    if (wrong) throw new Find(`it is clean, and QEMU says ${wrong}:${story(rounds)}`)
  }
}

function story(rounds: readonly Finding[][]): string {
  return rounds
    .flatMap((findings, i) =>
      findings.slice(0, 8).map(({ message, repaired }) => `\n  ${i + 1} ${repaired ? 'mended' : 'left'}: ${message}`),
    )
    .join('')
}

/** Pieces of the disk; undefined for those that cannot be read. Undefined: it cannot be opened. */
function contentOf(storages: PagedStorage[]): (Buffer | undefined)[] | undefined {
  let image: ReturnType<typeof open>
  try {
    image = open(storages, true)
  } catch {
    return undefined
  }
  const pieces: (Buffer | undefined)[] = []
  for (let at = 0; at < Math.min(COMPARED, image.size); at += PIECE) {
    const bytes = Buffer.alloc(Math.min(PIECE, image.size - at))
    try {
      image.read(bytes, 0, bytes.length, at)
      pieces.push(bytes)
    } catch {
      pieces.push(undefined)
    }
  }
  image.close()
  return pieces
}

type Content = NonNullable<ReturnType<typeof contentOf>>

function compare(seed: Seed, before: Content, after: Content, rounds: readonly Finding[][]): void {
  for (const [i, bytes] of before.entries()) {
    const now = after[i]
    if (!bytes || now?.equals(bytes)) continue
    const place = i * PIECE
    const here = rounds.flat().filter(({ guest }) => guest !== undefined && guest <= place && place < guest + CLUSTER)
    if (now && here.some(({ what }) => what === 'overlap') && differing(bytes, now) <= MOST_METADATA) continue
    // What lies behind the end of the file is zeros, and noise where those are decrypted.
    if (now && seed.name.includes('encrypt') && here.some(({ what }) => what === 'l2-entry')) continue
    const what = now ? 'reads as something else' : 'cannot be read'
    throw new Find(`byte ${place} of the disk could be read before its repair, and ${what} now:${story(rounds)}`)
  }
}

function differing(a: Uint8Array, b: Uint8Array): number {
  let count = 0
  for (const [i, byte] of a.entries()) if (byte !== b[i]) count++
  return count
}

/** Asks qemu-img about images, as files in a folder. */
export class Qemu {
  readonly #folder: string
  readonly #format: string

  constructor(folder: string, format: string) {
    this.#folder = folder
    this.#format = format
  }

  /** @returns what is wrong; empty: it cannot say; undefined: nothing */
  check(pages: Pages): string | undefined {
    const path = join(this.#folder, 'repaired')
    pages.toFile(path)
    try {
      const { status, stdout, stderr } = spawnSync('qemu-img', ['check', '-f', this.#format, path], {
        encoding: 'utf8',
      })
      if (status === 0) return undefined
      // 2 and 3: corruptions and leaks. It does not open what it does not know, or deems too large.
      return status === 2 || status === 3 ? `${stdout}${stderr}`.trim() : ''
    } finally {
      rmSync(path, { force: true })
    }
  }
}
