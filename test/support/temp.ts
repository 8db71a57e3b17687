/** Temporary folders that end with the test, whatever its outcome. */

import { mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** What the helpers need of a test: tap's `t` is one. */
export interface TestCase {
  teardown(work: () => unknown): unknown
  fail(message: string): unknown
}

/**
 * Does some work when the test ends, the newest first. Where it fails, the test does, and what is left is done all the
 * same: tap itself would leave out the rest.
 */
export function atEnd(t: TestCase, work: () => unknown): void {
  t.teardown(async () => {
    try {
      await work()
    } catch (error) {
      t.fail(`at the end of the test: ${error instanceof Error ? error.stack : error}`)
    }
  })
}

/** A new, empty folder, by its real path. It and all in it is removed when the test ends. */
export function temporaryFolder(t: TestCase): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'vdiskfs-test-')))
  atEnd(t, () => rmSync(folder, { recursive: true, force: true }))
  return folder
}
