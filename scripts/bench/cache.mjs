// What a lookup in the metadata cache costs: nanoseconds for a hit, bare, with the shared lock taken around each, and
// with several workers that all do that all the time.
//   npm run bench:cache -- [--json] [WORKERS]

import { availableParallelism } from 'node:os'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { Metadata } from '../../build/lib/metadata/metadata.js'
import { Region } from '../../build/lib/metadata/region.js'
import { makeShared } from '../../build/lib/metadata/shared.js'

/** A table of 4-byte entries, 16 MiB of it: half of the default cache. */
const TABLE_BYTES = 16 * 2 ** 20
const CACHE_BYTES = 32 * 2 ** 20
const PAGE = 4096
const ENTRY = 4
const ENTRIES = TABLE_BYTES / ENTRY
const LOOKUPS = 4_000_000
const ROUNDS = 5
/** From one lookup to the next: the next entry, or one that is nowhere near (odd, so that all get their turn). */
const NEXT = 1
const FAR = 1_618_033

/** A file whose words are their own numbers, so that a wrong lookup shows. */
const storage = {
  path: 'table',
  readOnly: true,
  read(buffer, at, length, offset) {
    const view = new DataView(buffer.buffer, buffer.byteOffset + at)
    for (let i = 0; i < length; i += ENTRY) view.setUint32(i, (offset + i) / ENTRY)
    return length
  },
}

function attach(shape, thread) {
  const file = { index: 0, storage }
  const metadata = new Metadata(shape, thread, [file], [], () => undefined)
  return { lock: metadata.lock, metadata, region: new Region(metadata, file, 0, TABLE_BYTES, 0) }
}

/** Nanoseconds a lookup, over one round. */
function time(lookup, step) {
  const began = process.hrtime.bigint()
  let entry = 0
  for (let i = 0; i < LOOKUPS; i++) {
    if (lookup(entry * ENTRY) !== entry) throw new Error(`entry ${entry} is wrong`)
    entry = (entry + step) % ENTRIES
  }
  return Number(process.hrtime.bigint() - began) / LOOKUPS
}

/** The median of several rounds, after one that only warms up. */
function median(measure) {
  measure()
  const rounds = Array.from({ length: ROUNDS }, measure).sort((a, b) => a - b)
  return rounds[ROUNDS >> 1]
}

/** As the engine does it: the lock is held for the lookup alone. */
const lockedLookup =
  ({ lock, region }) =>
  (offset) => {
    lock.acquireShared()
    try {
      return region.u32be(offset)
    } finally {
      lock.releaseShared()
    }
  }

/** Waits until all workers are here, so that every round of one meets a round of the others. */
function rendezvous(words, workers) {
  const turn = Atomics.load(words, 1)
  if (Atomics.add(words, 0, 1) === workers - 1) {
    Atomics.store(words, 0, 0)
    Atomics.add(words, 1, 1)
    Atomics.notify(words, 1)
  } else while (Atomics.load(words, 1) === turn) Atomics.wait(words, 1, turn)
}

async function contended(shape, workers, step) {
  const words = new Int32Array(new SharedArrayBuffer(8))
  const times = await Promise.all(
    Array.from({ length: workers }, (_, i) => {
      const worker = new Worker(new URL(import.meta.url), {
        workerData: { shape, thread: i + 1, words, workers, step },
      })
      return new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
    }),
  )
  return times.reduce((a, b) => a + b) / workers
}

function work({ shape, thread, words, workers, step }) {
  const lookup = lockedLookup(attach(shape, thread))
  return median(() => {
    rendezvous(words, workers)
    return time(lookup, step)
  })
}

async function main() {
  const workers = Number(process.argv.slice(2).find((word) => /^\d+$/.test(word)) ?? 2)
  const shape = makeShared({ threads: workers + 1, cacheSize: CACHE_BYTES, files: 1, stateNumbers: 0 })
  const here = attach(shape, 0)
  const { metadata, region } = here
  metadata.cache.clear()
  for (let offset = 0; offset < TABLE_BYTES; offset += PAGE) metadata.shared(() => region.u32be(offset))

  const bare = (offset) => region.u32be(offset)
  const result = {}
  for (const [entry, step] of Object.entries({ 'the next entry': NEXT, 'any entry': FAR })) {
    result[`${entry}, no lock`] = median(() => time(bare, step))
    result[`${entry}, shared lock`] = median(() => time(lockedLookup(here), step))
    result[`${entry}, shared lock, ${workers} workers at it`] = await contended(shape, workers, step)
  }
  if (process.argv.includes('--json')) console.log(JSON.stringify(result, undefined, 2))
  else {
    console.log(
      `Nanoseconds for a hit in the metadata cache (${availableParallelism()} cores, Node ${process.version}):`,
    )
    for (const [name, ns] of Object.entries(result)) console.log(`  ${name.padEnd(44)}${ns.toFixed(0).padStart(6)}`)
  }
}

if (isMainThread) await main()
else parentPort.postMessage(work(workerData))
