// Speed of mounted images, ours beside each peer that is installed, and beside the same disk raw in our own hands: the
// same image, in turn, in one run. Ratios are taken round by round (ours / theirs): above 1, ours is faster. Then what
// it takes to have an image mounted: time, and resident memory before and under load.
//   npm run bench -- [--formats vhd,vhdx,…] [--peers REGEX] [--jobs REGEX] [--size MiB] [--seconds N] [--rounds N]
//     [--dir DIR] [--json]
// Needs root, fio, qemu-img, /dev/fuse. Peers: qemu-storage-daemon, qemu-nbd with nbdfuse, vhdimount, qcowmount.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { OURS, PEERS, residentOf } from './contenders.mjs'
import { fio, makeFilled, median, must, QEMU_FORMAT, temporaryFolder } from './lib.mjs'

const SYNC_READ = ['--rw=randread', '--bs=4k', '--direct=1', '--ioengine=psync']
const SYNC_WRITE = ['--rw=randwrite', '--bs=4k', '--direct=1', '--ioengine=psync']
const DEEP = ['--bs=4k', '--direct=1', '--ioengine=libaio', '--iodepth=16']
/** `fresh`: on an empty image, once over a given amount instead of for some time. */
const JOBS = {
  'read 1M': { how: ['--rw=read', '--bs=1M', '--direct=1'], unit: 'MiB/s' },
  'read 1M, buffered': { how: ['--rw=read', '--bs=1M', '--invalidate=1'], unit: 'MiB/s' },
  'random read 4k': { how: SYNC_READ },
  'random read 4k, depth 16': { how: ['--rw=randread', ...DEEP] },
  'random read 4k, 4 jobs': { how: [...SYNC_READ, '--numjobs=4'] },
  'overwrite 1M': { how: ['--rw=write', '--bs=1M', '--direct=1'], unit: 'MiB/s', writes: true },
  'random overwrite 4k': { how: SYNC_WRITE, writes: true },
  'random overwrite 4k, depth 16': { how: ['--rw=randwrite', ...DEEP], writes: true },
  'buffered write 4k, fsync at end': { how: ['--rw=write', '--bs=4k', '--end_fsync=1'], unit: 'MiB/s', writes: true },
  'mixed 70/30 4k, depth 16': { how: ['--rw=randrw', '--rwmixread=70', ...DEEP], writes: true },
  'allocating 1M, fsync at end': {
    how: ['--rw=write', '--bs=1M', '--direct=1', '--end_fsync=1'],
    unit: 'MiB/s',
    writes: true,
    fresh: true,
  },
  'allocating 64k, fsync every 32': {
    how: ['--rw=randwrite', '--bs=64k', '--direct=1', '--fsync=32', '--io_size=256M'],
    unit: 'MiB/s',
    writes: true,
    fresh: true,
  },
  'overwrite 4k, fsync every 1': { how: [...SYNC_WRITE, '--fsync=1'], writes: true },
}
const LOAD = JOBS['random read 4k, depth 16'].how

const { values } = parseArgs({
  options: {
    formats: { type: 'string', default: Object.keys(QEMU_FORMAT).join() },
    peers: { type: 'string', default: '' },
    jobs: { type: 'string', default: '' },
    size: { type: 'string', default: '1024' },
    seconds: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '3' },
    dir: { type: 'string', default: tmpdir() },
    json: { type: 'boolean', default: false },
  },
})
const folder = temporaryFolder(values.dir)
const say = (line) => values.json || console.log(line)

const optionsOf = (format) => (format === 'vhd' ? ['-o', 'force_size=on'] : [])

/** An empty image, new each time. */
function freshImage(format) {
  const image = join(folder, `fresh.${format}`)
  for (const kind of new Set([format, 'raw'])) {
    const path = join(folder, `fresh.${kind}`)
    rmSync(path, { force: true })
    must('qemu-img', 'create', '-q', '-f', QEMU_FORMAT[kind], ...optionsOf(kind), path, `${values.size}M`)
  }
  return image
}

/** What a job reaches: MiB/s or operations a second. */
function reached(file, { how, unit, fresh }) {
  // What was written before must not be paid for by this.
  must('sync')
  const length = fresh ? [] : ['--time_based', `--runtime=${values.seconds}`]
  const job = fio(file, `--size=${values.size}M`, ...length, ...how)
  if (unit === undefined) return job.read.iops + job.write.iops
  const { io_bytes: bytes } = job.read.io_bytes > job.write.io_bytes ? job.read : job.write
  return bytes / 2 ** 20 / (job.job_runtime / 1000)
}

async function measure(contender, format, job) {
  const image = job.fresh ? freshImage(format) : join(folder, `disk.${format}`)
  const { file, stop } = await contender.start(image, format, folder)
  try {
    return reached(file, job)
  } finally {
    await stop()
  }
}

/** Pairs of ours and theirs, who take turns at being first. */
async function compare(peer, format, name, job) {
  const pairs = []
  for (let round = 0; round < Number(values.rounds); round++) {
    const pair = {}
    const order = round % 2 === 0 ? ['ours', 'theirs'] : ['theirs', 'ours']
    for (const who of order) pair[who] = await measure(who === 'ours' ? OURS : peer, format, job)
    pairs.push(pair)
  }
  const ratios = pairs.map(({ ours, theirs }) => ours / theirs)
  return {
    format,
    job: name,
    peer: peer.name,
    unit: job.unit ?? 'op/s',
    ours: median(pairs.map(({ ours }) => ours)),
    theirs: median(pairs.map(({ theirs }) => theirs)),
    ratio: median(ratios),
    min: Math.min(...ratios),
    max: Math.max(...ratios),
  }
}

/** Milliseconds until the file is there, MiB resident then, and while parallel reading goes on. */
async function startOf(contender, format) {
  const rounds = []
  for (let round = 0; round < Number(values.rounds); round++) {
    const began = performance.now()
    const { file, pids, stop } = await contender.start(join(folder, `disk.${format}`), format, folder)
    const milliseconds = performance.now() - began
    const empty = residentOf(pids)
    const load = spawn('fio', [
      '--name=load',
      `--filename=${file}`,
      ...LOAD,
      `--size=${values.size}M`,
      '--output=/dev/null',
    ])
    await once(load, 'exit')
    rounds.push({ milliseconds, empty, loaded: residentOf(pids) })
    await stop()
  }
  const of = (name) => (rounds[0][name] === undefined ? undefined : median(rounds.map((round) => round[name])))
  return { format, who: contender.name, milliseconds: of('milliseconds'), empty: of('empty'), loaded: of('loaded') }
}

const cell = (value, width, digits = 0) => (value === undefined ? '-' : value.toFixed(digits)).padStart(width)

makeFilled(join(folder, 'disk.raw'), values.size)
const peers = PEERS.filter((peer) => new RegExp(values.peers).test(peer.name) && peer.available())
const results = []
const starts = []
say('format     job                              beside                    ours    theirs  ratio  (min..max)')
for (const format of values.formats.split(',')) {
  const path = join(folder, `disk.${format}`)
  if (format !== 'raw')
    must(
      'qemu-img',
      'convert',
      '-f',
      'raw',
      '-O',
      QEMU_FORMAT[format],
      ...optionsOf(format),
      `${folder}/disk.raw`,
      path,
    )
  const rivals = peers.filter(({ formats, name }) => formats.includes(format) && name !== format)
  for (const [name, job] of Object.entries(JOBS))
    for (const peer of rivals) {
      if (!new RegExp(values.jobs).test(name) || (job.writes && !peer.writes)) continue
      const row = await compare(peer, format, name, job)
      results.push(row)
      const figures = `${cell(row.ours, 9)} ${cell(row.theirs, 9)} ${cell(row.ratio, 6, 2)}`
      const range = `(${row.min.toFixed(2)}..${row.max.toFixed(2)}) ${row.unit}`
      say(`${format.padEnd(10)} ${name.padEnd(32)} ${row.peer.padEnd(20)} ${figures}  ${range}`)
    }
  if (values.jobs === '') for (const contender of [OURS, ...rivals]) starts.push(await startOf(contender, format))
  if (format !== 'raw') rmSync(path)
}
for (const peer of peers) {
  const own = results.filter((row) => row.peer === peer.name)
  if (own.length === 0) continue
  const mean = Math.exp(own.reduce((sum, { ratio }) => sum + Math.log(ratio), 0) / own.length)
  const worst = own.reduce((a, b) => (b.ratio < a.ratio ? b : a))
  say(
    `${peer.name}: geometric mean ${mean.toFixed(2)}, worst ${worst.ratio.toFixed(2)} (${worst.format}, ${worst.job})`,
  )
}
if (starts.length > 0) say('\nformat     mounted by            ms until ready   MiB resident   MiB after load')
for (const { format, who, milliseconds, empty, loaded } of starts)
  say(`${format.padEnd(10)} ${who.padEnd(20)} ${cell(milliseconds, 16)} ${cell(empty, 14)} ${cell(loaded, 16)}`)
if (values.json) console.log(JSON.stringify({ results, starts }, undefined, 2))
