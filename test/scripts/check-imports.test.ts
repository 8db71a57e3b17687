// The import check is only worth something if it fails where it should: each rule against a tree that breaks it.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const SCRIPT = new URL('../../../scripts/check-imports.mjs', import.meta.url)
const MANIFEST = JSON.stringify({ dependencies: { koffi: '1', yargs: '1', debug: '1' } })

const { violations }: { violations(root: string): string[] } = await import(SCRIPT.href)

/** Makes a project of these files for the length of a call. */
function inProject<T>(files: Record<string, string>, look: (root: string) => T): T {
  const root = mkdtempSync(join(tmpdir(), 'check-imports-'))
  try {
    for (const [path, text] of Object.entries({ 'package.json': MANIFEST, ...files })) {
      mkdirSync(dirname(join(root, path)), { recursive: true })
      writeFileSync(join(root, path), text)
    }
    return look(root)
  } finally {
    rmSync(root, { recursive: true })
  }
}

/** What the check finds in a project of these files. */
const check = (files: Record<string, string>): string[] => inProject(files, violations)

t.test('as a program it prints what it finds, and fails', async (t) => {
  const run = (root: string) => spawnSync(process.execPath, [fileURLToPath(SCRIPT), root], { encoding: 'utf8' })
  const broken = inProject({ 'lib/util/a.ts': "import '../cli/main.js'\n" }, run)
  t.equal(broken.status, 1)
  t.equal(broken.stderr, 'lib/util/a.ts:1: util may not import from cli (../cli/main.js)\n')
  const sound = inProject({ 'lib/cli/a.ts': "import '../util/sizes.js'\n" }, run)
  t.equal(sound.status, 0)
  t.equal(sound.stderr, '')
})

t.test('a tree that keeps the rules passes', async (t) => {
  const found = check({
    'bin/vdiskfs.js': "#!/usr/bin/env node\nimport { main } from '../dist/cli/main.js'\nmain()\n",
    'lib/index.ts': "export { open } from './image/image.js'\n",
    'lib/cli/main.ts':
      "import yargs from 'yargs'\nimport { mount } from '../mount/mount.js'\nimport { open } from '../index.js'\n",
    'lib/mount/mount.ts': "import * as fs from 'node:fs'\nimport type { T } from '../transports/transport.js'\n",
    'lib/metadata/metadata.ts': "import type { FileRef } from '../formats/driver.js'\nimport debug from 'debug'\n",
    'lib/formats/vhd/driver.ts':
      "import { Region } from '../../metadata/metadata.js'\nimport { x } from './footer.js'\n",
    'lib/formats/registry.ts': "import { vhd } from './vhd/format.js'\n",
    'lib/native/libc.ts': "import koffi from 'koffi'\n",
    'lib/transports/kernel/loop.ts': "new Worker(new URL('./worker.js', import.meta.url))\n",
  })
  t.strictSame(found, [])
})

const BROKEN: [rule: string, path: string, text: string, found: string][] = [
  [
    'an upward import',
    'lib/storage/file.ts',
    "// why\n\nimport { Image } from '../image/image.js'\n",
    'lib/storage/file.ts:3: storage may not import from image (../image/image.js)',
  ],
  [
    'an upward import of types',
    'lib/storage/file.ts',
    "import type { Image } from '../image/image.js'\n",
    'lib/storage/file.ts:1: storage may not import from image (../image/image.js)',
  ],
  [
    'an import over several lines',
    'lib/image/image.ts',
    "import {\n  a,\n  b as c,\n} from '../mount/mount.js'\n",
    'lib/image/image.ts:1: image may not import from mount (../mount/mount.js)',
  ],
  [
    'a re-export',
    'lib/util/sizes.ts',
    "export * from '../storage/file.js'\n",
    'lib/util/sizes.ts:1: util may not import from storage (../storage/file.js)',
  ],
  [
    'a dynamic import',
    'lib/formats/raw.ts',
    "export async function f() {\n  return await import('../cli/main.js')\n}\n",
    'lib/formats/raw.ts:2: formats may not import from cli (../cli/main.js)',
  ],
  [
    'a worker above',
    'lib/image/image.ts',
    "new Worker(new URL('../mount/worker.js', import.meta.url))\n",
    'lib/image/image.ts:1: image may not import from mount (../mount/worker.js)',
  ],
  [
    'a value where only types may be named',
    'lib/metadata/metadata.ts',
    "import { type FileRef, Kind } from '../formats/driver.js'\n",
    'lib/metadata/metadata.ts:1: metadata may only `import type` from formats (../formats/driver.js)',
  ],
  [
    'one format in another',
    'lib/formats/vhdx/driver.ts',
    "import { x } from '../vhd/footer.js'\n",
    'lib/formats/vhdx/driver.ts:1: formats/vhdx may know nothing of formats/vhd (../vhd/footer.js)',
  ],
  [
    'koffi outside native',
    'lib/storage/file.ts',
    "import koffi from 'koffi'\n",
    'lib/storage/file.ts:1: only lib/native/ may import koffi (koffi)',
  ],
  [
    'yargs outside cli',
    'lib/mount/mount.ts',
    "import yargs from 'yargs/helpers'\n",
    'lib/mount/mount.ts:1: only lib/cli/ may import yargs (yargs/helpers)',
  ],
  [
    'fuse-native outside its transport',
    'lib/transports/kernel/session.ts',
    "import fuse from 'fuse-native'\n",
    'lib/transports/kernel/session.ts:1: only lib/transports/fuse-native/ may import fuse-native (fuse-native)',
  ],
  [
    'a package that is not declared',
    'lib/util/log.ts',
    "import chalk from 'chalk'\n",
    'lib/util/log.ts:1: chalk is not among the dependencies of package.json (chalk)',
  ],
  [
    'a file outside lib',
    'lib/cli/main.ts',
    "import { x } from '../../test/x.js'\n",
    'lib/cli/main.ts:1: ../../test/x.js is outside lib/ (../../test/x.js)',
  ],
  [
    'a folder that is no layer',
    'lib/misc/x.ts',
    "import { x } from '../util/sizes.js'\n",
    'lib/misc/x.ts:1: lib/misc has no place in the order of layers (../util/sizes.js)',
  ],
  [
    'the shim past the command line',
    'bin/vdiskfs.js',
    "import { open } from '../dist/image/image.js'\n",
    'bin/vdiskfs.js:1: bin may only import from dist/cli (../dist/image/image.js)',
  ],
]

for (const [rule, path, text, found] of BROKEN)
  t.test(`fails on ${rule}`, async (t) => {
    t.strictSame(check({ [path]: text }), [found])
  })

t.test('comments are not imports', async (t) => {
  const text =
    "// import { a } from '../cli/a.js'\n/**\n * import('../cli/a.js')\n */\n// see import('../cli/b.js')\nexport const a = 1\n"
  t.strictSame(check({ 'lib/util/a.ts': text }), [])
})
