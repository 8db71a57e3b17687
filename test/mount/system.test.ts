/** mount(8), /etc/fstab and umount(8) with images: by our helper in /sbin, and without it by mount.fuse3(8). */

import { join } from 'node:path'
import t from 'tap'
import { type Listed, needsMounts } from '../support/mounts.js'
import { type Result, until } from '../support/run.js'
import type { TestCase } from '../support/temp.js'
import { STRANGER, USER, userWorld } from '../support/user.js'

t.setTimeout(400_000)

/** In the namespace: the helper in /sbin, or `vdiskfs` in a folder for the PATH; and an fstab. */
const PROGRAMS = `
mkdir "$D/sbin" "$D/bin"
printf '#!/bin/sh\\nexec %s %s/bin/mount.fuse.vdiskfs.js "$@"\\n' "$D/node" "$D/project" >"$D/sbin/mount.fuse.vdiskfs"
printf '#!/bin/sh\\nexec %s %s/bin/vdiskfs.js "$@"\\n' "$D/node" "$D/project" >"$D/bin/vdiskfs"
chmod +x "$D/sbin/mount.fuse.vdiskfs" "$D/bin/vdiskfs"
printf '%s\\n' \\
  "$D/home/a.vhd $D/home/mnt fuse.vdiskfs ro,allow_other,umask=022,noauto,nofail,x-systemd.automount 0 0" \\
  "$D/home/a.vhd $D/home/own fuse.vdiskfs user,noauto,rw 0 0" >"$D/fstab"
mount --bind "$D/fstab" /etc/fstab
`
const WITH_HELPER = `${PROGRAMS}
mount -t overlay none -o lowerdir="$D/sbin:/usr/sbin" /usr/sbin
`

async function setUp(t: TestCase, also: string) {
  const world = await userWorld(t, [], also)
  const did = (result: Result) => {
    if (result.code !== 0) throw new Error(`ended with ${result.code}: ${result.err}`)
    return result.out
  }
  const image = join(world.home, 'a.vhd')
  const mountpoint = join(world.home, 'mnt')
  const own = join(world.home, 'own')
  did(world.vdiskfs(['create', '-q', '-f', 'vhd', image, '32M']))
  did(world.run('mkdir', [mountpoint, own]))
  const root = (program: string, ...args: string[]) => world.run(program, args, 0)
  const find = (uid: number): Listed | undefined =>
    (JSON.parse(world.vdiskfs(['list', '--json'], uid).out) as Listed[]).find((entry) => entry.image === image)
  const mounted = () => did(root('cat', '/proc/self/mounts'))
  /** umount(8) returns before the server has closed the image; the world must not end before that. */
  const closed = (uid: number) => until('the image is closed', () => find(uid) === undefined)
  return { world, did, image, mountpoint, own, raw: join(mountpoint, 'disk.raw'), root, find, mounted, closed }
}

t.test('mount -t fuse.vdiskfs IMAGE MOUNTPOINT -o ro', needsMounts, async (t) => {
  const { did, image, mountpoint, raw, root, find, mounted, closed } = await setUp(t, WITH_HELPER)
  did(root('mount', '-t', 'fuse.vdiskfs', image, mountpoint, '-o', 'ro'))
  t.match(mounted(), `${image} ${mountpoint} fuse.vdiskfs ro,nosuid,nodev`)
  t.equal(did(root('stat', '-c', '%s %a', raw)), `${32 << 20} 400\n`)
  t.match(find(0), { state: 'mounted', options: { 'read-only': true } })
  did(root('umount', mountpoint))
  await closed(0)
  t.notMatch(mounted(), mountpoint)
})

t.test('a line in /etc/fstab', needsMounts, async (t) => {
  const { world, did, mountpoint, raw, root, find, mounted, closed } = await setUp(t, WITH_HELPER)
  did(root('mount', mountpoint))
  t.match(mounted(), /fuse\.vdiskfs ro,nosuid,nodev,[^ ]*allow_other/)
  t.match(find(0), { state: 'mounted', options: { 'read-only': true, 'allow-other': true, umask: '022' } })
  t.equal(world.run('head', ['-c1', raw], STRANGER).code, 0)
  did(root('umount', mountpoint))
  await closed(0)
})

t.test('a line with `user`: he mounts and unmounts by mount(8) and umount(8)', needsMounts, async (t) => {
  const { world, did, own, mounted, find, closed } = await setUp(t, WITH_HELPER)
  did(world.run('mount', [own]))
  t.match(mounted(), new RegExp(`${own} fuse\\.vdiskfs rw,nosuid,nodev,noexec,[^ ]*user_id=${USER}`))
  did(world.run('umount', [own]))
  await closed(USER)
  t.equal(find(USER), undefined)
})

t.test('what is wrong is said, and exits as mount(8) wants it', needsMounts, async (t) => {
  const { image, mountpoint, root, mounted } = await setUp(t, WITH_HELPER)
  const cases: [string[], RegExp][] = [
    [[image, mountpoint, '-o', 'nonsense'], /^vdiskfs: no mount option nonsense \(/],
    [[image, mountpoint, '-o', 'allow_root'], /^vdiskfs: mount option allow_root: allow_other lets root in too\n$/],
    [[`${image}.none`, mountpoint], /^vdiskfs: [^\n]*a\.vhd\.none[^\n]*no such file/],
  ]
  for (const [args, pattern] of cases) {
    const { code, err } = root('mount', '-t', 'fuse.vdiskfs', ...args)
    t.equal(code, 32, args.join(' '))
    t.match(err, pattern)
  }
  t.notMatch(mounted(), mountpoint)
  t.equal(root('mount', '-f', '-t', 'fuse.vdiskfs', image, mountpoint).code, 0, 'a fake mount')
  t.notMatch(mounted(), mountpoint)
  t.match(root('/usr/sbin/mount.fuse.vdiskfs', image), { code: 1, err: /usage/ })
  t.match(root('/usr/sbin/mount.fuse.vdiskfs', image, mountpoint, '-X'), { code: 1, err: /no option -X/ })
})

t.test('without the helper mount.fuse3 runs vdiskfs from /usr/local/bin', needsMounts, async (t) => {
  const { did, image, mountpoint, raw, root, mounted, closed } = await setUp(
    t,
    `${PROGRAMS}\nmount --bind "$D/bin" /usr/local/bin`,
  )
  for (const args of [
    ['-t', 'fuse.vdiskfs', image],
    ['-t', 'fuse', `vdiskfs#${image}`],
  ]) {
    did(root('mount', ...args, mountpoint, '-o', 'ro'))
    t.match(mounted(), new RegExp(`${image} ${mountpoint} fuse\\.vdiskfs ro,`))
    t.equal(did(root('stat', '-c', '%s', raw)), `${32 << 20}\n`)
    did(root('umount', mountpoint))
    await closed(0)
  }
})
