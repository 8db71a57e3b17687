// Imports run in one direction only (ARCHITECTURE.md), and each foreign package has one place that may use it. This
// looks at every import under lib/ and bin/, names file and line of those that are against it, and fails.
//   check-imports.mjs [ROOT]

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join, posix, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Which folders of lib/ the files of a folder may import from, beside their own. */
const FOLDERS = {
  util: [],
  native: ['util'],
  storage: ['native', 'util'],
  metadata: ['storage', 'native', 'util'],
  formats: ['metadata', 'storage', 'native', 'util'],
  image: ['formats', 'metadata', 'storage', 'native', 'util'],
  partitions: ['util'],
  transports: ['image', 'formats', 'metadata', 'storage', 'native', 'util'],
  mount: ['transports', 'partitions', 'image', 'formats', 'metadata', 'storage', 'native', 'util'],
  cli: ['index.ts', 'mount', 'transports', 'partitions', 'image', 'formats', 'metadata', 'storage', 'native', 'util'],
  'index.ts': ['image', 'formats', 'metadata', 'storage', 'native', 'util'],
}

/** Folders whose types alone may be named, by `import type`: the cache speaks of a format's files and nothing else. */
const TYPES_ONLY = { metadata: ['formats'] }

/** Folders whose subfolders know nothing of each other: a format, a transport. */
const APART = ['formats', 'transports']

/** The packages that only one place may use; other dependencies of package.json are for all. */
const PACKAGES = {
  koffi: 'native/',
  'fuse-native': 'transports/fuse-native/',
  yargs: 'cli/',
  'fast-xml-parser': 'formats/parallels/',
  '@bokuweb/zstd-wasm': 'formats/qcow2/',
}

/** `import … from 'x'`, `export … from 'x'`, `import 'x'` at the beginning of a line, over several lines too. */
const STATEMENT = /^[ \t]*(?:import|export)\s+(type\s+)?(?:[\w$*\s{},]+?\s+from\s+)?(['"])([^'"\n]+)\2/gm
/** `import('x')`, `require('x')`, and a worker's `new URL('x', import.meta.url)`. */
const EXPRESSION =
  /\b(?:import|require|require\.resolve)\(\s*(['"])([^'"\n]+)\1|new URL\(\s*(['"])([^'"\n]+)\3,\s*import\.meta\.url/g
const COMMENT_LINE = /^\s*(?:\/\/|\/?\*)/

/** Every import of a source text, as {line, target, typeOnly}. */
function importsOf(source) {
  const found = []
  const lineOf = (index) => source.slice(0, index).split('\n').length
  for (const match of source.matchAll(STATEMENT)) {
    const start = match.index + match[0].search(/\S/)
    found.push({ line: lineOf(start), target: match[3], typeOnly: match[1] !== undefined })
  }
  for (const match of source.matchAll(EXPRESSION)) {
    const line = lineOf(match.index)
    if (COMMENT_LINE.test(source.split('\n')[line - 1])) continue
    found.push({ line, target: match[2] ?? match[4], typeOnly: false })
  }
  return found
}

/** What is wrong with a relative import, or undefined. Both paths are relative to lib/, with `/`. */
function wrongInside(from, to, typeOnly) {
  const [folder, ...rest] = from.split('/')
  const [target, ...targetRest] = to.split('/')
  if (!(folder in FOLDERS)) return `lib/${folder} has no place in the order of layers`
  if (target === folder) {
    const apart = APART.includes(folder) && rest.length > 1 && targetRest.length > 1 && rest[0] !== targetRest[0]
    return apart ? `${folder}/${rest[0]} may know nothing of ${folder}/${targetRest[0]}` : undefined
  }
  if (FOLDERS[folder].includes(target)) return undefined
  if (typeOnly && TYPES_ONLY[folder]?.includes(target)) return undefined
  if (TYPES_ONLY[folder]?.includes(target)) return `${folder} may only \`import type\` from ${target}`
  return `${folder} may not import from ${target}`
}

/** What is wrong with the import of a package, or undefined. */
function wrongPackage(from, name, dependencies) {
  if (PACKAGES[name] && !from.startsWith(PACKAGES[name])) return `only lib/${PACKAGES[name]} may import ${name}`
  return dependencies.has(name) ? undefined : `${name} is not among the dependencies of package.json`
}

function filesUnder(folder) {
  if (!existsSync(folder)) return []
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.[cm]?[jt]s$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort()
}

/** All violations under a project's root, each `file:line: text`. */
export function violations(root) {
  const manifest = join(root, 'package.json')
  const { dependencies = {}, optionalDependencies = {} } = existsSync(manifest)
    ? JSON.parse(readFileSync(manifest, 'utf8'))
    : {}
  const known = new Set([...Object.keys(dependencies), ...Object.keys(optionalDependencies)])
  const found = []
  for (const file of filesUnder(join(root, 'lib'))) {
    const from = relative(join(root, 'lib'), file).replaceAll('\\', '/')
    for (const { line, target, typeOnly } of importsOf(readFileSync(file, 'utf8'))) {
      if (target.startsWith('node:')) continue
      const name = target.split('/', target.startsWith('@') ? 2 : 1).join('/')
      const inside = posix.join(posix.dirname(from), target).replace(/\.js$/, '.ts')
      let wrong
      if (!target.startsWith('.')) wrong = wrongPackage(from, name, known)
      else if (inside.startsWith('..')) wrong = inside === '../package.json' ? undefined : `${target} is outside lib/`
      else wrong = wrongInside(from, inside, typeOnly)
      if (wrong) found.push(`lib/${from}:${line}: ${wrong} (${target})`)
    }
  }
  for (const file of filesUnder(join(root, 'bin')))
    for (const { line, target } of importsOf(readFileSync(file, 'utf8')))
      if (!target.startsWith('node:') && !target.startsWith('../dist/cli/'))
        found.push(`bin/${relative(join(root, 'bin'), file)}:${line}: bin may only import from dist/cli (${target})`)
  return found
}

function main() {
  const root = resolve(process.argv[2] ?? fileURLToPath(new URL('..', import.meta.url)))
  const found = violations(root)
  for (const text of found) console.error(text)
  if (found.length > 0) process.exitCode = 1
  else console.log('Imports run in one direction only.')
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main()
