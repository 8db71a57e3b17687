/** `-o` of mount: what mount(8), fstab(5) and libfuse know. */

import t from 'tap'
import { parseArguments } from '../../lib/cli/arguments.js'
import { COMMANDS } from '../../lib/cli/commands.js'
import { mountHelper } from '../../lib/cli/mount-helper.js'
import { mountSettings } from '../../lib/cli/mount-options.js'

const mount = COMMANDS.find(({ name }) => name === 'mount')!
const settings = (...words: string[]) => mountSettings(parseArguments(mount, [...words, 'image', 'folder']))

t.test('words and their opposites', async (t) => {
  t.match(settings(), { readOnly: false, allowOther: false, systemOptions: [] })
  t.match(settings('-o', 'ro,allow_other,noexec,sync,dirsync'), {
    readOnly: true,
    allowOther: true,
    systemOptions: ['noexec', 'sync', 'dirsync'],
  })
  t.match(settings('-o', 'ro,noexec,sync', '-o', 'rw,exec,async'), { readOnly: false, systemOptions: [] })
  t.equal(settings('-r', '-o', 'rw').readOnly, true, 'an option of its own name counts more')
})

t.test('values', async (t) => {
  const given = settings('-o', 'uid=5,backing_dir=/a,cache_size=64M', '--backing-dir', '/b', '--uid=7')
  t.same([given.value('uid'), given.value('cache-size')], ['7', '64M'])
  t.same(given.values('backing-dir'), ['/b', '/a'])
  t.throws(() => settings('-o', 'uid'), { code: 'USAGE', message: 'mount option uid needs a value: uid=…' })
})

t.test('what fstab has besides', async (t) => {
  const line = 'defaults,auto,user,nofail,_netdev,x-systemd.automount,x-gvfs-show,comment=x,suid,dev,nosuid,nodev'
  t.match(settings('-o', line), { readOnly: false, allowOther: false, systemOptions: [] })
})

t.test('what is not known, or cannot be had, is refused by name', async (t) => {
  t.throws(() => settings('-o', 'ro,nonsense=3'), { code: 'USAGE', message: /^no mount option nonsense \(/ })
  t.throws(() => settings('-o', 'remount,ro'), { code: 'USAGE', message: /^mount option remount: .*umount it first$/ })
  t.throws(() => settings('-o', 'allow_root'), { code: 'USAGE', message: /^mount option allow_root: allow_other/ })
  t.throws(() => settings('-o', 'constructor'), { code: 'USAGE', message: /^no mount option constructor/ })
})

t.test('the helper of mount(8): its own errors', async (t) => {
  const call = async (...argv: string[]) => {
    let err = ''
    const io = {
      out: () => {},
      err: (text: string) => {
        err += text
      },
      columns: undefined,
    }
    return { code: await mountHelper(argv, io), err }
  }
  t.same(await call('image', 'folder', '-f'), { code: 0, err: '' })
  t.same(await call('image', 'folder', '-sfnv', '-t', 'fuse.vdiskfs', '-oro'), { code: 0, err: '' })
  t.same(await call('image'), {
    code: 1,
    err: 'mount.fuse.vdiskfs: usage: mount.fuse.vdiskfs IMAGE MOUNTPOINT [-o OPTIONS]\n',
  })
  t.match(await call('image', 'folder', '-o'), { code: 1, err: /-o needs a value/ })
  t.match(await call('/nowhere/image', '/nowhere/folder', '-n', '-o', 'ro'), { code: 32, err: /^vdiskfs: .*nowhere/ })
})
