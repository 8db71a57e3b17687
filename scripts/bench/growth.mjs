// What a larger disk costs, and a fragmented one. The same 16384 places of 4 KiB are read at random, spread over disks of
// 1 GiB, 1 TiB and 64 TiB (where the format goes there), in turn, with everything in the page cache; and a disk whose
// blocks were allocated in random order is read from begin to end beside one whose blocks lie in order.
//   npm run bench:growth -- [--formats vhdx,qcow2,…] [--seconds N] [--rounds N] [--cache-size SIZE] [--dir DIR] [--json]

import { closeSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { fio, median, mount, temporaryFolder, umount, vdiskfs } from './lib.mjs'

const GiB = 2 ** 30
const PLACES = 16384
const PLACE = 4096
/** Small blocks, so that the places do not take the whole disk; none where a format has them small already. */
const FORMATS = {
  vhd: { sizes: [1, 1024], options: ['-o', 'block_size=512k'] },
  vhdx: { sizes: [1, 1024, 65536], options: ['-o', 'block_size=1M'] },
  qcow2: { sizes: [1, 1024, 65536], options: [] },
  parallels: { sizes: [1, 1024], options: ['-o', 'cluster_size=64k'] },
}
/** Of the disk that is read from begin to end, in blocks that every format has. */
const SEQUENCE = 512
const BLOCK = 2 ** 20

const { values } = parseArgs({
  options: {
    formats: { type: 'string', default: 'vhdx,qcow2' },
    seconds: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '5' },
    'cache-size': { type: 'string', default: '32M' },
    dir: { type: 'string', default: tmpdir() },
    json: { type: 'boolean', default: false },
  },
})
const folder = temporaryFolder(values.dir)
const mountpoint = join(folder, 'mnt')

function withMount(image, work) {
  mount(image, mountpoint, '--cache-size', values['cache-size'])
  try {
    return work(join(mountpoint, 'disk.raw'))
  } finally {
    umount(mountpoint)
  }
}

/** What reading reaches, a job for some time. */
const reading = (file, ...how) => fio(file, '--direct=1', '--time_based', `--runtime=${values.seconds}`, ...how).read

/** An image with data at as many places, evenly over the disk; or at given offsets, in their order. */
function makeImage(name, format, size, offsets, bytes) {
  const image = join(folder, `${name}.${format}`)
  vdiskfs('create', '-q', '-f', format, ...FORMATS[format].options, image, `${size}`)
  withMount(image, (file) => {
    const fd = openSync(file, 'r+')
    const data = Buffer.alloc(bytes, 'data')
    for (const offset of offsets) writeSync(fd, data, 0, bytes, offset)
    closeSync(fd)
  })
  return image
}

/** Each image's median of what `read` reaches with it, in turn, and how that compares to the first. */
function inTurn(images, read) {
  const round = () => images.map((image, i) => withMount(image, (file) => read(file, i)))
  const rounds = Array.from({ length: Number(values.rounds) }, round)
  for (const image of images) rmSync(image)
  return images.map((_, i) => ({
    figure: median(rounds.map((figures) => figures[i])),
    ratio: median(rounds.map((figures) => figures[i] / figures[0])),
  }))
}

function sizesOf(format) {
  const { sizes } = FORMATS[format]
  const steps = sizes.map((gib) => (gib * GiB) / PLACES)
  const images = sizes.map((gib, i) => {
    const offsets = Array.from({ length: PLACES }, (_, place) => place * steps[i])
    return makeImage(gib, format, gib * GiB, offsets, PLACE)
  })
  const how = ['--rw=randread', '--bs=4k', '--norandommap', '--random_generator=tausworthe64', '--ioengine=psync']
  const results = inTurn(images, (file, i) => reading(file, ...how, `--blockalign=${steps[i]}`).iops)
  return sizes.map((gib, i) => ({ format, what: `random read 4k, ${gib} GiB`, ...results[i], unit: 'op/s' }))
}

/** A Fisher–Yates shuffle by a generator that gives the same each time. */
function shuffled(list) {
  const order = [...list]
  let state = 1
  for (let i = order.length - 1; i > 0; i--) {
    state = (state * 48271) % 0x7fffffff
    const j = state % (i + 1)
    ;[order[i], order[j]] = [order[j], order[i]]
  }
  return order
}

function orders(format) {
  const offsets = Array.from({ length: SEQUENCE }, (_, i) => i * BLOCK)
  const size = SEQUENCE * BLOCK
  const images = [
    makeImage('in-order', format, size, offsets, BLOCK),
    makeImage('shuffled', format, size, shuffled(offsets), BLOCK),
  ]
  const results = inTurn(images, (file) => reading(file, '--rw=read', '--bs=1M', '--ioengine=psync').bw_bytes / 2 ** 20)
  return ['in order', 'in random order'].map((name, i) => ({
    format,
    what: `read 1M, allocated ${name}`,
    ...results[i],
    unit: 'MiB/s',
  }))
}

const results = []
if (!values.json) console.log('format     what                                  figure           beside the first')
for (const format of values.formats.split(','))
  for (const row of [...sizesOf(format), ...orders(format)]) {
    results.push(row)
    const figure = `${row.figure.toFixed(0).padStart(9)} ${row.unit.padEnd(6)}`
    if (!values.json)
      console.log(`${format.padEnd(10)} ${row.what.padEnd(34)} ${figure} ${row.ratio.toFixed(2).padStart(12)}`)
  }
if (values.json) console.log(JSON.stringify(results, undefined, 2))
