import t from 'tap'
import { variants } from '../model/variants.js'
import { checkGoingOn, checkState, checkWithQemu, describe, record, statesOf } from './scenario.js'

const OPERATIONS = 50
const LOSSES = 200
/** Every so many states: going on from there, and QEMU's opinion. */
const GOING_ON = 12
const QEMU = 100

for (const variant of variants) {
  t.test(`crashes of ${variant.name}`, async (t) => {
    for (const seed of [1, 2]) {
      const recorded = record(variant, seed, OPERATIONS)
      let states = 0
      for (const state of statesOf(recorded, LOSSES)) {
        const wrong =
          checkState(recorded, state) ??
          (states % GOING_ON === 0 ? checkGoingOn(recorded, state) : undefined) ??
          (states % QEMU === 0 ? checkWithQemu(recorded, state) : undefined)
        if (wrong !== undefined) {
          t.fail(`${wrong}\n${describe(recorded, state)}`)
          break
        }
        states++
      }
      t.ok(states > LOSSES, `seed ${seed}: ${states} states`)
    }
  })
}
