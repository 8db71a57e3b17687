/** What goes wrong in the life of a mount, over an image and a transport that can be made to fail. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import t, { type Test } from 'tap'
import type { Image } from '../../lib/image/image.js'
import { WaitedTooLong } from '../../lib/metadata/lock.js'
import { LiveMount } from '../../lib/mount/life.js'
import { startTime } from '../../lib/mount/processes.js'
import { claim, entryPath, find } from '../../lib/mount/registry.js'
import type { MountTransport, ServeRequest } from '../../lib/mount/transports.js'
import { treeSettings } from '../../lib/mount/tree.js'
import { VdiskError } from '../../lib/util/errors.js'
import { registryEntry } from '../support/registry.js'
import { until, vdiskfs } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

/** tap listens as well. */
const listeners = () => [process.listenerCount('SIGTERM'), process.listenerCount('uncaughtException')]

const tree = treeSettings({ uid: 0, gid: 0, umask: 0o77 }, { atimeMs: 0, mtimeMs: 0 })

/** What a transport says that has served nothing. */
const nothing = () => ({ workers: 2, requests: [] })

/** A mount of nothing, and what was done to it. */
function setUp(t: Test, changes: { image?: object; transport?: Partial<MountTransport>; ready?: () => void } = {}) {
  const done: string[] = []
  const problems: string[] = []
  const reports: string[] = []
  let settle!: { resolve: () => void; reject: (reason: Error) => void }
  const ended = new Promise<void>((resolve, reject) => {
    settle = { resolve, reject }
  })
  let request: ServeRequest | undefined
  const image = {
    unflushed: true,
    flush: () => void done.push('flush'),
    close: () => void done.push('close'),
    threadDied: (thread: number) => void done.push(`thread ${thread} died`),
    ...changes.image,
  } as unknown as Image
  const transport: MountTransport = {
    threads: () => 2,
    serve: async (r) => {
      done.push('serve')
      request = r
      return { ended, requests: nothing }
    },
    unmount: async (_, how = {}) => {
      done.push(['unmount', ...(how.force ? ['force'] : []), ...(how.lazy ? ['lazy'] : [])].join(' '))
      settle.resolve()
    },
    ...changes.transport,
  }
  const entry = registryEntry(t, temporaryFolder(t))
  claim(entry)
  const listener = {
    warning() {},
    ready: changes.ready ?? (() => void done.push(`ready: ${find(entry.mountpoint)?.phase}`)),
    problem: (text: string) => void problems.push(text),
    report: (text: string) => void reports.push(text),
  }
  const mount = new LiveMount(entry, image, transport, listener)
  return { mount, entry, done, problems, reports, settle, request: () => request! }
}

t.test('an end by umount: the image is closed, the entry removed', async (t) => {
  const { mount, entry, done, settle } = setUp(t)
  const before = listeners()
  await mount.begin(tree)
  const living = mount.live()
  settle.resolve()
  await living
  t.same(done, ['serve', 'ready: mounted', 'close'])
  t.equal(find(entry.mountpoint), undefined)
  t.same(listeners(), before)
})

t.test('an end by a signal: committed while it still works, then unmounted, then closed', async (t) => {
  const { mount, done } = setUp(t)
  await mount.begin(tree)
  const living = mount.live()
  process.emit('SIGTERM', 'SIGTERM')
  process.emit('SIGTERM', 'SIGTERM')
  await living
  t.same(done, ['serve', 'ready: mounted', 'flush', 'unmount', 'close'], 'a second signal changes nothing')
})

t.test('a signal while it starts ends it as soon as that can be', async (t) => {
  const { mount, done } = setUp(t)
  const beginning = mount.begin(tree)
  process.emit('SIGINT', 'SIGINT')
  await beginning
  await mount.live()
  t.same(done, ['serve', 'flush', 'unmount', 'close'])
})

t.test('nobody waits for it any more: it ends', async (t) => {
  const { mount, done } = setUp(t, {
    ready: () => {
      throw new Error('EPIPE')
    },
  })
  await mount.begin(tree)
  await mount.live()
  t.same(done, ['serve', 'flush', 'unmount', 'close'])
})

t.test('a transport that cannot mount: the error, and no signal is caught any more', async (t) => {
  const serve = async () => {
    throw new VdiskError('IO', 'no device')
  }
  const { mount } = setUp(t, { transport: { serve } })
  const before = listeners()
  await t.rejects(mount.begin(tree), { message: 'no device' })
  t.same(listeners(), before)
})

t.test('an image that cannot be closed: the reason is kept for umount', async (t) => {
  const close = () => {
    throw new VdiskError('NO_SPACE', '/images/a.vhd: no space left')
  }
  const { mount, entry, settle } = setUp(t, { image: { close } })
  await mount.begin(tree)
  settle.resolve()
  await t.rejects(mount.live(), { code: 'NO_SPACE' })
  t.match(find(entry.mountpoint), { phase: 'ended', error: '/images/a.vhd: no space left' })

  // umount waits for the process that the entry names; that one has ended here.
  const child = spawn('sleep', ['100'])
  await once(child, 'spawn')
  const identity = { pid: child.pid!, startTime: startTime(child.pid!)! }
  writeFileSync(entryPath(entry.mountpoint), JSON.stringify({ ...find(entry.mountpoint)!, ...identity }))
  child.kill('SIGKILL')
  await once(child, 'exit')
  t.match(vdiskfs(['list']).out, new RegExp(`${entry.mountpoint} .*failed: /images/a.vhd: no space left`))
  const { code, err } = vdiskfs(['umount', entry.mountpoint])
  t.equal(code, 1)
  t.equal(err, 'vdiskfs: /images/a.vhd was not closed well: /images/a.vhd: no space left\n')
  t.equal(find(entry.mountpoint), undefined, 'it has been told')
})

t.test('the first failed commit says why, whatever the later ones say', async (t) => {
  let tries = 0
  const fail = () => {
    throw new VdiskError('IO', tries++ === 0 ? 'a cable is broken' : 'a sync failed before')
  }
  const { mount, entry, problems } = setUp(t, { image: { flush: fail, close: fail } })
  await mount.begin(tree)
  const living = mount.live()
  process.emit('SIGTERM', 'SIGTERM')
  await t.rejects(living, { message: 'a cable is broken' })
  t.same(problems, ['a cable is broken'])
  t.equal(find(entry.mountpoint)?.error, 'a cable is broken')
})

t.test('a worker dies: the image is told; what cannot be committed then is ended by force', async (t) => {
  const healthy = setUp(t)
  await healthy.mount.begin(tree)
  const living = healthy.mount.live()
  healthy.request().workerDied(3, new Error('out of memory'))
  t.same(healthy.done, ['serve', 'ready: mounted', 'thread 3 died', 'flush'], 'it goes on')
  t.match(healthy.problems, [/worker 3 died: .*out of memory/])
  healthy.settle.resolve()
  await living

  const poisoned = () => {
    throw new VdiskError('INTERNAL', 'a thread ended inside a change')
  }
  const broken = setUp(t, { image: { flush: poisoned, close: poisoned } })
  await broken.mount.begin(tree)
  const dying = broken.mount.live()
  broken.request().workerDied(1, new Error('gone'))
  await t.rejects(dying, { message: 'a thread ended inside a change' })
  t.ok(broken.done.includes('unmount force lazy'))
})

t.test('no worker is left: the image is closed all the same, and the reason kept', async (t) => {
  const { mount, entry, done, settle } = setUp(t)
  await mount.begin(tree)
  const living = mount.live()
  settle.reject(new Error('worker 1 ended with code 7'))
  await t.rejects(living, { code: 'INTERNAL', message: 'worker 1 ended with code 7' })
  t.equal(done.at(-1), 'close')
  t.match(find(entry.mountpoint), { phase: 'ended', error: 'worker 1 ended with code 7' })
})

t.test('a mount that stays busy is ended by force, and that is logged', async (t) => {
  const how: string[] = []
  let settle!: () => void
  const ended = new Promise<void>((resolve) => {
    settle = resolve
  })
  const { mount, problems } = setUp(t, {
    transport: {
      serve: async () => ({ ended, requests: nothing }),
      unmount: async (_, { force = false } = {}) => {
        how.push(force ? 'force' : 'plain')
        if (!force) throw new VdiskError('IN_USE', 'busy')
        settle()
      },
    },
  })
  await mount.begin(tree)
  const living = mount.live()
  process.emit('SIGTERM', 'SIGTERM')
  await living
  t.same(how, ['plain', 'force'])
  t.match(problems, [/is busy: .*; ended by force, because of SIGTERM$/])
})

t.test('a forced end that fails can be asked for again', async (t) => {
  let tries = 0
  let settle!: () => void
  const ended = new Promise<void>((resolve) => {
    settle = resolve
  })
  const { mount, problems } = setUp(t, {
    transport: {
      serve: async () => ({ ended, requests: nothing }),
      unmount: async () => {
        if (++tries < 3) throw new VdiskError('ACCESS', 'not allowed')
        settle()
      },
    },
  })
  await mount.begin(tree)
  const living = mount.live()
  process.emit('SIGTERM', 'SIGTERM')
  await until('it has failed', () => problems.length === 2)
  process.emit('SIGTERM', 'SIGTERM')
  await living
  t.equal(tries, 3)
})

t.test('signals while the image is closed end nothing in the middle', async (t) => {
  const heard: number[] = []
  const { mount, settle } = setUp(t, {
    image: {
      close: () => heard.push(...(['SIGTERM', 'SIGINT', 'SIGHUP'] as const).map((s) => process.listenerCount(s))),
    },
  })
  const before = listeners()
  const others = (['SIGTERM', 'SIGINT', 'SIGHUP'] as const).map((signal) => process.listenerCount(signal))
  await mount.begin(tree)
  const living = mount.live()
  settle.resolve()
  await living
  t.same(
    heard,
    others.map((count) => count + 1),
  )
  t.same(listeners(), before)
})

t.test('an entry that cannot be written: it is unmounted before the image is closed', async (t) => {
  const { mount, entry, done } = setUp(t)
  await mount.begin(tree)
  // What would take its place is a folder.
  const path = entryPath(entry.mountpoint)
  rmSync(path)
  mkdirSync(path)
  await t.rejects(mount.live(), { code: 'INTERNAL' })
  rmdirSync(path)
  t.same(done, ['serve', 'unmount force lazy', 'close'])
})

t.test('a commit that another thread takes its time for is no failure', async (t) => {
  const { mount, problems, settle, request } = setUp(t, {
    image: {
      flush() {
        throw new WaitedTooLong()
      },
    },
  })
  await mount.begin(tree)
  const living = mount.live()
  request().workerDied(1, new Error('gone'))
  t.match(problems, [/worker 1 died/])
  settle.resolve()
  await living
  t.equal(problems.length, 1)
})
