/** Temporary folders that end with the test, whatever its outcome. */

import { mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** What the helpers need of a test: tap's `t` is one. */
export interface Teardown {
  teardown(work: () => unknown): unknown
}

/** A new, empty folder, by its real path. It and all in it is removed when the test ends. */
export function temporaryFolder(t: Teardown): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'vdiskfs-test-')))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}
