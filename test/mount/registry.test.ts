/** The registry: claims, states, healing; mount points as /proc writes them; who is who. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { isWithin, mountAt, parseMountinfo, resolveMountpoint } from '../../lib/mount/mounts.js'
import { isAlive, startTime, thisProcess } from '../../lib/mount/processes.js'
import {
  claim,
  entries,
  entryPath,
  find,
  newLogPath,
  registryFolder,
  remove,
  stateOf,
  update,
} from '../../lib/mount/registry.js'
import { registryEntry } from '../support/registry.js'
import { vdiskfs } from '../support/run.js'
import { atEnd, temporaryFolder } from '../support/temp.js'

/** A process that has ended: its pid and the time at which it started. */
async function deadProcess() {
  const child = spawn('sleep', ['100'])
  await once(child, 'spawn')
  const identity = { pid: child.pid!, startTime: startTime(child.pid!)! }
  child.kill('SIGKILL')
  await once(child, 'exit')
  return identity
}

t.test('a process is its pid and the time at which it started', async (t) => {
  t.ok(isAlive(thisProcess()))
  t.notOk(isAlive({ ...thisProcess(), startTime: thisProcess().startTime + 1 }), 'a later process with this pid')
  const dead = await deadProcess()
  t.type(dead.startTime, 'number')
  t.notOk(isAlive(dead))
  t.equal(startTime(2 ** 30), undefined)
})

t.test('mountinfo, as proc(5) shows it', async (t) => {
  const text = [
    '36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue',
    '60 22 0:39 / /mnt/with\\040blank rw,nosuid - fuse.vdiskfs /images/a\\134b\\012c.vhd rw,user_id=0',
    '61 22 0:40 / /mnt/with\\040blank rw - tmpfs tmpfs rw',
    '',
  ].join('\n')
  const mounts = parseMountinfo(text)
  t.same(mounts, [
    {
      ...{ id: 36, parent: 35, device: '98:0', root: '/mnt1', mountpoint: '/mnt2' },
      ...{ propagation: ['master:1', 'shared:2'], type: 'ext3', source: '/dev/root' },
    },
    {
      ...{ id: 60, parent: 22, device: '0:39', root: '/', mountpoint: '/mnt/with blank' },
      ...{ propagation: [], type: 'fuse.vdiskfs', source: '/images/a\\b\nc.vhd' },
    },
    {
      ...{ id: 61, parent: 22, device: '0:40', root: '/', mountpoint: '/mnt/with blank' },
      ...{ propagation: [], type: 'tmpfs', source: 'tmpfs' },
    },
  ])
  t.equal(mountAt('/mnt/with blank', mounts)?.type, 'tmpfs', 'the one on top')
  t.equal(mountAt('/mnt', mounts), undefined)
})

t.test('mount points are known by their real paths', async (t) => {
  const folder = temporaryFolder(t)
  mkdirSync(join(folder, 'real'))
  symlinkSync(join(folder, 'real'), join(folder, 'link'))
  t.equal(resolveMountpoint(join(folder, 'link')), join(folder, 'real'))
  t.equal(resolveMountpoint(`${folder}/real/../link/`), join(folder, 'real'))
  t.equal(resolveMountpoint(join(folder, 'none')), join(folder, 'none'))
  t.ok(isWithin('/a/b', '/a') && isWithin('/a', '/a') && isWithin('/a', '/'))
  t.notOk(isWithin('/ab', '/a'))
})

t.test('a mount point is claimed once', async (t) => {
  const mountpoint = temporaryFolder(t)
  const entry = registryEntry(t, mountpoint)
  claim(entry)
  t.same(find(mountpoint), JSON.parse(JSON.stringify(entry)))
  t.equal(statSync(registryFolder()).mode & 0o077, 0, 'others look at nothing')
  t.throws(() => claim({ ...entry, image: '/images/b.vhd' }), { code: 'IN_USE', message: /a\.vhd/ })
  t.equal(find(mountpoint)?.image, '/images/a.vhd')
  remove(entry)
  t.equal(find(mountpoint), undefined)
})

t.test('the claim of a process that is gone is nobody’s', async (t) => {
  const mountpoint = temporaryFolder(t)
  const log = newLogPath()
  writeFileSync(log, 'last words\n')
  claim(registryEntry(t, mountpoint, { ...(await deadProcess()), log }))
  claim(registryEntry(t, mountpoint, { image: '/images/b.vhd' }))
  t.equal(find(mountpoint)?.image, '/images/b.vhd')
  t.notOk(existsSync(log))
})

t.test('the list heals itself of what killed servers left', async (t) => {
  const folder = temporaryFolder(t)
  const dead = await deadProcess()
  const log = newLogPath()
  writeFileSync(log, '')
  const gone = registryEntry(t, join(folder, 'gone'), { ...dead, phase: 'mounted', log })
  const failed = registryEntry(t, join(folder, 'failed'), { ...dead, phase: 'ended', error: 'disk full' })
  const starting = registryEntry(t, join(folder, 'starting'))
  const closing = registryEntry(t, join(folder, 'closing'), { phase: 'mounted' })
  for (const entry of [gone, failed, starting, closing]) claim(entry)
  const broken = join(registryFolder(), 'broken-by-a-test.json')
  writeFileSync(broken, '{"mountpoint": ')
  const orphan = newLogPath()
  writeFileSync(orphan, '')
  utimesSync(orphan, 1_500_000_000, 1_500_000_000)
  const young = newLogPath()
  writeFileSync(young, '')
  atEnd(t, () => rmSync(young, { force: true }))
  atEnd(t, () => remove(gone))

  const states = () =>
    Object.fromEntries(
      entries()
        .filter(({ entry }) => isWithin(entry.mountpoint, folder))
        .map(({ entry, state }) => [entry.mountpoint.slice(folder.length + 1), state]),
    )
  t.equal(stateOf(gone), 'gone')
  t.same(states(), { closing: 'closing', failed: 'failed', starting: 'starting' })
  for (const path of [entryPath(gone.mountpoint), log, broken, orphan]) t.notOk(existsSync(path), path)
  t.ok(existsSync(young), 'a mount may be starting')
  t.ok(existsSync(entryPath(failed.mountpoint)), 'an error stays until somebody has read it')
})

t.test('an entry is replaced whole', async (t) => {
  const entry = registryEntry(t, temporaryFolder(t))
  claim(entry)
  update({ ...entry, phase: 'mounted' })
  t.equal(find(entry.mountpoint)?.phase, 'mounted')
})

const asRoot = process.getuid!() === 0 ? {} : { skip: 'needs root' }

t.test('an ordinary user has a registry of his own, which nobody else can have made', asRoot, async (t) => {
  // Nobody's number.
  const uid = 54_321
  const runtime = temporaryFolder(t)
  const list = (XDG_RUNTIME_DIR: string | undefined) => vdiskfs(['list', '--json'], { uid, env: { XDG_RUNTIME_DIR } })
  chownSync(runtime, uid, uid)
  t.same(list(runtime), { code: 0, out: '[]\n', err: '' })
  t.match(statSync(join(runtime, 'vdiskfs')), { uid })

  const common = `/tmp/vdiskfs-${uid}`
  atEnd(t, () => rmSync(common, { recursive: true, force: true }))
  t.equal(list('/root').code, 0, 'somebody else’s folder is not used')
  t.match(statSync(common), { uid })
  rmSync(common, { recursive: true })
  mkdirSync(common)
  const refused = list(undefined)
  t.equal(refused.code, 1)
  t.match(refused.err, /^vdiskfs: \/tmp\/vdiskfs-54321 is not a folder that only you/)
  rmSync(common, { recursive: true })
  symlinkSync(runtime, common)
  t.equal(list(undefined).code, 1, 'a link to a folder of mine is not one that I made')
})

t.test('an entry is touched by its own server only', async (t) => {
  const mountpoint = temporaryFolder(t)
  const other = registryEntry(t, mountpoint, await deadProcess())
  const own = registryEntry(t, mountpoint, { image: '/images/b.vhd' })
  claim(own)
  remove(other)
  update({ ...other, phase: 'ended', error: 'x' })
  t.same(find(mountpoint), JSON.parse(JSON.stringify(own)))
  t.same(
    readdirSync(registryFolder()).filter((name) => name.endsWith('.old')),
    [],
  )
  remove(own)
  t.equal(find(mountpoint), undefined)
})
