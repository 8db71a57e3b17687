/** Damage to a file that is text (the descriptor of a bundle): its numbers, names and tags. */

import type { Pages } from './pages.js'

type Random = () => number

const NUMBERS = ['0', '1', '-1', '2147483648', '4294967296', '9007199254740993', '1e308', 'NaN', '0x10', '', ' 7 ']
const NAMES = [
  '/etc/passwd',
  '../../etc/passwd',
  'fifo',
  '/dev/zero',
  'DiskDescriptor.xml',
  'image',
  '&lt;',
  '',
  'x\0y',
]
const PIECES = [
  '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
  '<!DOCTYPE x SYSTEM "file:///etc/passwd">',
  '<![CDATA[x]]>',
  '<!-- -->',
  '<?x?>',
  '&#0;',
  '&a;',
  '<__proto__>1</__proto__>',
  '<constructor>1</constructor>',
  '\0',
  '<'.repeat(200),
  '<a>'.repeat(3000),
  '</Storage>',
  '<Storage>',
]

export function mutateText(bytes: Pages, random: Random): string {
  const text = Buffer.from(bytes.get(0, bytes.size)).toString('latin1')
  const [what, changed] = change(text, random)
  bytes.truncate(0)
  bytes.put(0, Buffer.from(changed, 'latin1'))
  return what
}

function change(text: string, random: Random): readonly [string, string] {
  const any = <T>(list: readonly T[]) => list[Math.floor(random() * list.length)]!
  const at = Math.floor(random() * text.length)
  const length = Math.ceil(random() * (random() < 0.5 ? 8 : 400))
  const dice = random()
  if (dice < 0.3) return replaced(text, /(?<=>)\d+(?=<)/g, any(NUMBERS), random)
  if (dice < 0.45) return replaced(text, /(?<=>)[^<>\s]+(?=<)/g, any([...NAMES, ...NUMBERS]), random)
  if (dice < 0.55) return replaced(text, /\{[0-9a-f-]{36}\}/g, any(text.match(/\{[0-9a-f-]{36}\}/g) ?? ['']), random)
  if (dice < 0.65) return [`${length} bytes from ${at} gone`, text.slice(0, at) + text.slice(at + length)]
  if (dice < 0.75) return [`${length} bytes from ${at} twice`, text.slice(0, at + length) + text.slice(at, text.length)]
  if (dice < 0.85) return element(text, random)
  if (dice < 0.95) return [`a piece at ${at}`, text.slice(0, at) + any(PIECES) + text.slice(at)]
  return [`cut at ${at}`, text.slice(0, at)]
}

function replaced(text: string, what: RegExp, by: string, random: Random): readonly [string, string] {
  const found = [...text.matchAll(what)]
  const match = found[Math.floor(random() * found.length)]
  if (!match) return ['nothing', text]
  const end = match.index + match[0].length
  return [`${match[0]} at ${match.index} is ${JSON.stringify(by)}`, text.slice(0, match.index) + by + text.slice(end)]
}

/** An element again, behind itself, once or a thousand times. */
function element(text: string, random: Random): readonly [string, string] {
  const tags = [...text.matchAll(/<([A-Za-z]+)>/g)]
  const tag = tags[Math.floor(random() * tags.length)]
  if (!tag) return ['nothing', text]
  const closing = `</${tag[1]}>`
  const end = text.indexOf(closing, tag.index) + closing.length
  const times = random() < 0.9 ? 1 : 1000
  const repeated = text.slice(tag.index, end).repeat(text.length < 100_000 ? times : 1)
  return [`${tag[0]} ${times} times more`, text.slice(0, end) + repeated + text.slice(end)]
}
