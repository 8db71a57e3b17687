import t from 'tap'
import { NONE, PageCache, sectorMask } from '../../lib/metadata/cache.js'
import { Control, makeShared, type SharedViews, viewShared } from '../../lib/metadata/shared.js'

/** The smallest cache: 256 pages. */
function makeCache(cacheSize = 0): { cache: PageCache; views: SharedViews } {
  const shape = makeShared({ threads: 1, cacheSize, files: 2, stateNumbers: 0 })
  const views = viewShared(shape)
  const cache = new PageCache(shape, views)
  cache.clear()
  return { cache, views }
}

const dirt = ({ control }: SharedViews) => [control[Control.DIRTY_SECTORS], control[Control.DIRTY_PAGES]]

t.test('the size is a power of two of pages, at least 1 MiB', async (t) => {
  t.equal(makeCache(0).cache.pages, 256)
  t.equal(makeCache(2 ** 20).cache.pages, 256)
  t.equal(makeCache(3 * 2 ** 20).cache.pages, 512)
  t.equal(makeCache(32 * 2 ** 20).cache.pages, 8192)
})

t.test('pages are found by file and number', async (t) => {
  const { cache } = makeCache()
  t.equal(cache.find(0, 0), NONE)
  const keys: [number, number][] = [
    [0, 0],
    [1, 0],
    [0, 1],
    [0, 2 ** 31],
    [0, 2 ** 32],
    [1, 2 ** 32],
    [0, 2 ** 41 - 1],
    [511, 2 ** 41 - 1],
  ]
  const slots = keys.map(([file, page]) => cache.claim(file, page))
  t.equal(new Set(slots).size, keys.length, 'a slot each')
  keys.forEach(([file, page], i) => {
    t.equal(cache.find(file, page), slots[i])
    t.equal(cache.claim(file, page), slots[i], 'claimed once only')
    t.ok(cache.holds(slots[i]!, file, page))
    t.notOk(cache.holds(slots[i]!, file, page + 1))
    t.equal(cache.fileOf(slots[i]!), file)
    t.equal(cache.offsetOf(slots[i]!), page * 4096)
  })
  t.notOk(cache.holds(NONE, 0, 0))
})

t.test('a full cache gives up pages that were not used lately, and dirty ones never', async (t) => {
  const { cache, views } = makeCache()
  for (let page = 0; page < 256; page++) cache.claim(0, page)
  cache.markDirty(cache.find(0, 7), 1, 0)
  for (let page = 1000; page < 1400; page++) {
    cache.find(0, 3)
    cache.claim(0, page)
  }
  t.not(cache.find(0, 7), NONE, 'dirty')
  t.not(cache.find(0, 3), NONE, 'in use all the time')
  t.equal(cache.find(0, 100), NONE)
  t.not(cache.find(0, 1399), NONE)
  t.equal(views.control[Control.EVICTIONS], 400)
  let found = 0
  for (let page = 0; page < 1400; page++) if (cache.find(0, page) !== NONE) found++
  t.equal(found, 256)
})

t.test('a page that is being filled or written is not given up', async (t) => {
  const { cache, views } = makeCache()
  for (let page = 0; page < 256; page++) cache.claim(0, page)
  const filling = cache.find(0, 10)
  const writing = cache.find(0, 20)
  views.fillBusy[filling] = 1
  cache.markDirty(writing, 1, 0)
  cache.takeDirty(() => {})
  for (let page = 1000; page < 2000; page++) cache.claim(0, page)
  t.equal(cache.find(0, 10), filling)
  t.equal(cache.find(0, 20), writing)
})

t.test('no clean page left', async (t) => {
  const { cache } = makeCache()
  for (let page = 0; page < 256; page++) cache.markDirty(cache.claim(0, page), 0x80, 1)
  t.throws(() => cache.claim(0, 256), { code: 'INTERNAL' })
})

t.test('a page that comes back has no valid sector', async (t) => {
  const { cache } = makeCache()
  cache.valid[cache.claim(0, 0)] = 0xff
  for (let page = 1; page < 600; page++) cache.claim(0, page)
  t.equal(cache.valid[cache.claim(0, 0)], 0)
})

t.test('dirt is counted by sector and by page', async (t) => {
  const { cache, views } = makeCache()
  const a = cache.claim(0, 1)
  const b = cache.claim(0, 2)
  cache.markDirty(a, 0b0000_0011, 0)
  cache.markDirty(a, 0b0000_0110, 0)
  t.same(dirt(views), [3, 1])
  cache.markDirty(b, 0b1000_0000, 3)
  t.same(dirt(views), [4, 2])
  cache.markDirty(b, 0b1000_0001, 1)
  t.same(dirt(views), [5, 2], 'a sector keeps the order that it had')
  const seen: number[][] = []
  cache.takeDirty((slot, sector, order) => seen.push([slot, sector, order]))
  t.same(
    seen.sort((x, y) => x[0]! - y[0]! || x[1]! - y[1]!),
    [
      [a, 0, 0],
      [a, 1, 0],
      [a, 2, 0],
      [b, 0, 1],
      [b, 7, 3],
    ],
  )
  t.same(dirt(views), [0, 2], 'pages that are being written still take up room')
  t.ok(cache.isWriting(b, 0b1000_0000))
  t.notOk(cache.isWriting(b, 0b0100_0000))
})

t.test('what is made dirty again while it is written stays dirty', async (t) => {
  const { cache, views } = makeCache()
  const slot = cache.claim(0, 1)
  cache.valid[slot] = 0xff
  cache.markDirty(slot, 0b11, 0)
  cache.takeDirty(() => {})
  cache.markDirty(slot, 0b01, 0)
  t.same(dirt(views), [1, 1])
  cache.endWriting(slot, 0b01, 0, true)
  cache.endWriting(slot, 0b10, 0, true)
  t.same(dirt(views), [1, 1])
  cache.takeDirty((_, sector) => t.equal(sector, 0))
  cache.endWriting(slot, 0b01, 0, true)
  t.same(dirt(views), [0, 0])
})

t.test('what could not be written is dirty again, but for what was forgotten', async (t) => {
  const { cache, views } = makeCache()
  const slot = cache.claim(0, 1)
  cache.valid[slot] = 0xff
  cache.markDirty(slot, 0b111, 2)
  cache.takeDirty(() => {})
  cache.forget(slot, 0b010)
  for (const sector of [1, 2, 4]) cache.endWriting(slot, sector, 2, false)
  t.same(dirt(views), [2, 1])
  const seen: number[][] = []
  cache.takeDirty((_, sector, order) => seen.push([sector, order]))
  t.same(seen, [
    [0, 2],
    [2, 2],
  ])
})

t.test('forgetting', async (t) => {
  const { cache, views } = makeCache()
  const slot = cache.claim(0, 1)
  cache.valid[slot] = 0xff
  cache.markDirty(slot, 0b0011, 0)
  cache.markDirty(slot, 0b1100, 1)
  cache.forget(slot, 0b0110)
  t.same(dirt(views), [2, 1])
  t.equal(cache.valid[slot], 0b1111_1001)
  cache.forget(slot, 0xff)
  t.same(dirt(views), [0, 0])
  cache.takeDirty(() => t.fail('nothing is dirty'))
})

t.test('the sectors of a structure in a page, rounded out', async (t) => {
  const cases: [page: number, start: number, end: number, mask: number][] = [
    [0, 0, 4096, 0xff],
    [1, 0, 2 ** 40, 0xff],
    [1, 4096, 4097, 0b1],
    [1, 4096 + 511, 4096 + 513, 0b11],
    [1, 4096 + 3584, 9000, 0b1000_0000],
    [2, 4096 + 3584, 9000, 0b11],
    [2 ** 41 - 1, 0, 2 ** 53 - 1, 0xff],
  ]
  for (const [page, start, end, mask] of cases) t.equal(sectorMask(page, start, end), mask, `${page} ${start} ${end}`)
})
