/** Completion, asked as the shells ask for it; and the manual page, read by groff. */

import { join } from 'node:path'
import t from 'tap'
import { COMMANDS } from '../../lib/cli/commands.js'
import { manPage, roff } from '../../lib/cli/man.js'
import { OPTIONS } from '../../lib/cli/options.js'
import { must, run, vdiskfs, vdiskfsMust } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

/** What bash offers at the end of a line. */
function bashOffers(script: string, line: string, cwd: string): string[] {
  // As readline splits it: an = is a word.
  const words = line.split(/(=)| /).filter((word) => word !== undefined)
  const ask = `${script}
COMP_WORDS=(${words.map((word) => `'${word}'`).join(' ')})
COMP_CWORD=${words.length - 1}
_vdiskfs
printf '%s\\n' "\${COMPREPLY[@]}"`
  return must('bash', ['-c', ask], { cwd })
    .split('\n')
    .filter((word) => word !== '')
    .sort()
}

t.test('bash', async (t) => {
  const script = vdiskfsMust(['completion', 'bash'])
  const folder = temporaryFolder(t)
  must('sh', ['-c', 'mkdir sub; touch a.vhd "b c.vhd"'], { cwd: folder })
  const offers = (line: string) => bashOffers(script, line, folder)
  t.same(offers('vdiskfs mo'), ['mount'])
  for (const { name } of COMMANDS) t.ok(offers('vdiskfs ').includes(name), name)
  t.same(offers('vdiskfs --v'), ['--version'])
  t.same(offers('vdiskfs mount --read'), ['--read-only'])
  for (const { name } of OPTIONS.filter((option) => option.on.includes('mount')))
    t.ok(offers('vdiskfs mount -').includes(`--${name}`), name)
  t.same(offers('vdiskfs mount --transport=f'), ['fuse-native'])
  t.same(offers('vdiskfs mount --transport '), ['auto', 'fuse-native', 'kernel'])
  t.ok(offers('vdiskfs create -f ').includes('vhd'))
  t.same(offers('vdiskfs mount '), ['a.vhd', 'b c.vhd', 'sub'], 'an image')
  t.same(offers('vdiskfs mount -r --format vhd '), ['a.vhd', 'b c.vhd', 'sub'], 'values are not counted')
  t.same(offers('vdiskfs mount --format=vhd a.vhd '), ['sub'], 'a mount point')
  t.same(offers('vdiskfs umount '), ['sub'])
  t.same(offers('vdiskfs completion bash '), [])
  t.same(offers('vdiskfs completion '), ['bash', 'fish', 'zsh'])
})

t.test('zsh', async (t) => {
  const script = join(temporaryFolder(t), '_vdiskfs')
  must('sh', ['-c', 'cat >"$1"', 'sh', script], { input: vdiskfsMust(['completion', 'zsh']) })
  must('zsh', ['-n', script])
  const load = `autoload -Uz compinit; compinit -D -u; source '${script}'; print $_comps[vdiskfs]`
  t.equal(must('zsh', ['-f', '-c', load]), '_vdiskfs\n')
  // A terminal of its own, in which a tab is typed.
  const type = `zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "autoload -Uz compinit; compinit -D -u; source '${script}'; bindkey '^I' expand-or-complete; PS1=; print ready-\\\${:-now}"
zpty -r z out '*ready-now*'
zpty -w -n z $'vdiskfs mount --transport=fu\\t'
zpty -r z out '*fuse-native*'
print -r -- "$out"
zpty -d z`
  t.match(run('zsh', ['-f', '-c', type]).out, /fuse-native/)
})

t.test('fish', async (t) => {
  const script = vdiskfsMust(['completion', 'fish'])
  const home = temporaryFolder(t)
  must('touch', [join(home, 'a.vhd')])
  const offers = (line: string) =>
    must('fish', ['--no-config', '-c', `${script}\ncomplete -C '${line}'`], { cwd: home, env: { HOME: home } })
      .split('\n')
      .map((text) => text.split('\t')[0]!)
      .filter((text) => text !== '')
  t.same(offers('vdiskfs umo'), ['umount'])
  t.same(offers('vdiskfs mount --transport f'), ['fuse-native'])
  t.same(offers('vdiskfs mount --read'), ['--read-only'])
  t.same(offers('vdiskfs info a'), ['a.vhd'])
  t.same(offers('vdiskfs completion z'), ['zsh'])
})

t.test('another shell', async (t) => {
  const { code, err } = vdiskfs(['completion', 'tcsh'])
  t.equal(code, 2)
  t.match(err, 'no completion for tcsh; there is: bash, zsh, fish')
})

t.test('the manual page has every command and option, and groff nothing to say of it', async (t) => {
  const details = new Map<string, string>()
  for (const { name, load } of COMMANDS) details.set(name, (await load()).details?.() ?? '')
  const page = manPage('1.2.3', details)
  const { code, out, err } = run('groff', ['-man', '-ww', '-Tutf8', '-Kutf8', '-P-c', '-P-bou'], { input: page })
  t.same([code, err], [0, ''])
  for (const { name } of COMMANDS) t.match(out, `vdiskfs ${name} `)
  for (const { name } of OPTIONS) t.match(out, `--${name}`)
  t.match(out, 'vdiskfs 1.2.3')
  t.match(out, 'no effect', 'the details of mount')
})

t.test('roff: what would be a request or an escape is text', async (t) => {
  t.equal(roff("a\\b -c\n.d\n'e"), "a\\eb \\-c\n\\&.d\n\\&'e")
})
