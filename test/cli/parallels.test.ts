/** check, bitmap and resize as a user meets them: exit codes, JSON, words. On Parallels images, which have all three. */

import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { must, vdiskfs, vdiskfsMust } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

const MiB = 1048576

/** An image of QEMU with data in its first MiB. */
function image(t: TestCase): string {
  const path = join(temporaryFolder(t), 'x.hds')
  must('qemu-img', ['create', '-q', '-f', 'parallels', path, '8M'])
  must('qemu-io', ['-f', 'parallels', '-c', 'write -P 7 0 1M', path])
  return path
}

t.test('check: what qemu-img says, in its keys and exit codes', async (t) => {
  const path = image(t)
  const ours = vdiskfs(['check', '--json', path])
  t.equal(ours.code, 0)
  t.same(JSON.parse(ours.out), JSON.parse(must('qemu-img', ['check', '--output=json', path])))
  t.match(vdiskfsMust(['check', path]), /No errors were found on the image\.\n1\/8 = 12\.50% allocated/)
  truncateSync(path, statSync(path).size + 2 * MiB)
  const leaked = vdiskfs(['check', '--output', 'json', path])
  t.equal(leaked.code, 3)
  t.match(JSON.parse(leaked.out), { leaks: 2, findings: [{ severity: 'leak', offset: 2 * MiB, repaired: false }] })
  t.match(vdiskfs(['check', path]).out, /^Leaked: 2 clusters from byte 2097152/)
  const repaired = vdiskfs(['check', '--repair', 'leaks', '--json', path])
  t.equal(repaired.code, 0)
  t.match(JSON.parse(repaired.out), { 'leaks-fixed': 2 })
  t.equal(statSync(path).size, 2 * MiB)
})

t.test('check: errors, what cannot be checked, what has nothing to check', async (t) => {
  const path = image(t)
  const bytes = readFileSync(path)
  bytes.writeUInt32LE(1, 68)
  writeFileSync(path, bytes)
  const found = vdiskfs(['check', path])
  t.equal(found.code, 2)
  t.match(found.out, /^ERROR: BAT entry 1 says byte 1048576, which another entry uses too\n1 errors are left/)
  t.equal(vdiskfs(['check', '--repair', 'leaks', path]).code, 2)
  t.match(vdiskfs(['check', '-r', 'leaks', path]), { code: 2, err: '', out: /errors are left/ })
  const mended = vdiskfs(['check', '--repair=all', path])
  t.equal(mended.code, 0)
  t.match(mended.out, /\(repaired\)/)
  must('qemu-img', ['check', path])
  writeFileSync(path, bytes.subarray(0, 70))
  t.match(vdiskfs(['check', path]), { code: 1, err: /x\.hds: the BAT of 8 entries ends at byte 96, behind the file/ })
  const raw = join(temporaryFolder(t), 'x.raw')
  writeFileSync(raw, 'nothing')
  t.match(vdiskfs(['check', raw]), { code: 63, out: '', err: /raw have nothing to check/ })
  t.match(vdiskfs(['check', '--repair', 'some', raw]), { code: 1, err: /--repair some: expected/ })
})

t.test('bitmap: added, listed, shown, cleared, removed', async (t) => {
  const path = image(t)
  const name = vdiskfsMust(['bitmap', 'add', '-g', '128K', path]).trim()
  t.same(JSON.parse(vdiskfsMust(['bitmap', 'list', '--json', path])), [{ name, granularity: 131072, flags: [] }])
  t.match(vdiskfsMust(['bitmap', 'list', path]), new RegExp(`${name}  128 KiB`))
  t.same(JSON.parse(vdiskfsMust(['bitmap', 'extents', path, name, '--json'])), [])
  t.equal(vdiskfsMust(['bitmap', 'extents', path, name]), 'Offset          Length\n')
  vdiskfsMust(['bitmap', 'clear', path, name])
  vdiskfsMust(['bitmap', 'remove', path, name])
  t.same(JSON.parse(vdiskfsMust(['bitmap', 'list', '--json', path])), [])
  t.match(vdiskfs(['bitmap', 'extents', path, name]), { code: 1, err: /no bitmap/ })
  t.match(vdiskfs(['bitmap', 'extents', path]), { code: 2, err: /NAME is missing/ })
  t.match(vdiskfs(['bitmap', 'paint', path]), { code: 2, err: /bitmap paint: expected list, extents/ })
  const raw = join(temporaryFolder(t), 'x.raw')
  writeFileSync(raw, 'nothing')
  t.match(vdiskfs(['bitmap', 'list', raw]), { code: 1, err: /format raw have no bitmaps/ })
})

t.test('resize: to a size, by a size, smaller only where that is meant', async (t) => {
  const path = image(t)
  const size = () => JSON.parse(must('qemu-img', ['info', '--output=json', path]))['virtual-size']
  t.match(vdiskfsMust(['resize', path, '+37M']), /8 MiB \(8388608 bytes\) before, 45 MiB/)
  t.equal(size(), 45 * MiB)
  vdiskfsMust(['resize', path, '1G', '-q'])
  t.equal(size(), 1024 * MiB)
  t.match(vdiskfs(['resize', path, '-24M']), { code: 2, err: /--shrink/ })
  vdiskfsMust(['resize', '--shrink', path, '-24M'])
  t.equal(size(), 1000 * MiB)
  t.match(vdiskfs(['resize', path, '12Q']), { code: 2, err: /12Q/ })
  must('qemu-img', ['check', path])
})
