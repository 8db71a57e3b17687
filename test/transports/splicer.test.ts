// Replies that are spliced: a file stands for the device, so that what would reach the kernel can be read back.

import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Splicer } from '../../lib/transports/kernel/splicer.js'

const folder = mkdtempSync(join(tmpdir(), 'vdiskfs-splicer-'))
t.teardown(() => rmSync(folder, { recursive: true }))

const HEADER = Buffer.from('0123456789abcdef')
const SIZE = 700_000
const content = Buffer.alloc(SIZE)
for (let i = 0; i < SIZE; i += 4) content.writeUInt32LE(Math.imul(i, 2654435761) >>> 0, i)
const image = join(folder, 'image')
writeFileSync(image, content)

function bench() {
  const file = openSync(image, 'r')
  const path = join(folder, `device-${file}`)
  const device = openSync(path, 'w')
  const splicer = Splicer.make(device)!
  t.teardown(() => {
    splicer.close()
    closeSync(file)
    closeSync(device)
  })
  return { file, splicer, sent: () => readFileSync(path) }
}

t.test('the header, then every piece in order, wherever they begin', async (t) => {
  const { file, splicer, sent } = bench()
  splicer.pieces.add(file, 100_001, 300_000)
  splicer.pieces.add(file, 7, 12_345)
  t.equal(splicer.send(HEADER, 312_345), true)
  t.ok(sent().equals(Buffer.concat([HEADER, content.subarray(100_001, 400_001), content.subarray(7, 12_352)])))
})

t.test('the largest request in the most pieces, none at a page', async (t) => {
  const { file, splicer, sent } = bench()
  for (let i = 0; i < 16; i++) splicer.pieces.add(file, 1 + i * 40_000, 32_768)
  t.equal(splicer.send(HEADER, 16 * 32_768), true)
  t.equal(sent().length, 16 + 524_288)
  t.ok(
    sent()
      .subarray(16 + 15 * 32_768)
      .equals(content.subarray(600_001, 632_769)),
  )
})

t.test('a file that ends inside a piece: nothing is sent, and the next reply is whole', async (t) => {
  const { file, splicer, sent } = bench()
  splicer.pieces.add(file, SIZE - 10_000, 40_000)
  t.equal(splicer.send(HEADER, 40_000), false)
  t.equal(sent().length, 0)
  splicer.pieces.count = 0
  splicer.pieces.add(file, 0, 40_000)
  t.equal(splicer.send(HEADER, 40_000), true)
  t.ok(sent().equals(Buffer.concat([HEADER, content.subarray(0, 40_000)])))
})

t.test('a closed splicer sends nothing', async (t) => {
  const { file, splicer, sent } = bench()
  splicer.pieces.add(file, 0, 40_000)
  splicer.close()
  t.equal(splicer.send(HEADER, 40_000), false)
  t.equal(sent().length, 0)
})
