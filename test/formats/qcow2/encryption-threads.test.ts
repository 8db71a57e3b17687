/** Threads that write parts of the same encrypted sectors: a sector can only be written whole, and none may undo another's. */

import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { openImage } from '../../../lib/image/open.js'
import { temporaryFolder } from '../../support/temp.js'
import type { QuarterSetting } from './fixtures/quarters.js'
import { create, MiB, qemuIo, secret } from './luks-images.js'

const ROUNDS = 3000

t.test('four threads, each with a quarter of the same sectors', async (t) => {
  const path = join(temporaryFolder(t), 'image.qcow2')
  create(path, MiB, ['encrypt.format=aes'])
  const image = openImage(path, { secret, threads: 5 })
  const run = (workerData: QuarterSetting) => {
    const worker = new Worker(new URL('./fixtures/quarters.js', import.meta.url), { workerData })
    t.teardown(() => worker.terminate())
    return new Promise<number>((resolve, reject) => worker.on('error', reject).on('exit', resolve))
  }
  const handle = image.handle()
  try {
    t.same(await Promise.all([1, 2, 3, 4].map((thread) => run({ handle, thread, rounds: ROUNDS }))), [0, 0, 0, 0])
  } finally {
    image.close()
  }
  qemuIo(path, `read -P ${ROUNDS % 256} 0 2048`, 'read -P 0 2048 4096')
})
