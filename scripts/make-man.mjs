// Writes share/man/vdiskfs.1 and the completion scripts from what was built: part of `npm run build`.

import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { pages } from '../dist/cli/pages.js'

for (const { path, text } of await pages()) {
  const file = fileURLToPath(new URL(`../share/${path}`, import.meta.url))
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, text)
}
