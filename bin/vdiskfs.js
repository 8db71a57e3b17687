#!/usr/bin/env node
// The command as it is installed. What it runs is TypeScript, built to dist/.
import { existsSync } from 'node:fs'

const entry = new URL('../dist/cli/main.js', import.meta.url)
if (existsSync(entry)) {
  const { main, processIo } = await import(entry.href)
  process.exitCode = await main(process.argv.slice(2), processIo())
} else {
  process.stderr.write('vdiskfs: dist/cli/main.js is missing: build it first with npm run build\n')
  process.exitCode = 1
}
