// Where a request's time goes: one job against one image, served by a process that samples itself; then self time by layer,
// and the functions that take most. System calls count for whoever waits in them: reading the device is waiting for work.
//   npm run bench:profile -- [--format F] [--size MiB] [--seconds N] [--workers N] [-- FIO OPTIONS, such as --rw=randread]

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { fio, makeFilled, must, QEMU_FORMAT, temporaryFolder } from './lib.mjs'

const LIB = new URL('../../build/lib/', import.meta.url).href
/** The command, not joined, so that the profile knows the modules. */
const MAIN = `import('${LIB}cli/main.js').then(async ({ main, processIo }) => {
  process.exitCode = await main(process.argv.slice(1), processIo())
})`
const DEFAULT_JOB = ['--rw=randread', '--bs=4k', '--direct=1', '--ioengine=libaio', '--iodepth=16']
const TOP = 20
/** What only the threads that serve requests run. */
const WORKER = 'mount/worker.js'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    format: { type: 'string', default: 'raw' },
    size: { type: 'string', default: '1024' },
    seconds: { type: 'string', default: '5' },
    workers: { type: 'string', default: '2' },
  },
})
const job = positionals.length > 0 ? positionals : DEFAULT_JOB

const folder = temporaryFolder()
const mountpoint = join(folder, 'mnt')
const profiles = join(folder, 'profiles')
const image = join(folder, `disk.${values.format}`)
const file = join(mountpoint, 'disk.raw')
mkdirSync(mountpoint)
const filled = join(folder, 'filled')
makeFilled(filled, values.size)
must('qemu-img', 'convert', '-f', 'raw', '-O', QEMU_FORMAT[values.format], filled, image)

const flags = ['--cpu-prof', `--cpu-prof-dir=${profiles}`, '--cpu-prof-interval=200']
const mount = ['mount', '-f', '--format', values.format, '--workers', values.workers, image, mountpoint]
const server = spawn(process.execPath, [...flags, '-e', MAIN, '--', ...mount], {
  stdio: ['ignore', 'ignore', 'inherit'],
})
const ended = once(server, 'exit')
try {
  while (!existsSync(file) && server.exitCode === null) await sleep(20)
  const { read, write } = fio(file, `--size=${values.size}M`, '--time_based', `--runtime=${values.seconds}`, ...job)
  console.log(`${read.iops.toFixed(0)} reads and ${write.iops.toFixed(0)} writes a second`)
} finally {
  must('umount', mountpoint)
  await ended
}

/** The module of a frame in lib/, such as `image/reader.js`; undefined for others. */
const moduleOf = ({ url }) => (url.startsWith(LIB) ? url.slice(LIB.length) : undefined)

const layers = new Map()
const functions = new Map()
const add = (map, key, time) => map.set(key, (map.get(key) ?? 0) + time)

/** Node's own frames, with the system calls in them, count for the function of lib/ that called them. */
function count({ nodes, samples, timeDeltas }) {
  const byId = new Map(nodes.map((node) => [node.id, node]))
  const parents = new Map(nodes.flatMap(({ id, children = [] }) => children.map((child) => [child, id])))
  samples.forEach((id, i) => {
    let at = id
    while (at !== undefined && moduleOf(byId.get(at).callFrame) === undefined) at = parents.get(at)
    const own = byId.get(id).callFrame
    if (at === undefined) {
      add(layers, own.functionName.startsWith('(') ? own.functionName : 'Node', timeDeltas[i])
      return
    }
    const frame = byId.get(at).callFrame
    const call = at === id ? '' : ': calls of Node and the system'
    add(layers, moduleOf(frame).split('/')[0] + call, timeDeltas[i])
    add(
      functions,
      `${frame.functionName || 'module'}  ${moduleOf(frame)}:${frame.lineNumber + 1}${call}`,
      timeDeltas[i],
    )
  })
}

const read = readdirSync(profiles).map((name) => JSON.parse(readFileSync(join(profiles, name), 'utf8')))
const serves = ({ nodes }) => nodes.some(({ callFrame }) => moduleOf(callFrame) === WORKER)
for (const profile of read.filter(serves)) count(profile)
const total = [...layers.values()].reduce((sum, time) => sum + time, 0)
function print(title, map, most) {
  console.log(`\n${title}`)
  for (const [name, time] of [...map].sort((a, b) => b[1] - a[1]).slice(0, most))
    console.log(`${((100 * time) / total).toFixed(1).padStart(6)} %  ${name}`)
}
print('by layer', layers, layers.size)
print('by function', functions, TOP)
