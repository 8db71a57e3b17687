// As many crash states as one likes, with other seeds than the tests':
// scripts/crash [--format F] [--states N] [--seed S]

import { formats } from '../../lib/formats/registry.js'
import { variants } from '../model/variants.js'
import { campaignOptions } from '../support/options.js'
import { kinds } from './families.js'
import { type Plan, sweepChains, sweepLives, sweepOperations } from './sweep.js'

const PLAN: Plan = {
  operations: 80,
  losses: { life: 400, operation: 100, chain: 60 },
  moments: 200,
  goingOn: 10,
  qemu: 200,
  long: true,
}

/** Every so many states it says how far it is. */
const TOLD = 1000

const values = campaignOptions({
  format: { type: 'string' },
  states: { type: 'string', default: '100000' },
  seed: { type: 'string', default: '1000' },
})

/** Every sweep of a format, each to be run to its end or its first failure. */
function* sweeps(format: string, seed: number) {
  for (const variant of variants.filter((one) => one.format.name === format)) {
    yield sweepLives(variant, seed, PLAN)
    yield sweepOperations(variant, seed, PLAN)
  }
  for (const kind of kinds.filter((one) => one.format === format)) yield sweepChains(kind, seed, PLAN)
}

let failed = 0
for (const { name } of formats) {
  if (values.format !== undefined && values.format !== name) continue
  const start = Date.now()
  let seed = Number(values.seed)
  let states = 0
  let failures = 0
  // Whole seeds: each has all kinds of states.
  for (; states < Number(values.states); seed++)
    for (const sweep of sweeps(name, seed))
      for (const wrong of sweep) {
        states++
        if (states % TOLD === 0) process.stderr.write(`${name}: ${states} states so far\n`)
        if (wrong === undefined) continue
        console.log(wrong)
        failures++
        break
      }
  const seconds = Math.round((Date.now() - start) / 1000)
  console.log(`${name}: ${states} states, ${failures} failures, seeds ${values.seed} to ${seed - 1}, ${seconds} s`)
  failed += failures
}
process.exitCode = failed === 0 ? 0 : 1
