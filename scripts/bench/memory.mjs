// Opening must not cost more for a large disk than for a small one: time to mount, and resident memory of the server,
// for an empty VHD of 1 GiB against one of 2040 GiB, right after mounting and after reads all over the disk. And what
// each worker takes: resident memory after parallel reading, by the most workers that were allowed.
//   npm run build && node scripts/bench/memory.mjs [--json]

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { median, mount, serverOf, statusOf, temporaryFolder, umount, vdiskfs } from './lib.mjs'

const SIZES = ['1G', '2040G']
const ROUNDS = 7
/** Places of the disk that are read, each a lookup in another part of the table. */
const READS = 512
const READ_BYTES = 4096

/** Resident memory of a process, in MiB. */
const resident = (pid) => statusOf(pid, 'VmRSS') / 1024

function readAllOver(path) {
  const fd = openSync(path, 'r')
  const buffer = new Uint8Array(READ_BYTES)
  const step = Math.floor(statSync(path).size / READS / READ_BYTES) * READ_BYTES
  for (let i = 0; i < READS; i++) readSync(fd, buffer, 0, READ_BYTES, i * step)
  closeSync(fd)
}

/** One mount of an image: milliseconds until it was ready, MiB then, and MiB after reading. */
function round(image, mountpoint) {
  const began = performance.now()
  mount(image, mountpoint)
  const milliseconds = performance.now() - began
  try {
    const pid = serverOf(mountpoint)
    const mounted = resident(pid)
    readAllOver(join(mountpoint, 'disk.raw'))
    return { milliseconds, mounted, read: resident(pid) }
  } finally {
    umount(mountpoint)
  }
}

const WORKERS = [1, 2, 4, 8]

/** Resident memory, and threads in all, of a server whose workers were all wanted at once. */
async function withWorkers({ image, mountpoint }, workers) {
  mount(image, mountpoint, '--workers', String(workers))
  try {
    const pid = serverOf(mountpoint)
    const from = (i) => [
      `if=${mountpoint}/disk.raw`,
      'of=/dev/null',
      'bs=1M',
      'count=256',
      `skip=${64 * i}`,
      'iflag=direct',
    ]
    const readers = WORKERS.concat(WORKERS).map((_, i) => spawn('dd', [...from(i), 'status=none'], { stdio: 'ignore' }))
    await Promise.all(readers.map((reader) => once(reader, 'exit')))
    return { workers, resident: resident(pid), threads: statusOf(pid, 'Threads') }
  } finally {
    umount(mountpoint)
  }
}

/** An empty image of a size, and where to mount it. */
function prepare(folder, size) {
  const image = join(folder, `${size}.vhd`)
  const mountpoint = join(folder, `mnt-${size}`)
  vdiskfs('create', '-q', '-f', 'vhd', image, size)
  return { size, image, mountpoint }
}

/** Mounts the disks in turn, so that whatever else the machine does meets them alike. */
function measure(disks) {
  const rounds = []
  for (let i = 0; i < ROUNDS; i++) rounds.push(disks.map(({ image, mountpoint }) => round(image, mountpoint)))
  return disks.map(({ size }, disk) => {
    const of = (name) => median(rounds.map((all) => all[disk][name]))
    return { size, milliseconds: of('milliseconds'), mounted: of('mounted'), read: of('read') }
  })
}

const folder = temporaryFolder()
const disks = SIZES.map((size) => prepare(folder, size))
const results = measure(disks)
const byWorkers = []
for (const workers of WORKERS) byWorkers.push(await withWorkers(disks[0], workers))
const [small, large] = results
const ratio = { size: 'ratio' }
for (const name of ['milliseconds', 'mounted', 'read']) ratio[name] = large[name] / small[name]
if (process.argv.includes('--json')) console.log(JSON.stringify({ results, ratio, byWorkers }, undefined, 2))
else {
  console.log(`Empty VHDs, median of ${ROUNDS} mounts (Node ${process.version}):`)
  console.log('size        mount, ms   resident, MiB   after reads, MiB')
  const row = ({ size, ...values }, digits) =>
    [size.padEnd(8), ...Object.values(values).map((v, i) => v.toFixed(digits).padStart([12, 16, 19][i]))].join('')
  for (const result of results) console.log(row(result, 0))
  console.log(row(ratio, 2))
  console.log('workers allowed   resident, MiB   threads')
  for (const { workers, resident, threads } of byWorkers)
    console.log(`${String(workers).padStart(15)}${resident.toFixed(0).padStart(16)}${String(threads).padStart(10)}`)
}
