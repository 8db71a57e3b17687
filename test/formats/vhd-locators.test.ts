import t from 'tap'
import type { DynamicHeader } from '../../lib/formats/vhd/dynamic-header.js'
import { vhd } from '../../lib/formats/vhd/format.js'
import {
  encodeParentNames,
  parentCandidates,
  readParentNames,
  shownParentName,
} from '../../lib/formats/vhd/locators.js'
import { contextOf, dynamicImage, FooterAt, footerWith, HeaderAt, headerWith, WINDOWS_FOOTER } from './vhd-images.js'

const utf16le = (text: string) => new Uint8Array(Buffer.from(text, 'utf16le'))
const utf16be = (text: string) => new Uint8Array(Buffer.from(text, 'utf16le').swap16())
const utf8 = (text: string) => new Uint8Array(Buffer.from(text))
const latin1 = (text: string) => new Uint8Array(Buffer.from(text, 'latin1'))

const AT = 0x1000
const PARENT_ID = '4b6a0d04-f946-d74e-836f-d3dc87e1816b'

interface Given {
  readonly locators?: readonly (readonly [code: string, data: Uint8Array])[]
  readonly name?: string
  readonly change?: (view: DataView) => void
}

/** A differencing disk whose parent is the Windows image, with these locators one sector apart. */
function child({ locators = [], name = '', change }: Given) {
  const footer = footerWith((view) => {
    view.setUint32(FooterAt.type, 4)
    view.setUint8(FooterAt.id, 0x99)
  })
  const header = headerWith((view) => {
    const put = (bytes: Uint8Array, at: number) => bytes.forEach((byte, i) => void view.setUint8(at + i, byte))
    put(WINDOWS_FOOTER.subarray(FooterAt.id, FooterAt.id + 16), HeaderAt.parentId)
    put(utf16be(name), HeaderAt.name)
    locators.forEach(([code, data], i) => {
      const at = HeaderAt.locators + 24 * i
      put(latin1(code), at)
      view.setUint32(at + 4, 512)
      view.setUint32(at + 8, data.length)
      view.setUint32(at + 20, AT + 512 * i)
    })
    change?.(view)
  })
  const more = locators.map(([, data], i) => [AT + 512 * i, data] as const)
  return dynamicImage({ footer, header, more, end: 0x3000 })
}

const openChild = (given: Given) => {
  const context = { ...contextOf(child(given)), path: '/vm/disks/child.vhd' }
  return { context, opened: vhd.open(context) }
}

t.test('every form of locator names the parent', async (t) => {
  const cases: [what: string, Given, name: string, candidates: string[]][] = [
    ['W2ru', { locators: [['W2ru', utf16le('.\\parent.vhd')]] }, '.\\parent.vhd', ['/vm/disks/parent.vhd']],
    [
      'W2ru in another folder',
      { locators: [['W2ru', utf16le('..\\base\\pärent 盘.vhd')]] },
      '..\\base\\pärent 盘.vhd',
      ['/vm/base/pärent 盘.vhd', '/vm/disks/pärent 盘.vhd'],
    ],
    [
      'W2ku',
      { locators: [['W2ku', utf16le('C:\\VMs\\parent.vhd')]] },
      'C:\\VMs\\parent.vhd',
      ['/vm/disks/parent.vhd', '/VMs/parent.vhd'],
    ],
    [
      'W2ku with a long path',
      { locators: [['W2ku', utf16le('\\\\?\\C:\\VMs\\parent.vhd')]] },
      '\\\\?\\C:\\VMs\\parent.vhd',
      ['/vm/disks/parent.vhd', '/VMs/parent.vhd'],
    ],
    [
      'W2ku on a server',
      { locators: [['W2ku', utf16le('\\\\srv\\share\\p.vhd')]] },
      '\\\\srv\\share\\p.vhd',
      ['/vm/disks/p.vhd'],
    ],
    ['Wi2r', { locators: [['Wi2r', latin1('.\\gr\xfcn.vhd\0')]] }, '.\\grün.vhd', ['/vm/disks/grün.vhd']],
    ['Wi2k', { locators: [['Wi2k', utf8('D:\\grün.vhd')]] }, 'D:\\grün.vhd', ['/vm/disks/grün.vhd', '/grün.vhd']],
    [
      'MacX',
      { locators: [['MacX', utf8('file://localhost/dir/my%20p%C3%A4rent.vhd')]] },
      '/dir/my pärent.vhd',
      ['/vm/disks/my pärent.vhd', '/dir/my pärent.vhd'],
    ],
    [
      'MacX with no host',
      { locators: [['MacX', utf8('file:///dir/p.vhd\0')]] },
      '/dir/p.vhd',
      ['/vm/disks/p.vhd', '/dir/p.vhd'],
    ],
    ['MacX, relative', { locators: [['MacX', utf8('file://./p.vhd')]] }, './p.vhd', ['/vm/disks/p.vhd']],
    [
      'MacX with a bad escape',
      { locators: [['MacX', utf8('file:///100%.vhd')]] },
      '/100%.vhd',
      ['/vm/disks/100%.vhd', '/100%.vhd'],
    ],
    ['the name alone', { name: 'parent.vhd' }, 'parent.vhd', ['/vm/disks/parent.vhd']],
    ['the name as a path', { name: 'C:\\VMs\\p.avhd' }, 'C:\\VMs\\p.avhd', ['/vm/disks/p.avhd', '/VMs/p.avhd']],
    ['an alias of the Mac, and nothing else', { locators: [['Mac ', utf8('blob')]] }, PARENT_ID, []],
    ['an unknown code', { locators: [['????', utf8('p.vhd')]], name: 'q.vhd' }, 'q.vhd', ['/vm/disks/q.vhd']],
  ]
  for (const [what, given, name, candidates] of cases) {
    const { parent } = openChild(given).opened
    t.equal(parent?.name, name, what)
    t.same(parent?.candidates, candidates, what)
  }
})

t.test("relative names first, then the child's folder, then absolute names; none twice", async (t) => {
  const locators = [
    ['W2ku', utf16le('C:\\abs\\one.vhd')],
    ['Wi2r', latin1('..\\two.vhd')],
    ['W2ru', utf16le('..\\x\\one.vhd')],
  ] as const
  const { parent } = openChild({ locators, name: 'one.vhd' }).opened
  t.same(parent?.candidates, ['/vm/x/one.vhd', '/vm/two.vhd', '/vm/disks/one.vhd', '/vm/disks/two.vhd', '/abs/one.vhd'])
})

t.test('names that mean nothing are left out', async (t) => {
  const names = ['', '\0p.vhd', 'a\nb.vhd', '.', '..', '.\\'].map((name) => ({
    locators: [['W2ru', utf16le(name)] as const],
  }))
  for (const given of names)
    t.same(
      openChild(given).opened.parent?.candidates.filter((c) => c !== '/vm'),
      [],
      JSON.stringify(given),
    )
  t.same(openChild({ locators: [['W2ru', utf16le('.\\child.vhd')]] }).opened.parent?.candidates, [], 'the child itself')
  t.same(openChild({ locators: [['W2ru', utf16le('p.vhd\0garbage')]] }).opened.parent?.candidates, ['/vm/disks/p.vhd'])
})

t.test('locators outside of the file, or longer than any path, are refused', async (t) => {
  const locators = [['W2ru', utf16le('p.vhd')]] as const
  const field = (at: number, value: number) => (view: DataView) => view.setUint32(HeaderAt.locators + at, value)
  const cases: [(view: DataView) => void, RegExp][] = [
    [field(8, 65537), /locator 1 \(W2ru\) is 65537 bytes: expected 65536 at most/],
    [field(8, 0xffffffff), /locator 1 \(W2ru\) is 4294967295 bytes/],
    [field(20, 0x3200 - 8), /locator 1 \(W2ru\) is at bytes 12792 to 12802: the file ends at 12800/],
    [field(16, 0x001fffff), /locator 1 \(W2ru\) is at bytes .*: the file ends at 12800/],
    [field(16, 0xffffffff), /platformDataOffset is 0xffffffff00001000: expected a number below 2\^53/],
  ]
  for (const [change, message] of cases) t.throws(() => openChild({ locators, change }), { code: 'CORRUPT', message })
})

t.test('platform data space may be in bytes, in sectors, or nothing', async (t) => {
  for (const space of [0, 1, 512, 24])
    t.same(
      openChild({
        locators: [['W2ru', utf16le('p.vhd')]],
        change: (view) => view.setUint32(HeaderAt.locators + 4, space),
      }).opened.parent?.candidates,
      ['/vm/disks/p.vhd'],
    )
})

t.test('the parent must have the unique id, and should not have changed', async (t) => {
  const stamp = (seconds: number) =>
    openChild({ name: 'p.vhd', change: (v) => v.setUint32(HeaderAt.parentTime, seconds) })
  const layout = (footer = WINDOWS_FOOTER) => vhd.open(contextOf(dynamicImage({ footer }))).layout
  const facts = { path: '/vm/disks/p.vhd', format: 'vhd', layout: layout(), mtimeMs: Date.UTC(2000, 0, 1, 0, 0, 1000) }
  const warnings = (seconds: number) => {
    const said: string[] = []
    stamp(seconds).opened.parent!.verify(facts, (message) => said.push(message))
    return said
  }
  t.same(warnings(1000), [], 'the time of the file')
  t.same(warnings(0x260cf38f), [], 'the time of its footer')
  t.same(warnings(0), [], 'Hyper-V')
  t.match(warnings(500), [/\/vm\/disks\/p\.vhd was changed after the child was made/])
  const other = footerWith((view) => view.setUint8(FooterAt.id, 0x4c))
  const { parent } = stamp(0).opened
  t.throws(() => parent!.verify({ ...facts, layout: layout(other) }, () => {}), {
    code: 'CORRUPT',
    message: /p\.vhd: its unique id is 4c6a0d04-f946-d74e-836f-d3dc87e1816b: .*4b6a0d04-f946-d74e-836f-d3dc87e1816b/,
  })
  t.throws(() => parent!.verify({ ...facts, format: 'raw', layout: {} }, () => {}), {
    code: 'CORRUPT',
    message: /it is raw/,
  })
})

t.test('what a new child says of its parent', async (t) => {
  const text = (data: Uint8Array) => Buffer.from(data).toString('utf16le')
  const names = (a: string, b: string) => encodeParentNames(a, b).locators.map(({ code, data }) => [code, text(data)])
  t.same(names('/vm/c.vhd', '/vm/pärent.vhd'), [
    ['W2ku', '\\vm\\pärent.vhd'],
    ['W2ru', '.\\pärent.vhd'],
  ])
  t.same(names('/vm/a/c.vhd', '/vm/b/p.vhd')[1], ['W2ru', '..\\b\\p.vhd'])
  t.same(names('/vm/c.vhd', '/vm/b/p.vhd')[1], ['W2ru', '.\\b\\p.vhd'])
  t.same(encodeParentNames('/vm/c.vhd', '/vm/p.vhd').unicodeName, utf16be('p.vhd'))
  t.throws(() => encodeParentNames('/vm/c.vhd', '/vm/a\\b.vhd'), { code: 'USAGE' })
  t.same(parentCandidates([{ code: 'W2ku', name: '\\vm\\p.vhd' }], '/x/c.vhd'), ['/x/p.vhd', '/vm/p.vhd'])
  t.equal(shownParentName([], PARENT_ID), PARENT_ID)
  const header = { parentLocators: [], parentUnicodeName: utf16be('p.vhd') } as unknown as DynamicHeader
  t.same(readParentNames(dynamicImage(), header, {}), [{ code: 'name', name: 'p.vhd' }])
})
