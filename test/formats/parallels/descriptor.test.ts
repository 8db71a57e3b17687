/** DiskDescriptor.xml: a real one, made-up ones with several storages and snapshots, and hostile ones. */

import t from 'tap'
import { placesOf } from '../../../lib/formats/parallels/bundle.js'
import { parseDescriptor } from '../../../lib/formats/parallels/descriptor.js'
import { bundleXml, guid, NIL, TOP } from './bundles.js'
import { corpusText, needsCorpus } from './bytes.js'

const parse = (xml: string) => parseDescriptor(xml, 'b.hdd/DiskDescriptor.xml')

t.test('one that Parallels Desktop wrote', needsCorpus, async (t) => {
  const { size, storages, parents, top } = parse(corpusText('plain.hdd/DiskDescriptor.xml'))
  t.equal(size, 104857600)
  t.equal(top, TOP)
  t.same([...parents], [[TOP, NIL]])
  t.same(storages, [
    {
      start: 0,
      end: 104857600,
      clusterSize: 1048576,
      images: [{ guid: TOP, plain: true, file: 'plain.hdd.0.{5fbaabe3-6958-40ff-92a7-860e329aab41}.hds' }],
    },
  ])
})

t.test('storages in any order, several snapshots', async (t) => {
  const { storages, top, parents } = parse(
    bundleXml({
      sectors: 300,
      storages: [
        { start: 200, end: 300, images: [[guid(1), 'Compressed', 'c.hds']] },
        {
          start: 0,
          end: 200,
          images: [
            [guid(1), 'Plain', 'a &amp; &#98;.hds'],
            [guid(2), 'Compressed', 'b.hds'],
          ],
        },
      ],
      shots: [
        [guid(1), NIL],
        [guid(2), guid(1)],
      ],
    }),
  )
  t.same(
    storages.map(({ start, end }) => [start / 512, end / 512]),
    [
      [0, 200],
      [200, 300],
    ],
  )
  t.equal(storages[0]!.images[0]!.file, 'a & b.hds', 'XML’s own entities')
  t.equal(top, guid(2), 'the one that is nobody’s parent')
  t.equal(parents.get(guid(2)), guid(1))
})

t.test('the top snapshot', async (t) => {
  const top = (shots: readonly (readonly [string, string])[], topGuid?: string) =>
    parse(
      bundleXml({ sectors: 8, storages: [{ start: 0, end: 8, images: [[guid(1), 'Plain', 'a']] }], shots, topGuid }),
    ).top
  t.equal(
    top([
      [TOP, guid(1)],
      [guid(1), NIL],
      [guid(3), guid(1)],
    ]),
    TOP,
    'the GUID that is always it',
  )
  t.equal(
    top(
      [
        [TOP, guid(1)],
        [guid(1), NIL],
        [guid(3), guid(1)],
      ],
      guid(3),
    ),
    guid(3),
    'unless one is named',
  )
  t.throws(
    () =>
      top([
        [guid(1), NIL],
        [guid(2), guid(1)],
        [guid(3), guid(1)],
      ]),
    { code: 'CORRUPT', message: /could mean/ },
  )
  t.equal(top([]), guid(1), 'no list and one image')
})

t.test('what is refused', async (t) => {
  const base = { sectors: 8, storages: [{ start: 0, end: 8, images: [[guid(1), 'Plain', 'a']] as const }], shots: [] }
  const refused = (xml: string, message: RegExp, code = 'CORRUPT') =>
    t.throws(() => parse(xml), { code, message }, String(message))
  const good = bundleXml(base)
  t.ok(parse(good))
  refused(good.replace('Version="1.0"', 'Version="2.0"'), /version 2\.0, expected 1\.0/, 'UNSUPPORTED')
  refused(good.replace('<Padding>0', '<Padding>1'), /Padding is 1/, 'UNSUPPORTED')
  refused(good.replace('{00000000-0000', '{12345678-0000'), /encrypted/, 'UNSUPPORTED')
  refused(good.replace('>Plain<', '>Sparse<'), /type 'Sparse'/, 'UNSUPPORTED')
  refused(good.replace('<End>8', '<End>7'), /end at sector 7, expected 8/)
  refused(good.replace('<Start>0', '<Start>1'), /sectors 1 to 8, expected one from 0 on/)
  refused(good.replace('<Disk_size>8', '<Disk_size>eight'), /Disk_size is 'eight'/)
  refused(good.replace('<Disk_size>8', '<Disk_size>99999999999999999'), /Disk_size/)
  refused(good.replace(`<GUID>{${guid(1)}`, '<GUID>{nonsense'), /GUID is '\{nonsense\}'/)
  refused(good.replace('</StorageData>', ''), /line \d+/)
  refused('', /it is empty/)
  refused(' \n', /it is empty/)
  for (const file of ['', ' ', '.', '..', 'a/', 'a\\', 'a/..', 'x\\.', '&#46;', 'a&#0;b', '&#x0;'])
    refused(good.replace('>a<', `>${file}<`), /the File of an image is '.*', expected the name of a file$/)
  refused('<x/>', /no element Parallels_disk_image/)
  refused(`<!DOCTYPE x [<!ENTITY a "b">]>${good}`, /document type/)
  refused(good.replace('>a<', '>&xxe;<').replace('<?xml', '<!doctype x SYSTEM "/etc/passwd"><?xml'), /document type/)
  t.equal(
    parse(good.replace('>a<', '>&unknown;<')).storages[0]!.images[0]!.file,
    '&unknown;',
    'nothing else is expanded',
  )
})

t.test('where a part may be', async (t) => {
  t.same(placesOf('a.hds', '/x.hdd'), ['/x.hdd/a.hds'])
  t.same(placesOf('/old/place/a.hds', '/x.hdd'), ['/old/place/a.hds', '/x.hdd/a.hds'])
  t.same(placesOf('C:\\vm\\a.hds', '/x.hdd'), ['/x.hdd/C:\\vm\\a.hds', '/x.hdd/C:/vm/a.hds', '/x.hdd/a.hds'])
})
