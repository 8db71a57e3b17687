/** The library in several worker threads of a program at once, each with images of its own and one that all read. */

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { check, compare, createImage, openImage } from '../../lib/index.js'
import { temporaryFolder } from '../support/temp.js'

t.setTimeout(300_000)

const MiB = 1024 * 1024
const THREADS = 4

/** Copies the image that all share, writes a child of it, commits that into the copy, and tells what it read. */
const PROGRAM = `
const { parentPort, workerData: { library, folder, n } } = require('node:worker_threads')
import(library).then(async ({ commit, convert, createImage, openImage, rebase }) => {
  const at = (name) => folder + '/' + name
  const copy = at('copy' + n + '.vhdx')
  await convert(at('shared.qcow2'), copy, { format: 'vhdx', threads: 2 })
  const disks = [openImage(at('shared.qcow2'), { readOnly: true }), openImage(copy, { readOnly: true })]
  const read = disks.map((disk) => disk.read(2 * 1048576 * n, 1)[0])
  for (const disk of disks) disk.close()
  createImage(at('child' + n + '.vhdx'), { format: 'vhdx', backing: copy })
  const child = openImage(at('child' + n + '.vhdx'))
  child.write(Buffer.alloc(1048576, 100 + n), 1048576)
  child.close()
  commit(at('child' + n + '.vhdx'))
  parentPort.postMessage(read)
})
`

function runWorker(folder: string, n: number): Promise<unknown> {
  const library = new URL('../../lib/index.js', import.meta.url).href
  const worker = new Worker(PROGRAM, { eval: true, workerData: { library, folder, n } })
  return new Promise((resolve, reject) => {
    let told: unknown
    worker.on('message', (message) => {
      told = message
    })
    worker.on('error', reject)
    worker.on('exit', (code) => (code === 0 ? resolve(told) : reject(new Error(`exit ${code}`))))
  })
}

t.test('several threads at once', async (t) => {
  const folder = temporaryFolder(t)
  const at = (name: string) => join(folder, name)
  createImage(at('shared.qcow2'), { format: 'qcow2', size: 32 * MiB })
  const shared = openImage(at('shared.qcow2'))
  for (let i = 0; i < 16; i++) shared.write(Buffer.alloc(MiB, i + 1), 2 * i * MiB)
  shared.close()
  const read = await Promise.all(Array.from({ length: THREADS }, (_, n) => runWorker(folder, n)))
  t.same(
    read,
    Array.from({ length: THREADS }, (_, n) => [n + 1, n + 1]),
  )
  openImage(at('shared.qcow2')).close()
  for (let n = 0; n < THREADS; n++) {
    const copy = at(`copy${n}.vhdx`)
    t.same(check(copy).findings, [])
    t.same(compare(at('shared.qcow2'), copy).difference, { what: 'content', offset: MiB })
    const disk = openImage(copy, { readOnly: true })
    t.ok(disk.read(MiB, MiB).every((byte) => byte === 100 + n))
    disk.close()
  }
  t.same(
    readdirSync(folder).filter((name) => name.startsWith('.')),
    [],
    'nothing is left half made',
  )
})
