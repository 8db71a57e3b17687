// Opening must not cost more for a large disk than for a small one: time to mount, and resident memory of the server,
// for an empty image of 1 GiB against one of the largest size, right after mounting and after reads all over the disk. And
// what each worker takes: resident memory after parallel reading, by the most workers that were allowed.
//   npm run build && npm run bench:memory -- [--json]

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { median, mount, serverOf, statusOf, temporaryFolder, umount, vdiskfs } from './lib.mjs'

/** The largest disk of a format, with the smallest blocks that it can have: the largest tables. */
const LARGEST = {
  vhd: { size: '2040G', options: [] },
  vhdx: { size: '64T', options: ['-o', 'block_size=1M'] },
  qcow2: { size: '64T', options: [] },
}
const SMALL = '1G'
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
function prepare(folder, format, size) {
  const image = join(folder, `${size}.${format}`)
  vdiskfs('create', '-q', '-f', format, ...LARGEST[format].options, image, size)
  return { format, size, image, mountpoint: join(folder, `mnt-${format}-${size}`) }
}

/** Mounts the disks in turn, so that whatever else the machine does meets them alike. */
function measure(disks) {
  const rounds = []
  for (let i = 0; i < ROUNDS; i++) rounds.push(disks.map(({ image, mountpoint }) => round(image, mountpoint)))
  return disks.map(({ format, size }, disk) => {
    const of = (name) => median(rounds.map((all) => all[disk][name]))
    return { format, size, milliseconds: of('milliseconds'), mounted: of('mounted'), read: of('read') }
  })
}

const folder = temporaryFolder()
const results = []
for (const [format, { size }] of Object.entries(LARGEST)) {
  const disks = [SMALL, size].map((each) => prepare(folder, format, each))
  const [small, large] = measure(disks)
  const ratio = { format, size: 'ratio' }
  for (const name of ['milliseconds', 'mounted', 'read']) ratio[name] = large[name] / small[name]
  results.push(small, large, ratio)
}
const byWorkers = []
const disk = prepare(folder, 'vhd', '2G')
for (const workers of WORKERS) byWorkers.push(await withWorkers(disk, workers))
if (process.argv.includes('--json')) console.log(JSON.stringify({ results, byWorkers }, undefined, 2))
else {
  console.log(`Empty images, median of ${ROUNDS} mounts (Node ${process.version}):`)
  console.log('format   size        mount, ms   resident, MiB   after reads, MiB')
  for (const { format, size, ...figures } of results) {
    const digits = size === 'ratio' ? 2 : 0
    const cells = Object.values(figures).map((value, i) => value.toFixed(digits).padStart([12, 16, 19][i]))
    console.log(format.padEnd(9) + size.padEnd(9) + cells.join(''))
  }
  console.log('workers allowed   resident, MiB   threads')
  for (const { workers, resident, threads } of byWorkers)
    console.log(`${String(workers).padStart(15)}${resident.toFixed(0).padStart(16)}${String(threads).padStart(10)}`)
}
