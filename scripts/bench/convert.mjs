// Time to convert a half-full disk, side by side with qemu-img, for each pair of formats: medians of rounds that take
// turns. qemu-img ends before its result is on the disk, unless it is told to flush (-t writeback), which is what
// `vdiskfs convert` does: both are measured, and the ratio is to the one that does the same.
//   npm run build && node scripts/bench/convert.mjs [--size MiB] [--rounds N] [--only FROM:TO[:c]] [--dir DIR] [--json]

import { randomBytes } from 'node:crypto'
import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { BIN, median, must, QEMU_FORMAT, temporaryFolder, vdiskfs } from './lib.mjs'

const MiB = 2 ** 20

const { values } = parseArgs({
  options: {
    size: { type: 'string', default: '2048' },
    rounds: { type: 'string', default: '5' },
    only: { type: 'string' },
    dir: { type: 'string', default: tmpdir() },
    json: { type: 'boolean', default: false },
  },
})
const rounds = Number(values.rounds)
const folder = temporaryFolder(values.dir)

/** Every other MiB holds data: half of it at random, half of it text, which can be compressed. */
function makeDisk(path) {
  const fd = openSync(path, 'wx')
  ftruncateSync(fd, Number(values.size) * MiB)
  const text = Buffer.alloc(MiB)
  for (let at = 0, n = 0; at < MiB; n++) at += text.write(`line ${n} of ${(n * 7919) % 104729}, and so on\n`, at)
  for (let i = 0; i < Number(values.size) / 2; i++) writeSync(fd, i % 2 ? text : randomBytes(MiB), 0, MiB, 2 * i * MiB)
  closeSync(fd)
}

/** Seconds that a command takes. What was written before does not count. */
function time(command, args, target) {
  rmSync(target, { force: true })
  must('sync')
  const start = process.hrtime.bigint()
  must(command, ...args)
  return Number(process.hrtime.bigint() - start) / 1e9
}

function measure(from, to, compressed) {
  const source = join(folder, `source.${from}`)
  const target = join(folder, `target.${to}`)
  const options = compressed ? ['-c', '-o', `compression_type=${compressed}`] : []
  const force = to === 'vhd' ? ['-o', 'force_size=on'] : []
  const qemu = ['convert', '-f', QEMU_FORMAT[from], '-O', QEMU_FORMAT[to], ...force, ...options, source, target]
  const contenders = {
    vdiskfs: [process.execPath, [BIN, 'convert', '-f', from, '-O', to, ...options, source, target]],
    qemu: ['qemu-img', qemu],
    'qemu, flushed': ['qemu-img', ['convert', '-t', 'writeback', ...qemu.slice(1)]],
  }
  const seconds = Object.fromEntries(Object.keys(contenders).map((name) => [name, []]))
  for (let round = 0; round < rounds; round++)
    for (const [name, [command, args]] of Object.entries(contenders)) seconds[name].push(time(command, args, target))
  rmSync(target, { force: true })
  const medians = Object.fromEntries(Object.entries(seconds).map(([name, list]) => [name, median(list)]))
  return { from, to, compressed, ...medians, ratio: medians['qemu, flushed'] / medians.vdiskfs }
}

function known() {
  const help = vdiskfs('create', '--help')
  return Object.keys(QEMU_FORMAT).filter((format) => help.includes(`Format ${format}`))
}

const formats = known()
const pairs = formats.flatMap((from) => formats.flatMap((to) => (from === to && from !== 'raw' ? [] : [[from, to]])))
if (formats.includes('qcow2')) pairs.push(['raw', 'qcow2', 'zlib'], ['raw', 'qcow2', 'zstd'])
const wanted = pairs.filter((pair) => !values.only || new RegExp(`^(${values.only})$`).test(pair.join(':')))
makeDisk(join(folder, 'source.raw'))
for (const format of new Set(wanted.map(([from]) => from))) {
  if (format === 'raw') continue
  must('qemu-img', 'convert', '-O', QEMU_FORMAT[format], join(folder, 'source.raw'), join(folder, `source.${format}`))
}
const results = []
if (!values.json) console.log('from       to              vdiskfs     qemu  qemu, flushed    ratio')
for (const [from, to, compressed] of wanted) {
  const result = measure(from, to, compressed)
  results.push(result)
  if (values.json) continue
  const cell = (name, width) => result[name].toFixed(2).padStart(width)
  const target = compressed ? `${to} ${compressed}` : to
  console.log(
    `${from.padEnd(11)}${target.padEnd(14)}${cell('vdiskfs', 9)}${cell('qemu', 9)}${cell('qemu, flushed', 15)}${cell('ratio', 9)}`,
  )
}
if (values.json) console.log(JSON.stringify(results, undefined, 2))
