// As many crash states as one likes, with other seeds than the tests':
// scripts/crash [--format F] [--states N] [--seed S]

import { parseArgs } from 'node:util'
import { formats } from '../../lib/formats/registry.js'
import { type Variant, variants } from '../model/variants.js'
import { checkOperation, recordOperations } from './operations.js'
import { checkGoingOn, checkState, checkWithQemu, describe, record, statesOf } from './scenario.js'
import { operationStates } from './states.js'

const OPERATIONS = 80
const LOSSES = 400
/** Every so many states: going on from there, and QEMU's opinion. */
const GOING_ON = 10
const QEMU = 200

const { values } = parseArgs({
  options: {
    format: { type: 'string' },
    states: { type: 'string', default: '100000' },
    seed: { type: 'string', default: '1000' },
  },
})

/** States of a life of writes, and of the operations behind another. @returns how many, and what was wrong */
function* wrongs(variant: Variant, seed: number): Generator<string | undefined> {
  const recorded = record(variant, seed, OPERATIONS)
  let own = 0
  for (const state of statesOf(recorded, LOSSES)) {
    const wrong =
      checkState(recorded, state) ??
      (own % GOING_ON === 0 ? checkGoingOn(recorded, state) : undefined) ??
      (own % QEMU === 0 ? checkWithQemu(recorded, state) : undefined)
    own++
    yield wrong && `${wrong}\n${describe(recorded, state)}`
  }
  for (const run of recordOperations(variant, seed))
    for (const { state, files } of operationStates(run, LOSSES / 4)) {
      const wrong = checkOperation(run, files)
      yield wrong && `${variant.name}, seed ${seed}, ${run.name}, state ${JSON.stringify(state)}: ${wrong}`
    }
}

let failed = 0
for (const { name } of formats) {
  if (values.format !== undefined && values.format !== name) continue
  const own = variants.filter(({ format }) => format.name === name)
  const start = Date.now()
  let seed = Number(values.seed)
  let states = 0
  let failures = 0
  for (; states < Number(values.states); seed++)
    for (const variant of own)
      for (const wrong of wrongs(variant, seed)) {
        states++
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
