/** fio with verification over disk.raw, and over ext4 and xfs on loop devices, at once, while the servers are watched. */

import { type ChildProcess, spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { attachLoop, mountDevice, mountImage, type TestMount } from '../support/mounts.js'
import { must, run, vdiskfsMust } from '../support/run.js'
import { atEnd, type TestCase, temporaryFolder } from '../support/temp.js'

const SAMPLE_MS = 1000
/** Each in a part of its own, so that one's writes are not what another verifies. */
const RAW_JOBS = [
  ['sectors', '--rw=randwrite --bs=512 --size=2M --offset=0 --direct=1'],
  ['odd', '--rw=randwrite --bs=24k --size=24M --offset=16M --direct=1'],
  ['large', '--rw=write --bs=1M --size=64M --offset=64M --direct=1'],
  ['deep', '--rw=randwrite --bs=4k --size=16M --offset=160M --direct=1 --ioengine=libaio --iodepth=16'],
  ['buffered', '--rw=write --bs=4k --size=32M --offset=192M --fsync=256'],
] as const
const FILE_JOBS = [
  ['random', '--rw=randwrite --bs=4k --size=24M --fsync=64'],
  ['stream', '--rw=write --bs=256k --size=48M --end_fsync=1'],
] as const

export interface Sample {
  readonly rssMiB: number
  readonly threads: number
  readonly descriptors: number
}

export interface LoadResult {
  readonly rounds: number
  /** One row of samples for each server. */
  readonly samples: readonly (readonly Sample[])[]
}

function sample(pid: number): Sample {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)![1])
  return {
    rssMiB: Math.round(field('VmRSS') / 1024),
    threads: field('Threads'),
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
  }
}

function fio(t: TestCase, cwd: string, jobs: readonly (readonly [string, string])[], target: readonly string[]) {
  const args = jobs.flatMap(([name, words]) => [`--name=${name}`, ...target, ...words.split(' ')])
  const common = [
    '--randrepeat=0',
    '--verify=crc32c',
    '--verify_fatal=1',
    '--output=/dev/null',
    '--allow_file_create=1',
  ]
  const child: ChildProcess = spawn('fio', [...common, ...args], { cwd, stdio: ['ignore', 'ignore', 'pipe'] })
  atEnd(t, () => child.kill('SIGKILL'))
  let err = ''
  child.stderr!.on('data', (text) => {
    err += text
  })
  return new Promise<void>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code) => (code === 0 ? resolve() : reject(new Error(`fio ended with ${code}: ${err}`))))
  })
}

/** @throws where fio finds something else than it wrote, or a file system is not clean at the end */
export async function load(t: TestCase, format: string, seconds: number): Promise<LoadResult> {
  const folder = temporaryFolder(t)
  const mounts: TestMount[] = ['raw', 'ext4', 'xfs'].map((name) => {
    const image = join(folder, `${name}.${format}`)
    vdiskfsMust(['create', '-q', '-f', format, image, '384M'])
    return mountImage(t, image, ['--format', format])
  })
  const [raw, ext4, xfs] = mounts as [TestMount, TestMount, TestMount]
  const devices = [attachLoop(t, ext4.raw), attachLoop(t, xfs.raw)] as const
  must('mkfs.ext4', ['-q', devices[0]])
  must('mkfs.xfs', ['-q', devices[1]])
  const systems = devices.map((device) => mountDevice(t, device))
  const samples: Sample[][] = mounts.map(() => [])
  const look = () => {
    for (const [i, { pid }] of mounts.entries()) samples[i]!.push(sample(pid))
  }
  const timer = setInterval(look, SAMPLE_MS)
  const end = Date.now() + seconds * 1000
  let rounds = 0
  try {
    while (rounds === 0 || Date.now() < end) {
      await Promise.all([
        fio(t, folder, RAW_JOBS, [`--filename=${raw.raw}`]),
        ...systems.map((system) => fio(t, folder, FILE_JOBS, [`--directory=${system}`])),
      ])
      rounds++
    }
  } finally {
    clearInterval(timer)
  }
  look()
  for (const system of systems) must('umount', [system])
  for (const [device, check] of [
    [devices[0], ['fsck.ext4', '-fn']],
    [devices[1], ['xfs_repair', '-n']],
  ] as const) {
    const result = run(check[0], [check[1], device])
    if (result.code !== 0) throw new Error(`${check[0]} ended with ${result.code}: ${result.out}${result.err}`)
    must('losetup', ['-d', device])
  }
  for (const mount of mounts) mount.umount()
  return { rounds, samples }
}
