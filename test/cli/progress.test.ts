/** What a progress bar says, and when. */

import t from 'tap'
import { parseArguments } from '../../lib/cli/arguments.js'
import { COMMANDS } from '../../lib/cli/commands.js'
import { formatTime, ProgressBar, progressBar, progressLine } from '../../lib/cli/progress.js'

const MiB = 1024 * 1024

t.test('times', async (t) => {
  t.same([0, 4.4, 59.6, 245, 3600, 3723].map(formatTime), ['0:00', '0:04', '1:00', '4:05', '1:00:00', '1:02:03'])
  t.equal(formatTime(-1), '0:00')
})

t.test('a line: how far, how much, how fast, how long it takes', async (t) => {
  const half = { copied: 50 * MiB, total: 100 * MiB, position: 1, size: 1000 * MiB }
  t.equal(progressLine(half, 10 * MiB), ' 50% [##########..........]  50 MiB of 100 MiB  10 MiB/s  0:05 left')
  t.equal(progressLine(half, 0), ' 50% [##########..........]  50 MiB of 100 MiB', 'no rate is known yet')
  const unknown = { copied: 50 * MiB, total: undefined, position: 250 * MiB, size: 1000 * MiB }
  t.equal(
    progressLine(unknown, 10 * MiB),
    ' 25% [#####...............]  50 MiB  10 MiB/s',
    'the place on the disk counts',
  )
  const done = { copied: 100 * MiB, total: 100 * MiB, position: 0, size: 1 }
  t.match(progressLine(done, MiB), /^100% \[#{20}\] {2}100 MiB of 100 MiB {2}1 MiB\/s {2}0:00 left$/)
  t.match(progressLine({ copied: 0, total: 0, position: 0, size: 0 }, 0), /^100% /, 'nothing to do is all done')
})

t.test('the bar is drawn over itself, seldom, and taken away', async (t) => {
  let now = 1_000_000
  t.intercept(Date, 'now', { value: () => now })
  let text = ''
  const bar = new ProgressBar({ out: () => {}, err: (more) => (text += more), columns: undefined, errColumns: 71 })
  const at = (ms: number, copied: number): string => {
    now = 1_000_000 + ms
    text = ''
    bar.show({ copied, total: 100 * MiB, position: 0, size: 1 })
    return text
  }
  t.equal(at(100, MiB), '', 'what is done soon needs none')
  t.equal(at(1000, 10 * MiB), `\r${' 10% [##..................]  10 MiB of 100 MiB  10 MiB/s  0:09 left'.padEnd(70)}`)
  t.equal(at(1100, 11 * MiB), '')
  // 20 MiB in the second since the last line.
  t.match(at(2000, 30 * MiB), /30 MiB of 100 MiB {2}20 MiB\/s {2}0:04 left/)
  text = ''
  bar.end()
  t.equal(text, `\r${' '.repeat(70)}\r`)
  text = ''
  bar.end()
  t.equal(text, '')
})

t.test('there is one on a terminal, and where it is asked for', async (t) => {
  const convert = COMMANDS.find(({ name }) => name === 'convert')!
  const shown = (words: string[], errColumns?: number) =>
    progressBar(parseArguments(convert, words), { out: () => {}, err: () => {}, columns: undefined, errColumns }) !==
    undefined
  t.equal(shown([]), false)
  t.equal(shown([], 80), true)
  t.equal(shown(['-p']), true)
  t.equal(shown(['-q'], 80), false)
  t.equal(shown(['-q', '-p'], 80), false)
})
