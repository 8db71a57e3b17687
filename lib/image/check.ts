/** Checks an image and repairs it, whatever its format, without opening it as a disk: it may be too broken for that. */

import { realpathSync } from 'node:fs'
import type { CheckTotals, Finding, Repair } from '../formats/driver.js'
import { findFormat } from '../formats/registry.js'
import { openFile } from '../storage/file.js'
import { lockImage } from '../storage/lock.js'
import type { Storage } from '../storage/storage.js'
import { printable, VdiskError } from '../util/errors.js'
import { detectFormat, imageFile, lookForParent, openBeside, refuseTwice } from './chain.js'
import { Gate } from './gate.js'

/** More findings than this are counted and not kept. */
const MAX_FINDINGS = 10000

export interface CheckRequest {
  /** Default: found by looking at the content. */
  readonly format?: string | undefined
  /** Default `none`: the image is opened read-only. */
  readonly repair?: Repair
  /** False: it is read without a lock; what somebody writes meanwhile may look like errors. Not with `repair`. */
  readonly lock?: boolean
  readonly backingDirs?: readonly string[]
  readonly warn?: (message: string) => void
}

export interface CheckReport {
  readonly format: string
  /** Undefined: the format has nothing that can be checked. */
  readonly totals: CheckTotals | undefined
  /** The first of them. */
  readonly findings: readonly Finding[]
  readonly leaks: number
  readonly corruptions: number
  readonly warnings: number
  /** How many of the above are mended now. */
  readonly leaksFixed: number
  readonly corruptionsFixed: number
}

/**
 * Looks for faults in an image (not in its parents), and mends them where it is asked to.
 * @throws VdiskError where it cannot be checked: it is in use, no image, cannot be read
 */
export function checkImage(path: string, request: CheckRequest = {}): CheckReport {
  const repair = request.repair ?? 'none'
  const readOnly = repair === 'none'
  const { lock = true } = request
  if (!lock && !readOnly) throw new VdiskError('USAGE', 'an image cannot be repaired without a lock', { path })
  const warn = (message: string) => request.warn?.(printable(message))
  const file = imageFile(path)
  const storages: Storage[] = []
  const take = (storage: Storage, part?: string): Storage => {
    storages.push(storage)
    if (part !== undefined) refuseTwice(storages, part)
    if (lock && !lockImage(storage, { write: !readOnly }))
      warn(`${storage.path}: this file system has no locks; take care that nobody else writes to the image`)
    return storage
  }
  try {
    const storage = take(openFile(file, { readOnly }))
    const format = request.format === undefined ? detectFormat(storage) : findFormat(request.format)
    const gate = new Gate(file, request.backingDirs ?? [])
    const report = new Findings()
    const warnOf = (message: string) => warn(`${path}: ${message}`)
    const totals = format.check?.({
      storage,
      path: realpathSync(file),
      readOnly,
      repair,
      warn: warnOf,
      found: (finding) => report.add(finding),
      lookForParent: (request) => lookForParent({ path: file, storage, snapshot: undefined }, request, gate),
      openFile: (name, candidates, guesses) => ({
        index: storages.length,
        storage: take(openBeside(file, { name, candidates, guesses }, gate, { readOnly, warn: warnOf }), name),
      }),
    })
    if (!readOnly) for (const changed of storages) changed.sync()
    return { format: format.name, totals, ...report.result() }
  } finally {
    for (const storage of storages) storage.close()
  }
}

/** Counts what is found, and keeps some of it. */
class Findings {
  readonly #kept: Finding[] = []
  readonly #counts = { leak: 0, corruption: 0, warning: 0 }
  readonly #fixed = { leak: 0, corruption: 0, warning: 0 }

  add(finding: Finding): void {
    const { severity, repaired, count = 1 } = finding
    this.#counts[severity] += count
    if (repaired) this.#fixed[severity] += count
    if (this.#kept.length < MAX_FINDINGS) this.#kept.push({ ...finding, message: printable(finding.message) })
  }

  result(): Omit<CheckReport, 'format' | 'totals'> {
    return {
      findings: this.#kept,
      leaks: this.#counts.leak,
      corruptions: this.#counts.corruption,
      warnings: this.#counts.warning,
      leaksFixed: this.#fixed.leak,
      corruptionsFixed: this.#fixed.corruption,
    }
  }
}
