/** The files that the package carries for man(1) and for shells, as texts: the build writes them to share/. */

import { COMMANDS } from './commands.js'
import { SHELLS } from './completion.js'
import { version } from './main.js'
import { manPage } from './man.js'

export interface Page {
  /** Relative to share/. */
  readonly path: string
  readonly text: string
}

export async function pages(): Promise<Page[]> {
  const details = new Map<string, string>()
  for (const { name, load } of COMMANDS) details.set(name, (await load()).details?.() ?? '')
  const completions = Object.entries(SHELLS).map(([shell, make]) => ({
    path: `completion/vdiskfs.${shell}`,
    text: make(),
  }))
  return [{ path: 'man/vdiskfs.1', text: manPage(version(), details) }, ...completions]
}
