// What the scripts say of themselves, and of what they do not know.

import { fileURLToPath } from 'node:url'
import t from 'tap'
import { run } from '../support/run.js'

const script = (name: string) => fileURLToPath(new URL(`../../../scripts/${name}`, import.meta.url))

for (const name of ['quickstart', 'test', 'crash', 'faults', 'fuzz', 'soak']) {
  t.test(`${name} --help`, async (t) => {
    const { code, out, err } = run(script(name), ['--help'])
    t.equal(err, '')
    t.equal(code, 0)
    t.match(out, new RegExp(`^\\S.*\n(.*\n)*  scripts/${name}\\b`))
    t.notMatch(out, /^#|set -|lib\.sh/m, 'and nothing of what it does')
  })
}

for (const [name, campaign] of [
  ['crash', 'crash'],
  ['faults', 'conformance'],
  ['fuzz', 'fuzz'],
  ['soak', 'soak'],
]) {
  t.test(`${name}: an option that there is not`, async (t) => {
    const program = fileURLToPath(new URL(`../${campaign}/run.js`, import.meta.url))
    const { code, out, err } = run(process.execPath, [program, '--nonsense'])
    t.equal(code, 2)
    t.equal(out, '')
    t.match(err, /^Unknown option '--nonsense'; --help says what there is\n$/)
  })
}
