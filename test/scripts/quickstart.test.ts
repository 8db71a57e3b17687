// The README's first command, as a new user runs it: it ends well, shows what it promises, and leaves nothing behind,
// also where it is interrupted.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { MiB, parseSize } from '../../lib/util/sizes.js'
import { needsMounts } from '../support/mounts.js'
import { must, run, until } from '../support/run.js'
import { atEnd, type TestCase, temporaryFolder } from '../support/temp.js'

const QUICKSTART = fileURLToPath(new URL('../../../scripts/quickstart', import.meta.url))

t.setTimeout(400_000)

/** Mount points below a folder, the last mounted first. */
function mountsIn(folder: string): string[] {
  const points = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
  return points.filter((point) => point.startsWith(`${folder}/`)).reverse()
}

/** Loop devices on files below a folder. */
function loopsIn(folder: string): string[] {
  const lines = must('losetup', ['--list', '--noheadings', '--output', 'NAME,BACK-FILE']).split('\n')
  return lines.filter((line) => line.includes(`${folder}/`)).map((line) => line.split(' ')[0]!)
}

const leftIn = (folder: string) => [...readdirSync(folder), ...mountsIn(folder), ...loopsIn(folder)]

/** A folder for its files. What it leaves there is taken away with the test. */
function workFolder(t: TestCase): string {
  const folder = temporaryFolder(t)
  atEnd(t, () => {
    const loops = loopsIn(folder)
    for (const point of mountsIn(folder)) run('umount', ['-l', point])
    for (const loop of loops) run('losetup', ['-d', loop])
  })
  return folder
}

t.test('the sample', needsMounts, async (t) => {
  const folder = workFolder(t)
  const { code, out, err } = run(QUICKSTART, [], { env: { TMPDIR: folder } })
  t.equal(code, 0, err)
  const sums = out.match(/^[0-9a-f]{64} {2}files\/data$/gm)
  t.equal(sums?.length, 2, 'the file is read before and after')
  t.equal(sums![0], sums![1])
  t.match(out, /^file format: vhd$/m)
  t.match(out, /^virtual size: 1 GiB/m)
  const sizes = [...out.matchAll(/^(\S+)\tsample\.vhd$/gm)].map((match) => parseSize(match[1]!))
  t.equal(sizes.length, 2)
  t.ok(sizes[0]! >= 64 * MiB, `the image holds the file: ${sizes[0]} bytes`)
  // du rounds up, and the file system has written a little of its own meanwhile.
  t.ok(sizes[1]! <= 16 * MiB, `and gives its space back: ${sizes[1]} bytes are left`)
  t.strictSame(leftIn(folder), [])
})

/**
 * Starts it, ends it by a signal when it has printed `mark`, and returns how it ended: its exit code, or the signal. Who
 * is impatient sends a signal again and again, also while things are being taken away.
 */
async function interruptedAt(mark: string, folder: string): Promise<number | string | null> {
  const child = spawn(QUICKSTART, { env: { ...process.env, TMPDIR: folder }, stdio: ['ignore', 'pipe', 'ignore'] })
  let out = ''
  let impatience: NodeJS.Timeout | undefined
  child.stdout!.on('data', (data) => {
    out += data
    if (out.includes(mark)) impatience ??= setInterval(() => child.kill('SIGTERM'), 5)
  })
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
  clearInterval(impatience)
  return impatience ? (code ?? signal) : `ended before ${mark}`
}

for (const mark of ['$ vdiskfs list', '$ mount /dev/loop', '$ fstrim'])
  t.test(`interrupted at ${mark}`, needsMounts, async (t) => {
    const folder = workFolder(t)
    t.equal(await interruptedAt(mark, folder), 143)
    // A file system that was busy lets go of its loop device a little later.
    await until('nothing is left', () => leftIn(folder).length === 0)
  })

t.test('it says how it is used', async (t) => {
  const { code, err } = run(QUICKSTART, ['one'])
  t.equal(code, 2)
  t.equal(err, 'usage: scripts/quickstart [IMAGE MOUNTPOINT]\n')
})
