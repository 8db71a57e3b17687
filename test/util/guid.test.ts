import t from 'tap'
import { formatGuid, parseGuid, randomGuid } from '../../lib/util/guid.js'

// [MS-VHDX] 2.2.3.2 prints the BAT region's GUID; its bytes on disk are from images that Hyper-V wrote.
const BAT_REGION = '2dc27766-f623-4200-9d64-115e9bfd4a08'
const BAT_REGION_BYTES = '6677c22d23f600429d64115e9bfd4a08'

t.test('mixed order: three little-endian groups', async (t) => {
  t.equal(Buffer.from(parseGuid(BAT_REGION, 'mixed')).toString('hex'), BAT_REGION_BYTES)
  t.equal(formatGuid(Buffer.from(BAT_REGION_BYTES, 'hex'), 'mixed'), BAT_REGION)
})

t.test('big order: as it reads', async (t) => {
  t.equal(Buffer.from(parseGuid(BAT_REGION, 'big')).toString('hex'), BAT_REGION.replaceAll('-', ''))
  t.equal(formatGuid(Buffer.from(`ffff${BAT_REGION.replaceAll('-', '')}`, 'hex'), 'big', 2), BAT_REGION)
})

t.test('braces and capitals are read, anything else is refused', async (t) => {
  t.same(parseGuid(`{${BAT_REGION.toUpperCase()}}`, 'big'), parseGuid(BAT_REGION, 'big'))
  for (const text of [
    '',
    BAT_REGION.slice(1),
    `${BAT_REGION}0`,
    `{${BAT_REGION}`,
    BAT_REGION.replace('-', ''),
    BAT_REGION.replace('2', 'g'),
  ])
    t.throws(() => parseGuid(text, 'big'), { code: 'USAGE', message: `'${text}' is not a GUID` })
})

t.test('random: version 4, and never twice', async (t) => {
  const seen = new Set(Array.from({ length: 100 }, randomGuid))
  t.equal(seen.size, 100)
  for (const guid of seen) t.match(guid, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
})
