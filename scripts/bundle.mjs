// Joins the modules of lib/ into few files in dist/, from which a command starts in half the time: part of
// `npm run build`. Modules that something starts at keep their names; what they share is in dist/chunks/. Packages stay
// what they are, but for yargs, which is joined too: by itself it takes longer to load than all of lib/.

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
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

const JOINED = 'yargs'
/** What yargs prints its help with. Ours is made by lib/cli/help.ts; these take most of the time of loading yargs. */
const UNUSED = ['cliui', 'string-width']
const UNUSED_SOURCE = `export default () => { throw new Error('yargs prints no help here') }`

const packages = {
  name: 'packages',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^[^./]/ }, ({ path, importer }) => {
      if (UNUSED.includes(path)) return { path, namespace: 'unused' }
      return importer.startsWith(lib) && path !== JOINED ? { external: true } : undefined
    })
    onLoad({ filter: /./, namespace: 'unused' }, () => ({ contents: UNUSED_SOURCE }))
  },
}

const { metafile } = await build({
  entryPoints: ENTRIES.map((name) => `${lib}${name}.ts`),
  outbase: lib,
  outdir: fileURLToPath(new URL('../dist/', import.meta.url)),
  chunkNames: 'chunks/[name]-[hash]',
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  minifyWhitespace: true,
  minifySyntax: true,
  lineLimit: 200,
  target: 'node20',
  plugins: [packages],
  metafile: true,
  logLevel: 'warning',
})

// Who distributes them distributes their licences.
const modules = fileURLToPath(new URL('../node_modules/', import.meta.url))
const names = Object.keys(metafile.inputs).flatMap(
  (path) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1] ?? [],
)
const licences = [...new Set(names)].sort().map((name) => {
  const { version, license } = JSON.parse(readFileSync(`${modules}${name}/package.json`, 'utf8'))
  return `${name} ${version} (${license})\n\n${licenceOf(`${modules}${name}/`)}`
})
writeFileSync(fileURLToPath(new URL('../dist/licences.txt', import.meta.url)), licences.join(`\n${'-'.repeat(80)}\n\n`))

function licenceOf(folder) {
  const file = readdirSync(folder).find((name) => /^licen[cs]e/i.test(name))
  if (file === undefined) throw new Error(`${folder} has no licence`)
  return readFileSync(`${folder}${file}`, 'utf8')
}
