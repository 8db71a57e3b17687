// Writes share/man/vdiskfs.1 and the completion scripts from what was built: part of `npm run build`.
//   make-man.mjs [ROOT]

import { mkdirSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = resolve(process.argv[2] ?? fileURLToPath(new URL('..', import.meta.url)))
const built = (path) => import(pathToFileURL(join(root, 'dist', 'cli', path)).href)
const { COMMANDS } = await built('commands.js')
const { manPage } = await built('man.js')
const { version } = await built('main.js')
const { SHELLS } = await built('completion.js')

const details = new Map()
for (const { name, load } of COMMANDS) details.set(name, (await load()).details?.() ?? '')

function write(folder, name, text) {
  mkdirSync(join(root, 'share', folder), { recursive: true })
  writeFileSync(join(root, 'share', folder, name), text)
}
write('man', 'vdiskfs.1', manPage(version(), details))
for (const [shell, make] of Object.entries(SHELLS)) write('completion', `vdiskfs.${shell}`, make())
