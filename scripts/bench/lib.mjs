// What the benchmarks share: programs that must succeed, a folder that is gone at the end whatever happens, medians.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const BIN = fileURLToPath(new URL('../../bin/vdiskfs.js', import.meta.url))
/** How QEMU calls the formats. */
export const QEMU_FORMAT = { raw: 'raw', vhd: 'vpc', vhdx: 'vhdx', qcow2: 'qcow2', parallels: 'parallels' }
/** fio's results are long. */
const MAX_OUTPUT = 2 ** 26

/** What a program says. @throws its complaint, where it fails */
export function must(program, ...args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: MAX_OUTPUT })
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${error ?? (stderr.trim() || stdout.trim())}`)
  return stdout
}

export const vdiskfs = (...args) => must(process.execPath, BIN, ...args)

/** Runs one job of fio's. @returns what it says of it */
export function fio(file, ...how) {
  const out = must('fio', '--name=job', `--filename=${file}`, ...how, '--group_reporting', '--output-format=json')
  return JSON.parse(out.slice(out.indexOf('{'))).jobs[0]
}

/** A file of so many MiB that nothing can compress. */
export function makeFilled(path, mebibytes) {
  fio(path, `--size=${mebibytes}M`, '--rw=write', '--bs=1M', '--refill_buffers')
}

export const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]

/** Mount points at which something is mounted. */
const mounted = new Set()

/** A new folder, which is removed when the process ends, a signal included, after what is mounted is unmounted. */
export function temporaryFolder(parent = tmpdir()) {
  const folder = mkdtempSync(join(parent, 'vdiskfs-bench-'))
  process.on('exit', () => {
    for (const mountpoint of mounted) tryUnmount(mountpoint)
    rmSync(folder, { recursive: true, force: true })
  })
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1))
  return folder
}

/** Who still reads there is on the way out, and loses it. */
function tryUnmount(mountpoint) {
  const { status } = spawnSync(process.execPath, [BIN, 'umount', mountpoint])
  if (status !== 0) spawnSync('umount', ['-l', mountpoint])
}

/** Mounts an image; the folder is made where there is none. */
export function mount(image, mountpoint, ...options) {
  mkdirSync(mountpoint, { recursive: true })
  mounted.add(mountpoint)
  vdiskfs('mount', ...options, image, mountpoint)
}

export function umount(mountpoint) {
  vdiskfs('umount', mountpoint)
  mounted.delete(mountpoint)
}

/** The process that serves a mount. */
export function serverOf(mountpoint) {
  return JSON.parse(vdiskfs('list', '--json')).find((entry) => entry.mountpoint === mountpoint).pid
}

/** A number of /proc/PID/status: `VmRSS` (KiB), `Threads`. */
export function statusOf(pid, field) {
  return Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'latin1'))[1])
}
