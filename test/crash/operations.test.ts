import t from 'tap'
import { variants } from '../model/variants.js'
import { checkOperation, recordOperations } from './operations.js'
import { operationStates } from './states.js'

const LOSSES = 12
const SEED = 3

for (const variant of variants)
  t.test(`crashes of operations of ${variant.name}`, async (t) => {
    for (const run of recordOperations(variant, SEED, false)) {
      let states = 0
      for (const { state, files } of operationStates(run, LOSSES)) {
        const wrong = checkOperation(run, files)
        states++
        if (wrong === undefined) continue
        t.fail(
          `${run.name}, state ${JSON.stringify(state)}: ${wrong}\n${run.recorder.describe().slice(0, 40).join('\n')}`,
        )
        break
      }
      t.ok(states > LOSSES, `${run.name}: ${states} states`)
    }
  })
