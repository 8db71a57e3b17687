import t from 'tap'
import type { Probe } from '../../lib/formats/driver.js'
import { detect, findFormat, formats } from '../../lib/formats/registry.js'
import { must } from '../support/run.js'
import { FooterAt, WINDOWS_FIXED_FOOTER, WINDOWS_FOOTER } from './vhd-images.js'

const probe = (head: Uint8Array, tail: Uint8Array, path = 'x.raw'): Probe => ({ path, size: 1 << 20, head, tail })
const nothing = new Uint8Array(1024)
const after = (front: number, bytes: Uint8Array) => Uint8Array.from([...new Uint8Array(front), ...bytes])

t.test('formats are found by their names and other names, in any case', async (t) => {
  for (const format of formats)
    for (const name of [format.name, ...format.aliases, format.name.toUpperCase()])
      t.equal(findFormat(name), format, name)
  t.equal(findFormat('vpc').name, 'vhd')
})

t.test('an unknown name is refused with those that are known', async (t) => {
  t.throws(() => findFormat('vmfs'), { code: 'USAGE', message: /'vmfs'.*known are .*vhd.*raw/ })
})

t.test('a thread that only reads and writes has the driver of every format', async (t) => {
  // A process that has no registry.
  const drivers = new URL('../../lib/formats/drivers.js', import.meta.url).href
  const program = `
    const { attachDriver, loadDrivers } = await import(${JSON.stringify(drivers)})
    for (const format of ${JSON.stringify(formats.map(({ name }) => name))}) {
      await loadDrivers([format])
      try { attachDriver(format, {}, {}) } catch (error) { if (error.code === 'INTERNAL') console.log(error.message) }
    }
    try { attachDriver('none', {}, {}) } catch (error) { console.log(error.message) }`
  const out = must(process.execPath, ['--input-type=module', '-e', program])
  t.equal(out, 'the driver of format none was not loaded\n')
})

t.test('names are unique', async (t) => {
  const names = formats.flatMap((format) => [format.name, ...format.aliases])
  t.equal(new Set(names).size, names.length)
})

t.test('the content decides; raw is what nothing else is', async (t) => {
  const cases: [string, Probe, string][] = [
    ['a footer at the end', probe(nothing, after(512, WINDOWS_FIXED_FOOTER)), 'vhd'],
    ['a footer of 511 bytes', probe(nothing, after(513, WINDOWS_FIXED_FOOTER.subarray(0, 511))), 'vhd'],
    ['a copy at the beginning, no footer', probe(after(0, WINDOWS_FOOTER), nothing), 'vhd'],
    ['a footer somewhere else', probe(after(1, WINDOWS_FOOTER), Uint8Array.from([...WINDOWS_FOOTER, 0, 0])), 'raw'],
    ['zeros with a telling name', probe(nothing, nothing, 'x.vhd'), 'raw'],
    ['an empty file', probe(new Uint8Array(0), new Uint8Array(0)), 'raw'],
    ['a few bytes', probe(Uint8Array.of(0x63), Uint8Array.of(0x63)), 'raw'],
  ]
  for (const [what, given, expected] of cases) t.equal(detect(given).name, expected, what)
})

t.test('what looks like a format that is not known is not taken for a disk', async (t) => {
  const cases: [string, number, number[]][] = [
    ['QED', 0, [0x51, 0x45, 0x44, 0, 0, 0, 1, 0]],
    ['VMDK', 0, [0x4b, 0x44, 0x4d, 0x56, 1, 0, 0, 0]],
    ['VDI', 0x40, [0x7f, 0x10, 0xda, 0xbe, 1, 0, 1, 0]],
  ]
  for (const [name, front, bytes] of cases)
    t.throws(() => detect(probe(after(front, Uint8Array.from([...bytes, ...new Uint8Array(512)])), nothing)), {
      code: 'FORMAT',
      message: new RegExp(`it looks like a ${name} image.*--format raw`),
    })
})

/** First bytes of other formats, as their specifications have them. */
const HEADS: readonly (readonly [string, string])[] = [
  ['qcow2', 'QFI\xfb\0\0\0\x03'],
  ['vhdx', 'vhdxfile'],
  ['parallels', 'WithoutFreeSpace\x02'],
  ['parallels', 'WithouFreSpacExt\x02'],
]
const headOf = (text: string) => Uint8Array.from([...Buffer.from(text, 'latin1'), ...new Uint8Array(1024)])
/** Of a file that holds the disk of 10 MiB whose footer this is, and the footer. */
const ending = (head: string, footer: Uint8Array, size = 10 * 2 ** 20 + footer.length): Probe => ({
  path: 'x.img',
  size,
  head: headOf(head),
  tail: after(1024 - footer.length, footer),
})

t.test('a fixed VHD whose guest wrote the beginning of another image is not taken for that one', async (t) => {
  for (const [name, head] of HEADS)
    for (const footer of [WINDOWS_FIXED_FOOTER, WINDOWS_FIXED_FOOTER.subarray(0, 511)])
      t.throws(() => detect(ending(head, footer)), {
        code: 'FORMAT',
        message: new RegExp(`^x.img: .*both.*--format ${name} or --format vhd\\b`),
      })
  t.throws(() => detect(ending('KDMV\x01', WINDOWS_FIXED_FOOTER)), {
    code: 'FORMAT',
    message: /both: a VMDK image.*--format vhd/,
  })
})

t.test('a footer that is not that of a fixed disk in this file does not count beside another beginning', async (t) => {
  const broken = Uint8Array.from(WINDOWS_FIXED_FOOTER)
  broken[FooterAt.id]! ^= 1
  for (const [name, head] of HEADS) {
    t.equal(detect(ending(head, broken)).name, name, 'a wrong checksum')
    t.equal(detect(ending(head, WINDOWS_FOOTER)).name, name, 'a dynamic disk without its copy')
    t.equal(detect(ending(head, WINDOWS_FIXED_FOOTER, 10 * 2 ** 20)).name, name, 'a disk larger than the file')
  }
})
