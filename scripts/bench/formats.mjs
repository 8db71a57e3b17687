// What a format costs: jobs that allocate nothing, on a full disk, in turn on the image and on the same disk raw, both
// mounted by this program over the same transport. Ratios are taken round by round; a ratio of 1 means no cost.
//   npm run build && node scripts/bench/formats.mjs [--formats vhd,vhdx,…] [--jobs REGEX] [--size MiB] [--seconds N]
//     [--rounds N] [--transport NAME] [--dir DIR] [--json]
// Needs fio, qemu-img, /dev/fuse.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const BIN = fileURLToPath(new URL('../../bin/vdiskfs.js', import.meta.url))
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
const folder = mkdtempSync(join(values.dir, 'vdiskfs-bench-'))
const mountpoint = join(folder, 'mnt')
const jobs = Object.entries(JOBS).filter(([name]) => new RegExp(values.jobs).test(name))
let mounted = false
process.on('exit', () => {
  if (mounted) spawnSync(process.execPath, [BIN, 'umount', mountpoint])
  rmSync(folder, { recursive: true, force: true })
})
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1))

function must(command, ...args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 26 })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error ?? stderr.trim()}`)
  return stdout
}

/** Operations a second, in one mount. */
function measure(format, job) {
  const image = join(folder, `disk.${format}`)
  must(process.execPath, BIN, 'mount', '--transport', values.transport, '--format', format, image, mountpoint)
  mounted = true
  must('sync')
  const where = [`--filename=${mountpoint}/disk.raw`, `--size=${values.size}M`, '--direct=1']
  const how = ['--time_based', `--runtime=${values.seconds}`, '--output-format=json', ...job]
  const out = must('fio', '--name=job', ...where, ...how)
  must(process.execPath, BIN, 'umount', mountpoint)
  mounted = false
  const { read, write } = JSON.parse(out.slice(out.indexOf('{'))).jobs[0]
  return read.iops + write.iops
}

const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1]

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

mkdirSync(mountpoint)
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
