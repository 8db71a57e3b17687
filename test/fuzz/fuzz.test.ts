import t from 'tap'
import { fuzz } from './fuzz.js'
import { FUZZED } from './seeds.js'

/** For each format: some seconds on a slow machine. scripts/fuzz tries more. */
const INPUTS = 800
const SEED = 20
const REPAIRED = 200

const REACHED = ['open', 'read', 'check', 'write', 'repair all', 'open files', 'check files']

for (const format of FUZZED)
  t.test(`damaged images of ${format}`, async (t) => {
    const { finds, counts } = await fuzz(format, { inputs: INPUTS, seed: SEED })
    for (const find of finds.slice(0, 5)) t.fail(find)
    t.equal(finds.length, 0)
    const reached = format === 'raw' ? ['open', 'read', 'partitions', 'open files'] : REACHED
    // Most are refused, and not all of them at the door.
    for (const what of reached) t.ok((counts[what] ?? 0) > INPUTS / 50, `${what}: ${counts[what]}`)
    if (format !== 'raw') t.ok((counts['open refused'] ?? 0) > INPUTS / 20, `refused: ${counts['open refused']}`)
  })

for (const format of FUZZED.filter((name) => name !== 'raw'))
  t.test(`repairs of ${format}`, async (t) => {
    const { finds, counts } = await fuzz(format, { inputs: REPAIRED, seed: SEED, repairs: true })
    for (const find of finds.slice(0, 5)) t.fail(find)
    t.equal(finds.length, 0)
    for (const what of ['could be read', 'clean']) t.ok((counts[what] ?? 0) > REPAIRED / 20, `${what}: ${counts[what]}`)
  })
