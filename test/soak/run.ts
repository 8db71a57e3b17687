// The long forms: scripts/soak [--format F] [--seconds N] [--rounds N] [--mounts N]

import { formats } from '../../lib/formats/registry.js'
import { campaignOptions } from '../support/options.js'
import type { TestCase } from '../support/temp.js'
import { kills } from './kills.js'
import { load } from './load.js'
import { manyMounts } from './many.js'

const values = campaignOptions({
  format: { type: 'string' },
  seconds: { type: 'string', default: '600' },
  rounds: { type: 'string', default: '50' },
  mounts: { type: 'string', default: '50' },
})

/** Interrupted, it leaves nothing behind either. */
const SIGNALS = ['SIGINT', 'SIGTERM'] as const

/** Runs something with a place for its ends, the newest of which comes first. */
async function during<T>(work: (t: TestCase) => Promise<T>): Promise<T> {
  const ends: (() => unknown)[] = []
  const stop = async () => {
    for (const end of ends.splice(0).reverse()) await end()
    process.exit(1)
  }
  for (const signal of SIGNALS) process.once(signal, stop)
  try {
    return await work({
      teardown: (end) => ends.push(end),
      fail: (message) => console.error(message),
    })
  } finally {
    for (const end of ends.splice(0).reverse()) await end()
    for (const signal of SIGNALS) process.off(signal, stop)
  }
}

const names = values.format === undefined ? formats.map(({ name }) => name) : [values.format]
if (Number(values.seconds) > 0) {
  const format = values.format ?? 'qcow2'
  const { rounds, samples } = await during((t) => load(t, format, Number(values.seconds)))
  console.log(`${format}: ${rounds} rounds of verified load in ${values.seconds} s`)
  samples.forEach((own, i) => {
    for (const part of [0.1, 0.5, 1]) {
      const { rssMiB, threads, descriptors } = own[Math.floor((own.length - 1) * part)]!
      const when = `after ${100 * part} %`
      console.log(
        `  ${['disk.raw', 'ext4', 'xfs'][i]} ${when}: ${rssMiB} MiB, ${threads} threads, ${descriptors} descriptors`,
      )
    }
  })
}
if (Number(values.mounts) > 0) {
  await during((t) => manyMounts(t, Number(values.mounts)))
  console.log(`${values.mounts} mounts at once`)
}
for (const format of Number(values.rounds) > 0 ? names : []) {
  const { rounds, flushed } = await during((t) => kills(t, format, Number(values.rounds)))
  console.log(`${format}: killed ${rounds} times, ${flushed} flushed writes, none lost`)
}
