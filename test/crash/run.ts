// As many crash states as one likes, with other seeds than the tests': node build/test/crash/run.js [--states N] [--seed S]

import { parseArgs } from 'node:util'
import { variants } from '../model/variants.js'
import { checkGoingOn, checkState, checkWithQemu, describe, record, statesOf } from './scenario.js'

const { values } = parseArgs({ options: { states: { type: 'string' }, seed: { type: 'string' } } })
const wanted = Number(values.states ?? 100_000)
let seed = Number(values.seed ?? 1000)
let states = 0
let failures = 0

while (states < wanted) {
  for (const variant of variants) {
    const recorded = record(variant, seed, 80)
    let own = 0
    for (const state of statesOf(recorded, 400)) {
      const wrong =
        checkState(recorded, state) ??
        (own % 10 === 0 ? checkGoingOn(recorded, state) : undefined) ??
        (own % 200 === 0 ? checkWithQemu(recorded, state) : undefined)
      own++
      states++
      if (wrong === undefined) continue
      console.log(`${wrong}\n${describe(recorded, state)}`)
      failures++
      break
    }
  }
  console.log(`${states} states, ${failures} failed scenarios, seed ${seed++}`)
}
process.exitCode = failures === 0 ? 0 : 1
