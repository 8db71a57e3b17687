// Joins the modules of lib/ into few files in dist/, from which a command starts in half the time: part of
// `npm run build`. Modules that something starts at keep their names; what they share is in dist/chunks/.

import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const lib = fileURLToPath(new URL('../lib/', import.meta.url))
const ENTRIES = [
  'index',
  'cli/main',
  'cli/mount-helper',
  'cli/pages',
  'mount/server-main',
  'mount/worker',
  'mount/loop-main',
  'image/convert/worker',
]

await build({
  entryPoints: ENTRIES.map((name) => `${lib}${name}.ts`),
  outbase: lib,
  outdir: fileURLToPath(new URL('../dist/', import.meta.url)),
  chunkNames: 'chunks/[name]-[hash]',
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  packages: 'external',
  logLevel: 'warning',
})
