// Every operation of the host fails, in every way: scripts/faults [--format F] [--seeds N] [--seed S]

import { formats } from '../../lib/formats/registry.js'
import { variants } from '../model/variants.js'
import { campaignOptions } from '../support/options.js'
import { faultsOf } from './life.js'

const values = campaignOptions({
  format: { type: 'string' },
  seeds: { type: 'string', default: '5' },
  seed: { type: 'string', default: '1000' },
})

let failed = 0
for (const { name } of formats) {
  if (values.format !== undefined && values.format !== name) continue
  const start = Date.now()
  const [first, count] = [Number(values.seed), Number(values.seeds)]
  let lives = 0
  let told = 0
  let failures = 0
  for (const variant of variants.filter(({ format }) => format.name === name))
    for (let seed = first; seed < first + count; seed++) {
      const result = faultsOf(variant, seed)
      lives += result.lives
      told += result.told
      failures += result.failures.length
      for (const failure of result.failures) console.log(failure)
    }
  const seconds = Math.round((Date.now() - start) / 1000)
  const seeds = `seeds ${first} to ${first + count - 1}`
  console.log(`${name}: ${lives} failing operations, ${told} errors told, ${failures} failures, ${seeds}, ${seconds} s`)
  failed += failures
}
process.exitCode = failed === 0 ? 0 : 1
