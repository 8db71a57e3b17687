// Damaged images, as many as one likes: scripts/fuzz [--format F] [--inputs N] [--seed S] [--first N] [--show N] [--repairs]

import { campaignOptions } from '../support/options.js'
import { Campaign } from './campaign.js'
import { fuzz } from './fuzz.js'
import { FUZZED } from './seeds.js'

const values = campaignOptions({
  format: { type: 'string' },
  inputs: { type: 'string', default: '200000' },
  seed: { type: 'string', default: '1' },
  first: { type: 'string', default: '0' },
  show: { type: 'string' },
  repairs: { type: 'boolean', default: false },
})
const { repairs } = values
const seed = Number(values.seed)

if (values.show !== undefined && values.format !== undefined) {
  // One input in this process, for a debugger.
  const campaign = new Campaign(values.format, seed, repairs)
  console.log(campaign.input(Number(values.show)).story)
  console.log(campaign.run(Number(values.show)) ?? 'nothing wrong', campaign.counts)
  campaign.end()
} else {
  let finds = 0
  for (const format of values.format === undefined ? FUZZED : [values.format]) {
    if (repairs && format === 'raw') continue
    const start = Date.now()
    const options = { inputs: Number(values.inputs), seed, first: Number(values.first), repairs }
    const outcome = await fuzz(format, { ...options, found: (what) => console.log(what) })
    finds += outcome.finds.length
    const counts = Object.entries(outcome.counts).map(([name, count]) => `${name} ${count}`)
    const seconds = Math.round((Date.now() - start) / 1000)
    console.log(`${format}: ${outcome.inputs} inputs, ${outcome.finds.length} finds, seed ${seed}, ${seconds} s`)
    console.log(`  ${counts.sort().join(', ')}`)
  }
  process.exitCode = finds === 0 ? 0 : 1
}
