/** Words that a parser likes to take for something else: numbers, minus signs, commas, `--`. */

import t from 'tap'
import { type Arguments, parseArguments, splitCommas } from '../../lib/cli/arguments.js'
import { COMMANDS } from '../../lib/cli/commands.js'
import { editDistance, nearest } from '../../lib/cli/suggest.js'

function parse(name: string, ...words: string[]): Arguments {
  return parseArguments(COMMANDS.find((command) => command.name === name)!, words)
}

t.test('names that look like numbers stay names', async (t) => {
  for (const name of ['0x10', '1e3', '007', '12', '-37M', '-1', '-.5', '-', 'true', 'false', '1.0', 'NaN', '__proto__'])
    t.same(parse('create', '-f', 'raw', name, '1M').positionals, [name, '1M'], name)
  t.same(parse('create', '-f', 'raw', '5', '6').positionals, ['5', '6'])
})

t.test('a size may begin with a minus sign, wherever it stands', async (t) => {
  t.same(parse('create', 'img', '-37M', '-f', 'raw').positionals, ['img', '-37M'])
  t.same(parse('map', '-s', '-5', 'img').value('start-offset'), '-5')
  t.same(parse('map', '--start-offset=-5', 'img').value('start-offset'), '-5')
})

t.test('behind -- everything is a name', async (t) => {
  const args = parse('mount', '-r', '--', '--format', '-f')
  t.same(args.positionals, ['--format', '-f'])
  t.ok(args.has('read-only'))
  t.notOk(args.has('foreground'))
  t.same(parse('mount', '--', '-37M', '--').positionals, ['-37M', '--'])
})

t.test('options in any order, glued, grouped, repeated', async (t) => {
  t.equal(parse('create', '-fvhd', 'img', '1M').value('format'), 'vhd')
  t.equal(parse('create', '-f=vhd', 'img', '1M').value('format'), 'vhd')
  t.equal(parse('create', 'img', '--format', 'vhd', '1M').value('format'), 'vhd')
  const grouped = parse('mount', '-rf', 'img', 'mnt')
  t.ok(grouped.has('read-only') && grouped.has('foreground'))
  t.same(grouped.positionals, ['img', 'mnt'])
  const both = parse('mount', '-rfo', 'a,b', 'img', 'mnt')
  t.same(both.list('options'), ['a', 'b'])
  t.equal(parse('create', '-f', 'raw', '-f', 'vhd', 'x').value('format'), 'vhd', 'the last one counts')
  t.same(parse('mount', '--backing-dir', 'a', '--backing-dir=b', 'i', 'm').values('backing-dir'), ['a', 'b'])
})

t.test('-o is repeated and comma-separated; two commas are one that does not split', async (t) => {
  t.same(parse('create', '-o', 'a=1,b=2', '-o', 'c=3', 'x').list('options'), ['a=1', 'b=2', 'c=3'])
  t.same(splitCommas('file=a,,b,size=1'), ['file=a,b', 'size=1'])
  t.same(splitCommas(',a,'), ['a'])
  t.same(parse('create', '-o', 'a.b=1.50', 'x').list('options'), ['a.b=1.50'], 'neither dots nor numbers mean anything')
})

t.test('flags do not eat what follows them', async (t) => {
  const args = parse('mount', '-r', 'true', 'false')
  t.same(args.positionals, ['true', 'false'])
})

t.test('what is wrong is said in one line', async (t) => {
  const wrong = (pattern: RegExp, name: string, ...words: string[]) =>
    t.throws(() => parse(name, ...words), { code: 'USAGE', message: pattern }, `${name} ${words.join(' ')}`)
  wrong(/no option --read-onyl; did you mean --read-only\?/, 'mount', '--read-onyl', 'a', 'b')
  wrong(/no option --frobnicate \(/, 'mount', '--frobnicate')
  wrong(/no option -x/, 'mount', '-rx', 'a', 'b')
  wrong(/no option --no-read-only/, 'mount', '--no-read-only', 'a', 'b')
  wrong(/no option --constructor/, 'mount', '--constructor', 'a', 'b')
  wrong(/no option --__proto__/, 'mount', '--__proto__=1', 'a', 'b')
  wrong(/--read-only takes no value/, 'mount', '--read-only=yes', 'a', 'b')
  wrong(/--format needs a value/, 'create', 'x', '--format')
  wrong(/--format needs a value/, 'create', '--format=', 'x')
  wrong(/--format needs a value/, 'create', '-f', '--quiet', 'x')
})

t.test('editDistance counts insertions, deletions, replacements and swaps', async (t) => {
  // The usual examples of the literature; a swap of neighbours counts one.
  t.equal(editDistance('kitten', 'sitting'), 3)
  t.equal(editDistance('', 'abc'), 3)
  t.equal(editDistance('ab', 'ba'), 1)
  t.equal(editDistance('same', 'same'), 0)
  t.equal(nearest('unmount', ['mount', 'umount', 'list']), 'umount')
  t.equal(nearest('zzz', ['mount', 'umount']), undefined)
})
