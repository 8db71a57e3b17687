/** Targets of conversions that an ordinary user may write, but not replace. */

import { join } from 'node:path'
import t from 'tap'
import { needsMounts } from '../support/mounts.js'
import { userWorld } from '../support/user.js'

t.setTimeout(300_000)

t.test('a target in a folder that cannot be written', needsMounts, async (t) => {
  const user = await userWorld(t)
  const folder = join(user.home, 'closed')
  const [source, target] = [join(user.home, 'source.raw'), join(folder, 'target.raw')]
  const made = user.run('sh', ['-c', `mkdir "${folder}" && head -c 65536 /dev/zero | tr "\\0" x >"${source}"`])
  t.equal(made.code, 0, made.err)
  t.equal(user.run('sh', ['-c', `cp "${source}" "${target}" && echo old | dd of="${target}" conv=notrunc`]).code, 0)
  t.equal(user.run('chmod', ['555', folder]).code, 0)
  const first = () => user.run('head', ['-c', '4', target]).out
  const { code, err } = user.vdiskfs(['convert', '-f', 'raw', source, target])
  t.equal(code, 1)
  t.match(err, `vdiskfs: ${target}: `, 'the file that the user named')
  t.match(err, `nothing can be made in ${folder}: `)
  t.notMatch(err, /\.vdiskfs-/, 'and none that he does not know')
  t.equal(first(), 'old\n', 'what was there is there')
  t.equal(
    user.vdiskfs(['convert', '-n', '-f', 'raw', '-O', 'raw', source, target]).code,
    0,
    'what is said to do, does it',
  )
  t.equal(first(), 'xxxx')
})
