/** What a check tells, and whether it mends what it tells. */

import type { CheckContext, Finding, Severity } from '../driver.js'
import type { FooterFault, JudgedFooter } from './check-footer.js'
import type { VhdRepair } from './repair.js'

/** A check of a disk with blocks, whose footer was looked at. */
export interface GrowingCheck {
  readonly context: CheckContext
  readonly judged: JudgedFooter
  /** Bytes of the disk. */
  readonly size: number
  readonly report: VhdReport
  readonly repair: VhdRepair
}

export class VhdReport {
  /** Everything that can be mended without guessing is mended. Turned off where the image contradicts itself. */
  all: boolean
  /** Something is corrupt and stays so. */
  corrupt = false
  readonly #context: CheckContext

  constructor(context: CheckContext) {
    this.#context = context
    this.all = context.repair === 'all'
  }

  /**
   * @param repairable it can be mended without guessing
   * @param repaired it is mended now; by default where all is
   */
  add(
    severity: Severity,
    what: string,
    message: string,
    repairable: boolean,
    more: Partial<Finding> = {},
    repaired = repairable && this.all,
  ): boolean {
    this.#context.found({ severity, what, message, repairable, repaired, ...more })
    if (severity === 'corruption') this.corrupt ||= !repaired
    return repaired
  }

  /** @param confirmed what is right is known, or the rest of the image says so */
  addFooter({ severity, what, message, certain, mend: _, ...more }: FooterFault, confirmed: boolean): void {
    const able = certain && confirmed
    const hint = able || !certain ? '' : '; the rest of the image does not confirm its fields, so it is not repaired'
    // What can only be an interrupted change is mended with leaks, as it is when the image is opened for writing.
    const repaired = able && (this.all || (severity === 'warning' && this.#context.repair === 'leaks'))
    this.add(severity, what, message + hint, able, more, repaired)
  }

  /** A fault with which nothing else can be looked at. */
  stop(what: string, message: string, footers: readonly FooterFault[], more: Partial<Finding> = {}): void {
    this.all = false
    for (const fault of footers) this.addFooter(fault, false)
    this.add('corruption', what, `${message}; it cannot be repaired without guessing`, false, more)
  }
}
