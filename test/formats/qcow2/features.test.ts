import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { addBitmap, listBitmaps, removeBitmap } from '../../../lib/image/bitmaps.js'
import { checkImage } from '../../../lib/image/check.js'
import { rebaseImage } from '../../../lib/image/rebase.js'
import { resizeImage } from '../../../lib/image/resize.js'
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../../lib/image/snapshots.js'
import { temporaryFolder } from '../../support/temp.js'
import { change, create, io, MiB, qemuCheck } from './tools.js'

const AUTOCLEAR = 88
const BITMAPS = 1n
const UNKNOWN = (1n << 7n) | (1n << 63n)

const autoclear = (path: string) => readFileSync(path).readBigUInt64BE(AUTOCLEAR)

const TOOLS: readonly (readonly [string, (path: string) => unknown])[] = [
  ['snapshot create', (path) => createSnapshot(path, 'two')],
  ['snapshot apply', (path) => applySnapshot(path, 'one')],
  ['snapshot delete', (path) => deleteSnapshot(path, 'one')],
  ['resize', (path) => resizeImage(path, { size: 16 * MiB })],
  ['bitmap add', (path) => addBitmap(path, 'c', undefined)],
  ['bitmap remove', (path) => removeBitmap(path, 'b')],
  ['rebase -u', (path) => rebaseImage(path, { backing: undefined, unsafe: true })],
  [
    'check --repair all',
    (path) => {
      change(path, (b) => b.set16(b.refcountOf(b.u64(b.l2)), 0))
      checkImage(path, { repair: 'all' })
    },
  ],
  [
    'check --repair all, of bitmaps that cannot be',
    (path) => {
      change(path, (b) => b.set64(b.u64(b.bytes.indexOf(Buffer.from('2385287500000018', 'hex')) + 24), 2 ** 40))
      checkImage(path, { repair: 'all' })
    },
  ],
]

t.test('autoclear bits that are not known are cleared by every tool that changes the image', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  for (const [name, tool] of TOOLS) {
    create(path, '8M')
    io(path, 'write -P 1 0 1M')
    createSnapshot(path, 'one')
    addBitmap(path, 'b', undefined)
    if (name === 'bitmap remove') addBitmap(path, 'c', undefined)
    change(path, (b) => b.set64(AUTOCLEAR, UNKNOWN | BITMAPS))
    listBitmaps(path)
    checkImage(path)
    t.equal(autoclear(path), UNKNOWN | BITMAPS, 'kept by what only looks')
    tool(path)
    t.equal(autoclear(path), name.includes('cannot') ? 0n : BITMAPS, name)
    if (!name.includes('cannot')) t.equal(qemuCheck(path).code, 0, name)
  }
})
