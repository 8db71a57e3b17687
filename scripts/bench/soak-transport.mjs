// Ten minutes of fio with verification over a mount, while the server's memory and threads are sampled: what grows is
// a leak, of ours or of a library's. Needs root, /dev/fuse, fio and the built program.
//   soak-transport.mjs [--transport fuse-native] [--format vhd] [--seconds 600] [--size 1G] [--tmp DIR]

import { spawn } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { mount, serverOf, statusOf, temporaryFolder, umount, vdiskfs } from './lib.mjs'

const { values } = parseArgs({
  options: {
    transport: { type: 'string', default: 'fuse-native' },
    format: { type: 'string', default: 'vhd' },
    seconds: { type: 'string', default: '600' },
    size: { type: 'string', default: '1G' },
    tmp: { type: 'string', default: tmpdir() },
  },
})
const SAMPLE_MS = 5000

/**
 * Each in a part of its own of the disk, so that one's writes are not what another verifies. (The mapped one is at 0:
 * fio 3.33 does not write where --offset says when it maps.)
 */
const JOBS = [
  ['sectors', '--rw=randwrite --bs=512 --size=8M --offset=448M --direct=1 --ioengine=psync'],
  ['odd', '--rw=randwrite --bs=24k --size=96M --offset=16M --direct=1 --ioengine=psync'],
  ['large', '--rw=write --bs=1M --size=128M --offset=128M --direct=1 --ioengine=psync'],
  ['deep', '--rw=randwrite --bs=4k --size=32M --offset=256M --direct=1 --ioengine=libaio --iodepth=16'],
  ['buffered', '--rw=write --bs=4k --size=64M --offset=320M --fsync=256 --ioengine=psync'],
  ['mapped', '--rw=randwrite --bs=4k --size=16M --offset=0 --ioengine=mmap'],
  ['reader', '--rw=randread --bs=4k --size=64M --offset=480M --direct=1 --ioengine=psync --numjobs=4', false],
]

const sample = (pid) => ({ rssMiB: Math.round(statusOf(pid, 'VmRSS') / 1024), threads: statusOf(pid, 'Threads') })

/** All jobs once, at the same time. */
function round(raw) {
  const jobs = JOBS.flatMap(([name, args, verify = true]) => [
    `--name=${name}`,
    `--filename=${raw}`,
    ...args.split(' '),
    ...(verify ? ['--verify=crc32c', '--verify_fatal=1'] : []),
  ])
  return new Promise((resolve, reject) => {
    const child = spawn('fio', ['--randrepeat=0', '--allow_file_create=0', '--output=/dev/null', ...jobs], {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let err = ''
    child.stderr.on('data', (text) => {
      err += text
    })
    const stop = () => child.kill()
    process.on('exit', stop)
    child.on('error', reject)
    child.on('close', (code) => {
      process.off('exit', stop)
      if (code === 0) resolve()
      else reject(new Error(`fio ended with ${code}: ${err}`))
    })
  })
}

const folder = temporaryFolder(values.tmp)
const image = join(folder, `disk.${values.format}`)
const mountpoint = join(folder, 'mnt')
vdiskfs('create', '-q', '-f', values.format, image, values.size)
mount(image, mountpoint, '--format', values.format, '--transport', values.transport)
const pid = serverOf(mountpoint)
const samples = [sample(pid)]
const timer = setInterval(() => samples.push(sample(pid)), SAMPLE_MS)
const start = Date.now()
let rounds = 0
try {
  do {
    await round(join(mountpoint, 'disk.raw'))
    rounds++
  } while (Date.now() - start < Number(values.seconds) * 1000)
} finally {
  clearInterval(timer)
}
samples.push(sample(pid))
const most = (name) => Math.max(...samples.map((s) => s[name]))
const at = (part) => samples[Math.floor((samples.length - 1) * part)]
console.log(
  `${values.transport}, ${values.format}: ${rounds} rounds in ${Math.round((Date.now() - start) / 1000)} s, no error`,
)
for (const part of [0, 0.1, 0.25, 0.5, 0.75, 1])
  console.log(
    `  after ${String(part * 100).padStart(3)} %: ${at(part).rssMiB} MiB resident, ${at(part).threads} threads`,
  )
console.log(`  at most ${most('rssMiB')} MiB, ${most('threads')} threads`)
umount(mountpoint)
