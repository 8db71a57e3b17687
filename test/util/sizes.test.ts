/** Sizes as users write them. */

import t from 'tap'
import { parseSize } from '../../lib/util/sizes.js'

t.test('decimal with units, and hexadecimal', async (t) => {
  for (const [text, bytes] of [
    ['512', 512],
    ['1.5K', 1536],
    ['64KiB', 65536],
    ['2T', 2 * 1024 ** 4],
    ['0x40000000', 2 ** 30],
    ['0XfF', 255],
    // A digit, and no unit.
    ['0x1b', 27],
  ] as const)
    t.equal(parseSize(text), bytes, text)
})

t.test('what is no size', async (t) => {
  for (const text of ['', 'x', '0x', '0x1.8', '0x10M', '0xg', '1e3', '-1', '12Q'])
    t.throws(() => parseSize(text), { code: 'USAGE', message: /is not a size/ }, text)
  t.throws(() => parseSize('0x20000000000000'), { code: 'USAGE', message: /too large/ })
})
