/** The program as it is called: exit codes, where what is printed goes, what help and version say. */

import { readFileSync } from 'node:fs'
import t from 'tap'
import { COMMANDS } from '../../lib/cli/commands.js'
import { errorLine, main } from '../../lib/cli/main.js'
import { OPTIONS } from '../../lib/cli/options.js'
import { formats } from '../../lib/formats/registry.js'
import { VdiskError } from '../../lib/util/errors.js'
import { run, vdiskfs } from '../support/run.js'

async function call(...argv: string[]) {
  let out = ''
  let err = ''
  const io = {
    out: (text: string) => {
      out += text
    },
    err: (text: string) => {
      err += text
    },
    columns: undefined,
  }
  const code = await main(argv, io)
  return { code, out, err }
}

t.test('--version prints the version of package.json', async (t) => {
  const { version } = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string }
  for (const option of ['--version', '-V']) {
    const { code, out, err } = await call(option)
    t.same({ code, out, err }, { code: 0, out: `vdiskfs ${version}\n`, err: '' })
  }
})

t.test('help names every command, every option, every option of a format', async (t) => {
  const { code, out, err } = await call('--help')
  t.same([code, err], [0, ''])
  for (const { name, summary } of COMMANDS) {
    t.match(out, new RegExp(`^  ${name} +\\S`, 'm'))
    for (const argv of [
      [name, '--help'],
      [name, '-h'],
      ['help', name],
    ]) {
      const help = await call(...argv)
      t.equal(help.code, 0, argv.join(' '))
      t.match(help.out, `Usage: vdiskfs ${name} [OPTIONS]`)
      t.match(help.out.toLowerCase(), summary.toLowerCase().slice(0, 20))
      for (const option of OPTIONS) if (option.on.includes(name)) t.match(help.out, `--${option.name}`)
    }
  }
  const create = await call('create', '--help')
  for (const format of formats) {
    t.match(create.out, `Format ${format.name}`)
    for (const option of format.createOptions) t.match(create.out, `${option.name}=`)
  }
})

t.test('help fits into 80 columns', async (t) => {
  for (const argv of [['--help'], ...COMMANDS.map(({ name }) => [name, '--help'])]) {
    const { out } = await call(...argv)
    const long = out.split('\n').filter((line) => line.length > 80)
    t.same(long, [], argv.join(' '))
  }
})

t.test('wrong usage: exit 2, one line, nothing on standard output', async (t) => {
  const cases: [string[], RegExp][] = [
    [[], /which command\?/],
    [['mont'], /no command mont; did you mean mount\?/],
    [['frobnicate'], /no command frobnicate \(/],
    [['--json', 'list'], /--json before the command/],
    [['help', 'mont'], /did you mean mount/],
    [['mount', 'img'], /MOUNTPOINT is missing: vdiskfs mount \[OPTIONS\] IMAGE MOUNTPOINT/],
    [['umount'], /MOUNTPOINT is missing/],
    [['umount', 'a', 'b'], /'b' is one too many/],
    [['info', ''], /empty/],
    [['list', '--jsn'], /did you mean --json/],
    [['create', 'x', '1M'], /-f FMT: .*vhd.*raw/],
    [['create', '-f', 'nonsense', 'x', '1M'], /nonsense/],
    [['create', '-f', 'raw', '/nowhere/x', '12Q'], /12Q/],
    [['create', '-f', 'raw', '/nowhere/x', '-1M'], /-1M/],
    [['create', '-f', 'raw', '-o', 'colour=red', '/nowhere/x', '1M'], /colour/],
    [['info', '--output=xml', 'x'], /--output xml: expected human or json/],
    [['mount', '--workers', '0', 'i', 'm'], /--workers 0: expected a whole number from 1/],
    [['mount', '--workers', '1e1', 'i', 'm'], /--workers 1e1/],
    [['mount', '--uid', '-5', 'i', 'm'], /--uid -5/],
    [['mount', '--umask', '9', 'i', 'm'], /--umask 9: expected an octal number/],
    [['mount', '--cache-size', '12', 'i', 'm'], /--cache-size 12: expected 1M to 2G/],
    [['mount', '--cache-size', '3G', 'i', 'm'], /--cache-size 3G: expected 1M to 2G/],
    [['mount', '-o', 'cache_size=100T', 'i', 'm'], /--cache-size 100T: expected 1M to 2G/],
    [['mount', '--transport', 'carrier-pigeon', 'i', 'm'], /--transport carrier-pigeon: expected kernel/],
    [['mount', '-o', 'frob', 'i', 'm'], /no mount option frob/],
    [['mount', '-o', 'uid', 'i', 'm'], /mount option uid needs a value/],
  ]
  for (const [argv, pattern] of cases) {
    const { code, out, err } = await call(...argv)
    t.equal(code, 2, argv.join(' '))
    t.equal(out, '')
    t.match(err, pattern)
    t.match(err, /^vdiskfs: [^\n]+\n$/, 'one line')
  }
})

t.test('wrong usage of check: exit 1, as 2 says that an image has errors', async (t) => {
  const none = '/nowhere/none.qcow2'
  for (const words of [
    [],
    ['--bogus', none],
    ['-r', 'some', none],
    ['-f', 'none', none],
    ['--output=xml', none],
    [none, 'b'],
  ]) {
    const { code, out, err } = await call('check', ...words)
    t.same([code, out], [1, ''], words.join(' '))
    t.match(err, /^vdiskfs: [^\n]+\n$/, 'one line')
  }
})

t.test('what fails: exit 1, one line that names the file', async (t) => {
  for (const command of ['info', 'map']) {
    const { code, out, err } = await call(command, '/nowhere/none.vhd')
    t.same([code, out], [1, ''])
    t.match(err, /^vdiskfs: [^\n]*\/nowhere\/none\.vhd[^\n]*no such file[^\n]*\n$/)
  }
})

t.test('no error has more than one line, and none that is not ours goes unmarked', async (t) => {
  t.equal(errorLine(new VdiskError('IO', 'a\n  b')), 'a b')
  t.match(errorLine(new TypeError('x is not a function')), /^internal error: x is not a function/)
  t.match(errorLine('thrown text'), /thrown text/)
})

t.test('the process ends with the exit code', async (t) => {
  t.same(vdiskfs(['info', '/nowhere/none.vhd']).code, 1)
  t.same(vdiskfs(['frobnicate']).code, 2)
  const { code, err } = vdiskfs(['info', '/nowhere/none.vhd'], { env: { DEBUG: 'vdiskfs:*' } })
  t.equal(code, 1)
  t.match(err, /vdiskfs:cli/, 'a trace shows what happened')
  t.match(err, /\n\s+at .*:\d+:\d+/, 'with its stack')
  t.notMatch(vdiskfs(['info', '/nowhere/none.vhd']).err, /\n\s+at /)
})

t.test('the installed command runs what was built', async (t) => {
  const { code, out, err } = run(process.execPath, ['bin/vdiskfs.js', '--version'])
  const built = code === 0 ? /^vdiskfs \d/.test(out) : /npm run build/.test(err)
  t.ok(built, 'it runs, or says in one line how to build it')
  t.notMatch(err, /\n\s+at /)
})
