import { linkSync, mkdirSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Gate } from '../../lib/image/gate.js'
import { temporaryFolder } from '../support/temp.js'

/** Two folders beside each other with a file each, and one below the first. */
function folders(t: Test) {
  const top = temporaryFolder(t)
  const at = (...path: string[]) => join(top, ...path)
  for (const folder of ['own', 'own/below', 'other', 'own-too']) mkdirSync(at(folder))
  for (const file of ['own/image', 'own/parent', 'own/below/parent', 'other/parent', 'own-too/parent', 'parent'])
    writeFileSync(at(file), file)
  return at
}

function contents(gate: Gate, path: string): string {
  const storage = gate.open(path)
  try {
    const bytes = new Uint8Array(storage.size())
    storage.read(bytes, 0, bytes.length, 0)
    if (!storage.readOnly) throw new Error('it can be written')
    return Buffer.from(bytes).toString()
  } finally {
    storage.close()
  }
}

t.test("the image's own folder and those below", async (t) => {
  const at = folders(t)
  const gate = new Gate(at('own/image'), [])
  for (const file of ['own/parent', 'own/below/parent']) t.equal(contents(gate, at(file)), file)
  t.equal(contents(gate, at('own/below/../parent')), 'own/parent')
})

t.test('nothing outside, however it is named', async (t) => {
  const at = folders(t)
  const gate = new Gate(at('own/image'), [])
  symlinkSync('../other/parent', at('own/link'))
  symlinkSync(at('other'), at('own/folder'))
  const outside = [at('other/parent'), at('own/../other/parent'), at('own/link'), at('own/folder/parent'), at('parent')]
  for (const path of [...outside, at('own-too/parent'), '/etc/passwd', '/dev/null', '/proc/self/mem'])
    t.throws(() => gate.open(path), { code: 'GATE', message: /lies outside of .*\/own; .*--backing-dir \// }, path)
})

t.test('folders that the user allows', async (t) => {
  const at = folders(t)
  symlinkSync(at('other'), at('alias'))
  symlinkSync('../other/parent', at('own/link'))
  const gate = new Gate(at('own/image'), [at('alias')])
  t.equal(contents(gate, at('other/parent')), 'other/parent')
  t.equal(contents(gate, at('alias/parent')), 'other/parent')
  t.equal(contents(gate, at('own/link')), 'other/parent')
  t.throws(() => gate.open(at('own-too/parent')), { code: 'GATE' })
  t.equal(contents(new Gate(at('own/image'), ['/']), at('own-too/parent')), 'own-too/parent')
  t.throws(() => new Gate(at('own/image'), [at('nowhere')]), { code: 'NOT_FOUND', message: /nowhere/ })
})

t.test('an image that is a symbolic link: where it really is counts', async (t) => {
  const at = folders(t)
  symlinkSync('../own/image', at('other/image'))
  const gate = new Gate(at('other/image'), [])
  t.equal(contents(gate, at('own/parent')), 'own/parent')
  t.throws(() => gate.open(at('other/parent')), { code: 'GATE' })
})

t.test('what is not there, and what is no file', async (t) => {
  const at = folders(t)
  const gate = new Gate(at('own/image'), [])
  t.throws(() => gate.open(at('own/nothing')), { code: 'NOT_FOUND' })
  symlinkSync('nothing', at('own/dangling'))
  t.throws(() => gate.open(at('own/dangling')), { code: 'NOT_FOUND' })
  symlinkSync('round', at('own/round'))
  t.throws(() => gate.open(at('own/round')))
  t.throws(() => gate.open(at('own/below')), { code: 'USAGE', message: /directory/ })
})

t.test('a hard link is a file of the folder', async (t) => {
  const at = folders(t)
  linkSync(at('other/parent'), at('own/hard'))
  t.equal(contents(new Gate(at('own/image'), []), at('own/hard')), 'other/parent')
})

t.test('a folder that is exchanged for a link between looking and opening', async (t) => {
  const at = folders(t)
  // Looks at the path, then lets the test do something, then opens it.
  class SlowGate extends Gate {
    override allows(target: string): boolean {
      const allowed = super.allows(target)
      renameSync(at('own/below'), at('own/moved'))
      symlinkSync(at('other'), at('own/below'))
      return allowed
    }
  }
  const gate = new SlowGate(at('own/image'), [])
  t.throws(() => gate.open(at('own/below/parent')), { code: 'GATE', message: /changed while/ })
})
