import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import t, { type Test } from 'tap'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import { must } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'
import { createFiles, enlarge, open } from './files.js'
import type { WorkerSetting } from './fixtures/worker.js'
import { SECTOR, stampFault } from './stamps.js'
import { forQemu, type Variant, variants } from './variants.js'

const SIZE = 6 * 2 ** 20
const THREADS = 5
const SEED = 4

function run(t: Test, setting: WorkerSetting): Promise<number> {
  const worker = new Worker(new URL('./fixtures/worker.js', import.meta.url), { workerData: setting })
  t.teardown(() => worker.terminate())
  return new Promise((resolve, reject) => worker.on('error', reject).on('exit', resolve))
}

/** Lets all threads work. @returns what the disk holds then, through the cache and when it is opened again */
async function work(t: Test, variant: Variant, job: WorkerSetting['job'], steps: number) {
  const folder = temporaryFolder(t)
  const [path, disk] = createFiles(folder, variant, randomFrom(SEED))
  const image = open(path, variant, { threads: THREADS, cacheSize: 2 ** 20 })
  if (job === 'shared') image.zero(0, image.size, true)
  const model = new Uint8Array(new SharedArrayBuffer(disk.length))
  model.set(disk)
  const progress = new SharedArrayBuffer(4 * THREADS)
  const common = { handle: image.handle(), threads: THREADS, job, seed: SEED, steps, model: model.buffer, progress }
  const codes = await Promise.all([1, 2, 3, 4].map((thread) => run(t, { ...common, thread })))
  // What a dead one held, nobody could have: to go on would be to wait for ever.
  if (codes.some((code) => code !== 0)) throw new Error(`seed ${SEED}: workers ended with ${codes}`)
  const before = new Uint8Array(image.size)
  image.read(before, 0, image.size, 0)
  image.close()
  const again = open(path, variant, { readOnly: true })
  const after = new Uint8Array(again.size)
  again.read(after, 0, again.size, 0)
  again.close()
  return { folder, path, model, before, after, progress: new Int32Array(progress) }
}

for (const small of variants) {
  const variant = enlarge(small, SIZE)

  t.test(`four threads, each with its own part of ${variant.name}`, async (t) => {
    const { folder, path, model, before, after } = await work(t, variant, 'own', 300)
    t.equal(Buffer.compare(before, model), 0, 'all of it at the end')
    t.equal(Buffer.compare(after, model), 0, 'all of it when it was opened again')
    const known = forQemu(variant, path)
    if (!known) return
    must('qemu-img', ['convert', '-O', 'raw', ...known, join(folder, 'qemu.raw')])
    const raw = open(join(folder, 'qemu.raw'), variants.find(({ format }) => format.name === 'raw')!)
    const theirs = new Uint8Array(raw.size)
    raw.read(theirs, 0, raw.size, 0)
    raw.close()
    t.equal(Buffer.compare(theirs, model), 0, 'what QEMU reads')
  })

  t.test(`four threads that share all of ${variant.name}`, async (t) => {
    const { before, after, progress } = await work(t, variant, 'shared', 300)
    t.equal(Buffer.compare(before, after), 0, 'the same when it was opened again')
    const words = new Int32Array(after.buffer)
    const perSector = SECTOR / 4
    let wrong: string | undefined
    for (let sector = 0; sector < after.length / SECTOR; sector++) {
      const whole = words.subarray(sector * perSector, (sector + 1) * perSector)
      if (whole.some((word) => word !== whole[0])) wrong ??= `sector ${sector} is of two writes`
      wrong ??= stampFault(whole[0]!, sector, (thread) => progress[thread]!)
    }
    t.equal(wrong, undefined)
  })
}
