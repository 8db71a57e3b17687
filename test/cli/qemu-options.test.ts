/** Options that scripts for qemu-img use, with its meaning. */

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { openImage } from '../../lib/image/open.js'
import { must, vdiskfs, vdiskfsMust } from '../support/run.js'
import { type TestCase, temporaryFolder } from '../support/temp.js'

t.setTimeout(300_000)

const MiB = 1024 * 1024

function inFolder(t: TestCase): {
  at: (name: string) => string
  ours: (...argv: string[]) => ReturnType<typeof vdiskfs>
} {
  const folder = temporaryFolder(t)
  return { at: (name) => join(folder, name), ours: (...argv) => vdiskfs(argv, { cwd: folder }) }
}

const qemuInfo = (path: string) => JSON.parse(must('qemu-img', ['info', '-U', '--output=json', path]))

t.test('-o with the name of a switch alone means on', async (t) => {
  const { at, ours } = inFolder(t)
  t.equal(ours('create', '-f', 'qcow2', '-o', 'compat=1.1,lazy_refcounts', 'a.qcow2', '4M').code, 0)
  t.equal(qemuInfo(at('a.qcow2'))['format-specific'].data['lazy-refcounts'], true)
  t.equal(ours('create', '-f', 'vpc', '-o', 'subformat=fixed,force_size', 'a.vhd', '4M').code, 0)
  t.equal(readFileSync(at('a.vhd')).length, 4 * MiB + 512)
  for (const option of ['subformat', 'cluster_size']) {
    const { code, err } = ours('create', '-f', option === 'subformat' ? 'vhd' : 'qcow2', '-o', option, 'b', '4M')
    t.same([code, /needs a value/.test(err)], [2, true], option)
  }
})

t.test('-o backing_file and backing_fmt', async (t) => {
  const { at, ours } = inFolder(t)
  writeFileSync(at('base.raw'), Buffer.alloc(MiB, 7))
  const parent = ['-o', 'backing_file=base.raw,backing_fmt=raw,cluster_size=4k']
  t.equal(ours('create', '-f', 'qcow2', ...parent, 'a.qcow2').code, 0)
  t.equal(ours('convert', '-O', 'qcow2', ...parent, 'base.raw', 'b.qcow2').code, 0)
  for (const name of ['a.qcow2', 'b.qcow2']) {
    const info = qemuInfo(at(name))
    const found = [info['backing-filename'], info['backing-filename-format'], info['cluster-size']]
    t.same(found, ['base.raw', 'raw', 4096], name)
  }
  t.equal(ours('create', '-f', 'qcow2', '-b', 'base.raw', ...parent, 'c.qcow2').code, 0, 'both, and the same')
  t.match(ours('create', '-f', 'qcow2', '-b', 'b.qcow2', ...parent, 'd.qcow2'), {
    code: 2,
    err: /expected one of them/,
  })
  t.match(ours('create', '-f', 'raw', ...parent, 'd.raw'), { code: 2 })
  t.match(ours('create', '-f', 'qcow2', '-o', 'backing_file=', 'd.qcow2', '1M'), { code: 2, err: /needs a value/ })
  t.notOk(existsSync(at('d.qcow2')))
})

t.test('-o help', async (t) => {
  for (const argv of [
    ['create', '-f', 'qcow2', '-o', 'help'],
    ['create', '-f', 'qcow2', '-o', '?', 'x.qcow2'],
    ['convert', '-O', 'qcow2', '-o', 'help', 'none', 'x.qcow2'],
  ]) {
    const { code, out, err } = vdiskfs(argv)
    t.same([code, err], [0, ''])
    for (const option of ['cluster_size=', 'lazy_refcounts=', 'backing_file=']) t.match(out, option)
    t.notMatch(out, /log_size/, 'of this format only')
  }
  t.equal(vdiskfs(['create', '-f', 'none', '-o', 'help']).code, 2)
})

t.test('-S: any multiple of 512', async (t) => {
  const { at, ours } = inFolder(t)
  // Zeros of 16 KiB between data.
  const disk = Buffer.alloc(MiB, 7).fill(0, 0x18000, 0x1c000)
  writeFileSync(at('a.raw'), disk)
  for (const size of ['0', '512', '1536', '3k', '12k', '5M', '16M']) {
    t.equal(ours('convert', '-S', size, '-O', 'raw', 'a.raw', 'b.raw').code, 0, size)
    t.ok(readFileSync(at('b.raw')).equals(disk), size)
  }
  t.match(ours('convert', '-S', '700', '-O', 'raw', 'a.raw', 'b.raw'), { code: 2, err: /multiple of 512/ })
})

t.test('cache modes are accepted, and misspelled ones are not', async (t) => {
  const { at, ours } = inFolder(t)
  writeFileSync(at('a.raw'), Buffer.alloc(MiB, 7))
  const convert = ['convert', '-f', 'raw', '-O', 'qcow2', 'a.raw', 'b.qcow2']
  for (const mode of ['none', 'writeback', 'writethrough', 'directsync', 'unsafe'])
    t.equal(ours(...convert, '-t', mode, '-T', mode).code, 0, mode)
  t.match(ours(...convert, '-t', 'fast'), { code: 2, err: /--cache fast: expected none, writeback/ })
  t.equal(ours('compare', '-T', 'none', 'a.raw', 'b.qcow2').code, 0)
  t.equal(ours('check', '-T', 'none', 'b.qcow2').code, 0)
  t.match(ours('check', '-T', 'fast', 'b.qcow2'), { code: 1 })
})

t.test('-U reads an image that somebody writes', async (t) => {
  const { at, ours } = inFolder(t)
  vdiskfsMust(['create', '-q', '-f', 'qcow2', at('a.qcow2'), '4M'])
  const image = openImage(at('a.qcow2'))
  t.teardown(() => image.close())
  t.match(ours('compare', 'a.qcow2', 'a.qcow2'), { code: 2, err: /in use/ })
  t.equal(ours('compare', '-U', 'a.qcow2', 'a.qcow2').code, 0)
  t.match(ours('convert', 'a.qcow2', 'b.raw'), { code: 1, err: /in use/ })
  t.equal(ours('convert', '-U', 'a.qcow2', 'b.raw').code, 0)
  t.match(ours('convert', '-U', '-n', '-O', 'qcow2', 'b.raw', 'a.qcow2'), { code: 1, err: /in use/ }, 'not the target')
  t.match(ours('check', 'a.qcow2'), { code: 1, err: /in use/ })
  t.equal(ours('check', '-U', 'a.qcow2').code, 0)
  t.match(ours('check', '-U', '-r', 'all', 'a.qcow2'), { code: 1, err: /without a lock/ })
  for (const command of ['info', 'map']) t.equal(ours(command, '-U', 'a.qcow2').code, 0)
})

t.test('a value that begins with a dash', async (t) => {
  const { at, ours } = inFolder(t)
  vdiskfsMust(['create', '-q', '-f', 'qcow2', at('-x.qcow2'), '4M'])
  t.equal(ours('create', '-f', 'qcow2', '-b', '-x.qcow2', '-F', 'qcow2', 'a.qcow2').code, 0)
  t.equal(qemuInfo(at('a.qcow2'))['backing-filename'], '-x.qcow2')
  t.equal(ours('rebase', '-u', '-F', 'qcow2', '-b', '-x.qcow2', 'a.qcow2').code, 0)
})
