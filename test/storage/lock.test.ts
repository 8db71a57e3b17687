import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import t from 'tap'
import { fcntl } from '../../lib/native/libc.js'
import { openFile } from '../../lib/storage/file.js'
import { lockImage } from '../../lib/storage/lock.js'
import { MemoryStorage } from '../../lib/storage/memory.js'
import { run, temporaryFolder } from './host.js'

type Test = { teardown(undo: () => unknown): void }

/** A new image of 1 MiB. */
function image(t: Test, format: 'raw' | 'qcow2'): string {
  const path = join(
    temporaryFolder((undo) => t.teardown(undo)),
    `x.${format}`,
  )
  run('qemu-img', 'create', '-q', '-f', format, path, '1M')
  return path
}

/** Opens and locks as the program does; closed at the test's end. */
function lock(t: Test, path: string, write: boolean): { locked: boolean; close(): void } {
  const storage = openFile(path, { readOnly: !write })
  t.teardown(() => storage.close())
  return { locked: lockImage(storage, { write }), close: () => storage.close() }
}

/** Starts a program that opens an image, waits until it is `ready` (says so, or is seen to be); ends with the test. */
async function holder(t: Test, ready: RegExp | (() => boolean), program: string, ...args: string[]) {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] })
  const gone = once(child, 'exit')
  const end = async () => {
    child.kill('SIGKILL')
    await gone
  }
  t.teardown(end)
  let said = ''
  const listen = (data: Buffer) => {
    said += data
  }
  child.stdout.on('data', listen)
  child.stderr.on('data', listen)
  while (!(ready instanceof RegExp ? ready.test(said) : ready())) {
    if (child.exitCode !== null) throw new Error(`${program} ended: ${said}`)
    await setTimeout(20)
  }
  return { pid: child.pid!, end }
}

function qemuIo(path: string, ...options: string[]): string {
  return spawnSync('qemu-io', [...options, '-c', 'read 0 512', path], { encoding: 'utf8' }).stderr
}

const IO_READY = /qemu-io> /

for (const format of ['raw', 'qcow2'] as const) {
  t.test(`a qemu-io that writes ${format} excludes us`, async (t) => {
    const path = image(t, format)
    const qemu = await holder(t, IO_READY, 'qemu-io', '-f', format, path)
    for (const write of [true, false]) {
      t.throws(() => lock(t, path, write), {
        code: 'IN_USE',
        message: `${path} is in use: it is being written by qemu-io (pid ${qemu.pid})`,
      })
    }
    await qemu.end()
    t.equal(lock(t, path, true).locked, true, 'and is forgotten when it ends')
  })

  t.test(`we exclude a qemu-io that writes ${format}`, async (t) => {
    const path = image(t, format)
    for (const write of [true, false]) {
      const ours = lock(t, path, write)
      t.match(qemuIo(path, '-f', format), /Failed to get "write" lock/)
      ours.close()
      t.equal(qemuIo(path, '-f', format), '', 'until we close it')
    }
  })
}

t.test('a qemu-io that only reads qcow2 excludes our writer, shares with our reader', async (t) => {
  const path = image(t, 'qcow2')
  const qemu = await holder(t, IO_READY, 'qemu-io', '-r', '-f', 'qcow2', path)
  t.throws(() => lock(t, path, true), { code: 'IN_USE', message: `${path} is in use by qemu-io (pid ${qemu.pid})` })
  t.equal(lock(t, path, false).locked, true)
})

t.test('our reader shares with a reading qemu-io, our writer does not', async (t) => {
  const path = image(t, 'qcow2')
  const reader = lock(t, path, false)
  t.equal(qemuIo(path, '-r', '-f', 'qcow2'), '')
  reader.close()
  lock(t, path, true)
  t.match(qemuIo(path, '-r', '-f', 'qcow2'), /Failed to get shared "write" lock/)
})

t.test('the gap that lock.ts tells of: a reading qemu-io on raw and our writer share', async (t) => {
  const path = image(t, 'raw')
  lock(t, path, true)
  t.equal(qemuIo(path, '-r', '-f', 'raw'), '')
})

t.test('qemu-nbd and qemu-storage-daemon', async (t) => {
  const path = image(t, 'raw')
  const socket = join(
    temporaryFolder((undo) => t.teardown(undo)),
    'nbd',
  )
  // It says nothing when it is ready: its socket is there then.
  const nbd = await holder(t, () => existsSync(socket), 'qemu-nbd', '-f', 'raw', '-t', '-k', socket, path)
  const message = `${path} is in use: it is being written by qemu-nbd (pid ${nbd.pid})`
  t.throws(() => lock(t, path, true), { code: 'IN_USE', message })
  await nbd.end()
  const daemon = await holder(
    t,
    /QMP/,
    'qemu-storage-daemon',
    ...['--chardev', 'stdio,id=c', '--monitor', 'chardev=c'],
    ...['--blockdev', `driver=file,filename=${path},node-name=f`],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}2`, '--export', 'type=nbd,id=e,node-name=f,writable=on'],
  )
  t.throws(() => lock(t, path, false), {
    code: 'IN_USE',
    message: `${path} is in use: it is being written by qemu-storage-daemon (pid ${daemon.pid})`,
  })
})

t.test('two of us, in one process and in two', async (t) => {
  const path = image(t, 'raw')
  const us = new RegExp(` by .+ \\(pid ${process.pid}\\)$`)
  const writer = lock(t, path, true)
  t.throws(() => lock(t, path, true), { code: 'IN_USE', message: us })
  t.throws(() => lock(t, path, false), { code: 'IN_USE', message: us })
  writer.close()
  const readers = [lock(t, path, false), lock(t, path, false)]
  t.throws(() => lock(t, path, true), { code: 'IN_USE', message: us })
  t.throws(() => lock(t, path, true), { code: 'IN_USE' }, 'a refusal leaves no lock behind')
  for (const reader of readers) reader.close()
  lock(t, path, true).close()

  const script = join(
    temporaryFolder((undo) => t.teardown(undo)),
    'vdiskfs.mjs',
  )
  const module = (name: string) => JSON.stringify(new URL(`../../lib/storage/${name}.js`, import.meta.url).href)
  writeFileSync(
    script,
    `import { openFile } from ${module('file')}
     import { lockImage } from ${module('lock')}
     lockImage(openFile(${JSON.stringify(path)}), { write: true })
     console.log('locked')
     process.stdin.resume()`,
  )
  const other = await holder(t, /locked/, process.execPath, script)
  t.throws(() => lock(t, path, true), {
    code: 'IN_USE',
    message: `${path} is in use: it is being written by vdiskfs.mjs (pid ${other.pid})`,
  })
})

t.test('a refusal releases what it had taken, with the descriptor still open', async (t) => {
  const path = image(t, 'raw')
  const writer = lock(t, path, true)
  const refused = openFile(path)
  t.teardown(() => refused.close())
  t.throws(() => lockImage(refused, { write: true }), { code: 'IN_USE' })
  writer.close()
  lock(t, path, true)
})

t.test('a program that locks the whole file exclusively', async (t) => {
  const path = image(t, 'raw')
  const other = openFile(path)
  t.teardown(() => other.close())
  const handle = other.handle()
  const flock = Buffer.alloc(32)
  flock.writeInt16LE(1, 0) // F_WRLCK of everything: start 0, length 0
  fcntl(handle.kind === 'file' ? handle.fd : -1, 37, flock)
  t.throws(() => lock(t, path, false), { code: 'IN_USE', message: `(pid ${process.pid})` })
})

t.test('memory needs no lock; a closed file is an error, not "cannot lock"', async (t) => {
  t.equal(lockImage(MemoryStorage.create(), { write: true }), true)
  const storage = openFile(image(t, 'raw'))
  storage.close()
  t.throws(() => lockImage(storage, { write: true }), { code: 'IO', path: storage.path })
})
