// Programs that show an image as one file, each in its own way: what starts it, where the file is then, what ends it.

import { spawn, spawnSync } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { mount, QEMU_FORMAT, serverOf, statusOf, umount } from './lib.mjs'

const READY_MS = 10_000

const installed = (program) => spawnSync('which', [program]).status === 0
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function until(what, isSo) {
  const end = Date.now() + READY_MS
  while (!isSo()) {
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`)
    await sleep(5)
  }
}

const mountedAt = (path) => readFileSync('/proc/self/mounts', 'utf8').includes(` ${path} `)

/** Ends a process and waits until it is gone. */
async function end(child) {
  if (child.exitCode === null && child.signalCode === null) {
    const gone = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGTERM')
    await gone
  }
}

/** Unmounts what a process serves, waiting while somebody lets go of it, and waits until the process is gone. */
async function unmountAndWait(mountpoint, child) {
  const gone = child.exitCode === null ? new Promise((resolve) => child.once('exit', resolve)) : undefined
  await until(`${mountpoint} to be unmounted`, () => spawnSync('umount', [mountpoint]).status === 0)
  await gone
}

const QUIET = { stdio: ['ignore', 'ignore', 'inherit'] }

function ownMount(name, formatOf, imageOf) {
  return {
    name,
    formats: Object.keys(QEMU_FORMAT),
    writes: true,
    available: () => true,
    async start(image, format, folder) {
      const mountpoint = join(folder, 'own')
      mount(imageOf(image), mountpoint, '--format', formatOf(format))
      const pid = serverOf(mountpoint)
      return { file: join(mountpoint, 'disk.raw'), pids: [pid], stop: async () => umount(mountpoint) }
    },
  }
}

const OURS = ownMount(
  'vdiskfs',
  (format) => format,
  (image) => image,
)
/** The same disk without a format, by the same program. */
const RAW = ownMount(
  'raw',
  () => 'raw',
  (image) => image.replace(/[^.]*$/, 'raw'),
)

const STORAGE_DAEMON = {
  name: 'qemu-storage-daemon',
  formats: Object.keys(QEMU_FORMAT),
  writes: true,
  available: () => installed('qemu-storage-daemon'),
  async start(image, format, folder) {
    const file = join(folder, 'daemon.raw')
    closeSync(openSync(file, 'w'))
    const child = spawn(
      'qemu-storage-daemon',
      [
        ['--blockdev', `driver=file,filename=${image},node-name=file,discard=unmap`],
        ['--blockdev', `driver=${QEMU_FORMAT[format]},file=file,node-name=disk,discard=unmap`],
        ['--export', `type=fuse,id=export,node-name=disk,mountpoint=${file},writable=on`],
      ].flat(),
      QUIET,
    )
    await until('qemu-storage-daemon', () => mountedAt(file))
    const stop = async () => {
      await end(child)
      spawnSync('umount', ['-l', file])
      rmSync(file, { force: true })
    }
    return { file, pids: [child.pid], stop }
  },
}

const NBDFUSE = {
  name: 'qemu-nbd, nbdfuse',
  formats: Object.keys(QEMU_FORMAT),
  writes: true,
  available: () => installed('qemu-nbd') && installed('nbdfuse'),
  async start(image, format, folder) {
    const socket = join(folder, 'nbd.socket')
    const mountpoint = join(folder, 'nbd')
    mkdirSync(mountpoint, { recursive: true })
    const format_ = QEMU_FORMAT[format]
    const server = spawn('qemu-nbd', ['-t', '-e', '8', '-f', format_, '--discard=unmap', '-k', socket, image], QUIET)
    await until('qemu-nbd', () => existsSync(socket))
    const fuse = spawn('nbdfuse', [mountpoint, '--unix', socket], QUIET)
    const file = join(mountpoint, 'nbd')
    await until('nbdfuse', () => existsSync(file))
    const stop = async () => {
      await unmountAndWait(mountpoint, fuse)
      await end(server)
      rmSync(socket, { force: true })
    }
    return { file, pids: [server.pid, fuse.pid], stop }
  },
}

/** The tools of libvhdi and libqcow: one format, and reading. */
function readingTool(program, formats) {
  return {
    name: program,
    formats,
    writes: false,
    available: () => installed(program),
    async start(image, _format, folder) {
      const mountpoint = join(folder, program)
      mkdirSync(mountpoint, { recursive: true })
      const child = spawn(program, [image, mountpoint], { stdio: 'ignore' })
      const found = () => (mountedAt(mountpoint) ? readdirSync(mountpoint)[0] : undefined)
      await until(program, () => found() !== undefined)
      return { file: join(mountpoint, found()), pids: [], stop: () => unmountAndWait(mountpoint, child) }
    },
  }
}

/** All but ours. */
export const PEERS = [
  STORAGE_DAEMON,
  NBDFUSE,
  readingTool('vhdimount', ['vhd', 'vhdx']),
  readingTool('qcowmount', ['qcow2']),
  RAW,
]
export { OURS }

/** Resident memory in MiB of those who serve; undefined where that is not known. */
export function residentOf(pids) {
  if (pids.length === 0) return undefined
  return pids.reduce((sum, pid) => sum + statusOf(pid, 'VmRSS') / 1024, 0)
}
