/** Ordinary users: mounting and unmounting through fusermount3, what is theirs, and what they are told. */

import { existsSync, readFileSync, realpathSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Listed } from '../support/mounts.js'
import { needsMounts } from '../support/mounts.js'
import { must, type Result, run, until } from '../support/run.js'
import type { TestCase } from '../support/temp.js'
import { currentTransport, overTransports } from '../support/transports.js'
import { STRANGER, USER, type UserWorld, userWorld } from '../support/user.js'

t.setTimeout(400_000)

/** An image and a mount point of the user's. */
async function setUp(t: TestCase, conf?: readonly string[], also?: string) {
  const world = await userWorld(t, conf, also)
  const image = join(world.home, 'disk, \\ü.vhd')
  const mountpoint = join(world.home, 'mnt')
  const did = (result: Result) => {
    if (result.code !== 0) throw new Error(`ended with ${result.code}: ${result.err}`)
    return result.out
  }
  did(world.vdiskfs(['create', '-q', '-f', 'vhd', image, '32M']))
  did(world.run('mkdir', [mountpoint]))
  return { world, image, mountpoint, raw: join(mountpoint, 'disk.raw'), did }
}

const list = (world: UserWorld): Listed[] => JSON.parse(world.vdiskfs(['list', '--json']).out)
const mounts = (world: UserWorld): string => world.run('cat', ['/proc/self/mounts']).out
const isAlive = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) [ZX]/s.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return false
  }
}

await overTransports(t, 'a user mounts, writes, unmounts; nobody else gets in', [], async (t) => {
  const { world, image, mountpoint, raw, did } = await setUp(t)
  t.same(world.vdiskfs(['mount', image, mountpoint]), { code: 0, out: '', err: '' })
  const [entry] = list(world)
  t.match(entry, { mountpoint, image, state: 'mounted', options: { transport: currentTransport() } })
  t.match(readFileSync(`/proc/${entry!.pid}/status`, 'utf8'), `Uid:\t${USER}\t${USER}\t${USER}\t${USER}\n`)
  t.match(mounts(world), / fuse\.vdiskfs rw,nosuid,nodev,[^ ]*user_id=65534,group_id=65534/)
  t.equal(did(world.run('stat', ['-c', '%u %g %a', raw])), `${USER} ${USER} 600\n`)
  did(
    world.run('dd', [
      'if=/dev/urandom',
      `of=${raw}`,
      'bs=1M',
      'count=3',
      'seek=4',
      'conv=notrunc,fsync',
      'status=none',
    ]),
  )
  const sum = did(world.run('sha256sum', [raw])).slice(0, 64)
  t.match(world.run('cat', [raw], 0), { code: 1, err: /Permission denied/ }, 'not even root')
  t.match(world.run('cat', [raw], STRANGER), { code: 1, err: /Permission denied/ })
  t.same(world.vdiskfs(['umount', mountpoint]), { code: 0, out: '', err: '' })
  t.notOk(isAlive(entry!.pid))
  t.same(list(world), [])
  t.notMatch(mounts(world), mountpoint)
  const copy = join(world.home, 'copy')
  did(world.run('qemu-img', ['convert', '-f', 'vpc', '-O', 'raw', image, copy]))
  t.equal(did(world.run('sha256sum', [copy])).slice(0, 64), sum)
})

await overTransports(t, '--allow-other is refused unless fuse.conf has it, and told why', [], async (t) => {
  const { world, image, mountpoint } = await setUp(t, ['#user_allow_other'])
  const { code, err } = world.vdiskfs(['mount', '--allow-other', image, mountpoint])
  t.equal(code, 1)
  t.match(
    err,
    /^vdiskfs: cannot mount on [^\n]*: --allow-other needs a line user_allow_other in \/etc\/fuse\.conf[^\n]*\n$/,
  )
  t.same(list(world), [])
  t.notMatch(mounts(world), mountpoint)
})

await overTransports(t, '--allow-other with user_allow_other: root and others get in', [], async (t) => {
  const { world, image, mountpoint, raw, did } = await setUp(t, ['user_allow_other'])
  did(world.vdiskfs(['mount', '-o', 'allow_other,umask=022,ro,noexec', image, mountpoint]))
  t.match(mounts(world), / fuse\.vdiskfs ro,nosuid,nodev,noexec,[^ ]*allow_other/)
  t.equal(world.run('head', ['-c1', raw], 0).code, 0)
  t.equal(world.run('head', ['-c1', raw], STRANGER).code, 0)
  did(world.vdiskfs(['umount', mountpoint]))
})

await overTransports(t, 'a busy mount is not taken away, and SIGTERM ends it all the same', [], async (t) => {
  const { world, image, mountpoint, raw, did } = await setUp(t)
  did(world.vdiskfs(['mount', image, mountpoint]))
  const { pid } = list(world)[0]!
  did(world.run('sh', ['-c', `sleep 1000 <'${raw}' >/dev/null 2>&1 & echo $! >'${world.home}/pid'`]))
  const sleeper = Number(did(world.run('cat', [join(world.home, 'pid')])))
  try {
    const busy = world.vdiskfs(['umount', mountpoint])
    t.match(busy, { code: 1, err: /is busy: [^\n]*\(pid \d+\) has disk\.raw open\n$/ })
    t.match(list(world), [{ state: 'mounted' }])
    t.match(world.vdiskfs(['umount', mountpoint], STRANGER), { code: 1 }, 'a stranger cannot')
    t.match(mounts(world), mountpoint)
    world.run('kill', [String(pid)])
    await until('the server ends', () => !isAlive(pid))
    t.notMatch(mounts(world), mountpoint)
    t.same(list(world), [])
  } finally {
    process.kill(sleeper, 'SIGKILL')
  }
})

await overTransports(t, 'a mount point of somebody else', [], async (t) => {
  const { world, image } = await setUp(t)
  const { code, err } = world.vdiskfs(['mount', image, '/usr'])
  t.equal(code, 1)
  t.match(err, /^vdiskfs: cannot mount on \/usr: [^\n]*no write access[^\n]*folders of their own only\)\n$/)
})

t.test('without fusermount3 it is said what to install', needsMounts, async (t) => {
  const programs = ['fusermount3', 'fusermount'].flatMap((name) => run('which', ['-a', name]).out.trim().split('\n'))
  const paths = new Set(programs.filter((path) => path !== '').map((path) => realpathSync(path)))
  const hide = [...paths].map((path) => `mount --bind /dev/null '${path}'`).join('\n')
  const { world, image, mountpoint } = await setUp(t, [], hide)
  const { code, err } = world.vdiskfs(['mount', image, mountpoint])
  t.equal(code, 1)
  t.match(err, /^vdiskfs: cannot mount on [^\n]*fusermount3 is missing \(on Debian: apt install fuse3\)[^\n]*\n$/)
  t.same(list(world), [])
})

t.test('without fuse-native: what is missing is said, and the rest works', needsMounts, async (t) => {
  const hide = 'mount -t tmpfs none "$D/project/node_modules/fuse-native"'
  const { world, image, mountpoint, did } = await setUp(t, [], hide)
  const { code, err } = world.vdiskfs(['mount', '--transport', 'fuse-native', image, mountpoint])
  t.equal(code, 1)
  t.equal(
    err,
    'vdiskfs: the transport fuse-native cannot be used: the package is not installed (npm install fuse-native@2.2.6)\n',
  )
  did(world.vdiskfs(['mount', image, mountpoint]))
  t.match(list(world), [{ options: { transport: 'kernel' } }])
  did(world.vdiskfs(['umount', mountpoint]))
})

t.test('a loop device, by root, over a user’s mount', needsMounts, async (t) => {
  const { world, image, mountpoint, raw, did } = await setUp(t, ['user_allow_other'])
  did(world.vdiskfs(['mount', '--allow-other', image, mountpoint]))
  const loop = did(world.run('losetup', ['--find', '--show', raw], 0)).trim()
  try {
    must('mkfs.ext4', ['-q', loop])
    t.match(world.vdiskfs(['umount', mountpoint]), { code: 1, err: new RegExp(`${loop} is attached to disk\\.raw`) })
  } finally {
    must('losetup', ['--detach', loop])
  }
  did(world.vdiskfs(['umount', mountpoint]))
  t.ok(existsSync(loop))
})
