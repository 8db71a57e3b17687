// What a format costs: jobs that allocate nothing, on a full disk, in turn on the image and on the same disk raw, both
// mounted by this program over the same transport. Ratios are taken round by round; a ratio of 1 means no cost.
//   npm run build && node scripts/bench/formats.mjs [--formats vhd,vhdx,…] [--jobs REGEX] [--size MiB] [--seconds N]
//     [--rounds N] [--transport NAME] [--dir DIR] [--json]
// Needs fio, qemu-img, /dev/fuse.

import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { median, mount, must, temporaryFolder, umount } from './lib.mjs'

const QEMU = { vhd: ['vpc', '-o', 'force_size=on'], vhdx: ['vhdx'], qcow2: ['qcow2'], parallels: ['parallels'] }
const PARALLEL = ['--ioengine=libaio', '--iodepth=16']
const JOBS = {
  'read 1M': ['--rw=read', '--bs=1M', '--ioengine=psync'],
  'random read 4k, depth 1': ['--rw=randread', '--bs=4k', '--ioengine=psync'],
  'random read 4k, depth 16': ['--rw=randread', '--bs=4k', ...PARALLEL],
  'overwrite 1M': ['--rw=write', '--bs=1M', '--ioengine=psync'],
  'random overwrite 4k, depth 1': ['--rw=randwrite', '--bs=4k', '--ioengine=psync'],
  'random overwrite 4k, depth 16': ['--rw=randwrite', '--bs=4k', ...PARALLEL],
}

const { values } = parseArgs({
  options: {
    formats: { type: 'string', default: Object.keys(QEMU).join() },
    jobs: { type: 'string', default: '' },
    size: { type: 'string', default: '512' },
    seconds: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '5' },
    transport: { type: 'string', default: 'kernel' },
    dir: { type: 'string', default: tmpdir() },
    json: { type: 'boolean', default: false },
  },
})
const folder = temporaryFolder(values.dir)
const mountpoint = join(folder, 'mnt')
const jobs = Object.entries(JOBS).filter(([name]) => new RegExp(values.jobs).test(name))

/** Operations a second, in one mount. */
function measure(format, job) {
  const image = join(folder, `disk.${format}`)
  mount(image, mountpoint, '--transport', values.transport, '--format', format)
  must('sync')
  const where = [`--filename=${mountpoint}/disk.raw`, `--size=${values.size}M`, '--direct=1']
  const how = ['--time_based', `--runtime=${values.seconds}`, '--output-format=json', ...job]
  const out = must('fio', '--name=job', ...where, ...how)
  umount(mountpoint)
  const { read, write } = JSON.parse(out.slice(out.indexOf('{'))).jobs[0]
  return read.iops + write.iops
}

function compare(format, name, job) {
  const pairs = Array.from({ length: Number(values.rounds) }, (_, round) => {
    if (round % 2 === 0) return { own: measure(format, job), raw: measure('raw', job) }
    const raw = measure('raw', job)
    return { own: measure(format, job), raw }
  })
  const ratios = pairs.map(({ own, raw }) => own / raw)
  const extremes = { min: Math.min(...ratios), max: Math.max(...ratios) }
  const medians = { own: median(pairs.map(({ own }) => own)), raw: median(pairs.map(({ raw }) => raw)) }
  return { format, job: name, ...medians, ratio: median(ratios), ...extremes }
}

const size = ['--name=fill', `--filename=${folder}/disk.raw`, `--size=${values.size}M`]
must('fio', ...size, '--rw=write', '--bs=1M', '--refill_buffers', '--output=/dev/null')
const results = []
if (!values.json) console.log('op/s       job                              image       raw   ratio  (min..max)')
for (const format of values.formats.split(',')) {
  const [theirs, ...options] = QEMU[format]
  must('qemu-img', 'convert', '-f', 'raw', '-O', theirs, ...options, `${folder}/disk.raw`, `${folder}/disk.${format}`)
  for (const [name, job] of jobs) {
    const row = compare(format, name, job)
    results.push(row)
    if (values.json) continue
    const figures = `${row.own.toFixed(0).padStart(9)} ${row.raw.toFixed(0).padStart(9)} ${row.ratio.toFixed(2).padStart(7)}`
    console.log(`${format.padEnd(10)} ${name.padEnd(29)} ${figures}  (${row.min.toFixed(2)}..${row.max.toFixed(2)})`)
  }
  rmSync(`${folder}/disk.${format}`)
}
if (values.json) console.log(JSON.stringify(results, undefined, 2))
